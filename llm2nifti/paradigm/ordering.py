"""In which order are the trials of a run shown? In blocks, in random order, or both.

A model reads every prompt afresh, so that order changes nothing about what it computes: orders are
those of experiments with people, for datasets that are compared with theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm2nifti.paradigm.matching import Rows


@dataclass(frozen=True, eq=False)
class Sequenced:
    """Trials in the order shown."""

    rows: Rows  #: (n_trials,) of the table
    block: NDArray[np.int64]  #: (n_trials,) number of the block, from 1
    sustained: NDArray[np.int64] | None = None  #: (n_trials,) 1 within blocks that hold the task

    @classmethod
    def of(cls, parts: Sequence[Rows]) -> Sequenced:
        """Blocks one after the other."""
        numbers = np.repeat(np.arange(1, len(parts) + 1), [len(part) for part in parts])
        return cls(np.concatenate(parts), numbers)


def shuffled(rows: Rows, rng: np.random.Generator) -> Rows:
    """Rows in random order."""
    return rows[rng.choice(len(rows), len(rows), replace=False)]


def alternating(on: Rows, off: Rows, n_blocks: int, rng: np.random.Generator) -> Sequenced:
    """Blocks off, on, off, ..., on, off."""
    on, off = shuffled(on, rng), shuffled(off, rng)
    parts: list[Rows] = [np.empty(0, np.intp)] * (2 * n_blocks + 1)
    parts[1::2], parts[::2] = np.array_split(on, n_blocks), np.array_split(off, n_blocks + 1)
    return Sequenced.of(parts)


def rotating(conditions: Sequence[Rows], n_blocks: int, rng: np.random.Generator) -> Sequenced:
    """Every condition in `n_blocks` blocks, a random order of the conditions in each cycle."""
    cut = [np.array_split(shuffled(rows, rng), n_blocks) for rows in conditions]
    order = [i for _ in range(n_blocks) for i in rng.permutation(len(cut))]
    return Sequenced.of([cut[i].pop() for i in order])


def in_random_order(conditions: Sequence[Rows], rng: np.random.Generator) -> Sequenced:
    """All trials in random order; a block is as many of one condition as follow each other."""
    rows = np.concatenate(conditions)
    of_condition = np.repeat(np.arange(len(conditions)), [len(part) for part in conditions])
    order = rng.permutation(len(rows))
    changes = np.diff(of_condition[order]) != 0
    return Sequenced(rows[order], 1 + np.concatenate([[0], np.cumsum(changes)]))


def mixed(on: Rows, off: Rows, n_blocks: int, rng: np.random.Generator) -> Sequenced:
    """Blocks of control trials alone take turns with blocks of task and control trials.

    What differs between the control trials of both kinds of blocks is sustained (Petersen and
    Dubis, 2012, NeuroImage 62:1177).
    """
    on, off = shuffled(on, rng), shuffled(off, rng)
    parts: list[Rows] = np.array_split(off, 2 * n_blocks + 1)
    tasks = np.array_split(on, n_blocks)
    parts[1::2] = [
        shuffled(np.concatenate(both), rng) for both in zip(parts[1::2], tasks, strict=True)
    ]
    whole = Sequenced.of(parts)
    return Sequenced(whole.rows, whole.block, (whole.block + 1) % 2)
