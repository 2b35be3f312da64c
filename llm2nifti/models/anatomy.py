"""What does the model look like inside? Its blocks and the modules that write to the stream.

No table of model names: structure comes from the module tree and one probe pass, and a check
decides. For every block, ``resid_out - resid_in`` has to be the sum of the tensors called ``attn``
and ``mlp``; an architecture for which no such pair exists raises instead of recording nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from llm2nifti.hooks import Point, tap
from llm2nifti.models.cache import ModelError

ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
MLP = re.compile(r"mlp|ffn|feed_forward|fc\d|dense_h|dense_4h|moe|act", re.IGNORECASE)
PROBE_SHAPE = (2, 5)  # trials, tokens: distinct, so that axes can be told apart


class UnknownArchitectureError(ModelError):
    """The parts of this model cannot be established by the probe pass."""


@dataclass(frozen=True)
class Leaf:
    """What the probe pass saw at one leaf module."""

    name: str
    shape: tuple[int, ...]
    n_calls: int


@dataclass(frozen=True)
class Block:
    """One transformer block, with the modules whose outputs add up to its change of the stream.

    Where they cannot be established, `problem` says why and the other names are empty: the block
    can still be recorded by module names.
    """

    name: str
    attn: str = ""
    mlp: str = ""
    output_projection: str = ""
    down_projection: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Anatomy:
    """Parts of a decoder.

    Attributes
    ----------
    width : int
        Units of the residual stream.
    blocks : tuple of Block
        From the bottom up.
    embedding, final_norm : str or None
        Module names.
    leaves : tuple of Leaf
        Leaf modules in the order in which they were called.
    uncalled : tuple of str
        Leaf modules that the probe pass did not call.
    """

    width: int
    blocks: tuple[Block, ...]
    embedding: str
    final_norm: str | None
    leaves: tuple[Leaf, ...]
    uncalled: tuple[str, ...]


@dataclass
class _Probe:
    """Values and calls seen in the probe pass."""

    values: dict[str, torch.Tensor] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)


def dissect(model: nn.Module) -> Anatomy:
    """Establish the parts of a decoder with one probe pass.

    Parameters
    ----------
    model : torch.nn.Module
        A transformers model with language-model head, in eval mode.

    Returns
    -------
    Anatomy

    Raises
    ------
    UnknownArchitectureError
        If no repeated blocks are found.
    """
    names = _block_names(model)
    probe = _run_probe(model, names)
    last = probe.values[names[-1]]
    width = last.shape[-1]
    blocks = tuple(_dissect_block(model, name, probe, width) for name in names)
    leaves = [name for name, module in model.named_modules() if not list(module.children())]
    called = [name for name in probe.calls if name in set(leaves)]
    embedding = _name_of(model, model.get_input_embeddings())  # type: ignore[operator]
    return Anatomy(
        width=width,
        blocks=blocks,
        embedding=embedding,
        final_norm=_final_norm(called, names, probe, width),
        leaves=tuple(Leaf(n, probe.shapes[n], probe.calls[n]) for n in called),
        uncalled=tuple(name for name in leaves if name not in probe.calls),
    )


def _block_names(model: nn.Module) -> list[str]:
    """Names of the repeated blocks: the list of the class that transformers never splits."""
    hints = set(getattr(model, "_no_split_modules", None) or [])
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    uniform = [(n, m) for n, m in lists if len({type(block) for block in m}) == 1]
    hinted = [(n, m) for n, m in uniform if type(m[0]).__name__ in hints]
    candidates = hinted or uniform
    if not candidates:
        found = ", ".join(name for name, _ in model.named_children())
        raise UnknownArchitectureError(f"no list of blocks in this model; its parts: {found}")
    name, blocks = max(candidates, key=lambda item: len(item[1]))
    return [f"{name}.{i}" for i in range(len(blocks))]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients, put back afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _run_probe(model: nn.Module, block_names: list[str]) -> _Probe:
    """One forward pass on fixed tokens that notes shapes, calls, and values inside the blocks."""
    probe = _Probe()
    near_block = {
        f"{block}.{child}" if child else block
        for block in block_names
        for child in ["", *(n for n, _ in model.get_submodule(block).named_children())]
    }

    def note(point: Point, tensor: torch.Tensor) -> None:
        if point.where == "input":
            probe.inputs[point.module] = tensor.detach().clone()
            return
        probe.calls[point.module] = probe.calls.get(point.module, 0) + 1
        probe.shapes[point.module] = tuple(tensor.shape)
        if point.module in near_block:  # a copy: Falcon adds to it in place afterwards
            probe.values[point.module] = tensor.detach().clone()

    points = [Point(name) for name, _ in model.named_modules() if name]
    points += [Point(name, "input") for name in block_names]
    vocabulary = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    tokens = torch.arange(PROBE_SHAPE[0] * PROBE_SHAPE[1]).reshape(PROBE_SHAPE) * 7 % vocabulary
    device = next(model.parameters()).device
    with _evaluating(model), tap(model, points, note):
        model(input_ids=tokens.to(device), attention_mask=torch.ones_like(tokens).to(device))
    return probe


def _dissect_block(model: nn.Module, name: str, probe: _Probe, width: int) -> Block:
    """Find the two children whose outputs add up to the block's change of the stream."""
    block = model.get_submodule(name)
    change = probe.values[name] - probe.inputs[name]
    children = [
        f"{name}.{child}"
        for child, module in block.named_children()
        if not isinstance(module, (nn.Dropout, nn.Identity))  # copies of what comes before
    ]
    outputs = {
        child: probe.values[child].reshape(change.shape)
        for child in children
        if child in probe.values and probe.values[child].numel() == change.numel()
    }
    tolerance = 1e-3 if change.dtype == torch.float32 else 5e-2
    best = None
    for attn in (c for c in outputs if ATTENTION.search(c.rpartition(".")[2])):
        for mlp in (c for c in outputs if not ATTENTION.search(c.rpartition(".")[2])):
            error = (change - outputs[attn] - outputs[mlp]).norm() / change.norm()
            if error < tolerance and (best is None or error < best[0]):
                best = (error, attn, mlp)
    if best is None:
        problem = (
            f"in block {name!r} no attention and MLP outputs add up to the change of the stream; "
            f"its parts: {', '.join(children)}. Record by name with --sites all or 'regex:...'"
        )
        return Block(name, problem=problem)
    _, attn, mlp = best
    projections = [_last_projection(model, part, width) for part in (attn, mlp)]
    if not all(projections):
        problem = f"no projection that writes {width} units inside {attn!r} or {mlp!r}"
        return Block(name, problem=problem)
    return Block(name, attn, mlp, *projections)


def _last_projection(model: nn.Module, name: str, width: int) -> str:
    """Last module with a weight matrix inside `name` that writes `width` units, or ``""``."""
    found = ""
    for child, module in model.get_submodule(name).named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.ndim == 2 and width in weight.shape:
            found = f"{name}.{child}" if child else name
    return found


def _final_norm(called: list[str], blocks: list[str], probe: _Probe, width: int) -> str | None:
    """Last leaf called after the blocks, outside them, that keeps the stream's width."""
    last_block = max(i for i, n in enumerate(called) if n.startswith(blocks[-1] + "."))
    after = [n for n in called[last_block + 1 :] if not n.startswith(blocks[0].rpartition(".")[0])]
    stream = [n for n in after if probe.shapes[n] == (*PROBE_SHAPE, width)]
    return stream[-1] if stream else None


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    """Dotted name of a submodule object."""
    return next(name for name, module in model.named_modules() if module is wanted)


def write_norms(model: nn.Module, point: Point, n_units: int) -> torch.Tensor:
    """Norm of the weights that write into each unit of a module's output.

    For a module's input, the weights that read it. Modules without weights give zeros.

    Returns
    -------
    (n_units,) float32 tensor
    """
    module = model.get_submodule(point.module)
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor):
        return torch.zeros(n_units)
    weight = weight.detach().float().cpu()
    if weight.ndim == 1:
        return weight.abs() if len(weight) == n_units else torch.zeros(n_units)
    # torch's Linear stores (out, in), GPT-2's Conv1D and embeddings (in, out).
    out_axis = 0 if isinstance(module, nn.Linear) else 1
    axis = out_axis if point.where == "output" else 1 - out_axis
    norms = weight.norm(dim=1 - axis)
    return norms if len(norms) == n_units else torch.zeros(n_units)
