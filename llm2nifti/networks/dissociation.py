"""Does a network's lesion hurt its own task most? Effects of lesions against matched controls.

A text is the unit of inference. Its change is what a lesion does to its mean log probability a
token: below 0 the text became less likely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

N_BOOTSTRAP = 2000


class DissociationError(ValueError):
    """The effects of these lesions cannot be compared."""


@dataclass(frozen=True, eq=False)
class Changes:
    """What the lesions of one network, and of its controls, do to the texts of each task.

    Attributes
    ----------
    network : str
        Whose network it is.
    lesion : mapping of str to (n_texts,) array
        Change of each text in nats a token, by task.
    random : mapping of str to (n_random, n_texts) array
        The same for matched random units.
    bottom : mapping of str to (n_texts,) array
        The same for the units that respond least; empty where they were not lesioned.
    """

    network: str
    lesion: Mapping[str, NDArray[np.float64]]
    random: Mapping[str, NDArray[np.float64]]
    bottom: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


def effect(changes: Changes, task: str, *, seed: int = 0) -> dict[str, Any]:
    """Effect of one lesion on one task.

    Parameters
    ----------
    changes : Changes
        Of one network.
    task : str
        Whose texts.
    seed : int, default=0
        Seed of the bootstrap.

    Returns
    -------
    dict
        ``delta`` and its bootstrap ``interval`` over texts, ``random`` (one mean a draw),
        ``bottom``, and ``excess`` over the random mean with ``excess_interval``, for which texts
        and random sets are drawn anew: sets differ, and a few of them are no fixed standard.
    """
    lesion, random = changes.lesion[task], changes.random[task]
    rows = _resampled(len(lesion), seed)
    sets = _resampled(len(random), seed + 1).T
    bottom = changes.bottom.get(task)
    return {
        "delta": float(lesion.mean()),
        "interval": _interval(lesion[rows].mean(axis=1)),
        "random": random.mean(axis=1).tolist(),
        "bottom": None if bottom is None else float(bottom.mean()),
        "excess": float(lesion.mean() - random.mean()),
        "excess_interval": _interval(draws_beyond(lesion, random, rows, sets)),
        "n_texts": len(lesion),
    }


def draws_beyond(
    values: NDArray[np.float64],
    others: NDArray[np.float64],
    rows: NDArray[np.int64],
    sets: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Bootstrap draws of how far a mean over texts lies beyond that of some random sets.

    Parameters
    ----------
    values : (n_texts,) array
        A value of each text.
    others : (n_sets, n_texts) array
        The same under each set of random units.
    rows : (n_draws, n_texts) int array
        Texts of each draw, the same ones for all.
    sets : (n_sets, n_draws) int array
        Sets of each draw.

    Returns
    -------
    (n_draws,) array
    """
    drawn = np.take_along_axis(others[:, rows].mean(axis=2), sets, axis=0).mean(axis=0)
    return values[rows].mean(axis=1) - drawn


def selectivity(changes: Sequence[Changes], *, seed: int = 0) -> dict[str, Any]:
    """How much more the lesions hurt the tasks whose networks they take than other tasks.

    Parameters
    ----------
    changes : sequence of Changes
        One a network; those whose name is a task are compared.
    seed : int, default=0
        Seed of the bootstrap.

    Returns
    -------
    dict
        ``value``: mean change of a network's own task minus that of the other tasks (below 0: the
        own task is hurt more); ``interval`` by bootstrap over texts; ``random``: the same figure
        of each set of matched random units, its null.

    Raises
    ------
    DissociationError
        If there are fewer than 2 tasks with a network.
    """
    tasks, means, draws, null = _matrices(changes, seed)
    return {
        "tasks": tasks,
        "value": float(_own_minus_other(means)),
        "interval": _interval(np.array([_own_minus_other(draw) for draw in draws])),
        "random": [_own_minus_other(matrix) for matrix in null],
    }


def double_dissociations(changes: Sequence[Changes], *, seed: int = 0) -> list[dict[str, Any]]:
    """Test every pair of networks for a double dissociation.

    Parameters
    ----------
    changes : sequence of Changes
        One a network; those whose name is a task are compared.
    seed : int, default=0
        Seed of the bootstrap.

    Returns
    -------
    list of dict
        One a pair: ``first`` and ``second``: how much more a task is hurt by its own network's
        lesion than by the other's (below 0: more), each with an interval by bootstrap over texts;
        ``crosses``: both lie below 0; ``holds``: both intervals do; ``random_crosses``: share of
        the sets of matched random units that cross, too.

    Notes
    -----
    A crossover: the lesion of A hurts task A more than the lesion of B does, and the reverse. It
    compares lesions on the same texts, so that tasks need not be equally easy to hurt. The
    intervals are 95 % each and not corrected for the number of pairs.
    """
    tasks, means, draws, null = _matrices(changes, seed)
    out = []
    for a in range(len(tasks)):
        for b in range(a):
            pair: dict[str, Any] = {"pair": [tasks[b], tasks[a]]}
            for name, task, other in (("first", b, a), ("second", a, b)):
                spread = draws[:, task, task] - draws[:, other, task]
                value = float(means[task, task] - means[other, task])
                pair[name] = {"value": value, "interval": _interval(spread)}
            pair["crosses"] = all(pair[name]["value"] < 0 for name in ("first", "second"))
            pair["holds"] = all(pair[name]["interval"][1] < 0 for name in ("first", "second"))
            crossed = (null[:, a, a] < null[:, b, a]) & (null[:, b, b] < null[:, a, b])
            pair["random_crosses"] = float(crossed.mean())
            out.append(pair)
    return out


def _tasks(changes: Sequence[Changes]) -> list[str]:
    """Tasks that have a network, in the order of the networks."""
    tasks = [c.network for c in changes]
    if len(tasks) < 2 or any(task not in c.lesion for task in tasks for c in changes):
        raise DissociationError(
            f"a dissociation needs networks of 2 or more tasks and texts of each; there are "
            f"{', '.join(tasks) or 'none'}"
        )
    return tasks


def _matrices(
    changes: Sequence[Changes], seed: int
) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Tasks, and mean changes of their texts under the lesion of each of their networks.

    The matrix (n_networks, n_tasks) of the lesions; (n_bootstrap, ...) of resampled texts, the same
    ones for all networks; and (n_random, ...) of the sets of random units.
    """
    tasks = _tasks(changes)
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
    centred = matrix - matrix.mean(axis=0)
    diagonal = np.eye(len(matrix), dtype=bool)
    return float(centred[diagonal].mean() - centred[~diagonal].mean())


def _resampled(n: int, seed: int) -> NDArray[np.int64]:
    """(n_bootstrap, n) rows drawn with replacement."""
    return np.random.default_rng([seed, 20231110]).integers(n, size=(N_BOOTSTRAP, n))


def _interval(draws: NDArray) -> list[float]:
    """95 % percentile interval."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return [float(low), float(high)]
