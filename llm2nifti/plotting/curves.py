"""How does it grow? AUC over time, hits over false positives, effects over sizes of lesions.

`ax` is where to draw, by default in a new figure; `title` stands above.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from llm2nifti.plotting.style import PALETTE, new_axes, styled


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
    styles = zip(curves.items(), cycle(PALETTE), cycle("osD^vP"), strict=False)
    for (name, points), color, marker in styles:
        values, low, high = ([p[key] for p in points] for key in ("value", "low", "high"))
        if name in at_end:
            limits = [[values[-1] - low[-1]], [high[-1] - values[-1]]]
            ax.errorbar([n_tokens], values[-1:], limits, color=color, marker=marker, label=name)
            continue
        if len(points) == 1 and n_tokens > 1:
            ax.axhline(values[0], color=color, ls=":", label=name)
            ax.axhspan(low[0], high[0], color=color, alpha=0.08, lw=0)
            continue
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

    Parameters
    ----------
    false_positive_rate, hits : (n,) array, mapping of str to (n,) array
        Shares of negatives and of positives above the same thresholds.

    Examples
    --------
    >>> ax = plot_roc([0, 1], {"pathology": [0, 1]})
    """
    ax = ax or new_axes(5.4, 3.4)
    for (name, values), color in zip(hits.items(), cycle(PALETTE), strict=False):
        ax.plot(false_positive_rate, values, color=color, label=name)
    ax.plot([0, 1], [0, 1], color="black", ls="--", lw=1)
    ax.set(xlabel="False positives", ylabel="Hits", title=title, aspect="equal")
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return ax


@styled
def plot_doses(
    doses: Mapping[str, Mapping[float, tuple[float, float, float]]],
    *,
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """Draw how the effect of a lesion grows with the share of units that it takes.

    Parameters
    ----------
    doses : mapping of str to mapping of float to (value, low, high)
        For each curve, by share of the units (0..1): change in nats a token with its interval.

    Examples
    --------
    >>> ax = plot_doses({"own network": {0.01: (-0.1, -0.2, 0.0), 0.05: (-0.4, -0.5, -0.3)}})
    """
    ax = ax or new_axes(5.2, 3.4)
    for i, (name, curve) in enumerate(doses.items()):
        shares = sorted(curve)
        values = np.array([curve[share] for share in shares])
        x = 100 * np.array(shares) * (1 + 0.03 * (i - (len(doses) - 1) / 2))  # apart, to be seen
        spread = np.abs(values[:, 1:] - values[:, :1]).T
        ax.errorbar(
            x,
            values[:, 0],
            yerr=spread,
            fmt="-o",
            ms=4,
            color=PALETTE[i % len(PALETTE)],
            label=name,
        )
    ticks = sorted({100 * share for curve in doses.values() for share in curve})
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.axhline(0, color="black", lw=0.8)
    ax.set(xlabel="Units lesioned (%)", ylabel="Change (nats/token)", title=title)
    ax.legend(fontsize=8)
    return ax
