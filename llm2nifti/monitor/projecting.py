"""Which part of each score comes from which tensor of the model?"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from llm2nifti.hooks import Point
from llm2nifti.models import LoadedModel
from llm2nifti.models.points import parts
from llm2nifti.networks import Readout


class MonitorError(ValueError):
    """A model cannot be monitored this way."""


class Projection:
    """Matrix from the units of one point to the scores of all networks.

    Parameters
    ----------
    point : Point
        The tensor.
    positions : (n,) int64 array
        Where the units are on its last axis.
    weights : (n, n_networks) array
        What each unit adds to each score.
    width : int or None
        Length of the last axis, where it is known beforehand.
    """

    def __init__(
        self,
        point: Point,
        positions: NDArray[np.int64],
        weights: NDArray[np.float64],
        width: int | None,
    ) -> None:
        self._point = point
        self._positions = positions
        self._weights = weights
        self._width = width
        self._made: dict[torch.device, torch.Tensor] = {}

    def on(self, values: torch.Tensor) -> torch.Tensor:
        """(n_module_units, n_networks) float32 matrix on the device of some values.

        Dense, because one small product costs less than picking units out.

        Raises
        ------
        MonitorError
            If the values have another width than the networks' space.
        """
        matrix = self._made.get(values.device)
        if matrix is None:
            width = values.shape[-1]
            if self._width not in (None, width):
                raise MonitorError(
                    f"{self._point.module!r} has {width} units in this model and {self._width} in "
                    "the networks' space; use the model that was scanned"
                )
            whole = np.zeros((width, self._weights.shape[1]), np.float32)
            # A tensor may stand under two sites, each with its baseline.
            np.add.at(whole, self._positions, self._weights)
            matrix = self._made[values.device] = torch.from_numpy(whole).to(values.device)
        return matrix


def projections(model: LoadedModel, readout: Readout) -> dict[Point, Projection]:
    """Projection of every point at which some network has units.

    Parameters
    ----------
    model : LoadedModel
        The model.
    readout : Readout
        From `llm2nifti.networks.read_out`.

    Returns
    -------
    dict of Point to Projection

    Raises
    ------
    MonitorError
        If the model does not have the modules of the networks' space, or generates nothing.
    """
    if "generate" not in model.modes():
        raise MonitorError(f"{model.name} generates nothing, so there is nothing to monitor")
    used = (readout.weights != 0).any(axis=1)
    try:
        where = parts(model, readout.brain)
    except AttributeError as error:  # a fused projection that is not there
        raise MonitorError(
            f"the networks are in space {readout.brain.space}, which model {model.name!r} does not "
            f"have ({error}); use the model that was scanned"
        ) from error
    found = {}
    for point, some in where.items():
        positions, units, width = [], [], None
        for inside, index in some:
            local = np.flatnonzero(used[inside])
            positions.append(local if index is None else index.numpy()[local])
            units.append(local + inside.start)
            if index is None:
                width = inside.stop - inside.start
        members = np.concatenate(units)
        if len(members):
            weights = readout.weights[members]
            found[point] = Projection(point, np.concatenate(positions), weights, width)
    return found
