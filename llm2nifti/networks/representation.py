"""How alike do two parts of a model represent the same prompts? CKA, RDMs, and the graph of them.

Everything begins with products of prompts with each other, (n_trials, n_trials) a parcel, which
do not depend on the basis of the parcel's units.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from llm2nifti.progress import track


class MissingPackageError(ValueError):
    """An optional package is not installed."""

    exit_code = 1


def required(package: str) -> Any:
    """Module of an optional package; MissingPackageError names the extra that brings it."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return import_module(package)
    except ImportError:
        raise MissingPackageError(
            f'{package} is not installed; install it with: pip install "llm2nifti[networks]"'
        ) from None


def off_diagonal(grams: NDArray[np.floating]) -> NDArray[np.floating]:
    """(n_parcels, n * n) products of different rows, of norm 1; those of a row with itself are 0.

    `grams` are (n_parcels, n, n). A parcel without any gets zeros.
    """
    rows = np.array(grams)
    places = np.arange(rows.shape[1])
    rows[:, places, places] = 0
    rows = rows.reshape(len(rows), -1)
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    rows /= np.where(norms > 0, norms, np.inf)
    return rows


def debiased_cka(a: NDArray, b: NDArray | None = None) -> NDArray[np.floating]:
    """Debiased linear CKA of every parcel of `a` with every parcel of `b`, by default of `a`.

    Parameters
    ----------
    a, b : (n_parcels, n, n) array
        Products of independent rows of mean 0 with each other, such as those of
        `llm2nifti.parcels.without_nuisance`.

    Returns
    -------
    (n_a, n_b) array
        1 for parcels that differ by a rotation and a scale. Around 0, on both sides of it, for
        parcels that have nothing in common.

    Notes
    -----
    Kornblith et al. (2019, ICML) compare ``|cov(x, y)|^2 / (|cov(x)|^2 |cov(y)|^2)^.5``. Estimated
    from all products it is near 1 whenever a parcel has many more units than there are rows. Each
    squared norm is the mean of a product over pairs of different rows (the U-statistic of Song et
    al., 2012, JMLR 13:1393), so products of a row with itself are left out. The mean is not
    estimated again: it is among the nuisance columns.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(40, 500))
    >>> round(float(debiased_cka(np.stack([x @ x.T, 4 * x @ x.T]))[0, 1]), 6)
    1.0
    """
    first = off_diagonal(a)
    return first @ (first if b is None else off_diagonal(b)).T


def whitened_products(values: NDArray, residuals: NDArray) -> NDArray[np.float64]:
    """(n_trials, n_trials) products of trials, weighted by the precision of the noise.

    The covariance of `residuals` is shrunk to a multiple of the identity (Ledoit and Wolf), which
    turns with the units when these are rotated; shrinkage to the diagonal does not.
    """
    from sklearn.covariance import ledoit_wolf

    covariance, _ = ledoit_wolf(residuals, assume_centered=True)
    covariance[np.diag_indices(len(covariance))] += 1e-12 * np.trace(covariance) / len(covariance)
    return values @ linalg.solve(covariance, values.T, assume_a="pos")


def crossnobis(
    gram: NDArray[np.float64], conditions: NDArray, folds: NDArray
) -> NDArray[np.float64]:
    """(n_pairs,) cross-validated squared distances, in the order of rsatoolbox's RDMs.

    `gram` are products of whitened trials. Distances depend on nothing else, so rsatoolbox gets the
    trials' coordinates in the space that they span, which has at most one dimension a trial.
    """
    rsatoolbox = required("rsatoolbox")
    values, vectors = np.linalg.eigh(gram)
    features = vectors * np.sqrt(np.maximum(values, 0))
    described = {"condition": conditions, "fold": folds}
    dataset = rsatoolbox.data.Dataset(features, obs_descriptors=described)
    how = {"method": "crossnobis", "descriptor": "condition", "cv_descriptor": "fold"}
    with np.errstate(invalid="ignore"):  # of casts inside; unlike warnings' filters a thread's own
        rdm = rsatoolbox.rdm.calc_rdm(dataset, **how)
    return rdm.dissimilarities[0] * features.shape[1]  # which rsatoolbox divides by


def rdm_similarity(
    a: NDArray[np.float64], b: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """(n_a, n_b) whitened correlations of (n_parcels, n_pairs) RDMs, by default all of `a`.

    By rsatoolbox. Diedrichsen et al. (2021, Neurons, Behavior, Data analysis, and Theory 5(3)):
    distances that share a condition have correlated errors.
    """
    rsatoolbox = required("rsatoolbox")
    first, other = (rsatoolbox.rdm.RDMs(np.asarray(x, float)) for x in (a, a if b is None else b))
    return np.asarray(rsatoolbox.rdm.compare(first, other, method="corr_cov"))


def effect_energy(
    values: Sequence[NDArray[np.float64]],
    designs: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> float:
    """Squared length of an effect over units, in units of the noise of a prompt.

    Parameters
    ----------
    values : sequence of (n_trials, n_units) array
        Activations of each run, at least two.
    designs : sequence of ((n_trials, n_columns) array, (n_columns,) array)
        Design matrix and contrast of each run.

    Returns
    -------
    float
        Mean product of effects from different runs, which share no noise, over the squared length
        of residuals. About 0, on both sides of it, without an effect; no basis, scale or number
        of units changes its expectation.
    """
    effects, noise = [], []
    for rows, (design, vector) in zip(values, designs, strict=True):
        inverse = np.linalg.pinv(design)
        effects.append(vector @ inverse @ rows)
        residuals = rows - design @ (inverse @ rows)
        noise.append((residuals**2).sum() / (len(design) - np.linalg.matrix_rank(design)))
    stack = np.stack(effects)
    products = stack @ stack.T
    n = len(stack)
    mean = (products.sum() - np.trace(products)) / (n * (n - 1))
    return float(mean / np.mean(noise)) if np.mean(noise) > 0 else 0.0


def repeated(conditions: Sequence[str], folds: Sequence[int], *, most: int) -> list[str]:
    """Conditions with trials in every fold, at most so many: those with the most trials."""
    counts: dict[str, dict[int, int]] = {}
    for condition, fold in zip(conditions, folds, strict=True):
        of_one = counts.setdefault(condition, {})
        of_one[fold] = of_one.get(fold, 0) + 1
    whole = {c: sum(n.values()) for c, n in counts.items() if c and len(n) == len(set(folds))}
    return sorted(sorted(whole, key=lambda c: (-whole[c], c))[:most])


def communities(matrix: NDArray, *, n_null: int, seed: int = 0, verbose: int = 0) -> dict[str, Any]:
    """Communities of a similarity matrix by bctpy, beside networks with the same strengths.

    Parameters
    ----------
    matrix : (n, n) array
        Similarities; negative ones count against a community.
    n_null : int
        Null networks: weights are exchanged, degrees and nearly the strengths of nodes stay.
    seed : int, default=0
        Of the algorithm and of the null networks.
    verbose : int, default=0
        0 shows no progress; a null network of 300 nodes takes three seconds.

    Returns
    -------
    dict
        ``community`` (n,) from 0, ``modularity``, ``null`` (n_null,) modularities,
        ``participation`` (n,) 0..1 of positive weights, ``strength`` (n,) mean similarity.

    Notes
    -----
    Louvain's algorithm with asymmetric treatment of negative weights, participation coefficients
    and null model: Rubinov and Sporns (2011, NeuroImage 56:2068).
    """
    bct = required("bct")
    weights = np.array(matrix, float)
    weights = (weights + weights.T) / 2
    np.fill_diagonal(weights, 0)
    labels, modularity = bct.community_louvain(weights, B="negative_asym", seed=seed)
    null = []
    for draw in track(range(n_null), "null networks", unit="network", verbose=verbose):
        other = _null_network(weights, seed + draw)
        null.append(float(bct.community_louvain(other, B="negative_asym", seed=seed)[1]))
    participation = bct.participation_coef(np.maximum(weights, 0), labels)
    strength = weights.sum(axis=1) / max(1, len(weights) - 1)
    return {
        "community": (np.asarray(labels) - 1).tolist(),
        "modularity": float(modularity),
        "null": null,
        "participation": np.asarray(participation, float).tolist(),
        "strength": strength.tolist(),
    }


def _null_network(weights: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Exchange (n, n) weights at random; each node keeps its degrees and nearly its strengths.

    The work is that of bctpy's defaults up to a hundred nodes without negative weights. Beyond,
    edges of the rarer sign are swapped five times each, since a swap needs two of either sign,
    and weights are sorted 500 times, not once for every ten edges.
    """
    bct = required("bct")
    upper = np.triu_indices(len(weights), 1)
    positive = weights[upper] > 0
    swaps, sorts = 5 * min(positive.mean(), (~positive).mean()), min(0.1, 500 / len(positive))
    # Release 0.6.1 gives negative weights to the wrong edges and loses their sign (its issue 137),
    # so that each sign is drawn alone. One seed moves the edges of both alike, without zeros.
    whole = np.where(weights == 0, 1e-12, weights)
    null = np.zeros_like(weights)
    for sign in (1, -1) if (weights < 0).any() else (1,):
        with warnings.catch_warnings(action="ignore"):  # the other sign has no strengths
            drawn, _ = bct.null_model_und_sign(
                np.maximum(sign * whole, 0), bin_swaps=swaps, wei_freq=sorts, seed=seed
            )
        null += sign * drawn
    return null
