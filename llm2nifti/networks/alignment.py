"""What is a map of one model in the space of another? Carried by the prompts that both saw.

A map of model A is written as a mixture of A's responses to shared prompts; the same mixture of
B's responses is the map carried to B. Everything is computed from products of prompts with each
other, so no rotation of either model's units changes it, and models may differ in width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

PENALTIES = 10.0 ** np.arange(-4, 3)  # in units of the mean squared length of a training row


@dataclass(frozen=True, eq=False)
class Alignment:
    """Ridge regression from the space of A to that of B, fitted on matched rows."""

    inverse: NDArray[np.float64]  #: (m, m) of the products of A's rows, with the penalty
    penalty: float  #: in units of the mean squared length of a row of A

    def mixture(self, products: NDArray[np.float64]) -> NDArray[np.float64]:
        """(m,) weights of the training rows in a map of A, of which `products` are with A's rows.

        The same mixture of B's rows is the map in the space of B.
        """
        return self.inverse @ products


def align(gram_a: NDArray[np.floating], gram_b: NDArray[np.floating]) -> Alignment:
    """Fit the map from A to B.

    Parameters
    ----------
    gram_a, gram_b : (m, m) array
        Products of the training rows of A, and of B, with each other; rows are matched.

    Returns
    -------
    Alignment
        Its penalty is that of `PENALTIES` by which rows of B that are left out, one at a time, are
        predicted best.

    Notes
    -----
    What `sklearn.linear_model.RidgeCV` finds for coordinates of the rows; it would decompose the
    products anew for every penalty, and shuffled prompts are hundreds of fits.

    An orthogonal map (Procrustes) would preserve A's distances: but models weigh the same contents
    differently, and the map has to turn and to reweigh. docs/group.md compares both.
    """
    values, vectors = linalg.eigh(np.asarray(gram_a, float))
    values = np.maximum(values, 0)
    unit = float(values.mean())
    if unit <= 0:
        return Alignment(np.zeros_like(vectors), float("inf"))
    turned = vectors.T @ gram_b @ vectors
    errors = []
    for penalty in PENALTIES:
        scaled = vectors / (values + penalty * unit)
        # Residual of a row that is left out: that of the whole fit over the diagonal.
        diagonal = np.einsum("ij,ij->i", scaled, vectors)
        errors.append((np.einsum("ij,ij->i", scaled @ turned, scaled) / diagonal**2).sum())
    chosen = float(PENALTIES[int(np.argmin(errors))])
    return Alignment((vectors / (values + chosen * unit)) @ vectors.T, chosen)


def cosine(product: float, squared_a: float, squared_b: float) -> float:
    """Cosine of two maps by their product and their squared lengths; 0 if one is nothing.

    It is not centred over units: the mean of units is not the same in another basis.
    """
    size = np.sqrt(max(squared_a, 0) * max(squared_b, 0))
    return float(product / size) if size > 0 else 0.0
