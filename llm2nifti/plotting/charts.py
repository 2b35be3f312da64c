"""What do the numbers look like? Matrices, profiles, designs, shares, bars and curves.

`ax` is where to draw, by default in a new figure; `title` stands above.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import cycle
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike, NDArray

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
SITES = frozenset(_SITES)  # those that have the same colour in every figure
_OTHERS = ("#56B4E9", "#882255", "#999933", "#332288")
_MOST_NUMBERED = 24  # rows of a matrix whose cells have room for a number
MARKERS = "osD^vP"


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
    clear, row_label : (n_networks, n_tasks) bool array, str
        Cells to mark with a star, because their interval excludes 0; and what the rows are.

    Examples
    --------
    >>> ax = plot_lesions([[-0.2, 0.01]], ["pathology"], ["pathology", "control"])
    >>> ax.texts[0].get_text()
    '−0.200'
    """
    values = np.asarray(effects, float)
    n, m = len(networks), len(tasks)
    if values.shape != (n, m):
        raise ValueError(f"{n} networks and {m} tasks do not fit effects of shape {values.shape}")
    stars = np.zeros((n, m), bool) if clear is None else np.asarray(clear, bool)
    ax = ax or new_axes(2.8 + 0.62 * m, 2.4 + 0.45 * n)
    top = float(np.abs(values).max()) or 1.0
    image = ax.imshow(values, cmap=mpl.colormaps["RdBu"], vmin=-top, vmax=top, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        text = f"{value:z.3f}".replace("-", "−") + "*" * bool(stars[i, j])
        color = "white" if abs(value) > 0.6 * top else "black"
        weight = "bold" if networks[i] == tasks[j] else "normal"
        ax.text(j, i, text, ha="center", va="center", color=color, fontsize=7.5, weight=weight)
    ax.figure.colorbar(image, ax=ax, label="Beyond matched random units (nats/token)", shrink=0.9)
    ax.set_xticks(range(m), tasks, rotation=40, ha="right", rotation_mode="anchor")
    ax.set(yticks=range(n), yticklabels=networks, title=title)
    ax.set_xlabel("Text of", fontsize=9)
    ax.set_ylabel(row_label, fontsize=9)
    ax.spines[:].set_visible(False)
    return ax


@styled
def plot_layer_profile(profile: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the share of each layer's units that a network takes, one line a site.

    The columns of `profile` are ``layer``, ``site`` and ``share`` (0..1).

    Examples
    --------
    >>> ax = plot_layer_profile(profile)  # doctest: +SKIP
    """
    ax = ax or new_axes(6.2, 3.0)
    names = list(profile["site"].unique())
    for name, color, marker in zip(names, site_colors(names), cycle(MARKERS)):
        rows = profile[profile["site"] == name].sort_values("layer")
        ax.plot(rows["layer"], 100 * rows["share"], color=color, marker=marker, ms=4, label=name)
    ax.set(xlabel="Layer (0 is the embedding)", ylabel="Units in the network (%)", ylim=(0, None))
    ax.legend(ncols=5, loc="lower left", bbox_to_anchor=(0, 1))
    return ax


@styled
def plot_shares(
    shares: Mapping[str, float], null: ArrayLike, *, ax: Axes | None = None, title: str = ""
) -> Axes:
    """Draw the share of units at p < .05 of each task beside that of pseudo-tasks.

    `shares` (0..1) is by task, `null` (n_pseudo_tasks,) has one of each relabelling of controls.

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


@styled
def plot_auc(
    curves: Mapping[str, Sequence[Mapping[str, float]]],
    *,
    null: Mapping[str, Sequence[float]] | None = None,
    at_end: Collection[str] = (),
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """Draw the AUC of some methods by the number of tokens seen.

    Parameters
    ----------
    curves : mapping of str to sequence of mappings
        For each method, ``value, low, high`` after 1, 2, ... tokens; a single one is drawn as a
        level line, because it does not depend on tokens.
    null : mapping, optional
        ``low, high`` of shuffled labels after 1, 2, ... tokens, drawn as a grey band.
    at_end : collection of str
        Methods whose single value is that after all tokens: drawn there, as a point.

    Examples
    --------
    >>> ax = plot_auc({"network": [{"value": 0.8, "low": 0.7, "high": 0.9}] * 2})
    >>> ax.get_ylabel()
    'AUC'
    """
    ax = ax or new_axes(6.2, 3.2)
    n_tokens = max(len(points) for points in curves.values())
    if null is not None:
        steps = range(1, len(null["low"]) + 1)
        ax.fill_between(steps, null["low"], null["high"], color="#DDDDDD", label="shuffled labels")
    for (name, points), color, marker in zip(curves.items(), cycle(PALETTE), cycle(MARKERS)):
        values, low, high = ([p[key] for p in points] for key in ("value", "low", "high"))
        if name in at_end:
            limits = [[values[-1] - low[-1]], [high[-1] - values[-1]]]
            ax.errorbar([n_tokens], values[-1:], limits, color=color, marker=marker, label=name)
        elif len(points) == 1 < n_tokens:
            ax.axhline(values[0], color=color, ls=":", label=name)
            ax.axhspan(low[0], high[0], color=color, alpha=0.08, lw=0)
        else:
            steps = range(1, len(points) + 1)
            ax.fill_between(steps, low, high, color=color, alpha=0.15, lw=0)
            ax.plot(steps, values, color=color, marker=marker, ms=4, label=name)
    ax.axhline(0.5, color="black", ls="--", lw=1)
    ax.set(xlabel="Tokens seen", ylabel="AUC", title=title, xticks=range(1, n_tokens + 1))
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return ax


@styled
def plot_roc(
    false_positive_rate: ArrayLike,
    hits: Mapping[str, ArrayLike],
    *,
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """Draw ROC curves, one a name.

    Both are (n,) shares above the same thresholds: of negatives, and of positives.

    Examples
    --------
    >>> ax = plot_roc([0, 1], {"pathology": [0, 1]})
    """
    ax = ax or new_axes(5.4, 3.4)
    for (name, values), color in zip(hits.items(), cycle(PALETTE)):
        ax.plot(false_positive_rate, values, color=color, label=name)
    ax.plot([0, 1], [0, 1], color="black", ls="--", lw=1)
    ax.set(xlabel="False positives", ylabel="Hits", title=title, aspect="equal")
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return ax


@styled
def plot_doses(
    doses: Mapping[str, Mapping[float, Sequence[float]]], *, ax: Axes | None = None, title: str = ""
) -> Axes:
    """Draw how the effect of a lesion grows with the share of units that it takes.

    `doses` has for each curve, by share of the units (0..1), the change in nats a token with its
    interval: value, low, high.

    Examples
    --------
    >>> ax = plot_doses({"own network": {0.01: (-0.1, -0.2, 0.0), 0.05: (-0.4, -0.5, -0.3)}})
    """
    ax = ax or new_axes(5.2, 3.4)
    apart = 1 + 0.03 * (np.arange(len(doses)) - (len(doses) - 1) / 2)  # so that all are seen
    for (name, curve), factor, color in zip(doses.items(), apart, cycle(PALETTE)):
        shares = sorted(curve)
        values = np.array([curve[share] for share in shares])
        x, spread = 100 * np.array(shares) * factor, np.abs(values[:, 1:] - values[:, :1]).T
        ax.errorbar(x, values[:, 0], yerr=spread, fmt="-o", ms=4, color=color, label=name)
    ticks = sorted({100 * share for curve in doses.values() for share in curve})
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.axhline(0, color="black", lw=0.8)
    ax.set(xlabel="Units lesioned (%)", ylabel="Change (nats/token)", title=title)
    ax.legend(fontsize=8)
    return ax
