"""How many prompts does it take to name a task? Classifiers of prompts, and groups of them.

Scores of several held-out prompts add up, so that a block or a run is named by the mean of its
prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm2nifti.networks.identification import (
    Identification,
    IdentificationError,
    TrialSet,
    from_controls,
    named_by,
)

SIZES = (1, 2, 3, 4, 6)  # prompts that are named together
RIDGE = 0.1  # of a prompt's mean squared length; on the development split .01 is as good
_N_GROUPINGS = 20  # ways to put prompts together, of which the mean is taken


def name_by_training(trials: Sequence[TrialSet]) -> Identification:
    """Name every held-out task trial by a ridge classifier of the other runs' task trials.

    Parameters
    ----------
    trials : sequence of TrialSet
        All runs, each number of which is held out in turn.

    Returns
    -------
    Identification
        Named by the largest of scikit-learn's decision functions.

    Notes
    -----
    Deviations are from the training controls of a trial's question frame, in units of these
    controls' standard deviation; `sklearn.linear_model.RidgeClassifier` works in the space that the
    training trials span, which gives the same as working in all units. No trial of the held-out
    run, control included, is used for training. On the development split this named 93 % of single
    prompts right, templates (`name_trials`) 91 %, logistic regression 90 to 92 %; nested folds
    chose it in every run (docs/stimuli.md).
    """
    from sklearn.linear_model import RidgeClassifier

    tasks = list(dict.fromkeys(t.task for t in trials))
    scores = {}
    for run in sorted({t.run for t in trials}):
        training = [t for t in trials if t.run != run]
        held_out = [t for t in trials if t.run == run]
        if not training:
            raise IdentificationError("identification needs at least 2 runs of each task")
        truth, known = (
            [t.task for t in sets for _ in range(t.is_task.sum())] for sets in (held_out, training)
        )
        inside, outside = coordinates(training, held_out)
        model = RidgeClassifier(alpha=RIDGE).fit(inside, [tasks.index(name) for name in known])
        rows = model.decision_function(outside)
        if rows.ndim == 1:  # of two tasks
            rows = np.column_stack([-rows, rows])
        of_known = np.full((len(rows), len(tasks)), -np.inf)
        of_known[:, model.classes_] = rows
        scores[run] = truth, of_known
    return named_by(tasks, scores)


def coordinates(
    training: Sequence[TrialSet], held_out: Sequence[TrialSet]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Deviations of training and held-out task trials, in the space that the former span.

    They are scaled so that a training trial has a mean squared length of 1.
    """
    sets = (*training, *held_out)
    n_trials = sum(int(t.is_task.sum()) for t in sets)
    products = np.zeros((n_trials, n_trials))
    for _, _, deviations, scale in from_controls(training, sets):
        rows = (deviations / scale).astype(np.float32)
        products += rows @ rows.T
    n = sum(int(t.is_task.sum()) for t in training)
    squares, vectors = np.linalg.eigh(products[:n, :n])
    kept = squares > 1e-9 * squares[-1]
    directions = vectors[:, kept] / np.sqrt(squares[kept])
    length = np.sqrt(np.trace(products[:n, :n]) / n)
    return products[:n, :n] @ directions / length, products[n:, :n] @ directions / length


@dataclass(frozen=True)
class Accuracy:
    """How often groups of prompts are named right."""

    n_prompts: int  #: of a group
    accuracy: float
    low: float | None = None  #: 95 % interval over topics
    high: float | None = None


def naming_curve(
    named: Identification,
    topics: NDArray[np.str_],
    *,
    sizes: Sequence[int] = SIZES,
    n_boot: int = 200,
    seed: int = 0,
) -> list[Accuracy]:
    """Name groups of held-out prompts by the mean of their scores.

    Parameters
    ----------
    named : Identification
        Of single prompts.
    topics : (n_items,) array
        Topic of each.
    sizes : sequence of int
        Prompts of a group; a whole run comes after them.
    n_boot : int, default=200
        Bootstrap samples of topics.
    seed : int, default=0
        Seed of groups and samples.

    Returns
    -------
    list of Accuracy
        Groups are of one task and run. Intervals are percentiles over samples of each run's topics,
        drawn with replacement: they say what other topics would give.
    """
    rng = np.random.default_rng(seed)
    runs = [
        np.flatnonzero((named.truth == task) & (named.fold == fold))
        for fold in np.unique(named.fold)
        for task in np.unique(named.truth)
    ]
    runs = [rows for rows in runs if len(rows)]
    shortest = min(map(len, runs))
    sizes = list(dict.fromkeys([*(size for size in sizes if size < shortest), shortest]))
    by_topic = [[rows[topics[rows] == name] for name in np.unique(topics[rows])] for rows in runs]
    whole = [np.stack([rng.permutation(r)[:shortest] for r in runs]) for _ in range(_N_GROUPINGS)]
    drawn = [np.stack([_drawn(t, shortest, rng) for t in by_topic]) for _ in range(n_boot)]
    out = []
    for size in sizes:
        value = np.mean([_share(named, rows, size) for rows in whole])
        samples = [_share(named, rows, size) for rows in drawn]
        ends = np.percentile(samples, [2.5, 97.5]).tolist() if samples else (None, None)
        out.append(Accuracy(int(size), float(value), *ends))
    return out


def _drawn(
    by_topic: Sequence[NDArray[np.int64]], n: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """(n,) items of topics that are drawn with replacement, in random order."""
    items: list[int] = []
    while len(items) < n:
        items += by_topic[int(rng.integers(len(by_topic)))].tolist()
    return rng.permutation(items)[:n]


def _share(named: Identification, runs: NDArray[np.int64], size: int) -> float:
    """Share of groups named right, each of `size` items that follow each other in a run's row."""
    n = runs.shape[1] // size * size
    groups = runs[:, :n].reshape(-1, size)
    names = named.scores[groups].mean(axis=1).argmax(axis=1)
    return float((names == named.truth[groups[:, 0]]).mean())
