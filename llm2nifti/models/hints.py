"""What does transformers itself say of a model's inside? Hints only: a probe pass decides."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

# Words in module names, where transformers gives no class for a role. The first that fits counts.
ROLES = {
    "cross": re.compile(r"cross|encdec|encoder_attn", re.IGNORECASE),
    "attn": re.compile(r"attn|attention", re.IGNORECASE),
    "mixer": re.compile(r"mixer|mamba|ssm|rwkv", re.IGNORECASE),
}


def block_classes(model: nn.Module) -> set[str]:
    """Names of the classes that transformers never splits or whose outputs it can record."""
    unsplit = set(getattr(model, "_no_split_modules", None) or [])
    return unsplit | {c.__name__ for c in _recordable(model, "hidden_states")}


def attention_classes(model: nn.Module) -> tuple[type[nn.Module], ...]:
    """Classes whose attention weights transformers can record."""
    return tuple(_recordable(model, "attentions"))


def is_rowwise(model: nn.Module, name: str) -> bool:
    """Whether the tensor-parallel plan splits this module by rows, as projections to the stream."""
    plan = getattr(model, "_tp_plan", None) or {}
    pattern = re.sub(r"\.\d+(?=\.|$)", ".*", name)
    return str(plan.get(pattern, "")).startswith("rowwise")


def role_of(model: nn.Module, block: str, name: str) -> str:
    """Role that a module inside a block may have: cross, attn, mixer, or else mlp."""
    path = name.removeprefix(f"{block}.")
    for role, words in ROLES.items():
        if words.search(path):
            return role
    is_attention = isinstance(model.get_submodule(name), attention_classes(model))
    return "attn" if is_attention else "mlp"


def is_copy(module: nn.Module) -> bool:
    """Whether a module only hands on its input in eval mode, or that of the token before (RWKV)."""
    return isinstance(module, (nn.Dropout, nn.Identity, nn.ZeroPad2d))


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer, by the name of its class."""
    return "norm" in type(module).__name__.lower()


def _recordable(model: nn.Module, key: str) -> Iterator[type[nn.Module]]:
    """Classes under `key` of every ``_can_record_outputs`` in the model."""
    for module in model.modules():
        hints: Any = getattr(module, "_can_record_outputs", None)
        if not isinstance(hints, dict):
            continue
        hint = hints.get(key)
        for item in hint if isinstance(hint, (list, tuple)) else [hint]:
            target = getattr(item, "target_class", item)
            if isinstance(target, type):
                yield target
