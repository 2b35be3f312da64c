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


def coordinates(gram: NDArray[np.floating]) -> NDArray[np.float64]:
    """(m, r) coordinates of rows whose (m, m) products with each other are known."""
    values, vectors = linalg.eigh(np.asarray(gram, float))
    kept = values > 1e-10 * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])


def align(gram_a: NDArray[np.floating], space_b: NDArray[np.float64]) -> Alignment:
    """Fit the map from A to B.

    Parameters
    ----------
    gram_a : (m, m) array
        Products of A's training rows with each other.
    space_b : (m, r) array
        `coordinates` of B's rows, in the same order.

    Returns
    -------
    Alignment
        Its penalty predicts rows of B that are left out one at a time best (`RidgeCV`).

    Notes
    -----
    An orthogonal map (Procrustes) would preserve A's distances: but models weigh the same contents
    differently, and the map has to turn and to reweigh. docs/group.md compares both.
    """
    from sklearn.linear_model import RidgeCV

    gram = np.asarray(gram_a, float)
    unit = float(np.trace(gram)) / len(gram)
    if unit <= 0:
        return Alignment(np.zeros_like(gram), float("inf"))
    space_a = coordinates(gram)
    chosen = float(RidgeCV(PENALTIES * unit, fit_intercept=False).fit(space_a, space_b).alpha_)
    inverse = linalg.inv(gram + chosen * np.eye(len(gram)))
    return Alignment(inverse, chosen / unit)


def cosine(product: float, squared_a: float, squared_b: float) -> float:
    """Cosine of two maps by their product and their squared lengths; 0 if one is nothing.

    It is not centred over units: the mean of units is not the same in another basis.
    """
    size = np.sqrt(max(squared_a, 0) * max(squared_b, 0))
    return float(product / size) if size > 0 else 0.0
