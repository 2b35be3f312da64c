"""Which conditions does a task have of its own, and which of its prompts does a run show of each?

Localizers compare conditions of one task (sentences with nonwords), factorial designs all
combinations of two columns of the stimuli. The first condition is the task, the others its control.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llm2nifti import stimuli
from llm2nifti.paradigm.matching import Rows

Order = Literal["blocks", "events", "mixed"]


class ParadigmError(ValueError):
    """A design cannot be made from these sizes and stimuli."""


class OutOfStimuliError(ParadigmError):
    """A pool of stimuli is too small for a run: of `n_all` prompts, `n_left` are unused."""

    def __init__(self, pool: str, n_needed: int, n_left: int, n_all: int, detail: str) -> None:
        super().__init__(f"{pool!r} has {n_left} unused prompts, a run needs {n_needed} ({detail})")
        self.pool = pool
        self.n_needed, self.n_all = n_needed, n_all


@dataclass(frozen=True)
class Task:
    """A task, and how its runs are designed."""

    name: str
    #: blocks in turn, all trials in random order, or blocks of controls with and without the task
    order: Order = "blocks"
    #: conditions to show, the task's first; by default those of `stimuli.LOCALIZERS`, or all
    conditions: tuple[str, ...] = ()
    factors: tuple[str, ...] = ()  #: columns of the stimuli whose combinations are the conditions


def label(name: object) -> str:
    """Name of a condition as trial_type: its ASCII letters and digits."""
    cleaned = re.sub(r"[^0-9A-Za-z]", "", str(name))
    if not re.search("[A-Za-z]", cleaned):
        raise ParadigmError(f"condition {str(name)!r} has no ASCII letter to name it by; rename it")
    return cleaned


def conditions_of(table: pd.DataFrame, task: Task) -> dict[str, Rows]:
    """Rows of each condition of a task's own, in order; empty where the control is the common one.

    `table` has the rows of the task alone. ParadigmError where a condition or factor is not there.
    """
    if task.factors:
        return _by_factors(table, task)
    names = table["condition"].to_numpy(str) if "condition" in table else np.full(len(table), "")
    known = [name for name in dict.fromkeys(names.tolist()) if name]
    for name in task.conditions:
        if name not in known:
            there = f"there are {', '.join(known)}" if known else "it has none of its own"
            raise ParadigmError(f"task {task.name!r} has no condition {name!r}; {there}")
    usual = stimuli.LOCALIZERS.get(task.name, ())
    shown = task.conditions or (usual if usual and set(usual) <= set(known) else known)
    if len(shown) == 1 and (task.conditions or len(known) > 1):
        raise ParadigmError(
            f"task {task.name!r} with condition {shown[0]!r} alone: give two conditions to compare"
        )
    return _labelled({(name,): names == name for name in shown}, task) if len(shown) > 1 else {}


def _by_factors(table: pd.DataFrame, task: Task) -> dict[str, Rows]:
    """Rows of each combination of the levels of some columns, which all have to be there."""
    for name in task.factors:
        if name not in table or (table[name].astype(str) == "").all():
            raise ParadigmError(f"task {task.name!r} has no column {name!r} in its stimuli")
    columns = [table[name].astype(str).to_numpy() for name in task.factors]
    levels = [[x for x in dict.fromkeys(column.tolist()) if x] for column in columns]
    for name, of_factor in zip(task.factors, levels, strict=True):
        if len(of_factor) < 2:
            raise ParadigmError(f"factor {name!r} of {task.name!r} has one level; it needs two")
    cells: dict[tuple[str, ...], NDArray[np.bool_]] = {}
    for combination in pd.MultiIndex.from_product(levels):
        is_here = np.all([c == x for c, x in zip(columns, combination, strict=True)], axis=0)
        if not is_here.any():
            raise ParadigmError(
                f"no prompt of {task.name!r} is {' and '.join(combination)}; a factorial design "
                "needs prompts of every combination"
            )
        cells[combination] = is_here
    return _labelled(cells, task)


def _labelled(masks: dict[tuple[str, ...], NDArray[np.bool_]], task: Task) -> dict[str, Rows]:
    """Rows of each condition by its label, made of one level or of several."""
    out: dict[str, Rows] = {}
    for levels, is_here in masks.items():
        name = "_".join(map(label, levels))
        if name in out:
            raise ParadigmError(f"two conditions of {task.name!r} are called {name!r}; rename one")
        out[name] = np.flatnonzero(is_here)
    return out


def roles(names: Sequence[str], task: Task) -> dict[str, str]:
    """Which conditions are the task and which its control.

    The first condition is the task, of a factorial design all with the first level of the first
    factor.
    """
    first = names[0].partition("_")[0] if task.factors else names[0]
    is_task = [(name.partition("_")[0] if task.factors else name) == first for name in names]
    return {n: "task" if on else "control" for n, on in zip(names, is_task, strict=True)}


def choose(
    table: pd.DataFrame,
    by_condition: dict[str, Rows],
    n: int,
    rng: np.random.Generator,
    whose: tuple[str, int],
) -> list[Rows]:
    """Rows of `n` prompts of each condition; of minimal pairs, both members.

    Parameters
    ----------
    table, by_condition : DataFrame, dict of (n,) arrays
        Stimuli, and those of their rows that may be shown, by condition.
    n, rng : int, Generator
        Prompts of each, and what draws them.
    whose : (str, int)
        For errors: the task, and how many prompts its smallest condition has in all.
    """
    pairs = [_pairs(table.iloc[rows]) for rows in by_condition.values()]
    if shared := sorted(set.intersection(*map(set, pairs))):
        drawn = rng.permutation(shared)[:n]
        _check_left(whose, n, len(shared), "minimal pairs")
        both = zip(by_condition.values(), pairs, strict=True)
        return [rows[np.argsort(p)][np.searchsorted(np.sort(p), drawn)] for rows, p in both]
    out = []
    for name, rows in by_condition.items():
        _check_left(whose, n, len(rows), f"of condition {name}")
        out.append(rng.permutation(rows)[:n])
    return out


def _check_left(whose: tuple[str, int], n: int, n_left: int, detail: str) -> None:
    if n_left < n:
        task, n_all = whose
        raise OutOfStimuliError(task, n, n_left, n_all, detail)


def _pairs(rows: pd.DataFrame) -> NDArray[np.float64]:
    """Pair of every row; empty where some row is of no pair or two are of the same."""
    names = rows["pair"] if "pair" in rows else pd.Series(np.nan, rows.index)
    numbers = pd.to_numeric(names, errors="coerce").to_numpy(float)
    is_clean = np.isfinite(numbers).all() and len(np.unique(numbers)) == len(numbers)
    return numbers if is_clean else numbers[:0]
