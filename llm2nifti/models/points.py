"""Where in the model are the units of a model brain? Points to hook, and which part of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from llm2nifti.geometry import ModelBrain
from llm2nifti.hooks import Callback, Point, tap
from llm2nifti.models import experts, fused
from llm2nifti.models.loaded import LoadedModel

Part = tuple[slice, torch.Tensor | None]


def parts(model: LoadedModel, brain: ModelBrain) -> dict[Point, list[Part]]:
    """Units of the brain that each point holds, as slices of the recording order.

    Each slice comes with the positions that its units have in the point's tensor; None for all.
    """
    by_point: dict[Point, list[Part]] = {}
    for site in brain.sites:
        part = (brain.slice_of(site), fused.positions(model.module, site))
        by_point.setdefault(Point(site.module, site.where), []).append(part)
    return by_point


@contextmanager
def tapped(model: LoadedModel, points: Sequence[Point], callback: Callback) -> Iterator[None]:
    """Call back with the tensors of these points, also of single experts.

    See `llm2nifti.hooks.tap`; here the hidden units of experts can be named, too, and tensors come
    as (trials, tokens, units) from models that order them otherwise.
    """
    turned = {name: first for s in model.anatomy.stacks for name, first in s.turned.items()}

    def turn(point: Point, tensor: torch.Tensor) -> torch.Tensor | None:
        first = turned.get(point.module, "") if point.where == "output" else ""
        if first == "tokens":
            new = callback(point, tensor.transpose(0, 1))
            return None if new is None else new.transpose(0, 1)
        if first == "copies":
            new = callback(point, tensor.movedim(0, 2).flatten(2))
            return None if new is None else new.unflatten(2, (len(tensor), -1)).movedim(2, 0)
        return callback(point, tensor)

    with (
        experts.opened(model.module, [point.module for point in points]),
        tap(model.module, points, turn if turned else callback),  # of what the line above opens
    ):
        yield
