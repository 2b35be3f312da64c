"""Which components and parcels do runs have, alike in other runs, and which of them are a task's?

Prompt-level values are cleaned first: the run's mean and question frames are taken out, and every
site is scaled to mean square 1. That is one number a site, so that the stream, which grows from
layer to layer, does not drown the others, and so that a rotation of a site's units leaves the space
of the principal time courses as it is. It changes what is spatially independent or sparse, though:
maps and parcels belong to the basis in which the model's units are given.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, groupby
from operator import attrgetter
from typing import Any

import nibabel as nib
import numpy as np
from nilearn.decomposition import CanICA, DictLearning
from nilearn.regions import Parcellations
from numpy.typing import NDArray
from scipy import linalg, stats
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score

from llm2nifti import geometry, glm
from llm2nifti.glm import RunLike
from llm2nifti.glm.fitting import one_thread
from llm2nifti.networks.similarity import Estimate, correlation
from llm2nifti.progress import track

METHODS = {"canica": CanICA, "dictlearning": DictLearning}
_NOTHING = 1e-5  # of a site's root mean square: what rounding leaves of a constant
_UNIT_SHUFFLES = 20  # which hardly vary
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Parts:
    """Components and parcels."""

    maps: Array  #: (n_components, n_units), each of SD 1
    parcels: NDArray[np.int64]  #: (n_units,) number of each unit's parcel, from 1

    def courses(self, img: nib.Nifti1Image, run: RunLike, n_parcels: int) -> Array:
        """(n_trials, n_components + n_parcels) time courses of a run's `cleaned` image.

        Components by least squares of all maps together; parcels by the mean of their units.
        """
        member = (self.parcels[:, None] == np.arange(1, n_parcels + 1)).astype(float)
        means = member / np.maximum(member.sum(axis=0), 1)
        weights = np.column_stack([np.linalg.pinv(self.maps), means])
        return np.asarray(geometry.from_img(run.brain, img) @ weights)


@dataclass(frozen=True)
class Component:
    """One map of all runs together."""

    between_runs: float  #: mean |r| of its counterparts in pairs of run numbers
    #: How many units carry it: (sum of squares)² / sum of fourth powers
    n_units: float
    tasks: dict[str, float]  #: r with the t map of each task


@dataclass(frozen=True)
class Decomposition:
    """Components of all runs together, most reproducible first.

    Likeness between run numbers is a mean over pairs of them, with their range; beside it are
    nulls, each with 95 % of its draws. ``shuffled units`` are shuffled within their sites.
    ``random directions`` are of the spaces that maps span: components that are no more alike than
    these have the space in common and nothing else.
    """

    components: list[Component]
    maps: dict[str, Estimate]  #: ``between runs`` and both nulls: mean |r| of paired up maps
    parcels: dict[str, Estimate]  #: ``between runs`` and ``shuffled units``: adjusted Rand index
    reproducible: float  #: |r| that the best of random directions exceeds in 5 % of the draws
    task_limit: float  #: |r| that the best of all maps and tasks exceeds in 5 % of the shuffles
    task_p: dict[str, float]  #: of each task's best component, corrected for maps and tasks

    @property
    def n_reproducible(self) -> int:
        """Components that are more alike between run numbers than the best random directions."""
        return sum(each.between_runs > self.reproducible for each in self.components)

    def best(self, task: str) -> tuple[int, float]:
        """Number of the component that is most like a task, from 1, and r of the two."""
        r = [each.tasks[task] for each in self.components]
        best = int(np.argmax(np.abs(r)))
        return best + 1, r[best]


def confounds(run: RunLike) -> Array:
    """(n_trials, n_columns) orthonormal columns: the run's constant and its question frames."""
    extra = glm.nuisance(run.events).to_numpy()
    return np.asarray(linalg.orth(np.column_stack([np.ones(len(extra)), extra])))


def cleaned(run: RunLike) -> nib.Nifti1Image:
    """Prompt-level image without the run's `confounds`, every site scaled to mean square 1."""
    values, basis = run.values().astype(np.float32), confounds(run).astype(np.float32)
    for site in run.brain.sites:
        part = values[:, run.brain.slice_of(site)]
        before = np.sqrt(np.mean(part**2))
        part -= basis @ (basis.T @ part)
        scale = np.sqrt(np.mean(part**2))
        part /= scale if scale > _NOTHING * before else np.inf
    return geometry.to_img(run.brain, values)


def decompose(
    imgs: Sequence[nib.Nifti1Image],
    run: RunLike,
    *,
    method: str,
    n_components: int,
    n_parcels: int,
    seed: int = 0,
) -> Parts:
    """Decompose images into nilearn's components, and their units into k-means parcels.

    Parameters
    ----------
    imgs, run
        Images that are `cleaned`, and a run in their space.
    method : {"canica", "dictlearning"}
        Spatially independent, or sparse, maps.
    n_components, n_parcels, seed : int
        How many there are, and the seed of both.
    """
    how: Any = {"mask": geometry.mask_img(run.brain), "smoothing_fwhm": None, "standardize": None}
    how |= {"detrend": False, "random_state": seed}
    # More starts of the algorithm made maps no more reproducible.
    more = {"threshold": None, "n_init": 2} if method == "canica" else {}
    components = METHODS[method](n_components=n_components, **more, **how)
    parcellation = Parcellations("kmeans", n_parcels=n_parcels, **how)
    # Nilearn takes 200 whitened components, nearly all of them noise here.
    parcellation.n_components = n_components
    with warnings.catch_warnings(action="ignore"):  # of what did not converge: comparisons tell
        components.fit(imgs)
        parcellation.fit(imgs)
    maps = geometry.from_img(run.brain, components.components_img_).astype(float)
    maps /= np.maximum(maps.std(axis=1, keepdims=True), 1e-300)
    parcels = geometry.from_img(run.brain, parcellation.labels_img_).astype(np.int64)
    return Parts(maps, parcels)


def evaluate(
    runs: Sequence[RunLike],
    tasks: Sequence[RunLike],
    *,
    n: int,
    seed: int = 0,
    verbose: int = 1,
    **how: Any,
) -> tuple[Decomposition, Parts, list[Array]]:
    """Decompose all runs together, and those of each run number apart.

    Parameters
    ----------
    runs, tasks : sequence of Run
        Runs of one space, at least two run numbers; and those whose t maps are compared with the
        components, sorted by task.
    n, seed, verbose : int
        Draws of the nulls; the seed of everything; 0 shows no progress.
    **how : dict
        Method, n_components and n_parcels of `decompose`.

    Returns
    -------
    Decomposition, Parts, list of (n_trials, n_components + n_parcels) arrays
        Numbers, what they are of, and the time courses of each run.
    """
    with one_thread():  # of products as flat as these, more are slower
        imgs = [cleaned(run) for run in runs]
        parts, numbers = [], sorted({run.run for run in runs})
        for fold in track([0, *numbers], "decompositions", unit="fold", verbose=verbose):
            kept = [img for img, run in zip(imgs, runs, strict=True) if fold in (0, run.run)]
            parts.append(decompose(kept, runs[0], seed=seed, **how))
        whole, *folds = parts
        r = _between(whole, folds)
        order = np.argsort(-r, kind="stable")
        whole = replace(whole, maps=whole.maps[order])
        alike = _agreement(folds, runs[0].brain.labels, n=n, seed=seed)
        r_tasks = with_tasks(tasks, whole.maps, n=n, seed=seed)
        pairs = zip(imgs, runs, strict=True)
        courses = [whole.courses(*pair, how["n_parcels"]) for pair in pairs]
    by_task = [{task: float(each[i, 0]) for task, each in r_tasks.items()} for i in range(len(r))]
    n_units = (whole.maps**2).sum(axis=1) ** 2 / np.maximum((whole.maps**4).sum(axis=1), 1e-300)
    named = list(map(Component, r[order].tolist(), n_units.tolist(), by_task))
    return Decomposition(named, *alike, *_beyond_chance(r_tasks)), whole, courses


def _beyond_chance(tasks: Mapping[str, Array]) -> tuple[float, dict[str, float]]:
    """|r| that is exceeded in 5 % of the shuffles, and p of the best component of each task."""
    null = np.max([np.abs(r[:, 1:]).max(axis=0) for r in tasks.values()], axis=0)
    best = {task: np.abs(r[:, 0]).max() for task, r in tasks.items()}
    p = {task: float(np.mean([True, *(null >= top)])) for task, top in best.items()}
    return float(np.quantile(null, 0.95)), p


def pair_up(r: NDArray) -> tuple[NDArray[np.int64], Array]:
    """Pair components one to one so that the sum of |r| is largest (the Hungarian algorithm).

    Of an (n, m) matrix of correlations, n at most m, it gives the partner of each component and
    |r| of the two. NaN, of an empty map, counts as 0.

    Examples
    --------
    >>> pair_up(np.array([[0.1, -0.9], [0.3, 0.8]]))[0]
    array([1, 0])
    """
    size = np.nan_to_num(np.abs(r))
    rows, columns = linear_sum_assignment(-size)
    return columns, size[rows, columns]


def _between(whole: Parts, folds: Sequence[Parts]) -> Array:
    """(n_components,) mean |r| of the counterparts that each map has in pairs of folds."""
    counterparts = [fold.maps[pair_up(correlation(whole.maps, fold.maps))[0]] for fold in folds]
    r = [np.abs(np.diag(correlation(a, b))) for a, b in combinations(counterparts, 2)]
    return np.nan_to_num(np.mean(r, axis=0))


def _agreement(
    folds: Sequence[Parts], labels: NDArray[np.int64], *, n: int, seed: int
) -> tuple[dict[str, Estimate], dict[str, Estimate], float]:
    """Likeness of maps and of parcels, and |r| of the best random directions in 5 % of draws."""
    rng, pairs = np.random.default_rng(seed), list(combinations(folds, 2))
    alike = np.transpose([_likeness(*pair) for pair in pairs])
    shuffled = []
    for _ in range(min(n, _UNIT_SHUFFLES)):
        moved = [(_shuffled_units(a, labels, rng), b) for a, b in pairs]
        shuffled.append(np.mean([_likeness(*pair) for pair in moved], axis=0))
    rotated = np.mean([_rotated(a.maps, b.maps, n=n, rng=rng) for a, b in pairs], axis=0)
    both = [
        {"between runs": Estimate(*map(float, (r.mean(), r.min(), r.max())))}
        | {"shuffled units": _spread(chance)}
        for r, chance in zip(alike, np.transpose(shuffled), strict=True)
    ]
    both[0]["random directions"] = _spread(rotated[:, 0])
    return both[0], both[1], float(np.quantile(rotated[:, 1], 0.95))


def _spread(draws: Array) -> Estimate:
    """Mean of draws and where 95 % of them are."""
    return Estimate(float(draws.mean()), *np.percentile(draws, [2.5, 97.5]).tolist())


def _likeness(a: Parts, b: Parts) -> tuple[float, float]:
    """Mean |r| of the paired up maps, and adjusted Rand index of the parcels."""
    r = pair_up(correlation(a.maps, b.maps))[1]
    return float(r.mean()), float(adjusted_rand_score(a.parcels, b.parcels))


def _shuffled_units(a: Parts, labels: NDArray[np.int64], rng: np.random.Generator) -> Parts:
    """The same parts with units shuffled within each label."""
    order = np.lexsort((rng.random(len(labels)), labels))
    to = np.argsort(labels, kind="stable")
    maps, parcels = np.empty_like(a.maps), np.empty_like(a.parcels)
    maps[:, to], parcels[to] = a.maps[:, order], a.parcels[order]
    return Parts(maps, parcels)


def _rotated(a: NDArray, b: NDArray, *, n: int, rng: np.random.Generator) -> Array:
    """(n, 2) mean and largest |r| of paired up random directions of the spaces that maps span."""
    spans = [linalg.orth((maps - maps.mean(axis=1, keepdims=True)).T) for maps in (a, b)]
    both = spans[0].T @ spans[1]
    both = both if len(both) <= both.shape[1] else both.T
    draws = []
    for _ in range(n):
        left, right = (_rotation(size, rng) for size in both.shape)
        r = pair_up(left @ both @ right)[1]
        draws.append((r.sum() / len(a), r.max()))
    return np.array(draws)


def _rotation(size: int, rng: np.random.Generator) -> Array:
    """Random orthogonal matrix."""
    return np.reshape(stats.ortho_group.rvs(size, random_state=rng), (size, size))


def with_tasks(
    runs: Iterable[RunLike], maps: NDArray, *, n: int, seed: int = 0
) -> dict[str, Array]:
    """(n_components, 1 + n) r of maps with each task's t map, then with those of shuffled labels.

    Runs are sorted by task; its t map is the sum over them, for shuffled labels as for its own.
    """
    out = {}
    for task, same in groupby(runs, key=attrgetter("task")):
        total = np.zeros(1)
        for run in same:
            labels = glm.shuffled(run, n=n, seed=seed + run.run)
            is_on = glm.is_on(run.events)
            labels = replace(labels, is_on=np.concatenate([is_on[None], labels.is_on]))
            total = total + glm.t_of_labels(run.values(), [labels])
        out[task] = np.nan_to_num(correlation(maps, total))
    return out
