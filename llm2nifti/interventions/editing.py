"""How are the units of a network edited while a model computes?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from llm2nifti.geometry import ModelBrain
from llm2nifti.hooks import NoSuchModuleError, Point
from llm2nifti.models import LoadedModel
from llm2nifti.models.points import parts, tapped


class InterventionError(ValueError):
    """An intervention cannot be done to the model."""


class Edited(NamedTuple):
    """Units of one point that are edited, or looked at.

    Attributes
    ----------
    positions : (n,) int64 array
        Where they are on the last axis of the point's tensor.
    units : (n,) int64 array
        Where they are in the brain's recording order.
    """

    positions: NDArray[np.int64]
    units: NDArray[np.int64]


Edit = Callable[[torch.Tensor], torch.Tensor | None]
MakeEdit = Callable[[Edited], Edit]


@contextmanager
def edited(
    model: LoadedModel, brain: ModelBrain, units: NDArray[np.bool_], make: MakeEdit
) -> Iterator[None]:
    """Edit units in every forward pass.

    Parameters
    ----------
    model : LoadedModel
        The model.
    brain : ModelBrain
        Geometry.
    units : (n_units,) bool array
        Which units to edit.
    make : callable
        ``make(edited)`` returns the function that takes the tensor of one point, of shape
        (..., n_module_units), and returns a new one, or None to leave it as it is.

    Raises
    ------
    InterventionError
        If the model does not have the brain's modules, or they have another width.
    """
    points, widths = _points(model, brain, units)
    edits = {point: make(where) for point, where in points.items()}

    def replace(point: Point, tensor: torch.Tensor) -> torch.Tensor | None:
        width = widths.get(point, tensor.shape[-1])
        if tensor.shape[-1] != width:
            raise InterventionError(
                f"{point.module!r} has {tensor.shape[-1]} units in this model and {width} in space "
                f"{brain.space}; use a network of the same model"
            )
        return edits[point](tensor)

    with ExitStack() as stack:
        try:
            stack.enter_context(tapped(model, list(edits), replace))
        except (NoSuchModuleError, AttributeError) as error:
            raise InterventionError(_foreign(model, brain, error)) from error
        yield


def _points(
    model: LoadedModel, brain: ModelBrain, units: NDArray[np.bool_]
) -> tuple[dict[Point, Edited], dict[Point, int]]:
    """What is edited at each point, and the width of the points whose whole tensor is known."""
    try:
        where = parts(model, brain)
    except AttributeError as error:  # a fused projection that is not there
        raise InterventionError(_foreign(model, brain, error)) from error
    points: dict[Point, Edited] = {}
    widths: dict[Point, int] = {}
    for point, slices in where.items():
        pairs: list[tuple[NDArray, NDArray]] = []
        for inside, index in slices:
            local = np.flatnonzero(units[inside])
            pairs.append((local if index is None else index.numpy()[local], local + inside.start))
            if index is None:
                widths[point] = inside.stop - inside.start
        positions, members = (np.concatenate(columns) for columns in zip(*pairs, strict=True))
        if len(positions):
            points[point] = Edited(positions, members)
    return points, widths


def _foreign(model: LoadedModel, brain: ModelBrain, error: Exception) -> str:
    """Say that a network is of another model."""
    return (
        f"the network is in space {brain.space}, which model {model.name!r} does not have "
        f"({error}); use the model that was scanned"
    )
