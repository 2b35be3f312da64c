"""How do figures and viewers get onto the page? Drawn into the dataset, and embedded."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from markupsafe import Markup

from llm2nifti import plotting
from llm2nifti.bids.files import write_bytes
from llm2nifti.progress import track
from llm2nifti.tell import Plot, Viewer
from llm2nifti.tell.html import img

_LARGEST_SVG = 400_000  # bytes; a larger drawing is embedded as PNG if that is smaller
_PIXELS_PER_INCH = 118  # of the page: a figure of 6.2 inches is 732 pixels wide
_PAGE_BYTES = 14_000_000  # of figures and viewers, so that the page stays below 15 MB
_VIEWER_BYTES = 8_000_000  # of all viewers together
_DETAILS = Markup(
    "<details>\n<summary>Interactive viewer: {title}</summary>\n"
    '<div class="scroll">\n<iframe title="Interactive viewer of the t map of {title}" '
    'loading="lazy"\nwidth="{width}" height="{height}"\nsrcdoc="{document}"></iframe>\n'
    "</div>\n</details>\n"
)
_NO_VIEWER = (
    "<p>An interactive viewer of this map would make the page too large; any NIfTI viewer opens "
    "it.</p>\n"
)


class Figures:
    """Figures of a page, drawn into the dataset as PNG and SVG.

    Parameters
    ----------
    plots : sequence of Plot
        What to draw.
    folder, root : Path
        Where the files go, in which dataset.
    verbose : int
        0 shows no progress.
    """

    def __init__(self, plots: Sequence[Plot], folder: Path, root: Path, *, verbose: int) -> None:
        self._tags = {
            plot.stem: _save(plot, folder, root)
            for plot in track(plots, "figures", unit="figure", verbose=verbose)
        }
        used = sum(map(len, self._tags.values()))
        self._left = min(_VIEWER_BYTES, _PAGE_BYTES - used)

    def embed(self, plot: Plot | Viewer) -> str:
        """HTML of a figure; of a viewer as long as the page stays small."""
        if isinstance(plot, Plot):
            return self._tags[plot.stem]
        if self._left <= 0:
            return _NO_VIEWER
        # Taken out of plotting's tag: the page needs its own, with a title and lazy loading.
        parts = dict(re.findall(r'(srcdoc|width|height)="([^"]*)"', plot.draw()))
        document = html.unescape(parts.pop("srcdoc"))
        self._left -= len(document)
        if self._left < 0:
            return _NO_VIEWER
        return _DETAILS.format(title=plot.title, document=document, **parts)


def _save(plot: Plot, folder: Path, root: Path) -> str:
    """Draw, write and embed one figure."""
    figure: Any = plot.draw().figure
    width, height = (round(_PIXELS_PER_INCH * inches) for inches in figure.get_size_inches())
    with TemporaryDirectory() as scratch:
        paths = plotting.save(figure, Path(scratch) / plot.stem)
        png, svg = (path.read_bytes() for path in paths)
    for path, content in zip(paths, (png, svg), strict=True):
        write_bytes(folder / path.name, root, content)
    is_drawing = len(svg) <= max(_LARGEST_SVG, len(png))
    kind, content = ("svg+xml", svg) if is_drawing else ("png", png)
    uri = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return img(plot, uri, width, height)
