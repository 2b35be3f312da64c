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
    """The (n,) units of one point that are edited, or looked at."""

    positions: NDArray[np.int64]  # on the last axis of the point's tensor
    units: NDArray[np.int64]  # in the brain's recording order
    width: int | None  # length of that axis, where the brain has all of it


Edit = Callable[[torch.Tensor], torch.Tensor | None]
MakeEdit = Callable[[Edited], Edit]


@contextmanager
def edited(
    model: LoadedModel, brain: ModelBrain, units: NDArray[np.bool_], make: MakeEdit
) -> Iterator[None]:
    """Edit the marked units, (n_units,) bool, in every forward pass.

    ``make(edited)`` returns the function that takes the tensor of one point, of shape
    (..., n_module_units), and returns a new one, or None to leave it as it is. InterventionError
    where the model does not have the brain's modules, or they have another width.
    """

    def replace(point: Point, tensor: torch.Tensor) -> torch.Tensor | None:
        width = points[point].width
        if width is not None and tensor.shape[-1] != width:
            raise InterventionError(
                f"{point.module!r} has {tensor.shape[-1]} units in this model and {width} in space "
                f"{brain.space}; use a network of the same model"
            )
        return edits[point](tensor)

    with ExitStack() as stack:
        try:
            points = _points(model, brain, units)
            stack.enter_context(tapped(model, list(points), replace))
        except (NoSuchModuleError, AttributeError) as error:  # the latter: a fused projection
            raise InterventionError(
                f"the network is in space {brain.space}, which model {model.name!r} does not have "
                f"({error}); use the model that was scanned"
            ) from error
        edits = {point: make(where) for point, where in points.items()}
        yield


def _points(model: LoadedModel, brain: ModelBrain, units: NDArray[np.bool_]) -> dict[Point, Edited]:
    """What is edited at each point that has any of the units."""
    points: dict[Point, Edited] = {}
    for point, slices in parts(model, brain).items():
        width = None
        pairs: list[tuple[NDArray, NDArray]] = []
        for inside, index in slices:
            local = np.flatnonzero(units[inside])
            pairs.append((local if index is None else index.numpy()[local], local + inside.start))
            if index is None:
                width = inside.stop - inside.start
        positions, members = (np.concatenate(columns) for columns in zip(*pairs, strict=True))
        if len(positions):
            points[point] = Edited(positions, members, width)
    return points
