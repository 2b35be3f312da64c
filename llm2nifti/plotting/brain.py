"""What does the model brain look like? Maps, atlas and floor plan, drawn by nilearn.

`ax` is where to draw, by default in a new figure; `brain` is the geometry, `bg_img` the anatomy.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from html import escape

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from nibabel import Nifti1Image
from nilearn.plotting import plot_anat, view_img
from nilearn.plotting.displays import BaseSlicer

from llm2nifti.geometry import MARGIN, ModelBrain, dseg_img
from llm2nifti.plotting.charts import new_axes, site_colors, styled

_COLORS = {"cmap": "RdBu_r", "resampling_interpolation": "nearest"}
_ENDS = {"embed": ("embedding", "center"), "norm": ("final norm", "bottom")}


@styled
def plot_map(
    stat_img: Nifti1Image,
    *,
    bg_img: Nifti1Image,
    threshold: float | None = None,
    cut_coords: Sequence[float] | None = None,
    title: str = "",
    label: str = "t",
    ax: Axes | None = None,
) -> Axes:
    """Draw a statistic map on the anatomy, in coronal slices with the layers bottom-up.

    Parameters
    ----------
    stat_img, bg_img : Nifti1Image
        Map and anatomical background, 3D and in the same space.
    threshold, cut_coords : float, sequence of float
        Absolute value below which units are hidden, and y of the slices in mm; by default those of
        the four with the largest values above `threshold`.
    title, label : str
        Title, and name of the statistic above the colour bar.

    Examples
    --------
    >>> ax = plot_map(t_img, bg_img=anatomy, threshold=3)  # doctest: +SKIP
    """
    data, low = np.abs(np.nan_to_num(stat_img.get_fdata())), threshold or 0.0
    vmax, (size, origin) = float(data.max()) or 1.0, stat_img.affine[1, [1, 3]]
    strength = np.where(data < low, 0, data).sum(axis=(0, 2))
    best = origin + size * np.sort(np.argsort(-strength, kind="stable")[:4])
    cuts = np.asarray(best if cut_coords is None else cut_coords, float).tolist()
    n_rows, n_columns = -(-len(cuts) // 2), min(2, len(cuts))
    width, height = 0.86 / n_columns, 0.97 / n_rows
    inches = 6.2, 0.3 + n_rows * (1.6 if n_columns > 1 else 2.5)
    ax = ax or plt.Figure(figsize=inches).add_axes((0.01, 0.01, 0.98, 0.9))
    for i, cut in enumerate(cuts):
        x, y = 0.04 + width * (i % 2), 0.97 - height * (i // 2 + 0.9)
        display = _draw_anatomy(bg_img, "y", cut, _inside(ax, x, y, 0.93 * width, 0.74 * height))
        if strength.any():
            with warnings.catch_warnings(action="ignore"):  # that a slice is empty is no fault
                limits = {"threshold": low or 1e-6, "vmin": -vmax, "vmax": vmax}
                display.add_overlay(stat_img, **limits, **_COLORS)
    ax.text(0.01, 0.5, "layer: input → output", rotation=90, va="center", transform=ax.transAxes)
    scale = plt.cm.ScalarMappable(plt.Normalize(-vmax, vmax), "RdBu_r")
    bar = ax.figure.colorbar(scale, cax=_inside(ax, 0.905, 0.12, 0.022, 0.73))
    bar.ax.axhspan(-low, low, color="#D5D5D5", lw=0)
    bar.ax.set_title(label, loc="center", fontsize=9)
    ax.set_title(title)
    return ax


def _inside(ax: Axes, *place: float) -> Axes:
    """Add Axes at x, y, width and height, fractions of `ax`; nilearn cannot use inset axes."""
    ax.set_axis_off()
    box = ax.get_position()
    corner, size = np.multiply(place, [*box.size, *box.size]).reshape(2, 2)
    return ax.figure.add_axes((*(box.p0 + corner), *size))


def _draw_anatomy(bg_img: Nifti1Image, axis: str, cut: float, ax: Axes) -> BaseSlicer:
    """Draw a slice of the anatomy, off white; name its parts above and write its place below."""
    data = np.nan_to_num(bg_img.get_fdata())
    look = {"threshold": 1e-6, "vmin": -0.5 * data.max(), "vmax": 1.25 * data.max()}
    look |= {"annotate": False, "colorbar": False, "black_bg": False}
    display = plot_anat(bg_img, [cut], display_mode=axis, axes=ax, figure=ax.figure, **look)
    inner = display.axes[cut].ax
    used = (data > 0).any(axis=(1, 2))
    x = bg_img.affine[0, 0] * np.arange(len(used)) + bg_img.affine[0, 3]
    # Nothing lies in the gaps between tiles: the first gap from the midline ends the stream.
    edge = np.abs(x[~used]).min()
    parts = {"attention": x < -edge, "stream": np.abs(x) < edge, "MLP": x > edge}
    for name, part in parts.items():
        if (used & part).any():
            spot = float(x[used & part].mean())
            inner.text(spot, 1.03, name, transform=inner.get_xaxis_transform(), ha="center", size=8)
    inner.set_title(f"{axis} = {cut:g} mm".replace("-", "−"), y=0, pad=-10, loc="center", size=8)
    return display


@styled
def plot_floor_plan(brain: ModelBrain, *, ax: Axes | None = None) -> Axes:
    """Draw the floor plan of a layer: whose units lie where in the axial plane, in mm.

    Examples
    --------
    >>> plot_floor_plan(run.brain).figure  # doctest: +SKIP
    """
    wide, high, _ = np.multiply(brain.shape, brain.voxel_size)
    ax = ax or new_axes(6.2, 1.1 + min(6.0, 5.4 * high / wide))
    # The largest site of a tile; the stream's is named after the blocks, not after the embedding.
    tiles = {s.slot: s for s in sorted(brain.sites, key=lambda s: (s.n_units, s.name == s.slot))}
    for (name, site), color in zip(tiles.items(), site_colors(list(tiles)), strict=True):
        voxels = brain.voxels[brain.slice_of(site), :2]
        width, height = brain.voxel_size * (np.ptp(voxels, axis=0) + 1)
        x, y = brain.affine[:2, 3] + brain.voxel_size * (voxels.min(axis=0) - 0.5)
        ax.add_patch(plt.Rectangle((x, y), width, height, fc=(color, 0.25), ec=color))
        text, turn = f"{name}\n{site.side}\n{site.n_units:,} units", 90 * (width < 0.17 * wide)
        ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", rotation=turn)
    ax.set(xlim=(-wide / 2, wide / 2), ylim=(-high / 2, high / 2), aspect="equal")
    ax.set(xlabel="x (mm)", ylabel="y (mm)", title="One layer from above")
    return ax


@styled
def plot_atlas(brain: ModelBrain, *, bg_img: Nifti1Image, ax: Axes | None = None) -> Axes:
    """Draw the atlas on the anatomy: hue is the site, lighter is a later layer.

    Examples
    --------
    >>> ax = plot_atlas(run.brain, bg_img=anatomy)  # doctest: +SKIP
    """
    layers = np.array([site.layer for site in brain.sites])
    light = 0.6 * (layers - layers.min()) / max(1, np.ptp(layers))
    hues = np.array([mpl.colors.to_rgb(c) for c in site_colors([s.name for s in brain.sites])])
    cmap = mpl.colors.ListedColormap(hues + (1 - hues) * light[:, None])
    middle = brain.affine[:3, 3] + brain.voxel_size * np.median(brain.voxels, axis=0).round()
    ax = ax or plt.Figure(figsize=(5.6, 4.8)).add_axes((0.01, 0.01, 0.97, 0.93))
    for mode, cut, y, height in (("z", middle[2], 0.05, 0.35), ("y", middle[1], 0.5, 0.43)):
        display = _draw_anatomy(bg_img, mode, float(cut), _inside(ax, 0.15, y, 0.85, height))
        display.add_overlay(
            dseg_img(brain), threshold=0.5, cmap=cmap, vmin=0.5, vmax=cmap.N + 0.5, transparency=0.8
        )
    inner = display.axes[float(cut)].ax  # the coronal slice, which came last
    left = {"transform": inner.get_yaxis_transform(), "ha": "right", "size": 8}
    ends = {site.layer: _ENDS[site.name] for site in brain.sites if site.name in _ENDS}
    recorded = np.unique(layers).tolist()
    for layer in recorded:
        if len(recorded) <= 12 or layer % 5 == 0 or layer in ends:  # for more there is no room
            mm = brain.affine[2, 3] + brain.voxel_size * (MARGIN + layer - recorded[0])
            name, va = ends.get(layer, (f"{layer}", "center"))
            inner.text(-0.01, mm, name, va=va, **left)
    ax.set_title("Atlas: layers bottom-up, and one layer from above")
    return ax


@styled
def view(
    stat_img: Nifti1Image, *, bg_img: Nifti1Image, threshold: float | None = None, title: str = ""
) -> str:
    """Make an interactive viewer: an HTML ``<iframe>`` for a page or a file, with no network.

    The parameters are those of `plot_map`.

    Examples
    --------
    >>> Path("map.html").write_text(view(t_img, bg_img=anatomy), "utf-8")  # doctest: +SKIP
    """
    # Nilearn writes on the top of the slices: leave air there, as there is above a head.
    air = np.pad(bg_img.get_fdata(), [(0, 0), (0, 0), (0, 2 + bg_img.shape[2] // 4)])
    air[0, 0, -1] = 1.25 * air.max()  # white is this voxel, so that no part of the brain is
    with warnings.catch_warnings(action="ignore"):  # that nothing passes is a result, too
        anatomy = Nifti1Image(air, bg_img.affine)
        look = {"threshold": threshold or 0.0, "black_bg": False, "width_view": 800}
        document = view_img(stat_img, anatomy, **look, **_COLORS)
    # Nilearn loads an icon from the network, draws random ids and hides units with the cross.
    page = re.sub(r'<link rel="icon".*?>', "", document.html, flags=re.DOTALL)
    page = re.sub(r"-[0-9a-f]{32}\b", "-map", page)
    page = page.replace('colorCrosshair:"#0000FF"', 'colorCrosshair:"#00000055"')
    document.html = page.replace("<body>", f"<body><p>{escape(title)}</p>")
    return str(document.get_iframe(document.width + 40, document.height + 80))
