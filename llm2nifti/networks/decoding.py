"""Can a linear classifier tell prompts apart? Ridge regression, for many labellings at once.

A ridge penalty does not see rotations: the classifier on all units of a parcel is the one on the
products of trials with each other. All labellings, the true one and its permutations, are columns
of one solution.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, stats


def fitted(
    train: NDArray, others: NDArray, is_on: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores of training trials and of other trials by kernel ridge regression.

    Parameters
    ----------
    train : (n, n) array
        Products of training trials with each other.
    others : (m, n) array
        Products of other trials with those.
    is_on : (n, n_labellings) bool array
        Labels of the training trials, each column a classifier of its own.

    Returns
    -------
    (n, n_labellings) and (m, n_labellings) arrays

    Notes
    -----
    The penalty is the mean squared distance of training trials from their mean, so that it has the
    units of the products and scales with them. It was not tuned.
    """
    row, whole = train.mean(axis=0), train.mean()
    inside = train - row - row[:, None] + whole
    outside = others - others.mean(axis=1, keepdims=True) - row + whole
    targets = np.where(is_on, 1.0, -1.0)
    targets -= targets.mean(axis=0)
    penalty = float(np.trace(inside)) / len(inside) or 1.0
    # scikit-learn's KernelRidge solves the same and spends four times as long on checks.
    weights = linalg.solve(inside + penalty * np.eye(len(inside)), targets, assume_a="pos")
    return inside @ weights, outside @ weights


def areas(scores: NDArray, is_on: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n_labellings,) AUC of the columns of (n_trials, n_labellings) scores and labels."""
    ranks = stats.rankdata(np.ascontiguousarray(scores.T), axis=1).T
    n_on = is_on.sum(axis=0)
    wins = (ranks * is_on).sum(axis=0) - n_on * (n_on + 1) / 2
    return wins / (n_on * (len(scores) - n_on))


def balanced(scores: NDArray, is_on: NDArray[np.bool_], limits: NDArray) -> NDArray[np.float64]:
    """(n_labellings,) balanced accuracy: mean of hit rate and correct rejections above `limits`."""
    above = scores > limits
    hits = (above & is_on).sum(axis=0) / is_on.sum(axis=0)
    return (hits + (~above & ~is_on).sum(axis=0) / (~is_on).sum(axis=0)) / 2


def midpoints(scores: NDArray, is_on: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n_labellings,) middle between the mean scores of both classes of training trials."""
    on = (scores * is_on).sum(axis=0) / is_on.sum(axis=0)
    off = (scores * ~is_on).sum(axis=0) / (~is_on).sum(axis=0)
    return (on + off) / 2


def folds(run: NDArray) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Positions of training and of held-out trials, for each run that is held out."""
    for held in np.unique(run):
        yield np.flatnonzero(run != held), np.flatnonzero(run == held)


def decode(
    gram: NDArray, is_on: NDArray[np.bool_], run: NDArray
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Hold out one run after another.

    Parameters
    ----------
    gram : (n, n) array
        Products of all trials with each other.
    is_on : (n, n_labellings) bool array
        Labels; the first column is the true one.
    run : (n,) array
        Number of the run of each trial.

    Returns
    -------
    auc, accuracy : (n_labellings,) array
        Means over held-out runs; the accuracy is balanced.
    scores : (n,) array
        Held-out scores by the true labels.

    Examples
    --------
    >>> x = np.r_[np.zeros(8), np.ones(8)][:, None] + np.arange(16)[:, None] % 3 / 10
    >>> on, run = np.arange(16)[:, None] > 7, np.arange(16) % 2
    >>> decode(x @ x.T, on, run)[0]
    array([1.])
    """
    by_fold, scores = [], np.zeros(len(run))
    for inside, held in folds(run):
        on, truth = is_on[inside], is_on[held]
        known, told = fitted(gram[np.ix_(inside, inside)], gram[np.ix_(held, inside)], on)
        accuracy = balanced(told, truth, midpoints(known, on))
        by_fold.append((areas(told, truth), accuracy))
        scores[held] = told[:, 0]
    auc, accuracy = np.mean(by_fold, axis=0)
    return auc, accuracy, scores


def over_time(grams: NDArray, is_on: NDArray[np.bool_], run: NDArray) -> NDArray[np.float64]:
    """Train at one frame, test at every other: temporal generalisation.

    King and Dehaene (2014, Trends in Cognitive Sciences 18:203).

    Parameters
    ----------
    grams : (n_frames, n, n_frames, n) array
        Products of all trials at all frames.
    is_on, run
        See `decode`.

    Returns
    -------
    (n_frames, n_frames, n_labellings) array
        AUC by the frame of training and the frame of testing, mean over held-out runs.
    """
    n_frames = len(grams)
    out = np.zeros((n_frames, n_frames, is_on.shape[1]))
    splits = list(folds(run))
    for inside, held in splits:
        truth = np.tile(is_on[held], n_frames)
        for frame in range(n_frames):
            train = grams[frame][inside][:, frame][:, inside]
            others = grams[:, held][:, :, frame][:, :, inside].reshape(-1, len(inside))
            _, told = fitted(train, others, is_on[inside])
            scores = told.reshape(n_frames, len(held), -1).swapaxes(0, 1).reshape(len(held), -1)
            out[frame] += areas(scores, truth).reshape(n_frames, -1) / len(splits)
    return out
