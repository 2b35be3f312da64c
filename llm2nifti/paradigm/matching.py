"""Which controls are like the task's prompts in all but their subject? Optimal matching.

Controls that differ in length, word frequency or surprisal from the prompts of a task activate
units by that alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from llm2nifti.stimuli.measures import TOLERANCE, difference

_IMPOSSIBLE = 1e6
_REACH = 2.0  # largest |d| of all prompts that matching tries to mend
_ROUNDS = 100  # assignments tried at most; most runs are within the tolerance after ten

Rows = NDArray[np.intp]  # numbers of a table's rows, or of what they hold
Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Candidates:
    """Prompts to choose from, or to be like."""

    levels: Rows  #: (n,) question frame of each
    topics: Rows  #: (n,) topic of each
    values: Values  #: (n, n_measures) measures

    def __len__(self) -> int:
        """Prompts there are."""
        return len(self.levels)


def reachable(
    table: pd.DataFrame, names: Iterable[str], task: Rows, control: Rows
) -> dict[str, float]:
    """Measures by which these controls can be matched to the task's prompts, with their d.

    All prompts have them, and both sets are at most `_REACH` apart: to try more would spoil the
    other measures. Strings without words have more tokens than words of their length, so that they
    are matched in tokens alone.
    """
    out = {}
    for name in (name for name in names if name in table):
        on, off = (table[name].to_numpy(float)[rows] for rows in (task, control))
        if len(off) and np.isfinite(on).all() and np.isfinite(off).all() and np.ptp(off) > 0:
            out[name] = float(difference(on, off))
    if "tokens" in out and "frequency" in table and not table["frequency"].iloc[task].any():
        out.pop("characters", None)
    return {name: d for name, d in out.items() if abs(d) <= _REACH}


def assign(slots: Rows, pool: Candidates, costs: Values) -> Rows | None:
    """The cheapest prompt of the pool for every slot, all of different topics; None without one.

    Slots are question frames, `costs` are (n_slots, n_pool).
    """
    order = np.argsort(pool.topics, kind="stable")
    _, starts = np.unique(pool.topics[order], return_index=True)
    costs = np.where(pool.levels[order] == slots[:, None], costs[:, order], _IMPOSSIBLE)
    by_topic = np.minimum.reduceat(costs, starts, axis=1)
    if by_topic.shape[1] < len(slots):
        return None
    at_slots, at_topics = linear_sum_assignment(by_topic)
    if (by_topic[at_slots, at_topics] >= _IMPOSSIBLE).any():
        return None
    ends = np.r_[starts[1:], len(order)]
    inside = [slice(starts[topic], ends[topic]) for topic in at_topics]
    chosen = zip(at_slots, inside, strict=True)
    return order[[part.start + costs[i, part].argmin() for i, part in chosen]]


def match(target: Candidates, slots: Rows, pool: Candidates, costs: Values) -> Rows | None:
    """Prompts of the pool that are like the target's, one a slot; None if there are too few.

    Parameters
    ----------
    target : Candidates
        The task's prompts.
    slots : (n_slots,) array
        Question frame of each control that is needed.
    pool : Candidates
        Controls that may be shown.
    costs : (n_slots, n_pool) array
        What decides between controls that are equally like.

    Notes
    -----
    Every slot wants a control near one of the task's prompts of its question frame, in units of
    standard deviations, by scipy's `linear_sum_assignment` (optimal pair matching: Rosenbaum, 1989,
    Journal of the American Statistical Association 84:1024). What the means still differ by becomes
    a price in the next assignment, until every measure is within the tolerance; the assignment with
    the smallest largest difference is taken.
    """
    if not target.values.shape[1]:
        return assign(slots, pool, costs)
    scale = np.sqrt((target.values.var(axis=0) + pool.values.var(axis=0)) / 2)
    wanted, offered = target.values[_wanted(target.levels, slots)] / scale, pool.values / scale
    costs = costs + ((wanted[:, None, :] - offered[None]) ** 2).sum(axis=2)
    price = np.zeros(len(scale))
    best, smallest = None, np.inf
    for _ in range(_ROUNDS):
        rows = assign(slots, pool, costs - offered @ price)
        if rows is None:
            return None
        gaps = difference(target.values, pool.values[rows])
        if np.abs(gaps).max() < smallest:
            best, smallest = rows, np.abs(gaps).max()
        if smallest <= TOLERANCE / 2:
            break
        price += gaps
    return best


def _wanted(levels: Rows, slots: Rows) -> Rows:
    """Which target each slot is to be like: those of its question frame in turn, or of all."""
    wanted = np.empty(len(slots), np.intp)
    for level in np.unique(slots):
        same, at = np.flatnonzero(levels == level), np.flatnonzero(slots == level)
        wanted[at] = np.resize(same if len(same) else np.arange(len(levels)), len(at))
    return wanted
