"""Which single units go together? Functional connectivity by nilearn, where units mean something.

Only for sites in which every unit is read by itself (see docs/basis.md): in the residual stream the
same numbers would describe a convention.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from nilearn.connectome import ConnectivityMeasure
from numpy.typing import NDArray
from sklearn.covariance import EmpiricalCovariance


def partial_correlations(runs: Sequence[NDArray]) -> NDArray[np.float64]:
    """(n_runs, n_units, n_units) partial correlations of (n_trials, n_units) values of each run.

    Nilearn's, of the covariance as it is: shrinkage depends on what there is to find, so that
    shuffled prompts would be shrunk to nothing. There have to be more trials than units.
    """
    kind = "partial correlation"
    measure = ConnectivityMeasure(EmpiricalCovariance(), kind=kind, standardize=True)
    return measure.fit_transform([np.asarray(run, float) for run in runs])


def tangents(runs: Sequence[NDArray]) -> NDArray[np.float64]:
    """(n_runs, n_values) deviations of each run's covariance from their geometric mean.

    Varoquaux et al. (2010, MICCAI); nilearn's tangent space of at least two runs, covariances
    shrunk by Ledoit and Wolf.
    """
    measure = ConnectivityMeasure(kind="tangent", vectorize=True, standardize=True)
    return measure.fit_transform([np.asarray(run, float) for run in runs])


def agreement(
    vectors: NDArray, tasks: Sequence[str], folds: Sequence[int], *, n_null: int, seed: int = 0
) -> tuple[float, float, float]:
    """Mean correlation of runs of one task, that of different tasks, and p of their difference.

    Parameters
    ----------
    vectors, tasks, folds : (n_runs, n_values) array, sequence of str, sequence of int
        What is compared, and the task and number of each run. Only runs of different numbers are.
    n_null, seed : int
        Permutations, in which runs of one number exchange their tasks, and their seed.
    """
    r, kinds, fold = np.corrcoef(vectors), np.array(tasks), np.array(folds)
    pairs = [(i, j) for i, j in combinations(range(len(r)), 2) if fold[i] != fold[j]]
    i, j = np.array(pairs).T

    def means(labels: NDArray) -> tuple[float, float]:
        same = labels[i] == labels[j]
        return float(r[i, j][same].mean()), float(r[i, j][~same].mean())

    same, cross = means(kinds)
    rng, exceed = np.random.default_rng(seed), 0
    for _ in range(n_null):
        labels = kinds.copy()
        for number in np.unique(fold):
            inside = np.flatnonzero(fold == number)
            labels[inside] = labels[rng.permutation(inside)]
        a, b = means(labels)
        exceed += a - b >= same - cross - 1e-12
    return same, cross, (1 + exceed) / (1 + n_null)
