"""What do all figures share? Fonts, colours, and how they are saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

# 9 points on 6 inches stay readable at 400 pixels; without a salt the ids of an SVG are random.
styled = mpl.rc_context(
    {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "svg.hashsalt": "llm2nifti",
    }
)
# Okabe and Ito's colours: distinct with every common colour blindness.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_SITES = dict(zip(("attn", "mlp", "resid", "norm", "embed"), PALETTE, strict=False))
_OTHERS = ("#56B4E9", "#882255", "#999933", "#332288")


def site_colors(names: Sequence[str]) -> list[str]:
    """Colour of each name; the default sites have the same one in every figure."""
    others = sorted(set(names) - set(_SITES))
    return [_SITES.get(n) or _OTHERS[others.index(n) % 4] for n in names]


def new_axes(width: float, height: float) -> Axes:
    """Axes of a new figure that pyplot does not hold; width and height in inches."""
    return plt.Figure(figsize=(width, height), layout="constrained").add_subplot()


@styled
def save(figure: plt.Figure, path_stem: Path | str) -> list[Path]:
    """Write a figure as PNG and SVG, the same bytes each time, and close it.

    The suffixes ``.png`` and ``.svg`` follow `path_stem`; returns the two paths.

    Examples
    --------
    >>> save(plot_design(run.events).figure, "figures/design")  # doctest: +SKIP
    """
    paths = [Path(f"{path_stem}.png"), Path(f"{path_stem}.svg")]
    # Dates and versions of software would make equal figures differ.
    figure.savefig(paths[0], dpi=150, metadata={"Software": None})
    figure.set_layout_engine("none")  # it is laid out now
    figure.savefig(paths[1], dpi=150, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return paths
