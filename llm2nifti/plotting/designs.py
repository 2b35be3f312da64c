"""What does a design look like? Blocks over time, and how task and control differ.

`ax` is where to draw, by default in a new figure.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from llm2nifti.plotting.charts import MARKERS, PALETTE, new_axes, styled


@styled
def plot_design(events: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the block design of a run: trials over time, one row a condition.

    The columns of `events` are ``onset`` and ``duration`` (s), ``trial_type`` and ``block``.

    Examples
    --------
    >>> ax = plot_design(run.events)  # doctest: +SKIP
    """
    # nilearn's plot_event has a row a run, no prompts inside blocks, and takes no Axes.
    # The control is the lowest row: the floor from which the others rise.
    sides = dict(zip(events["trial_type"], events.get("role", events["trial_type"]), strict=True))
    types = sorted(sides, key=lambda name: (sides[name] != "control", name))
    n_control = sum(side == "control" for side in sides.values())
    ax = ax or new_axes(6.2, 0.8 + 0.35 * len(types))
    for (_, name), block in events.groupby(["block", "trial_type"]):
        row = types.index(name)
        color = PALETTE[(row - n_control) % 6] if row >= n_control else "#9A9A9A"
        spans = list(zip(block["onset"], block["duration"], strict=True))
        ax.broken_barh(spans, (row - 0.4, 0.8), fc=color, ec="white", lw=0.4)
        whole = spans[0][0], spans[-1][0] + spans[-1][1] - spans[0][0]
        if events.loc[events["block"] == block["block"].iloc[0], "trial_type"].nunique() > 1:
            continue  # a block of both conditions has no frame in one row
        ax.broken_barh([whole], (row - 0.4, 0.8), fc="none", ec="black", lw=0.8)
    ax.set_yticks(range(len(types)), types)
    ax.set(xmargin=0, xlabel="Time (s)", ylabel="Condition")
    return ax


@styled
def plot_differences(table: pd.DataFrame, tolerance: float, *, ax: Axes | None = None) -> Axes:
    """Draw how task and control prompts of every run differ, one point a run.

    Parameters
    ----------
    table : DataFrame
        Columns ``task``, ``measure`` and ``d`` (in standard deviations).
    tolerance : float
        Half the height of the band of differences that matching allows.
    ax : Axes, optional
        Where to draw.

    Examples
    --------
    >>> rows = pd.DataFrame({"task": ["pathology"], "measure": ["words"], "d": [0.04]})
    >>> ax = plot_differences(rows, 0.1)
    """
    measures, tasks = (list(dict.fromkeys(table[name])) for name in ("measure", "task"))
    ax = ax or new_axes(6.2, 3.2)
    ax.axhspan(-tolerance, tolerance, fc="#DDDDDD", ec="none")
    ax.axhline(0, color="black", lw=0.8)
    places = np.linspace(-0.3, 0.3, len(tasks)) if len(tasks) > 1 else [0.0]
    for i, (task, place) in enumerate(zip(tasks, places, strict=True)):
        rows = table[table["task"] == task]
        x = [measures.index(name) + place for name in rows["measure"]]
        color, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
        ax.scatter(x, rows["d"], s=14, label=task, color=color, marker=marker)
    ax.set_xticks(range(len(measures)), measures)
    ax.set_ylabel("Task minus control (d)")
    ax.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    return ax
