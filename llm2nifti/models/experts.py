"""What do single experts do? Their hidden units, 0 where a token was not routed to them.

Expert weights are stacked parameters, and rows are routed without the token's identity, so no hook
sees single experts. transformers lets an experts function be registered; this one passes the hidden
units of all experts through a module that hooks can read and edit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

NAME = "llm2nifti_units"
CHILD = "units"  # the module that the hidden units of all experts pass


def experts_in(model: nn.Module, prefix: str = "") -> list[str]:
    """Names of the modules under `prefix` that hold stacked experts of a kind that can be read."""
    # Before transformers 5.7 and 5.20, which name the last two, there were no others with a gate.
    return [
        name
        for name, module in model.named_modules()
        if name.startswith(prefix)
        and hasattr(module, "_apply_gate")
        and getattr(getattr(module, "down_proj", None), "ndim", 0) == 3
        and getattr(module, "has_gate", False)
        and not getattr(module, "is_transposed", True)
        and not getattr(module, "has_bias", True)
        and getattr(module, "is_concatenated", True)
        and not getattr(module, "has_post_expert_norm", False)
    ]


def n_units(module: Any) -> int:
    """Hidden units of all experts together."""
    n_experts, _, n_hidden = module.down_proj.shape
    return int(n_experts * n_hidden)


@contextmanager
def opened(model: nn.Module, points: list[str]) -> Iterator[None]:
    """Let hooks see the experts whose `CHILD` is among these names; put everything back after."""
    owners = [p.removesuffix(f".{CHILD}") for p in points if p.endswith(f".experts.{CHILD}")]
    if owners:
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

        ALL_EXPERTS_FUNCTIONS.register(NAME, _forward)
    with ExitStack() as stack:
        for name in owners:
            module: Any = model.get_submodule(name)
            if hasattr(module, CHILD):  # someone looks already
                continue
            before = module.config._experts_implementation
            module.add_module(CHILD, nn.Identity())
            stack.callback(delattr, module, CHILD)
            stack.callback(setattr, module.config, "_experts_implementation", before)
            module.config._experts_implementation = NAME
        yield


def _forward(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Output of all experts, (n_tokens, width); their hidden units pass ``module.units``."""
    n_experts, _, n_hidden = module.down_proj.shape
    n_tokens = len(hidden_states)
    units = hidden_states.new_zeros(n_tokens, n_experts, n_hidden)
    routed = [torch.where(top_k_index == expert) for expert in range(n_experts)]
    for expert, (token, _) in enumerate(routed):
        if len(token):
            both = nn.functional.linear(hidden_states[token], module.gate_up_proj[expert])
            units[token, expert] = module._apply_gate(both)
    child = getattr(module, CHILD, None)
    if child is not None:
        units = child(units.flatten(1)).unflatten(1, (n_experts, n_hidden))
    out = torch.zeros_like(hidden_states)
    for expert, (token, position) in enumerate(routed):
        if len(token):
            written = nn.functional.linear(units[token, expert], module.down_proj[expert])
            written = written * top_k_weights[token, position, None]
            out.index_add_(0, token, written.to(out.dtype))
    return out
