"""How repeatable and how distinct are the networks? Maps compared across runs and tasks.

Maps are keyed by ``(task, run)``. Similarity of two tasks is always taken between different runs,
so that same-task and cross-task figures are comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from llm2nifti.networks.network import largest

Maps = Mapping[tuple[str, int], NDArray]
TOP = 0.05  # share of units in the masks that are compared


class SimilarityError(ValueError):
    """Maps cannot be compared."""


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Dice coefficient of two masks; 0 for two empty ones.

    Examples
    --------
    >>> dice(np.array([True, True, False]), np.array([True, False, False]))
    0.6666666666666666
    """
    total = a.sum() + b.sum()
    return float(2 * (a & b).sum() / total) if total else 0.0


def jaccard(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Jaccard index of two masks; 0 for two empty ones."""
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 0.0


def correlation(a: NDArray, b: NDArray) -> float:
    """Pearson correlation of two maps over units."""
    return float(np.corrcoef(a, b)[0, 1])


def tasks_of(maps: Maps) -> list[str]:
    """Tasks in the order in which they first appear."""
    return list(dict.fromkeys(task for task, _ in maps))


def matrix(
    maps: Maps, measure: Callable[[NDArray, NDArray], float] = correlation
) -> NDArray[np.float64]:
    """Mean similarity of tasks over all pairs of different runs.

    Parameters
    ----------
    maps : mapping of (task, run) to (n_units,) array
        One map a task and run.
    measure : callable, default=correlation
        Similarity of two maps.

    Returns
    -------
    (n_tasks, n_tasks) array
        Symmetric; the diagonal is the repeatability of each task across its runs.

    Raises
    ------
    SimilarityError
        If there is only one run.
    """
    tasks = tasks_of(maps)
    runs = sorted({run for _, run in maps})
    if len(runs) < 2:
        raise SimilarityError("repeatability needs at least 2 runs of each task; scan more runs")
    pair = {
        (a, b): measure(maps[a], maps[b]) for a, b in product(maps, maps) if a < b and a[1] != b[1]
    }
    out = np.empty((len(tasks), len(tasks)))
    for i, j in product(range(len(tasks)), repeat=2):
        cells = [
            pair[min(a, b), max(a, b)]
            for r, s in product(runs, runs)
            if r != s
            for a, b in [((tasks[i], r), (tasks[j], s))]
            if a in maps and b in maps
        ]
        out[i, j] = np.mean(cells) if cells else np.nan
    return out


def top_masks(maps: Maps, share: float = TOP) -> dict[tuple[str, int], NDArray[np.bool_]]:
    """Masks of equal size: the units with the largest |t| of each map."""
    return {key: largest(np.abs(values), share) for key, values in maps.items()}


def corrected(r: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlations corrected for reliability, r_ij / sqrt(r_ii r_jj); NaN where r_ii <= 0.

    Notes
    -----
    Spearman's correction for attenuation (1904).
    """
    reliability = np.diag(r)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.sqrt(np.where(reliability > 0, reliability, np.nan))
        return r / np.outer(scale, scale)


def same_and_cross(r: NDArray[np.float64]) -> tuple[float, float]:
    """Mean of the diagonal and of the rest of a similarity matrix."""
    off = ~np.eye(len(r), dtype=bool)
    return float(np.diag(r).mean()), float(r[off].mean()) if off.any() else float("nan")


@dataclass(frozen=True)
class Estimate:
    """A figure with its jackknife interval.

    Attributes
    ----------
    value, low, high : float
        Estimate and limits of the 95 % interval.
    """

    value: float
    low: float
    high: float

    def summary(self) -> dict[str, float]:
        """As a dictionary for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}


def jackknife(
    maps: Maps,
    without: Mapping[tuple[str, int], NDArray[np.floating]],
    statistic: Callable[[Maps], NDArray[np.float64]],
    *,
    level: float = 0.95,
) -> list[Estimate]:
    """Delete-block jackknife intervals of statistics of all maps.

    Runs are strata: every (task, run) has its blocks, and leaving one out changes that map alone.

    Parameters
    ----------
    maps : mapping of (task, run) to (n_units,) array
        Maps from all blocks.
    without : mapping of (task, run) to (n_blocks, n_units) array
        Maps with one block left out at a time.
    statistic : callable
        Maps to a 1D array of figures.
    level : float, default=0.95
        Coverage aimed at.

    Returns
    -------
    list of Estimate
        One a figure.

    Notes
    -----
    Variance is the sum over strata of (n - 1) / n times the sum of squared deviations of the
    delete-one values from their mean (Shao and Tu, 1995, The Jackknife and Bootstrap). The plain
    bootstrap is not used: drawing trials twice makes copies, and its intervals exclude the
    estimate itself.
    """
    value = np.atleast_1d(statistic(maps))
    variance = np.zeros(len(value))
    df = 0
    for key, left_out in without.items():
        n = len(left_out)
        if n < 2:
            raise SimilarityError("jackknife intervals need at least 2 on-blocks a run")
        deleted = np.stack([np.atleast_1d(statistic({**maps, key: m})) for m in left_out])
        variance += (n - 1) / n * ((deleted - deleted.mean(axis=0)) ** 2).sum(axis=0)
        df += n - 1
    half = stats.t.ppf((1 + level) / 2, df) * np.sqrt(variance)
    return [
        Estimate(*map(float, row)) for row in zip(value, value - half, value + half, strict=True)
    ]
