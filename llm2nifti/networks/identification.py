"""Which task is this run? Held-out runs and trials named by their best-matching map."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from llm2nifti.networks.similarity import corrected, correlation, tasks_of
from llm2nifti.plans import Json

_TOGETHER = 4096  # units
SHRINKAGE = 0.5  # on the development split .2, .5 and .9 name trials equally well


class IdentificationError(ValueError):
    """Identification cannot be done with these runs."""


@dataclass(frozen=True, eq=False)
class TrialSet:
    """Trials of one run of one task."""

    task: str  #: task, run: name of the task, and number of the run: the fold
    run: int
    #: values, is_task: (n_trials, n_units) array, (n_trials,) bool array; prompt-level activations,
    #: and which are those of task trials; the others are control
    values: NDArray[np.floating]
    is_task: NDArray[np.bool_]
    #: frames, prompts: (n_trials,) str array, list of str; question frame of each trial, empty
    #: where it has none, and what was shown
    frames: NDArray[np.str_]
    prompts: list[str]
    topics: NDArray[np.str_] | None = None  #: (n_trials,) str array; topic of each trial

    @property
    def task_topics(self) -> NDArray[np.str_]:
        """(n_task_trials,) topics of the task's trials; each its own where they are unknown."""
        if self.topics is None:
            return np.array([f"{self.task} {self.run} {i}" for i in range(self.is_task.sum())])
        return self.topics[self.is_task]


@dataclass(frozen=True, eq=False)
class Identification:
    """Names given to held-out items."""

    tasks: list[str]  #: what could be said
    #: truth, named, fold: (n_items,) int arrays; true and given task, as indices, and the run that
    #: each item was held out with
    truth: NDArray[np.int64]
    named: NDArray[np.int64]
    fold: NDArray[np.int64]
    #: (n_items, n_tasks) how much speaks for each task; scores of several items add up
    scores: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)), repr=False)

    @property
    def accuracy(self) -> float:
        """Share of items named right."""
        return float((self.truth == self.named).mean())

    @property
    def chance(self) -> float:
        """Accuracy of guessing."""
        return 1 / len(self.tasks)

    def confusion(self) -> NDArray[np.float64]:
        """(n_tasks, n_tasks) share of each true task's items (rows) by the name they got."""
        counts = np.zeros((len(self.tasks), len(self.tasks)))
        np.add.at(counts, (self.truth, self.named), 1)
        return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    def p_value(self, n_perm: int = 10_000, seed: int = 0) -> float:
        """Permutation p: whole runs exchange their task labels within a fold.

        Trials of one run stay together, because they are not independent of each other.
        """
        rng = np.random.default_rng(seed)
        rows, draws = np.arange(len(self.tasks)), np.zeros(n_perm)
        folds, fold = np.unique(self.fold, return_inverse=True)
        hits = np.zeros((len(folds), len(rows), len(rows)))  # items of a run that would be right
        np.add.at(hits, (fold, self.truth, self.named), 1)
        observed = np.trace(hits, axis1=1, axis2=2).sum()
        for of_fold in hits:
            labels = rng.permuted(np.tile(rows, (n_perm, 1)), axis=1)
            draws += of_fold[rows, labels].sum(axis=1)
        return float((1 + (draws >= observed - 1e-9).sum()) / (n_perm + 1))

    def summary(self) -> Json:
        """As a dictionary for JSON."""
        return {
            "accuracy": self.accuracy,
            "n_items": len(self.truth),
            "chance": self.chance,
            "p": self.p_value(),
            "tasks": self.tasks,
            "confusion": self.confusion().tolist(),
        }


def name_trials(
    trials: Sequence[TrialSet], templates: Mapping[int, Mapping[str, NDArray]]
) -> Identification:
    """Name every held-out task trial by the training effect that its deviation matches best.

    Parameters
    ----------
    trials, templates
        All runs, each number of which is held out in turn; and for each held-out run, the
        (n_units,) effects (task minus control) of every task in the other runs alone.

    Notes
    -----
    A trial's deviation is taken from the training controls of its question frame. Deviations and
    effects are whitened by the training controls' covariance, shrunk to its diagonal (multivariate
    noise normalisation: Walther et al., 2016, NeuroImage 137:188); the match is Pearson's
    correlation. No trial of the held-out run, control included, is used for templates or noise.
    On the development split this named 80 % of single trials right, without whitening 70 %.
    """
    tasks = list(dict.fromkeys(t.task for t in trials))
    scores = {}
    for run in sorted(templates):
        training = [t for t in trials if t.run != run]
        if not training:
            raise IdentificationError("identification needs at least 2 runs of each task")
        held_out = [t for t in trials if t.run == run]
        patterns = np.stack([templates[run][task] for task in tasks])
        truth = [t.task for t in held_out for _ in range(t.is_task.sum())]
        scores[run] = truth, match(training, held_out, patterns)
    return named_by(tasks, scores)


def name_runs(
    maps: Mapping[tuple[str, int], NDArray], templates: Mapping[int, Mapping[str, NDArray]]
) -> Identification:
    """Name every held-out run by the training map that its own map correlates with best.

    Parameters
    ----------
    maps, templates
        (n_units,) map of each (task, run); and for each held-out run, the maps of every task made
        from the other runs alone.
    """
    tasks, scores = tasks_of(maps), {}
    for run in sorted(templates):
        shown = [task for task in tasks if (task, run) in maps]
        patterns = np.stack([templates[run][task] for task in tasks])
        r = correlation(np.stack([maps[task, run] for task in shown]), patterns)
        scores[run] = shown, np.nan_to_num(r)  # that of a constant map
    return named_by(tasks, scores)


def name_prompts(trials: Sequence[TrialSet], *, by: str = "characters") -> Identification:
    """Name held-out task trials from the text of their prompts alone, as a baseline.

    `by` n-grams of 1 to 4 characters, or ``words`` alone, weighted by scikit-learn's TF-IDF; the
    nearest task centroid of the other runs by cosine.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    tasks = list(dict.fromkeys(t.task for t in trials))
    shown = [(prompt, t.task, t.run) for t in trials for prompt in compress(t.prompts, t.is_task)]
    prompts, truth, runs = (np.array(column, object) for column in zip(*shown, strict=True))

    scores = {}
    for run in sorted({t.run for t in trials}):
        known = runs != run
        how = {"analyzer": "char_wb", "ngram_range": (1, 4)} if by == "characters" else {}
        vectorizer = TfidfVectorizer(sublinear_tf=True, **how)
        rows = vectorizer.fit_transform(prompts[known])
        centroids = np.concatenate([rows[truth[known] == task].mean(axis=0) for task in tasks])
        centroids = np.asarray(centroids) / np.linalg.norm(centroids, axis=1, keepdims=True)
        scores[run] = truth[~known].tolist(), vectorizer.transform(prompts[~known]) @ centroids.T
    return named_by(tasks, scores)


def named_by(tasks: list[str], scores: Mapping[int, tuple[list[str], NDArray]]) -> Identification:
    """Give each item the task of its best score, from each run's true tasks and scores."""
    truth = [tasks.index(task) for known, _ in scores.values() for task in known]
    named = [rows.argmax(axis=1) for _, rows in scores.values()]
    fold = np.repeat(list(scores), [len(rows) for rows in named])
    values = np.concatenate([rows for _, rows in scores.values()])
    return Identification(tasks, np.array(truth), np.concatenate(named), fold, values)


def match(
    training: Sequence[TrialSet], held_out: Sequence[TrialSet], patterns: NDArray
) -> NDArray[np.float64]:
    """(n_trials, n_patterns) covariances of whitened deviations with patterns of variance 1.

    A trial's are its correlations with the patterns times its standard deviation, so that its best
    match is the same, and those of several trials add up.

    Controls of `training` give mean and noise, the task trials of `held_out` are matched with the
    effects in `patterns`, (n_patterns, n_units); see `name_trials`. Whitening rescales only the
    directions that the training controls vary in, far fewer than units, so the products of all rows
    with each other are enough: no whitened row is ever made. Products of rows in SDs are taken in
    float32, some units at a time, and added up in float64.
    """
    n = sum(int((~t.is_task).sum()) for t in training)
    n_trials = sum(int(t.is_task.sum()) for t in held_out)
    n_rows, n_units = n + n_trials + len(patterns), patterns.shape[1]
    products, sums = np.zeros((n_rows, n_rows)), np.zeros(n_rows)
    for part, residuals, deviations, scale in from_controls(training, held_out):
        rows = np.concatenate([residuals, deviations, patterns[:, part]]) / scale
        sums += rows.sum(axis=1)
        rows = rows.astype(np.float32)
        products += rows @ rows.T
    return _whitened(products, sums, n, n_units)[:n_trials, n_trials:]


def from_controls(
    training: Sequence[TrialSet], shown: Sequence[TrialSet]
) -> Iterator[tuple[slice, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]:
    """Deviations of trials from the training controls of their question frame.

    Yields, some units at a time, which they are, (n_controls, n) residuals of the training
    controls, (n_trials, n) deviations of the task trials in `shown`, and (n,) standard deviations
    of the residuals, infinite where there is none.
    """
    controls = np.concatenate([t.values[~t.is_task] for t in training])
    trials = np.concatenate([t.values[t.is_task] for t in shown])
    known = np.concatenate([t.frames[~t.is_task] for t in training])
    of_control = _frame_weights(known, known)
    of_trial = _frame_weights(known, np.concatenate([t.frames[t.is_task] for t in shown]))
    for start in range(0, controls.shape[1], _TOGETHER):
        part = slice(start, start + _TOGETHER)
        values = controls[:, part].astype(np.float64)
        residuals = values - of_control @ values
        scale = residuals.std(axis=0)
        deviations = trials[:, part] - of_trial @ values
        yield part, residuals, deviations, np.where(scale > 0, scale, np.inf)


def _frame_weights(known: NDArray, frames: NDArray) -> NDArray[np.float64]:
    """(n_frames, n_known) weights that give the mean of the controls of each question frame.

    A frame that no control has, or none at all, gets the mean of all controls.
    """
    same = (frames[:, None] == known) & (frames != "")[:, None]
    same[~same.any(axis=1)] = True
    return same / same.sum(axis=1, keepdims=True)


def _whitened(
    products: NDArray[np.float64], sums: NDArray[np.float64], n: int, n_units: int
) -> NDArray[np.float64]:
    """Covariances of rows, the columns of variance 1, after whitening by the first `n` rows.

    A row in SDs is multiplied by the inverse square root of the correlation matrix of the first
    `n`, shrunk to its diagonal: the variance of the directions that they span is what shrinkage
    leaves of it, and `SHRINKAGE` in all others.
    """
    squares, vectors = np.linalg.eigh(products[:n, :n])
    kept = squares > 1e-12 * squares[-1]
    directions = vectors[:, kept] / np.sqrt(squares[kept])
    gains = 1 / np.sqrt((1 - SHRINKAGE) * squares[kept] / n + SHRINKAGE) - 1 / np.sqrt(SHRINKAGE)
    along = products[n:, :n] @ directions
    white = products[n:, n:] / SHRINKAGE
    white += (along * (gains**2 + 2 * gains / np.sqrt(SHRINKAGE))) @ along.T
    totals = sums[n:] / np.sqrt(SHRINKAGE) + (along * gains) @ (directions.T @ sums[:n])
    covariance = white - np.outer(totals, totals) / n_units
    scale = np.sqrt(np.maximum(np.diag(covariance), 0) / n_units)
    return np.nan_to_num(corrected(covariance)) * scale[:, None]
