"""Which part of each score comes from which tensor of the model?"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from llm2nifti.interventions.editing import Edited


class MonitorError(ValueError):
    """A model cannot be monitored this way."""


class Projection:
    """Matrix from the units of one point to the scores of all networks.

    Parameters
    ----------
    where : Edited
        The units that some network has at this point.
    weights : (n_units, n_networks) array
        What each unit of the brain adds to each score.
    """

    def __init__(self, where: Edited, weights: NDArray[np.float64]) -> None:
        self._where = where
        self._weights = weights
        self._made: dict[torch.device, torch.Tensor] = {}

    def on(self, values: torch.Tensor) -> torch.Tensor:
        """(n_module_units, n_networks) float32 matrix on the device of some values.

        Dense, because one small product costs less than picking units out.
        """
        matrix = self._made.get(values.device)
        if matrix is None:
            whole = np.zeros((values.shape[-1], self._weights.shape[1]), np.float32)
            # A tensor may stand under two sites, each with its baseline.
            np.add.at(whole, self._where.positions, self._weights[self._where.units])
            matrix = self._made[values.device] = torch.from_numpy(whole).to(values.device)
        return matrix
