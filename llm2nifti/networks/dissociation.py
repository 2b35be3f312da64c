"""Does a network's lesion hurt its own task most? Effects of lesions against matched controls.

A text is the unit of inference. Its change is what a lesion does to its mean log probability a
token: below 0 the text became less likely. Intervals are 95 % and by bootstrap over texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llm2nifti.networks.similarity import same_and_cross

N_BOOTSTRAP = 2000


class DissociationError(ValueError):
    """The effects of these lesions cannot be compared."""


@dataclass(frozen=True, eq=False)
class Changes:
    """What lesions of a network, and of its controls, do to each task's texts, in nats a token."""

    network: str  #: whose network it is
    lesion: Mapping[str, NDArray[np.float64]]  #: (n_texts,)
    random: Mapping[str, NDArray[np.float64]]  #: (n_random, n_texts) of matched random units
    #: (n_texts,) of the units that respond least; empty where they were not lesioned
    bottom: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True)
class Effect:
    """What one network's lesion does to one task's text, in nats a token."""

    delta: float  #: mean change of log probability
    interval: list[float]  #: bootstrap over texts
    random: list[float]  #: the same of each set of matched random units
    excess: float  #: beyond the mean of the random sets
    excess_interval: list[float]
    n_texts: int
    bottom: float | None = None  #: change by as many units that respond least

    @property
    def is_clear(self) -> bool:
        """Whether the interval of the excess excludes 0."""
        low, high = self.excess_interval
        return low > 0 or high < 0


@dataclass(frozen=True)
class Selectivity:
    """How much more lesions change the tasks whose networks they take than the other tasks."""

    tasks: list[str]
    value: float  #: own task minus others, in nats a token; below 0, the own task is hurt more
    interval: list[float]
    random: list[float]  #: the same figure of each set of matched random units: its null


@dataclass(frozen=True)
class Side:
    """One task's text of a pair: by its own network's lesion minus by the other's."""

    value: float  #: in nats a token; below 0, the own network's lesion hurts it more
    interval: list[float]


@dataclass(frozen=True)
class DoubleDissociation:
    """Two tasks, each of which may be hurt more by its own network's lesion."""

    pair: list[str]
    first: Side
    second: Side
    crosses: bool  #: whether both values lie below 0
    holds: bool  #: whether both intervals do
    random_crosses: float  #: share of the sets of matched random units that cross, too


def effect(changes: Changes, task: str, *, seed: int = 0) -> Effect:
    """Effect of one lesion on the texts of one task.

    For the excess over random units, texts and random sets are drawn anew: sets differ, and a few
    of them are no fixed standard.
    """
    lesion, random = changes.lesion[task], changes.random[task]
    rows = _resampled(len(lesion), seed)
    sets = _resampled(len(random), seed + 1).T
    bottom = changes.bottom.get(task)
    return Effect(
        delta=float(lesion.mean()),
        interval=_interval(lesion[rows].mean(axis=1)),
        random=random.mean(axis=1).tolist(),
        excess=float(lesion.mean() - random.mean()),
        excess_interval=_interval(draws_beyond(lesion, random, rows, sets)),
        n_texts=len(lesion),
        bottom=None if bottom is None else float(bottom.mean()),
    )


def draws_beyond(values: NDArray, others: NDArray, rows: NDArray, sets: NDArray) -> NDArray:
    """(n_draws,) bootstrap of how far the mean of (n_texts,) values lies beyond random sets.

    `others` has a row of texts for each set of random units; `rows`, (n_draws, n_texts), and
    `sets`, (n_sets, n_draws), say which of them each draw takes.
    """
    drawn = np.take_along_axis(others[:, rows].mean(axis=2), sets, axis=0).mean(axis=0)
    return values[rows].mean(axis=1) - drawn


def selectivity(changes: Sequence[Changes], *, seed: int = 0) -> Selectivity:
    """How much more the lesions hurt the tasks whose networks they take than other tasks.

    Networks are named after their tasks; DissociationError if there are fewer than 2.
    """
    tasks, means, draws, null = _matrices(changes, seed)
    return Selectivity(
        tasks=tasks,
        value=_own_minus_other(means),
        interval=_interval(np.array([_own_minus_other(draw) for draw in draws])),
        random=[_own_minus_other(matrix) for matrix in null],
    )


def double_dissociations(changes: Sequence[Changes], *, seed: int = 0) -> list[DoubleDissociation]:
    """Test every pair of networks for a double dissociation; see `selectivity`.

    A crossover: the lesion of A hurts task A more than the lesion of B does, and the reverse. It
    compares lesions on the same texts, so that tasks need not be equally easy to hurt. The
    intervals are 95 % each and not corrected for the number of pairs.
    """
    tasks, means, draws, null = _matrices(changes, seed)

    def side(task: int, other: int) -> Side:
        values = draws[:, task, task] - draws[:, other, task]
        return Side(float(means[task, task] - means[other, task]), _interval(values))

    out = []
    for a in range(len(tasks)):
        for b in range(a):
            first, second = side(b, a), side(a, b)
            crossed = (null[:, a, a] < null[:, b, a]) & (null[:, b, b] < null[:, a, b])
            out.append(
                DoubleDissociation(
                    pair=[tasks[b], tasks[a]],
                    first=first,
                    second=second,
                    crosses=first.value < 0 and second.value < 0,
                    holds=first.interval[1] < 0 and second.interval[1] < 0,
                    random_crosses=float(crossed.mean()),
                )
            )
    return out


def _matrices(
    changes: Sequence[Changes], seed: int
) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Tasks, and mean changes of their texts under the lesion of each of their networks.

    The matrix (n_networks, n_tasks) of the lesions; (n_bootstrap, ...) of resampled texts, the same
    ones for all networks; and (n_random, ...) of the sets of random units.
    """
    tasks = [c.network for c in changes]
    if len(tasks) < 2 or any(task not in c.lesion for task in tasks for c in changes):
        raise DissociationError(
            f"a dissociation needs networks of 2 or more tasks and texts of each; there are "
            f"{', '.join(tasks) or 'none'}"
        )
    means = np.array([[c.lesion[task].mean() for task in tasks] for c in changes])
    n_random = min(len(c.random[task]) for c in changes for task in tasks)
    null = np.array(
        [[[c.random[t][i].mean() for t in tasks] for c in changes] for i in range(n_random)]
    )
    draws = np.empty((N_BOOTSTRAP, *means.shape))
    for j, task in enumerate(tasks):
        rows = _resampled(len(changes[0].lesion[task]), seed + j)
        for i, c in enumerate(changes):
            draws[:, i, j] = c.lesion[task][rows].mean(axis=1)
    return tasks, means, draws, null


def _own_minus_other(matrix: NDArray) -> float:
    """Mean of the diagonal minus mean of the rest, after taking out how fragile each task is.

    Rows are networks, columns tasks. A task that any lesion hurts would otherwise count for its own
    network too.
    """
    same, cross = same_and_cross(matrix - matrix.mean(axis=0))
    return same - cross


def _resampled(n: int, seed: int) -> NDArray[np.int64]:
    """(n_bootstrap, n) rows drawn with replacement."""
    return np.random.default_rng([seed, 20231110]).integers(n, size=(N_BOOTSTRAP, n))


def _interval(draws: NDArray) -> list[float]:
    """95 % percentile interval."""
    return np.percentile(draws, [2.5, 97.5]).tolist()
