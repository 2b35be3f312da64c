"""How does a result look on a page, and in a notebook? Its sections as HTML."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from llm2nifti.tell import wording
from llm2nifti.tell.section import Plot, Section, Viewer

Embed = Callable[[Plot | Viewer], str]
_CODE = re.compile(r"`([^`]+)`")


def as_html(*sections: Section, embed: Embed | None = None, level: int = 2) -> str:
    """HTML of sections; everything from the data is escaped.

    Parameters
    ----------
    *sections : Section
        What to tell.
    embed : callable, optional
        Gives the HTML of a figure or viewer; by default figures are PNG inside the page, and
        viewers are left out.
    level : int, default=2
        Level of the headings.

    Examples
    --------
    >>> "<h2>What came out</h2>" in as_html(Section("x", "What came out", ["All is well."]))
    True
    """
    return render(
        Path(__file__).parent,
        "sections.html.j2",
        sections=sections,
        embed=embed or png,
        level=level,
    )


def render(folder: Path, template: str, **values: object) -> str:
    """Fill in a template; everything from the data is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for name in ("count", "height_control", "listing", "number", "percent"):
        environment.filters[name] = getattr(wording, name)
    environment.filters["marked"] = _marked
    environment.globals["plural"] = wording.plural
    return environment.get_template(template).render(**values)


def _marked(text: str) -> Markup:
    """Text with what stands in backticks as code."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))


def img(plot: Plot, uri: str, width: int, height: int) -> str:
    """Figure with its caption."""
    tag = Markup(
        '<figure>\n<img src="{}" width="{}" height="{}" alt="{}">\n'
        "<figcaption>{}</figcaption>\n</figure>\n"
    )
    return tag.format(uri, width, height, plot.alt, plot.caption)


def png(plot: Plot | Viewer) -> str:
    """Figure as a PNG image inside the page; nothing of a viewer."""
    if isinstance(plot, Viewer):
        return ""
    figure, buffer = plot.draw().figure, io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    width, height = (round(100 * inches) for inches in figure.get_size_inches())
    uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return img(plot, uri, width, height)
