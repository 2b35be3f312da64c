"""What does it look like? Figures of a model brain, as matplotlib Axes.

Nilearn draws the brains, always on the model's own anatomy. Figures need no display: they are
plain `matplotlib.figure.Figure` objects that pyplot does not know, and no setting stays changed.
Every function that takes `ax` draws there, or else in a new figure, which is ``ax.figure``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import nibabel as nib
import numpy as np
import pandas as pd
from matplotlib import colors
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from nilearn import plotting as nilearn_plotting
from numpy.typing import ArrayLike, NDArray

from llm2nifti import geometry

# 9 points on figures of about 6 inches stay readable when a page shows them 400 pixels wide.
_STYLE = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same letters on every machine
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "llm2nifti",  # without a salt the ids of an SVG are random
}
_styled = mpl.rc_context(_STYLE)  # type: ignore[arg-type]
# Okabe and Ito's palette: distinct with every common colour blindness.
_PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
_SITE_COLORS = {"attn": "#0072B2", "resid": "#009E73", "mlp": "#D55E00"}
_GREY = "#8C8C8C"
_DIVERGING, _SEQUENTIAL = "RdBu_r", "cividis"
_N_CUTS = 4


@_styled
def plot_map(
    stat_img: nib.Nifti1Image,
    *,
    bg_img: nib.Nifti1Image,
    threshold: float | None = None,
    title: str | None = None,
    cut_coords: Sequence[float] | None = None,
    label: str = "t",
    ax: Axes | None = None,
) -> Axes:
    """Draw a statistic map on the anatomy, in coronal slices with the layers bottom-up.

    Parameters
    ----------
    stat_img, bg_img : Nifti1Image
        Map and anatomical background, 3D and in the same space.
    threshold : float, optional
        Hide units whose absolute value is below.
    title : str, optional
        Title.
    cut_coords : sequence of float, optional
        y of the slices in mm; by default the four with the largest values above `threshold`.
    label : str, default="t"
        Name of the statistic, for the colour bar.
    ax : Axes, optional
        Frame whose place the slices take.

    Examples
    --------
    >>> ax = plot_map(t_img, bg_img=anatomy, threshold=3)  # doctest: +SKIP
    """
    cuts = list(cut_coords) if cut_coords is not None else _strongest_cuts(stat_img, threshold)
    n_rows = -(-len(cuts) // 2)
    if ax is None:
        ax = Figure(figsize=(6.2, 0.7 + 1.5 * n_rows)).add_axes((0.07, 0.01, 0.79, 0.9))
    ax.set_axis_off()
    vmax = float(np.nanmax(np.abs(stat_img.get_fdata()))) or 1.0
    for cut, frame in zip(cuts, _grid(ax, n_rows, min(2, len(cuts))), strict=False):
        nilearn_plotting.plot_stat_map(
            stat_img, bg_img=bg_img, display_mode="y", cut_coords=[cut], axes=frame,
            figure=frame.figure, threshold=threshold or 1e-6, vmax=vmax, cmap=_DIVERGING,
            resampling_interpolation="nearest", colorbar=False, annotate=False, black_bg=False,
        )  # fmt: skip
        _name_sides(frame, bg_img)
        frame.set_title(f"y = {cut:g} mm", loc="right", fontsize=8, color="#444444", pad=2)
    ax.text(-0.02, 0.5, "layer, input to output →", rotation=90, ha="right", va="center",
            transform=ax.transAxes)  # fmt: skip
    _map_colorbar(ax, vmax, threshold, label)
    ax.set_title(title or "", pad=14)
    return ax
