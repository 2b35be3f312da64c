"""What do the numbers look like? Matrices, profiles, designs, shares and bars.

`ax` is where to draw, by default in a new figure; `title` stands above.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike, NDArray

from llm2nifti.plotting.style import PALETTE, new_axes, site_colors, styled

_MOST_NUMBERED = 24  # rows of a matrix whose cells have room for a number


@styled
def plot_matrix(
    matrix: ArrayLike,
    labels: Sequence[str],
    *,
    ax: Axes | None = None,
    title: str = "",
    colorbar_label: str = "",
    vmax: float | None = None,
) -> Axes:
    """Draw a square matrix, a small one with its numbers: overlap, map correlation, confusion.

    Parameters
    ----------
    matrix, labels : (n, n) array, sequence of str
        Values, of which NaN is a grey cell, and the n names.
    colorbar_label, vmax : str, float
        Name of the colours, and the end of their range; it begins at 0, or at -vmax where values
        are negative.

    Examples
    --------
    >>> plot_matrix([[1, 0.2], [0.2, 1]], ["pathology", "archeology"]).texts[1].get_text()
    '0.20'
    """
    values, n = np.asarray(matrix, float), len(labels)
    if values.shape != (n, n):
        raise ValueError(f"{n} labels do not fit a matrix of shape {values.shape}")
    negative = bool((values < 0).any())
    top = float(np.nanmax(np.abs(values))) if vmax is None else vmax
    cmap = mpl.colormaps["RdBu_r" if negative else "cividis"].with_extremes(bad="#DDDDDD")
    is_small = n <= _MOST_NUMBERED
    inches = 0.5 * n if is_small else 7.0
    ax = ax or new_axes(2.6 + inches, 1.8 + inches)
    image = ax.imshow(values, cmap=cmap, vmin=-negative * top, vmax=top, interpolation="none")
    if is_small:
        _write_numbers(ax, image, values, top)
    ax.figure.colorbar(image, ax=ax, label=colorbar_label, shrink=0.8)
    ticks = range(0, n, 1 if is_small else -(-n // 40))  # of many names those that have room
    names = [labels[i] for i in ticks]
    turn = {"rotation": 40} if is_small else {"rotation": 90, "va": "center"}
    ax.set_xticks(ticks, names, ha="right", rotation_mode="anchor", **turn)
    ax.set(yticks=ticks, yticklabels=names, title=title)
    ax.spines[:].set_visible(False)
    return ax


def _write_numbers(ax: Axes, image: AxesImage, values: NDArray, top: float) -> None:
    """Write the value of each cell of a matrix on it, so that it can be read on its colour."""
    digits = 0 if top > 1 and np.array_equal(values, values.round(), equal_nan=True) else 2
    for (i, j), value in np.ndenumerate(values):
        text = "–" if np.isnan(value) else f"{value:z.{digits}f}".replace("-", "−")
        light = np.dot(np.power(image.to_rgba(value)[:3], 2.2), (0.2126, 0.7152, 0.0722))
        ax.text(j, i, text, ha="center", va="center", color="black" if light > 0.18 else "white")


@styled
def plot_lesions(
    effects: ArrayLike,
    networks: Sequence[str],
    tasks: Sequence[str],
    *,
    clear: ArrayLike | None = None,
    ax: Axes | None = None,
    title: str = "",
    row_label: str = "Lesion of the network of",
) -> Axes:
    """Draw what the lesion of each network does to the text of each task.

    Parameters
    ----------
    effects, networks, tasks : (n_networks, n_tasks) array, names of its rows and columns
        Change in nats a token beyond that of matched random units; below 0 the lesion hurts more.
    clear : (n_networks, n_tasks) bool array, optional
        Cells to mark with a star: their interval excludes 0.
    row_label : str
        What the rows are.

    Examples
    --------
    >>> ax = plot_lesions([[-0.2, 0.01]], ["pathology"], ["pathology", "control"])
    >>> ax.texts[0].get_text()
    '−0.200'
    """
    values = np.asarray(effects, float)
    if values.shape != (len(networks), len(tasks)):
        raise ValueError(
            f"{len(networks)} networks and {len(tasks)} tasks do not fit effects of shape "
            f"{values.shape}"
        )
    stars = np.zeros(values.shape, bool) if clear is None else np.asarray(clear, bool)
    ax = ax or new_axes(2.8 + 0.62 * len(tasks), 2.4 + 0.45 * len(networks))
    top = float(np.abs(values).max()) or 1.0
    image = ax.imshow(values, cmap=mpl.colormaps["RdBu"], vmin=-top, vmax=top, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        text = f"{value:z.3f}".replace("-", "−") + "*" * bool(stars[i, j])
        color = "white" if abs(value) > 0.6 * top else "black"
        weight = "bold" if networks[i] == tasks[j] else "normal"
        ax.text(j, i, text, ha="center", va="center", color=color, fontsize=7.5, weight=weight)
    label = "Beyond matched random units (nats/token)"
    ax.figure.colorbar(image, ax=ax, label=label, shrink=0.9)
    ax.set_xticks(range(len(tasks)), tasks, rotation=40, ha="right", rotation_mode="anchor")
    ax.set(yticks=range(len(networks)), yticklabels=networks, title=title)
    ax.set_xlabel("Text of", fontsize=9)
    ax.set_ylabel(row_label, fontsize=9)
    ax.spines[:].set_visible(False)
    return ax


@styled
def plot_layer_profile(profile: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the share of each layer's units that a network takes, one line a site.

    Parameters
    ----------
    profile : DataFrame
        Columns ``layer``, ``site`` and ``share`` (0..1).

    Examples
    --------
    >>> ax = plot_layer_profile(profile)  # doctest: +SKIP
    """
    ax = ax or new_axes(6.2, 3.0)
    names = list(profile["site"].unique())
    for name, color, marker in zip(names, site_colors(names), "osD^vP" * len(names), strict=False):
        rows = profile[profile["site"] == name].sort_values("layer")
        ax.plot(rows["layer"], 100 * rows["share"], color=color, marker=marker, ms=4, label=name)
    ax.set(xlabel="Layer (0 is the embedding)", ylabel="Units in the network (%)", ylim=(0, None))
    ax.legend(ncols=5, loc="lower left", bbox_to_anchor=(0, 1))
    return ax


@styled
def plot_design(events: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the block design of a run: trials over time, one row a condition.

    Parameters
    ----------
    events : DataFrame
        Columns ``onset`` and ``duration`` (s), ``trial_type`` and ``block``.

    Examples
    --------
    >>> ax = plot_design(run.events)  # doctest: +SKIP
    """
    # nilearn's plot_event has a row a run, no prompts inside blocks, and takes no Axes.
    # The control is the lowest row: the floor from which the others rise.
    types = sorted(events["trial_type"].unique(), key=lambda name: (name != "control", name))
    ax = ax or new_axes(6.2, 0.8 + 0.35 * len(types))
    for _, block in events.groupby("block"):
        row = types.index(block["trial_type"].iloc[0])
        color = PALETTE[(row - 1) % 6] if types[row] != "control" else "#9A9A9A"
        spans = list(zip(block["onset"], block["duration"], strict=True))
        ax.broken_barh(spans, (row - 0.4, 0.8), fc=color, ec="white", lw=0.4)
        whole = spans[0][0], spans[-1][0] + spans[-1][1] - spans[0][0]
        ax.broken_barh([whole], (row - 0.4, 0.8), fc="none", ec="black", lw=0.8)
    ax.set_yticks(range(len(types)), types)
    ax.set(xmargin=0, xlabel="Time (s)", ylabel="Condition")
    return ax


@styled
def plot_shares(
    shares: Mapping[str, float], null: ArrayLike, *, ax: Axes | None = None, title: str = ""
) -> Axes:
    """Draw the share of units at p < .05 of each task beside that of pseudo-tasks.

    Parameters
    ----------
    shares, null : mapping of str to float, (n_pseudo_tasks,) array
        Share (0..1) of each task, and of each relabelling of controls.

    Examples
    --------
    >>> ax = plot_shares({"pathology": 0.21}, [0.04, 0.05, 0.07])
    """
    null, names = 100 * np.asarray(null, float), list(shares)[::-1]
    ax = ax or new_axes(6.2, 1.7 + 0.38 * len(names))
    bars = ax.barh(range(len(names)), [100 * shares[n] for n in names], fc=PALETTE[5], height=0.6)
    ax.bar_label(bars, fmt="%.1f", padding=4)
    # Steps of the golden ratio spread the points evenly, and the same way each time.
    ax.plot(null, 0.4 * (np.arange(len(null)) * 0.618 % 1) - 1.2, "o", ms=3, color=PALETTE[0])
    box = np.percentile(null, [25, 50, 75])
    ax.barh([-1, -1], np.diff(box), left=box[:2], height=0.6, fc="none", ec="black")
    ax.axvline(5, color="black", ls="--", lw=1)
    ax.set_yticks(range(-1, len(names)), [f"pseudo-tasks\n(n = {len(null)})", *names])
    ax.set(xmargin=0.08, title=title, xlabel="Units with p < .05 (%); dashed: 5 %, by chance")
    return ax


@styled
def plot_bars(
    values: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
    *,
    ax: Axes | None = None,
    ylabel: str,
    chance: float | None = None,
) -> Axes:
    """Draw named values with their intervals: repeatability, identification.

    Parameters
    ----------
    values, intervals : mapping of str to float, and of str to (float, float)
        Heights of the bars, and low and high ends, which need not enclose the height.
    ylabel, chance : str, float
        What is measured, with its unit, and the level to expect by chance, if any.

    Examples
    --------
    >>> ax = plot_bars({"pathology": 0.7}, {"pathology": (0.6, 0.8)}, ylabel="Correlation (r)")
    """
    names = list(values)
    ax = ax or new_axes(2.2 + 0.55 * len(names), 3.2)
    ax.bar(range(len(names)), list(values.values()), color=PALETTE[5], width=0.6)
    for name, ends in intervals.items():
        # A line, because error bars cannot show an interval that leaves its value out.
        ax.plot([names.index(name)] * 2, ends, "-_", color="black", ms=7)
    if chance is not None:
        ax.axhline(chance, color="black", ls="--", lw=1, label="chance")
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1))
    ax.axhline(0, color="black", lw=0.8)
    ax.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
    ax.set_ylabel(ylabel)
    return ax
