"""What do parcels look like? Links between their places in the model brain, values over depth."""

from __future__ import annotations

from collections.abc import Sequence
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
