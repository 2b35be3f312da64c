"""Where in the model are the units of a model brain? Points to hook, and which part of each.

Also of single experts. Their weights are stacked parameters, and rows are routed without the
token's identity, so no hook sees them. transformers lets an experts function be registered; this
one passes the hidden units of all experts, 0 where a token was not routed to them, through a module
that hooks can read and edit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from llm2nifti.geometry import ModelBrain
from llm2nifti.hooks import Callback, Point, tap
from llm2nifti.models import weights
from llm2nifti.models.loaded import LoadedModel
from llm2nifti.models.sites import UNITS

NAME = "llm2nifti_units"  # of the experts function

Part = tuple[slice, torch.Tensor | None]


def parts(model: LoadedModel, brain: ModelBrain) -> dict[Point, list[Part]]:
    """Units of the brain that each point holds, as slices of the recording order.

    Each slice comes with the positions that its units have in the point's tensor; None for all.
    """
    by_point: dict[Point, list[Part]] = {}
    for site in brain.sites:
        part = (brain.slice_of(site), weights.positions(model.module, site))
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

    with ExitStack() as stack:
        for point in points:
            if point.module.endswith(f".experts.{UNITS}"):
                _open(model.module.get_submodule(point.module.removesuffix(f".{UNITS}")), stack)
        stack.enter_context(tap(model.module, points, turn if turned else callback))
        yield


def _open(experts: Any, stack: ExitStack) -> None:
    """Let hooks see the units of stacked experts until the stack is closed."""
    if hasattr(experts, UNITS):  # someone looks already
        return
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(NAME, _forward)
    before = experts.config._experts_implementation
    experts.add_module(UNITS, nn.Identity())
    stack.callback(delattr, experts, UNITS)
    stack.callback(setattr, experts.config, "_experts_implementation", before)
    experts.config._experts_implementation = NAME


def _forward(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Output of all experts, (n_tokens, width); their hidden units pass ``module.units``."""
    n_experts, _, n_hidden = module.down_proj.shape
    units = hidden_states.new_zeros(len(hidden_states), n_experts, n_hidden)
    routed = [torch.where(top_k_index == expert) for expert in range(n_experts)]
    for expert, (token, _) in enumerate(routed):
        if len(token):
            both = nn.functional.linear(hidden_states[token], module.gate_up_proj[expert])
            units[token, expert] = module._apply_gate(both)
    child = getattr(module, UNITS, None)  # layers whose experts nobody reads share the config
    if child is not None:
        units = child(units.flatten(1)).unflatten(1, (n_experts, n_hidden))
    out = torch.zeros_like(hidden_states)
    for expert, (token, position) in enumerate(routed):
        if len(token):
            written = nn.functional.linear(units[token, expert], module.down_proj[expert])
            written = written * top_k_weights[token, position, None]
            out.index_add_(0, token, written.to(out.dtype))
    return out
