"""How repeatable and how distinct are the networks? Maps compared across runs and tasks.

Maps are keyed by ``(task, run)``. Similarity of two tasks is always taken between different runs,
so that same-task and cross-task figures are comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from llm2nifti.networks.network import largest

Maps = Mapping[tuple[str, int], NDArray]
Similarity = Any  # a float for two maps, an array for two stacks of maps
Measure = Callable[[NDArray, NDArray], Similarity]
TOP = 0.05  # share of units in the masks that are compared
_TOGETHER = 64  # keys whose maps without a block are compared at once


class SimilarityError(ValueError):
    """Maps cannot be compared."""


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> Similarity:
    """Dice coefficient of two masks; 0 for two empty ones. Of two stacks, a matrix.

    Examples
    --------
    >>> dice(np.array([True, True, False]), np.array([True, False, False]))
    0.6666666666666666
    """
    both, added = _sizes(a, b)
    return _ratio(2 * both, added)


def jaccard(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> Similarity:
    """Jaccard index of two masks; 0 for two empty ones. Of two stacks, a matrix."""
    both, added = _sizes(a, b)
    return _ratio(both, added - both)


def correlation(a: NDArray, b: NDArray) -> Similarity:
    """Pearson correlation of two maps over units; NaN for a constant one. Of stacks, a matrix."""

    def standardised(maps: NDArray) -> NDArray[np.float64]:
        centred = np.asarray(maps, float)
        centred = centred - centred.mean(axis=-1, keepdims=True)
        with np.errstate(invalid="ignore"):
            return centred / np.linalg.norm(centred, axis=-1, keepdims=True)

    r = np.inner(standardised(a), standardised(b))
    return r if np.ndim(r) else float(r)


def _sizes(a: NDArray, b: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Units in both of two masks, which float32 counts up to 16 million, and sum of their sizes."""
    both = np.inner(a.astype(np.float32), b.astype(np.float32))
    return both.astype(float), np.add.outer(a.sum(axis=-1), b.sum(axis=-1)).astype(float)


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> Similarity:
    """Share, 0 of nothing."""
    share = part / np.where(whole > 0, whole, 1)
    return share if np.ndim(share) else float(share)


def tasks_of(maps: Maps) -> list[str]:
    """Tasks in the order in which they first appear."""
    return list(dict.fromkeys(task for task, _ in maps))


def matrix(maps: Maps, measure: Measure = correlation) -> NDArray[np.float64]:
    """Mean similarity of tasks over all pairs of different runs.

    Parameters
    ----------
    maps : mapping of (task, run) to (n_units,) array
        Of at least two runs, or SimilarityError.
    measure : callable, default=correlation
        (n, m) similarity of two stacks of maps, (n, n_units) and (m, n_units).

    Returns
    -------
    (n_tasks, n_tasks) array
        Symmetric; the diagonal is the repeatability of each task across its runs.
    """
    stack = np.stack(list(maps.values()))
    total, n_pairs = _sums(maps, np.asarray(measure(stack, stack)))
    with np.errstate(invalid="ignore"):
        return total / n_pairs


def _sums(maps: Maps, pairs: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sums of (n_maps, n_maps) similarities by task, over pairs of different runs; their number."""
    tasks = tasks_of(maps)
    runs = sorted({run for _, run in maps})
    if len(runs) < 2:
        raise SimilarityError("repeatability needs at least 2 runs of each task; scan more runs")
    place = {key: i for i, key in enumerate(maps)}
    of_run = [np.array([place.get((task, run), -1) for task in tasks]) for run in runs]
    total, n_pairs = np.zeros((len(tasks),) * 2), np.zeros((len(tasks),) * 2, int)
    for a, b in permutations(of_run, 2):
        there = np.logical_and.outer(a >= 0, b >= 0)
        total += np.where(there, pairs[np.ix_(a, b)], 0)
        n_pairs += there
    return total, n_pairs


def top_masks(maps: Maps, share: float = TOP) -> dict[tuple[str, int], NDArray[np.bool_]]:
    """Masks of equal size: the units with the largest |t| of each map, or of each of a stack."""
    return {
        key: np.apply_along_axis(largest, -1, np.abs(values), share) for key, values in maps.items()
    }


def corrected(r: NDArray[np.float64]) -> NDArray[np.float64]:
    """r_ij / sqrt(r_ii r_jj); NaN where r_ii <= 0. Spearman's (1904) correction for attenuation."""
    reliability = np.diag(r)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.sqrt(np.where(reliability > 0, reliability, np.nan))
        return r / np.outer(scale, scale)


def noise_ceilings(maps: Maps, df: Mapping[tuple[str, int], float]) -> dict[str, float]:
    """The r that t maps of a task's runs would have if only the draw of prompts told them apart.

    Parameters
    ----------
    maps : mapping of (task, run) to (n_units,) array
        T maps; units with 0 do not count.
    df : mapping of (task, run) to float
        Their residual degrees of freedom.

    Returns
    -------
    dict
        Of each task, mean over pairs of runs. What is lacking to it is what runs differ in beside
        prompts drawn at random, such as their topics. Controls that are matched to the prompts of
        their run make maps somewhat more alike than independent draws do.

    Notes
    -----
    A map's reliability is the share of its variance over units that the sampling error of t, known
    from its degrees of freedom, does not account for; the ceiling of two maps is the geometric mean
    of their reliabilities (Lage-Castellanos et al., 2019, PLoS Computational Biology 15:e1006397).
    """
    reliability = {key: _reliability(t[t != 0], df[key]) for key, t in maps.items()}
    out = {}
    for task in tasks_of(maps):
        of_runs = [value for (name, _), value in reliability.items() if name == task]
        pairs = [np.sqrt(a * b) for a, b in combinations(of_runs, 2)]
        out[task] = float(np.mean(pairs)) if pairs else float("nan")
    return out


def _reliability(t: NDArray[np.float64], df: float) -> float:
    """Share of the variance of t over units that is signal."""
    if len(t) < 2 or df <= 2:
        return 0.0
    scale, square = stats.nct.mean(df, 1), df / (df - 2)  # of the noncentral t distribution
    effects = max(0.0, float((t**2).mean()) / square - 1)
    noise = square + effects * (square - scale**2)
    return max(0.0, 1 - noise / float(t.var()))


def same_and_cross(r: NDArray[np.float64]) -> tuple[float, float]:
    """Mean of the diagonal and of the rest of a similarity matrix."""
    off = ~np.eye(len(r), dtype=bool)
    return float(np.diag(r).mean()), float(r[off].mean()) if off.any() else float("nan")


@dataclass(frozen=True)
class Estimate:
    """A figure with the limits of its jackknife interval."""

    value: float
    low: float
    high: float


def jackknife(
    maps: Maps,
    without: Mapping[tuple[str, int], NDArray],
    measure: Measure = correlation,
    *,
    level: float = 0.95,
) -> dict[str | tuple[str, str], Estimate]:
    """Delete-block jackknife intervals of a `matrix`, of its diagonal's mean and of the rest's.

    Runs are strata: every (task, run) has its blocks, and leaving one out changes that map alone.

    Parameters
    ----------
    maps, measure
        Maps from all blocks; see `matrix`.
    without : mapping of (task, run) to (n_blocks, n_units) array
        Maps with one block left out at a time.
    level : float, default=0.95
        Coverage aimed at.

    Returns
    -------
    dict
        ``same``, ``cross`` and ``same - cross``, see `same_and_cross`; then each pair of tasks,
        also of a task with itself.

    Notes
    -----
    Variance is the sum over strata of (n - 1) / n times the sum of squared deviations of the
    delete-one values from their mean (Shao and Tu, 1995, The Jackknife and Bootstrap). All figures
    are linear in the similarities of single maps, so a block changes one row of them and nothing
    else is computed again. The plain bootstrap is not used: drawing trials twice makes copies, and
    its intervals exclude the estimate itself.
    """
    stack = np.stack(list(maps.values()))
    total, n_pairs = _sums(maps, np.asarray(measure(stack, stack)))
    tasks, n = tasks_of(maps), len(total)
    of_task = np.array([tasks.index(task) for task, _ in maps])
    runs = np.array([run for _, run in maps])
    cells, means, df = np.zeros((n, n)), np.zeros(3), 0
    for key, rows in _similarities(without, stack, measure):
        if len(rows) < 2:
            raise SimilarityError("jackknife intervals need at least 2 on-blocks a run")
        i, others = tasks.index(key[0]), runs != key[1]
        sums = np.zeros((n, len(rows)))
        np.add.at(sums, of_task[others], rows[:, others].T)
        sums[i] *= 2  # a cell of the diagonal holds every pair of runs twice
        with np.errstate(invalid="ignore"):
            change = (sums - sums.mean(axis=1, keepdims=True)) / n_pairs[i][:, None]
        scale = (len(rows) - 1) / len(rows)
        cells[i] += scale * (change**2).sum(axis=1)
        means += scale * (_means(change, i) ** 2).sum(axis=1)
        df += len(rows) - 1
    with np.errstate(invalid="ignore"):
        r = total / n_pairs
    cells += cells.T - np.diag(np.diag(cells))  # a pair has blocks of both of its tasks
    same, cross = same_and_cross(r)
    at = np.tril_indices(n)
    names: list[str | tuple[str, str]] = ["same", "cross", "same - cross"]
    names += [(tasks[i], tasks[j]) for i, j in zip(*at, strict=True)]
    value = np.array([same, cross, same - cross, *r[at]])
    half = stats.t.ppf((1 + level) / 2, df) * np.sqrt([*means, *cells[at]])
    limits = np.stack([value, value - half, value + half], axis=1).tolist()
    return {name: Estimate(*row) for name, row in zip(names, limits, strict=True)}


def _similarities(
    without: Mapping[tuple[str, int], NDArray], stack: NDArray, measure: Measure
) -> Iterator[tuple[tuple[str, int], NDArray[np.float64]]]:
    """(n_blocks, n_maps) similarity of each key's maps without a block to all maps."""
    keys = list(without)
    for start in range(0, len(keys), _TOGETHER):
        together = keys[start : start + _TOGETHER]
        rows = np.asarray(measure(np.concatenate([without[key] for key in together]), stack))
        ends = np.cumsum([len(without[key]) for key in together])[:-1]
        yield from zip(together, np.split(rows, ends), strict=True)


def _means(change: NDArray[np.float64], i: int) -> NDArray[np.float64]:
    """(3, n_blocks) change of `same_and_cross`, and of their difference, with row `i`."""
    n = len(change)
    same = change[i] / n
    cross = 2 * (change.sum(axis=0) - change[i]) / (n * (n - 1)) if n > 1 else np.nan * same
    return np.stack([same, cross, same - cross])
