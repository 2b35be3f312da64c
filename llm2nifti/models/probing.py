"""What does one forward pass of a model look like from inside? Shapes, calls, values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from llm2nifti.hooks import Point, tap
from llm2nifti.models.hints import is_norm

N_TRIALS, N_TOKENS = 2, 5  # distinct, so that axes can be told apart
N_TARGETS = 3  # tokens of a decoder that reads an encoder

Pass = Callable[[], Any]


@dataclass
class Probe:
    """What was seen in one pass.

    Attributes
    ----------
    values : dict
        Outputs as large as some block's, by module name: copies.
    inputs : dict
        First inputs of blocks and normalisation layers: copies.
    shapes, calls : dict
        Shape of the last output and number of calls of every module that was called.
    copies : dict
        Leaf modules whose input is the output of the leaf called before them: its name.
    """

    values: dict[str, torch.Tensor] = field(default_factory=dict)
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)


def run(model: nn.Module, one_pass: Pass, blocks: Sequence[str]) -> Probe:
    """Make one pass and note what it does.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    one_pass : callable
        Runs the model, or a part of it, on something.
    blocks : sequence of str
        Names of the blocks: outputs as large as theirs are kept.

    Returns
    -------
    Probe
    """
    sizes = _block_sizes(model, one_pass, blocks)
    probe = Probe()
    names = dict(model.named_modules())
    leaves = {name for name, module in names.items() if not list(module.children())}
    wanted = {*blocks, *(name for name, module in names.items() if is_norm(module))}
    before: tuple[str, torch.Tensor] | None = None

    def note(point: Point, tensor: torch.Tensor) -> None:
        nonlocal before
        name = point.module
        if point.where == "input":
            if name in wanted:
                probe.inputs[name] = tensor.detach().clone()
            if name in leaves and before is not None and _is_same(before[1], tensor):
                probe.copies[name] = before[0]
            return
        probe.calls[name] = probe.calls.get(name, 0) + 1
        probe.shapes[name] = tuple(tensor.shape)
        if tensor.numel() in sizes:  # a copy: Falcon adds to it in place afterwards
            probe.values[name] = tensor.detach().clone()
        if name in leaves:
            before = (name, tensor)

    points = [Point(n, where) for n in names if n for where in ("input", "output")]
    with evaluating(model), tap(model, points, note):
        one_pass()
    return probe


def text_passes(model: nn.Module) -> list[Pass]:
    """Passes over fixed tokens."""
    inputs = {"input_ids": _tokens(N_TOKENS, model)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return input_passes(model, inputs)


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


def _block_sizes(model: nn.Module, one_pass: Pass, blocks: Sequence[str]) -> set[int]:
    """Numbers of values that the blocks put out."""
    sizes: set[int] = set()
    points = [Point(name) for name in blocks]
    with evaluating(model), tap(model, points, lambda _point, x: sizes.add(x.numel())):
        one_pass()
    return sizes


def _is_same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors hold the same values in the same shape."""
    return a.shape == b.shape and a.device == b.device and torch.equal(a, b)


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
