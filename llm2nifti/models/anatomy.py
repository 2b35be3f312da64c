"""What does the model look like inside? Its stacks of blocks and what surrounds them.

No table of model names: structure comes from hints that transformers gives, the module tree and a
probe pass, and a check decides (see `llm2nifti.models.roles`). What cannot be established raises
instead of recording nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from llm2nifti.models.cache import ModelError
from llm2nifti.models.hints import block_classes, is_copy, is_norm
from llm2nifti.models.probing import N_TRIALS, Pass, Probe, run, text_passes
from llm2nifti.models.roles import Block, find_block


class UnknownArchitectureError(ModelError):
    """The parts of this model cannot be established by the probe pass."""


@dataclass(frozen=True)
class Leaf:
    """What the probe pass saw at one leaf module.

    Attributes
    ----------
    name : str
        Dotted name.
    shape : tuple of int
        Of its output.
    n_calls : int
        Calls in one pass.
    is_copy : bool
        Whether it hands on its input.
    fed_by : str
        Leaf whose output is its input, unchanged; empty if there is none.
    """

    name: str
    shape: tuple[int, ...]
    n_calls: int
    is_copy: bool = False
    fed_by: str = ""


@dataclass(frozen=True)
class Stack:
    """Blocks of one class that pass on one stream.

    Attributes
    ----------
    name : str
        Last part of the name of the module that holds it alone: ``encoder``, ``vision_tower``;
        empty for the only stack of a model.
    path : str
        Dotted name of that module.
    width : int
        Units of the stream.
    n_copies : int
        Copies of the stream that the blocks pass on; Gemma 3n has 4.
    shape : tuple of int
        Trials and tokens of the probe pass.
    blocks : tuple of Block
        From the bottom up.
    embedding, final_norm : str or None
        Modules that start and end the stream.
    leaves : tuple of Leaf
        Leaf modules in the order in which they were called.
    has_tokens_first : bool
        Whether tokens come before trials in its tensors, as in XLNet.
    """

    name: str
    path: str
    width: int
    shape: tuple[int, int]
    blocks: tuple[Block, ...]
    embedding: str | None
    final_norm: str | None
    leaves: tuple[Leaf, ...]
    n_copies: int = 1
    has_tokens_first: bool = False

    def n_units(self, shape: tuple[int, ...]) -> int | None:
        """Units of an output of this shape, or None if it is not one vector a token."""
        order = (self.shape, self.shape[::-1])[: 1 + self.has_tokens_first]
        if len(shape) == 3 and shape[:2] in order:
            return shape[2]
        if len(shape) == 2 and shape[0] == self.shape[0] * self.shape[1]:  # OPT flattens
            return shape[1]
        return None

    @property
    def turned(self) -> dict[str, str]:
        """Modules whose outputs do not begin with trials, tokens: what comes first there."""
        if self.n_copies > 1:
            return {block.name: "copies" for block in self.blocks}
        if not self.has_tokens_first:
            return {}
        leaves = [leaf.name for leaf in self.leaves if leaf.shape[:2] == self.shape[::-1]]
        return dict.fromkeys([*leaves, *(block.name for block in self.blocks)], "tokens")

    @property
    def units(self) -> dict[str, int]:
        """Units of every leaf module that puts out one vector a token."""
        sized = {leaf.name: self.n_units(leaf.shape) for leaf in self.leaves}
        return {name: n for name, n in sized.items() if n is not None}


@dataclass(frozen=True)
class Anatomy:
    """Parts of a model.

    Attributes
    ----------
    stacks : tuple of Stack
        Encoder before decoder, vision before language: in the order in which they are called.
    uncalled : tuple of str
        Leaf modules that no probe pass called.
    """

    stacks: tuple[Stack, ...]
    uncalled: tuple[str, ...]


def dissect(model: nn.Module, passes: Sequence[Pass] | None = None) -> Anatomy:
    """Establish the parts of a model with probe passes.

    Parameters
    ----------
    model : torch.nn.Module
        A transformers model.
    passes : sequence of callable, optional
        Each runs the model or a part of it; by default passes over a few tokens.

    Returns
    -------
    Anatomy

    Raises
    ------
    UnknownArchitectureError
        If no repeated blocks are found.
    """
    lists = _block_lists(model)
    names = [block for blocks in lists.values() for block in blocks]
    probes = [run(model, one_pass, names) for one_pass in passes or text_passes(model)]
    stacks = [stack for probe in probes for stack in _stacks(model, lists, probe)]
    if not stacks:
        raise UnknownArchitectureError(
            f"the blocks {', '.join(lists)} were not called when the model read its input"
        )
    leaves = [name for name, module in model.named_modules() if not list(module.children())]
    uncalled = (name for name in leaves if not any(name in probe.calls for probe in probes))
    return Anatomy(tuple(stacks), tuple(uncalled))


def _block_lists(model: nn.Module) -> dict[str, list[str]]:
    """Names of the repeated blocks by the name of their list.

    Lists of classes that transformers never splits; where it does not say, the longest list of one
    class.
    """
    hints = block_classes(model)
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    hinted = [n for n, m in lists.items() if {type(block).__name__ for block in m} <= hints]
    uniform = [n for n, m in lists.items() if len({type(block) for block in m}) == 1]
    likely = hinted or sorted(uniform, key=lambda n: len(lists[n]))[-1:]
    outer = [n for n in likely if not any(n.startswith(o + ".") for o in likely)]
    if not outer:
        parts = ", ".join(name for name, _ in model.named_children())
        raise UnknownArchitectureError(f"no list of blocks in this model; its parts: {parts}")
    return {n: [f"{n}.{i}" for i in range(len(lists[n]))] for n in outer}


def _stacks(model: nn.Module, lists: dict[str, list[str]], probe: Probe) -> list[Stack]:
    """Stacks whose blocks a pass called, in the order of the calls."""
    called = [name for name, blocks in lists.items() if all(b in probe.calls for b in blocks)]
    order = list(probe.calls)
    called.sort(key=lambda name: order.index(lists[name][0]))
    roots = {name: _root(name, list(lists)) for name in called}
    owned = _owners(model, roots, probe)
    return [_stack(model, roots[n], lists[n], owned[n], probe) for n in called]


def _root(name: str, lists: Sequence[str]) -> str:
    """Outermost module that holds this list of blocks and no other."""
    others = [other for other in lists if other != name]
    if not others:
        return ""
    parts = name.split(".")
    for depth in range(1, len(parts)):
        root = ".".join(parts[:depth])
        if not any(other.startswith(root + ".") for other in others):
            return root
    return name


def _owners(model: nn.Module, roots: dict[str, str], probe: Probe) -> dict[str, list[Leaf]]:
    """Leaves of every stack: those in its root, and those called after them outside any root."""
    owned: dict[str, list[Leaf]] = {name: [] for name in roots}
    if not roots:
        return owned
    owner = next(iter(roots))
    for name in probe.calls:
        module = model.get_submodule(name)
        if list(module.children()):
            continue
        inside = [stack for stack, root in roots.items() if not root or name.startswith(root + ".")]
        owner = inside[0] if inside else owner
        leaf = Leaf(
            name, probe.shapes[name], probe.calls[name], is_copy(module), probe.copies.get(name, "")
        )
        owned[owner].append(leaf)
    return owned


def _stack(
    model: nn.Module, root: str, blocks: list[str], leaves: list[Leaf], probe: Probe
) -> Stack:
    """Describe one stack."""
    output = probe.shapes[blocks[-1]]
    match output:
        case (n_trials, n_tokens, width) if n_trials % N_TRIALS == 0:
            order: dict[str, Any] = {}
        case (n_tokens, n_trials, width) if n_trials == N_TRIALS:  # XLNet
            order = {"has_tokens_first": True}
        case (n_copies, n_trials, n_tokens, width) if n_trials == N_TRIALS:  # Gemma 3n
            order = {"n_copies": n_copies}
        case _:
            raise UnknownArchitectureError(
                f"block {blocks[-1]!r} puts out {output}, not (trials, tokens, units)"
            )
    bare = Stack("", root, width, (n_trials, n_tokens), (), None, None, tuple(leaves), **order)
    return replace(
        bare,
        name=root.rpartition(".")[2],
        blocks=tuple(find_block(model, block, probe) for block in blocks),
        embedding=_embedding(model, bare, blocks, probe),
        final_norm=_final_norm(model, bare, blocks),
    )


def _embedding(model: nn.Module, stack: Stack, blocks: list[str], probe: Probe) -> str | None:
    """Embedding of the tokens, or the outermost module that puts out what the first block reads."""
    try:
        embeddings = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        embeddings = None
    for leaf in stack.leaves:
        if model.get_submodule(leaf.name) is embeddings and stack.n_units(leaf.shape):
            return leaf.name
    first = probe.inputs[blocks[0]]
    for name, value in probe.values.items():
        if name.startswith(blocks[0].rpartition(".")[0]) or is_copy(model.get_submodule(name)):
            continue
        if value.shape == first.shape and torch.equal(value, first):
            return name
    return None


def _final_norm(model: nn.Module, stack: Stack, blocks: list[str]) -> str | None:
    """Last normalisation layer that is called after the blocks and keeps the stream's width."""
    names = [leaf.name for leaf in stack.leaves]
    last = max((i for i, n in enumerate(names) if n.startswith(blocks[-1] + ".")), default=-1)
    after = [
        leaf.name
        for leaf in stack.leaves[last + 1 :]
        if stack.n_units(leaf.shape) == stack.width and is_norm(model.get_submodule(leaf.name))
    ]
    return after[-1] if after else None
