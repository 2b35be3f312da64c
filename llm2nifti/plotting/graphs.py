"""What do parcels look like? Links between their places in the model brain, values over depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from numpy.typing import ArrayLike

from llm2nifti.plotting.charts import MARKERS, PALETTE, SITES, new_axes, site_colors, styled

_TURN = 0.35  # of y to the side, so that parcels behind each other are seen apart


@styled
def plot_graph(
    matrix: ArrayLike,
    centres: Sequence[Sequence[float]],
    *,
    groups: Sequence[int],
    share: float = 0.05,
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """Draw the strongest links between parcels, seen from the front: layers are bottom-up.

    Parameters
    ----------
    matrix : (n, n) array
        Similarity of the parcels.
    centres : (n, 3) sequence
        x, y and z of each parcel in mm.
    groups : (n,) sequence of int
        Community of each parcel, its colour.
    share : float, default=0.05
        Share of the pairs that are drawn, the strongest.
    ax, title
        See the other figures.

    Examples
    --------
    >>> ax = plot_graph(np.eye(2), [(0, 0, 0), (0, 0, 2)], groups=[0, 1])
    """
    values, places = np.asarray(matrix, float), np.asarray(centres, float)
    points = np.column_stack([places[:, 0] + _TURN * places[:, 1], places[:, 2]])
    i, j = np.triu_indices(len(values), 1)
    strongest = np.argsort(-values[i, j], kind="stable")[: max(1, round(share * len(i)))]
    ax = ax or new_axes(5.2, 5.2)
    bends = []
    for a, b in zip(i[strongest], j[strongest], strict=True):
        # Parcels of one site lie on a line: straight links would hide each other.
        side = 1 if points[a, 0] >= 0 else -1
        sag = 0.18 * side * np.hypot(*(points[b] - points[a]))
        t = np.linspace(0, 1, 12)[:, None]
        line = (1 - t) * points[a] + t * points[b]
        line[:, 0] += 4 * sag * (t * (1 - t))[:, 0]
        bends.append(line)
    ax.add_collection(LineCollection(bends, colors="#555555", linewidths=0.5, alpha=0.35))
    for group in sorted(set(groups)):
        inside = np.asarray(groups) == group
        color = PALETTE[group % len(PALETTE)]
        ax.scatter(
            points[inside, 0], points[inside, 1], s=26, color=color, ec="white", lw=0.4, zorder=3
        )
        ax.scatter([], [], s=26, color=color, label=f"community {group + 1} ({inside.sum()})")
    ax.set(xlabel="x (mm): attention left, stream, MLP right", ylabel="layer: input → output (mm)")
    ax.set(title=title)
    ax.autoscale_view()
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return ax


@styled
def plot_depth(
    table: pd.DataFrame,
    *,
    ylabel: str,
    limit: float | None = None,
    chance: float | None = None,
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """Draw a value of each parcel over depth, one line a site or another kind.

    Parameters
    ----------
    table : DataFrame
        Columns ``layer``, ``site`` (or what else names a line), ``value`` and, optionally,
        ``baseline``, drawn as dots. Of several parcels in a layer, the mean is drawn.
    ylabel : str
        What is measured.
    limit, chance : float, optional
        What chance stays below, as a dashed line, and its mean, as a thin one.
    ax, title
        See the other figures.

    Examples
    --------
    >>> table = pd.DataFrame({"layer": [1, 2], "site": "mlp", "value": [0.6, 0.8]})
    >>> ax = plot_depth(table, ylabel="AUC")
    """
    ax = ax or new_axes(6.2, 3.2)
    names = list(dict.fromkeys(table["site"]))
    colors = site_colors(names) if SITES & set(names) else PALETTE
    for name, color, marker in zip(names, cycle(colors), cycle(MARKERS)):
        rows = table[table["site"] == name].groupby("layer").mean(numeric_only=True)
        ax.plot(rows.index, rows["value"], f"-{marker}", ms=4, color=color, label=name)
        if "baseline" in rows:
            ax.plot(rows.index, rows["baseline"], ":", lw=1.2, color=color)
    if limit is not None:
        ax.axhline(limit, color="black", ls="--", lw=1)
    if chance is not None:
        ax.axhline(chance, color="black", lw=0.6)
    ax.set(xlabel="Layer (0 is the embedding)", ylabel=ylabel, title=title)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return ax


@styled
def plot_cross(
    matrix: ArrayLike,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    xlabel: str,
    ylabel: str,
    colorbar_label: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw a matrix of parcels of one model by parcels of another; a dot is the best of a row.

    Parameters
    ----------
    matrix : (n, m) array
        Values; colours begin at 0.
    rows, columns : sequence of str
        Names of the parcels.
    xlabel, ylabel, colorbar_label : str
        Names of the models and of the values.
    ax
        See the other figures.

    Examples
    --------
    >>> ax = plot_cross([[0.1, 0.9]], ["a"], ["b", "c"], xlabel="two", ylabel="one")
    """
    values = np.asarray(matrix, float)
    ax = ax or new_axes(6.6, 1.8 + min(6.0, max(2.4, 5.2 * len(rows) / len(columns))))
    top = float(max(values.max(), 1e-6))
    image = ax.imshow(values, cmap="cividis", vmin=0, vmax=top, aspect="auto", interpolation="none")
    ax.plot(values.argmax(axis=1), np.arange(len(values)), "o", ms=3, mfc="none", mec="#D55E00")
    ax.figure.colorbar(image, ax=ax, label=colorbar_label, shrink=0.8)
    for axis, names in ((ax.xaxis, columns), (ax.yaxis, rows)):
        ticks = range(0, len(names), -(-len(names) // 32))  # of many names those that have room
        axis.set_ticks(ticks, [names[i] for i in ticks], fontsize=7)
    ax.tick_params(axis="x", labelrotation=90)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    return ax


@styled
def plot_profiles(table: pd.DataFrame, *, ylabel: str, ax: Axes | None = None) -> Axes:
    """Draw values of several models over relative depth, a colour a site, a line style a model.

    Parameters
    ----------
    table : DataFrame
        Columns ``depth`` (0..1), ``site``, ``model`` and ``value``.
    ylabel : str
        What is measured.
    ax
        See the other figures.

    Examples
    --------
    >>> table = pd.DataFrame({"depth": [0.25, 0.75], "site": "mlp", "model": "a", "value": [0, 1]})
    >>> ax = plot_profiles(table, ylabel="Effect")
    """
    ax = ax or new_axes(6.2, 3.2)
    sites, models = (list(dict.fromkeys(table[name])) for name in ("site", "model"))
    for site, color in zip(sites, site_colors(sites), strict=True):
        for model, style in zip(models, cycle(("-", "--", ":", "-."))):
            rows = table[(table["site"] == site) & (table["model"] == model)]
            ax.plot(100 * rows["depth"], rows["value"], style, drawstyle="steps-mid", color=color)
        ax.plot([], [], "-", color=color, label=site)
    for model, style in zip(models, cycle(("-", "--", ":", "-."))):
        ax.plot([], [], style, color="black", label=model)
    ax.axhline(0, color="black", lw=0.6)
    ax.set(xlabel="Relative depth: input → output (%)", ylabel=ylabel)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return ax


@styled
def plot_beside(
    values: Mapping[str, Sequence[float]],
    ceilings: Mapping[str, Sequence[float]],
    limits: Mapping[str, Sequence[float]],
    *,
    xlabel: str,
    labels: tuple[str, str, str] = ("ceiling", "value", "chance stays below"),
    ax: Axes | None = None,
) -> Axes:
    """Draw values in rows, each beside a ceiling and what chance stays below.

    Parameters
    ----------
    values, ceilings, limits : mapping of str to sequence of float
        For each row, values (dots), their ceilings (bars) and what chance stays below (ticks).
    xlabel, labels : str, tuple of str
        What is measured, and the legend of bars, dots and ticks.
    ax
        See the other figures.

    Examples
    --------
    >>> ax = plot_beside({"a": [0.5]}, {"a": [0.8]}, {"a": [0.1]}, xlabel="r")
    """
    names = list(values)
    ax = ax or new_axes(6.2, 1.2 + 0.5 * len(names))
    for y, name in enumerate(names[::-1]):
        n = len(values[name])
        rows = y + 0.6 * (np.arange(n)[::-1] + 0.5) / n - 0.3
        ax.barh(rows, ceilings[name], height=0.45 / n, color="#DDDDDD")
        ax.plot(values[name], rows, "o", ms=5, color=PALETTE[0])
        ax.plot(limits[name], rows, "|", ms=8, mew=1.5, color="black")
    for mark, color, label in zip("so|", ("#DDDDDD", PALETTE[0], "black"), labels, strict=True):
        ax.plot([], [], mark, ms=7, mew=1.5, color=color, label=label)
    ax.set_yticks(range(len(names)), names[::-1])
    ax.axvline(0, color="black", lw=0.6)
    ax.set(xlabel=xlabel)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return ax


@styled
def plot_over_frames(
    lines: Mapping[str, np.ndarray], *, chance: float, ylabel: str, ax: Axes | None = None
) -> Axes:
    """Draw a line a task over generated tokens, and what chance gives.

    Parameters
    ----------
    lines : mapping of str to (n_frames,) array
        Values of each task.
    chance, ylabel : float, str
        Height of the dashed line, and what is drawn.
    ax : Axes, optional
        Where to draw.

    Examples
    --------
    >>> ax = plot_over_frames({"pathology": np.array([20.0, 24.0])}, chance=5, ylabel="Units (%)")
    """
    ax = ax or new_axes(6.2, 3.4)
    for i, (name, values) in enumerate(lines.items()):
        frames, marker = np.arange(1, len(values) + 1), MARKERS[i % len(MARKERS)]
        ax.plot(frames, values, label=name, color=PALETTE[i % 6], marker=marker, ms=5)
    ax.axhline(chance, color="black", ls="--", lw=1)
    ax.set(xlabel="Generated token", ylabel=ylabel)
    ax.set_ylim(bottom=0)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return ax
