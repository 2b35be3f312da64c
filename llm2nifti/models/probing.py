"""What does one forward pass of a model look like from inside? And what does transformers say?

What it says are hints only: shapes, calls and values of the pass decide.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from llm2nifti.hooks import Point, tap

N_TRIALS, N_TOKENS = 2, 5  # distinct, so that axes can be told apart
N_TARGETS = 3  # tokens of a decoder that reads an encoder
# Words in module names, where transformers gives no class for a role. The first that fits counts.
ROLES = {
    "cross": re.compile(r"cross|encdec|encoder_attn", re.IGNORECASE),
    "attn": re.compile(r"attn|attention", re.IGNORECASE),
    "mixer": re.compile(r"mixer|mamba|ssm|rwkv", re.IGNORECASE),
}

Pass = Callable[[], Any]


@dataclass
class Probe:
    """What was seen in one pass, by module name; tensors are copies."""

    values: dict[str, torch.Tensor] = field(default_factory=dict)  #: outputs as large as a block's
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)  #: of blocks and normalisations
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  #: of the last output
    calls: dict[str, int] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)  #: leaf whose output a leaf has as input


def run(model: nn.Module, one_pass: Pass, blocks: Sequence[str]) -> Probe:
    """Make one pass and note what it does; outputs as large as those of the blocks are kept."""
    probe = Probe()
    names = dict(model.named_modules())
    leaves = {name for name, module in names.items() if is_leaf(module)}
    wanted = {*blocks, *(name for name, module in names.items() if is_norm(module))}
    sizes: set[int] = set()
    before: tuple[str, torch.Tensor] | None = None

    def note(point: Point, tensor: torch.Tensor) -> None:
        nonlocal before
        name = point.module
        if point.where == "input":
            if name in wanted:
                probe.inputs[name] = tensor.detach().clone()
            if name in leaves and before is not None and is_same(before[1], tensor):
                probe.copies[name] = before[0]
            return
        probe.calls[name] = probe.calls.get(name, 0) + 1
        probe.shapes[name] = tuple(tensor.shape)
        if tensor.numel() in sizes:  # a copy: Falcon adds to it in place afterwards
            probe.values[name] = tensor.detach().clone()
        if name in leaves:
            before = (name, tensor)

    points = [Point(n, where) for n in names if n for where in ("input", "output")]
    with evaluating(model):
        with tap(model, map(Point, blocks), lambda _point, x: sizes.add(x.numel())):
            one_pass()
        with tap(model, points, note):
            one_pass()
    return probe


def text_passes(model: nn.Module) -> list[Pass]:
    """Passes over fixed tokens."""
    ids = _tokens(N_TOKENS, model)
    return input_passes(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def input_passes(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> list[Pass]:
    """Passes over given inputs: one, or for an encoder and its decoder one each."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return [lambda: model(**inputs)]
    targets = _tokens(N_TARGETS, model)
    encoder: Any = model.get_encoder()  # type: ignore[operator]
    with evaluating(model):
        read = encoder(**inputs)
    return [
        lambda: encoder(**inputs),
        lambda: model(encoder_outputs=read, decoder_input_ids=targets),
    ]


def _tokens(n_tokens: int, model: nn.Module) -> torch.Tensor:
    """(N_TRIALS, n_tokens) fixed token ids."""
    vocabulary = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    ids = torch.arange(N_TRIALS * n_tokens).reshape(N_TRIALS, n_tokens) * 7 % vocabulary
    return ids.to(next(model.parameters()).device)


@contextmanager
def evaluating(model: nn.Module, *, gradients: bool = False) -> Iterator[None]:
    """Eval mode, with or without gradients; the mode of every part is put back afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.set_grad_enabled(gradients):
            yield
    finally:
        for module in training:
            module.training = True


def is_same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors hold the same values in the same shape."""
    return a.shape == b.shape and a.device == b.device and torch.equal(a, b)


def is_leaf(module: nn.Module) -> bool:
    """Whether a module has no parts."""
    return not list(module.children())


def is_copy(module: nn.Module) -> bool:
    """Whether a module only hands on its input in eval mode, or that of the token before (RWKV)."""
    return isinstance(module, (nn.Dropout, nn.Identity, nn.ZeroPad2d))


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer, by the name of its class."""
    return "norm" in type(module).__name__.lower()


def embeddings(model: nn.Module, which: str) -> nn.Module | None:
    """The ``input`` or ``output`` embeddings, where transformers names them."""
    try:
        return getattr(model, f"get_{which}_embeddings")()
    except (AttributeError, NotImplementedError):
        return None


def recordable(model: nn.Module, key: str) -> Iterator[type[nn.Module]]:
    """Classes under `key` of every ``_can_record_outputs`` in the model, as transformers says."""
    for module in model.modules():
        hints: Any = getattr(module, "_can_record_outputs", None)
        hint = hints.get(key) if isinstance(hints, dict) else None
        for item in hint if isinstance(hint, (list, tuple)) else [hint]:
            target = getattr(item, "target_class", item)
            if isinstance(target, type):
                yield target
