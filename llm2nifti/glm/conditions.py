"""Which trials are of the task and which of its control, and what are contrasts of them called?

In block designs against the common control, ``trial_type`` says it. Where a task has conditions of
its own, ``role`` does: some of them are the task's, the others its control.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llm2nifti.stimuli.tables import CONTROL, ROLE

__all__ = ["CONTROL", "ROLE", "is_on", "kinds", "named_contrasts", "pairs_of", "task_contrast"]


def is_on(events: pd.DataFrame) -> NDArray[np.bool_]:
    """(n_trials,) whether a trial is of the task; all others are of its control."""
    sides = events["trial_type"]
    if ROLE in events:  # in trials of several tasks, empty where these have the common control
        sides = events[ROLE].where(events[ROLE].isin(["task", CONTROL]), sides)
    return (sides != CONTROL).to_numpy()


def kinds(task: str, events: pd.DataFrame) -> NDArray[np.str_]:
    """(n_trials,) the name of the task or ``control`` for each trial of its run."""
    return np.where(is_on(events), task, CONTROL)


def task_contrast(events: pd.DataFrame) -> str:
    """Contrast of a run's task and its control; a side with several conditions is their mean.

    Examples
    --------
    >>> task_contrast(pd.DataFrame({"trial_type": ["control", "pathology"]}))
    'pathology - control'
    """
    types, rows = events["trial_type"].to_numpy(str), is_on(events)
    return _difference(np.unique(types[rows]).tolist(), np.unique(types[~rows]).tolist())


def _difference(on: Sequence[str], off: Sequence[str]) -> str:
    """Mean of some conditions minus that of others."""
    means = [
        f"({' + '.join(names)}) / {len(names)}" if len(names) > 1 else "".join(names) or CONTROL
        for names in (on, off)
    ]
    return " - ".join(means)


def named_contrasts(task: str, events: pd.DataFrame) -> dict[str, str]:
    """Contrasts that have a name, in a run whose task has conditions of its own.

    The task's name is that of its conditions minus those of its control. A column of texts with
    two levels, each of whole conditions, is a factor: its name is that of its main effect, and
    ``first:second`` that of the interaction of two factors.

    Examples
    --------
    >>> table = pd.DataFrame({"trial_type": ["easy", "hard"], "role": ["control", "task"]})
    >>> named_contrasts("arithmetic", table)
    {'arithmetic': 'hard - easy'}
    """
    if ROLE not in events:
        return {}
    by_condition = events.groupby("trial_type", sort=True)
    first = by_condition.first().reset_index()
    names = first["trial_type"].to_numpy(str)
    of_task, sides = is_on(first), {}
    for name in (name for name in first if name not in (ROLE, "trial_type")):
        values = first[name].to_numpy()
        is_text = not pd.api.types.is_numeric_dtype(first[name])
        is_whole = bool(by_condition[name].nunique(dropna=False).eq(1).all())
        if is_text and is_whole and len(set(values)) == 2 and "" not in values:
            sides[name] = values == _first_level(values, of_task)
    sides |= {f"{a}:{b}": sides[a] == sides[b] for a, b in combinations(sides, 2)}
    named = {
        name: (names[side], names[~side]) for name, side in sides.items() if 0 < side.mean() < 1
    }
    out = {name: _difference(*map(list, both)) for name, both in named.items()}
    return {**out, task: task_contrast(events)}


def _first_level(values: NDArray, of_task: NDArray[np.bool_]) -> str:
    """The level that a main effect adds: the task's, if it has one only."""
    levels = set(values[of_task])
    return levels.pop() if len(levels) == 1 else min(values)


def pairs_of(events: pd.DataFrame) -> NDArray[np.str_]:
    """(n_trials,) number of each trial's minimal pair; all empty where conditions share none."""
    nothing = np.full(len(events), "")
    if not len(events) or not {"pair", "trial_type"} <= set(events):
        return nothing
    numbers = pd.to_numeric(events["pair"], errors="coerce").to_numpy()
    if np.isnan(numbers).any() or not events["trial_type"].groupby(numbers).nunique().gt(1).any():
        return nothing
    names = numbers.astype(int).astype(str)
    return np.char.add(events["task"].to_numpy(str), names) if "task" in events else names
