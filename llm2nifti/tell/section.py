"""What is a result told in? Sections with sentences, figures and tables, as plain text and as HTML.

The file of a drawn `plot`, the `content` of its `figure`, is of a `kind` such as png and is shown
with `dpi` pixels an inch.
"""

from __future__ import annotations

import base64
import io
import re
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from llm2nifti.tell import wording

_WIDEST = 100  # columns of running text in a terminal
_CODE = re.compile(r"`([^`]+)`")
_FIGURE = Markup(
    '<figure>\n<img src="{}" width="{}" height="{}" alt="{}">\n'
    "<figcaption>{}</figcaption>\n</figure>\n"
)
_PLAIN = str.maketrans({"\N{NO-BREAK SPACE}": " ", "\N{MINUS SIGN}": "-", "–": "-", "`": None})


@dataclass(frozen=True)
class Plot:
    """A figure to be drawn."""

    stem: str  #: name of its files
    draw: Callable[[], Any]  #: returns its Axes
    alt: str  #: alt, caption: what stands for it, and one sentence on what to see
    caption: str
    is_small: bool = False  #: whether it may stand beside another one


@dataclass(frozen=True)
class Viewer:
    """An interactive viewer, which only a page shows."""

    title: str
    draw: Callable[[], str]  #: gives its ``<iframe>`` tag


@dataclass(frozen=True, eq=False)
class Table:
    """A table of cells that are written already."""

    caption: str
    frame: pd.DataFrame  #: one column a heading; cells are text
    #: headings of columns of words, the others hold numbers; by default the first
    words: Sequence[str] = ()

    @classmethod
    def of(
        cls, caption: str, rows: Sequence[Mapping[str, str]], words: Sequence[str] = ()
    ) -> Table:
        """Table of rows by heading."""
        return cls(caption, pd.DataFrame(list(rows), dtype=object).fillna(""), words)

    def is_words(self, heading: str) -> bool:
        """Whether a column holds words."""
        return heading in (self.words or self.frame.columns[:1])


@dataclass(frozen=True)
class Section:
    """A section of a page, or what a command prints."""

    anchor: str  #: anchor, title: where links lead to, and the heading
    title: str
    #: text, with names of files and commands in backticks; a page escapes it
    paragraphs: Sequence[str] = ()
    plots: Sequence[Plot | Viewer] = ()  #: figures, after the text
    tables: Sequence[Table] = ()  #: after the figures
    notes: Sequence[str] = ()  #: text after the tables
    parts: Sequence[Section] = ()  #: sections under this one

    def all_plots(self) -> list[Plot]:
        """Figures of this section and of those under it."""
        drawn = [plot for plot in self.plots if isinstance(plot, Plot)]
        return [*drawn, *(plot for part in self.parts for plot in part.all_plots())]


def as_text(*sections: Section) -> str:
    """Text of sections without their figures, wrapped to the terminal.

    Examples
    --------
    >>> print(as_text(Section("x", "What came out", ["All is well."])))
    What came out
    -------------
    All is well.
    """
    width = min(_WIDEST, shutil.get_terminal_size().columns)
    return "\n\n".join(_told(section, width) for section in sections).translate(_PLAIN)


def _told(section: Section, width: int) -> str:
    """Text of one section and of those under it."""
    blocks = [textwrap.fill(text, width) for text in section.paragraphs]
    blocks += [_table(table) for table in section.tables]
    blocks += [textwrap.fill(text, width) for text in section.notes]
    head = f"{section.title}\n{'-' * len(section.title)}\n"
    first = (head + "\n\n".join(blocks)).rstrip()
    return "\n\n".join([first, *(_told(part, width) for part in section.parts)])


def _table(table: Table) -> str:
    """A table with its caption; words to the left, numbers to the right."""
    columns = []
    for heading, values in table.frame.items():
        cells = [str(heading), *map(str, values)]
        adjust = str.ljust if table.is_words(str(heading)) else str.rjust
        columns.append([adjust(cell, max(map(len, cells))) for cell in cells])
    lines = ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
    return "\n".join([table.caption, *lines])


Embed = Callable[[Plot | Viewer], str]


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
    values = {"sections": sections, "embed": embed or png, "level": level}
    return render(Path(__file__).parent, "sections.html.j2", **values)


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


def img(plot: Plot, figure: Any, content: bytes, *, kind: str, dpi: int) -> str:
    """Drawn figure with its caption."""
    uri = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    width, height = (round(dpi * inches) for inches in figure.get_size_inches())
    return _FIGURE.format(uri, width, height, plot.alt, plot.caption)


def png(plot: Plot | Viewer) -> str:
    """Figure as a PNG image inside the page; nothing of a viewer."""
    if isinstance(plot, Viewer):
        return ""
    figure, buffer = plot.draw().figure, io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return img(plot, figure, buffer.getvalue(), kind="png", dpi=100)
