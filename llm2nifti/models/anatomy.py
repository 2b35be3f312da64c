"""What does the model look like inside? Its stacks of blocks and what surrounds them.

No table of model names: structure comes from hints that transformers gives, the module tree and a
probe pass, and a check decides (see `llm2nifti.models.roles`). What cannot be established raises
instead of recording nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from torch import nn

from llm2nifti.models.cache import ModelError
from llm2nifti.models.probing import (
    N_TRIALS,
    Pass,
    Probe,
    block_classes,
    embeddings,
    is_copy,
    is_leaf,
    is_norm,
    is_same,
    run,
    text_passes,
)
from llm2nifti.models.roles import Block, find_block


class UnknownArchitectureError(ModelError):
    """The parts of this model cannot be established by the probe pass."""


@dataclass(frozen=True)
class Leaf:
    """What the probe pass saw at one leaf module."""

    name: str
    shape: tuple[int, ...]  # of its output
    n_calls: int  # in one pass
    is_copy: bool = False  # hands on its input
    fed_by: str = ""  # leaf whose output is its input, unchanged


@dataclass(frozen=True)
class Stack:
    """Blocks of one class, from the bottom up, that pass on one stream."""

    name: str  # last part of `path`, such as ``encoder``; empty for the only stack of a model
    path: str  # module that holds this stack alone
    width: int  # units of the stream
    shape: tuple[int, int]  # trials and tokens of the probe pass
    blocks: tuple[Block, ...]
    leaves: tuple[Leaf, ...]  # in the order in which they were called
    embedding: str | None = None  # module that starts the stream
    final_norm: str | None = None  # module that ends it
    n_copies: int = 1  # copies of the stream that the blocks pass on; Gemma 3n has 4
    has_tokens_first: bool = False  # tokens come before trials in its tensors, as in XLNet

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
    """Parts of a model."""

    stacks: tuple[Stack, ...]  # in the order in which they are called: encoder, decoder
    uncalled: tuple[str, ...]  # leaf modules that no probe pass called


def dissect(model: nn.Module, passes: Sequence[Pass] | None = None) -> Anatomy:
    """Establish the parts of a model with probe passes, by default over a few tokens."""
    lists = _block_lists(model)
    names = [block for blocks in lists.values() for block in blocks]
    probes = [run(model, one_pass, names) for one_pass in passes or text_passes(model)]
    stacks = [stack for probe in probes for stack in _stacks(model, lists, probe)]
    if not stacks:
        raise UnknownArchitectureError(
            f"the blocks {', '.join(lists)} were not called when the model read its input"
        )
    called = {name for probe in probes for name in probe.calls}
    leaves = (name for name, module in model.named_modules() if is_leaf(module))
    return Anatomy(tuple(stacks), tuple(name for name in leaves if name not in called))


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
    """Stacks whose blocks a pass called, in the order of the calls.

    A stack has the leaves in its root, and those called after them outside any root.
    """
    order = list(probe.calls)
    called = [name for name, blocks in lists.items() if all(b in probe.calls for b in blocks)]
    called.sort(key=lambda name: order.index(lists[name][0]))
    if not called:
        return []
    roots = {name: _root(name, list(lists)) for name in called}
    leaves: dict[str, list[Leaf]] = {name: [] for name in called}
    owner = called[0]
    for name, n_calls in probe.calls.items():
        module = model.get_submodule(name)
        if is_leaf(module):
            inside = (s for s, root in roots.items() if not root or name.startswith(root + "."))
            owner = next(inside, owner)
            fed_by = probe.copies.get(name, "")
            leaf = Leaf(name, probe.shapes[name], n_calls, is_copy(module), fed_by)
            leaves[owner].append(leaf)
    return [_stack(model, roots[n], lists[n], tuple(leaves[n]), probe) for n in called]


def _root(name: str, lists: Sequence[str]) -> str:
    """Outermost module that holds this list of blocks and no other."""
    others = [other for other in lists if other != name]
    inwards = accumulate(name.split("."), "{}.{}".format)
    alone = (root for root in inwards if not any(o.startswith(f"{root}.") for o in others))
    return next(alone) if others else ""


def _stack(
    model: nn.Module, root: str, names: list[str], leaves: tuple[Leaf, ...], probe: Probe
) -> Stack:
    """Describe one stack by the names of its blocks."""
    n_copies, has_tokens_first = 1, False
    match probe.shapes[names[-1]]:
        case (n_trials, n_tokens, width) if n_trials % N_TRIALS == 0:
            pass
        case (n_tokens, n_trials, width) if n_trials == N_TRIALS:  # XLNet
            has_tokens_first = True
        case (n_copies, n_trials, n_tokens, width) if n_trials == N_TRIALS:  # Gemma 3n
            pass
        case output:
            raise UnknownArchitectureError(
                f"block {names[-1]!r} puts out {output}, not (trials, tokens, units)"
            )
    name, shape = root.rpartition(".")[2], (n_trials, n_tokens)
    blocks = tuple(find_block(model, block, probe) for block in names)
    bare = Stack(name, root, width, shape, blocks, leaves)
    stack = replace(bare, n_copies=n_copies, has_tokens_first=has_tokens_first)
    embedding, final_norm = _embedding(model, stack, probe), _final_norm(model, stack)
    return replace(stack, embedding=embedding, final_norm=final_norm)


def _embedding(model: nn.Module, stack: Stack, probe: Probe) -> str | None:
    """Embedding of the tokens, or the outermost module that puts out what the first block reads."""
    tokens = embeddings(model, "input")
    for leaf in stack.leaves:
        if model.get_submodule(leaf.name) is tokens and stack.n_units(leaf.shape):
            return leaf.name
    first = stack.blocks[0].name
    blocks = first.rpartition(".")[0]
    for name, value in probe.values.items():
        is_before = not name.startswith(blocks) and not is_copy(model.get_submodule(name))
        if is_before and is_same(value, probe.inputs[first]):
            return name
    return None


def _final_norm(model: nn.Module, stack: Stack) -> str | None:
    """Last normalisation layer that is called after the blocks and keeps the stream's width."""
    within = f"{stack.blocks[-1].name}."
    for leaf in reversed(stack.leaves):
        if leaf.name.startswith(within):
            return None
        if stack.n_units(leaf.shape) == stack.width and is_norm(model.get_submodule(leaf.name)):
            return leaf.name
    return None
