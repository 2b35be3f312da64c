"""Which properties of prompts explain how a model represents them? Model RDMs and what each adds.

A model RDM has one distance for every pair of prompts, in the order of numpy's upper triangle,
which is that of rsatoolbox.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llm2nifti.networks.representation import required

Vectors = Mapping[str, NDArray[np.float64]]


class PropertyError(ValueError):
    """A table of properties does not fit the prompts."""


def distances(values: Sequence[object]) -> NDArray[np.float64]:
    """(n_pairs,) distances by one property: absolute differences of numbers, else 0 or 1.

    Examples
    --------
    >>> distances([1, 3, 2]).tolist(), distances(["a", "a", "b"]).tolist()
    ([2.0, 1.0, 1.0], [0.0, 1.0, 1.0])
    """
    column = pd.Series(list(values))
    i, j = np.triu_indices(len(column), 1)
    if pd.api.types.is_numeric_dtype(column):
        numbers = column.to_numpy(float)
        return np.abs(numbers[i] - numbers[j])
    codes = pd.factorize(column)[0]
    return (codes[i] != codes[j]).astype(float)


def character_distances(texts: Sequence[str]) -> NDArray[np.float64]:
    """(n_pairs,) cosine distances of character n-grams of 1 to 4, weighted by TF-IDF."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True)
    rows = vectorizer.fit_transform(list(texts))
    similarity = np.asarray((rows @ rows.T).todense())
    return 1 - similarity[np.triu_indices(len(similarity), 1)]


def model_rdms(trials: pd.DataFrame, columns: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Model RDMs of what is known of prompts; those that do not vary are left out.

    Parameters
    ----------
    trials : DataFrame
        One row a prompt, with ``prompt`` and the columns.
    columns : sequence of str
        Properties; ``characters`` compares the texts of ``prompt``.
    """
    out = {}
    for name in columns:
        is_text = name == "characters"
        vector = character_distances(trials["prompt"]) if is_text else distances(trials[name])
        if np.isfinite(vector).all() and vector.std() > 0:
            out[name] = vector
    return out


def squared_distances(gram: NDArray) -> NDArray[np.float64]:
    """(n_pairs,) squared distances of trials from their products with each other."""
    squares = np.diag(gram)
    i, j = np.triu_indices(len(gram), 1)
    return squares[i] + squares[j] - 2 * gram[i, j]


def standardised(vectors: NDArray) -> NDArray[np.float64]:
    """Columns of mean 0 and SD 1; constant ones are 0."""
    centred = vectors - vectors.mean(axis=0)
    sd = centred.std(axis=0)
    return centred / np.where(sd > 0, sd, np.inf)


@dataclass(frozen=True, eq=False)
class PairSums:
    """Sums over pairs of prompts: all that least squares needs of standardised RDMs."""

    models: NDArray[np.float64]  #: (n_models, n_models) of model RDMs with each other
    both: NDArray[np.float64]  #: (n_models, n_parcels) of model RDMs with those of parcels
    rdms: NDArray[np.float64]  #: (n_parcels,) squares of the latter

    @classmethod
    def of(cls, X: NDArray, Y: NDArray) -> PairSums:
        """PairSums of (n_pairs, n_models) and (n_pairs, n_parcels) standardised RDMs."""
        return cls(X.T @ X, X.T @ Y, np.einsum("ij,ij->j", Y, Y))

    def replaced(self, column: int, x: NDArray, X: NDArray, Y: NDArray) -> PairSums:
        """The same with other values in one column of `X`."""
        models, both = self.models.copy(), self.both.copy()
        both[column] = x @ Y
        models[column] = models[:, column] = x @ X
        models[column, column] = x @ x
        return PairSums(models, both, self.rdms)


def explained(train: Sequence[PairSums], test: PairSums, kept: Sequence[int]) -> NDArray:
    """(n_parcels,) share of variance of the test RDMs that some model RDMs explain.

    Parameters
    ----------
    train, test : sequence of PairSums, PairSums
        Runs that weights are learned from by least squares, and another one.
    kept : sequence of int
        Columns of the model RDMs. Without any, 0.

    Returns
    -------
    (n_parcels,) array
        Below 0 where what was learned does not hold.
    """
    known = np.asarray(kept, int)
    if not len(known):
        return np.zeros(len(test.rdms))
    square = np.ix_(known, known)
    models = np.sum([part.models[square] for part in train], axis=0)
    weights = np.linalg.lstsq(models, np.sum([part.both[known] for part in train], axis=0))[0]
    error = test.rdms - 2 * (weights * test.both[known]).sum(axis=0)
    error += np.einsum("ij,ik,kj->j", weights, test.models[square], weights)
    return 1 - error / np.where(test.rdms > 0, test.rdms, np.inf)


def correlations(
    models: Vectors, rdms: NDArray, *, n_boot: int, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Correlation of every model RDM with every parcel's, and bootstrap draws over conditions.

    Parameters
    ----------
    models : mapping of str to (n_pairs,) array
        Model RDMs of the conditions.
    rdms : (n_parcels, n_pairs) array
        Crossnobis RDMs.
    n_boot, seed : int
        Draws, and their seed.

    Returns
    -------
    (n_models, n_parcels) and (n_boot, n_models, n_parcels) arrays

    Notes
    -----
    rsatoolbox's subsampling drops pairs of a condition with itself. Conditions are what a claim
    generalises to (Nili et al., 2014, PLoS Computational Biology 10:e1003553).
    """
    rsatoolbox = required("rsatoolbox")
    data = rsatoolbox.rdm.RDMs(np.asarray(rdms, float))
    model = rsatoolbox.rdm.RDMs(np.stack(list(models.values())))
    rng, n = np.random.default_rng(seed), data.n_cond
    with warnings.catch_warnings(action="ignore"):  # of casts inside
        value = rsatoolbox.rdm.compare(model, data, method="corr")
        draws = []
        for _ in range(n_boot):
            drawn = rng.integers(0, n, n)
            pair = (each.subsample_pattern("index", drawn) for each in (model, data))
            draws.append(rsatoolbox.rdm.compare(*pair, method="corr"))
    return np.asarray(value), np.asarray(draws)


def noise_ceiling(rdms: NDArray) -> tuple[float, float]:
    """Lower and upper noise ceiling of (n_runs, n_pairs) RDMs by rsatoolbox."""
    rsatoolbox = required("rsatoolbox")
    with warnings.catch_warnings(action="ignore"):
        low, high = rsatoolbox.inference.boot_noise_ceiling(
            rsatoolbox.rdm.RDMs(np.asarray(rdms, float)), method="corr"
        )
    return float(low), float(high)
