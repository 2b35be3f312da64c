"""Where in the model are the units of a model brain? Points to hook, and which part of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from llm2nifti.geometry import ModelBrain
from llm2nifti.hooks import Callback, Point, tap
from llm2nifti.models import experts, fused
from llm2nifti.models.loaded import LoadedModel

Part = tuple[slice, torch.Tensor | None]


def parts(model: LoadedModel, brain: ModelBrain) -> dict[Point, list[Part]]:
    """Units of the brain that each point holds.

    Parameters
    ----------
    model : LoadedModel
        The model.
    brain : ModelBrain
        Geometry of what is recorded or edited.

    Returns
    -------
    dict
        For each point, its units as slices of the recording order, each with the positions that
        they have in the point's tensor; None for all positions.
    """
    found: dict[Point, list[Part]] = {}
    for site in brain.sites:
        index = None
        if site.part:
            which, layout = site.part.split(":")
            n_fused = fused.n_outputs(model.module.get_submodule(site.module))
            index = fused.indices(model.module.config, layout, which, n_fused)
        point = Point(site.module, site.where)
        found.setdefault(point, []).append((brain.slice_of(site), index))
    return found


@contextmanager
def tapped(model: LoadedModel, points: Sequence[Point], callback: Callback) -> Iterator[None]:
    """Call back with the tensors of these points, also of single experts.

    See `llm2nifti.hooks.tap`; here the hidden units of experts can be named, too.
    """
    with ExitStack() as stack:
        stack.enter_context(experts.opened(model.module, [point.module for point in points]))
        stack.enter_context(tap(model.module, points, callback))
        yield
