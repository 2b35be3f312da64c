"""What does the model look like inside? Its stacks of blocks and what surrounds them.

No table of model names: structure comes from hints that transformers gives, the module tree and a
probe pass, and a check decides (see `llm2nifti.models.roles`). What cannot be established raises
instead of recording nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from math import prod

from torch import nn

from llm2nifti.models import probing
from llm2nifti.models.cache import ModelError
from llm2nifti.models.probing import N_TRIALS, Pass, Probe, is_copy, is_leaf, is_norm
from llm2nifti.models.roles import Block, find_block


class UnknownArchitectureError(ModelError):
    """The parts of this model cannot be established by the probe pass."""


@dataclass(frozen=True)
class Leaf:
    """What the probe pass saw at one leaf module."""

    name: str
    #: number of its block from 1; 0 before the blocks, one more than the last after them
    layer: int
    n_units: int  #: of its output, 0 if that is not one vector a token
    problem: str  #: why it cannot be recorded, or ""
    fed_by: str  #: leaf whose output is its input, unchanged


@dataclass(frozen=True)
class Stack:
    """Blocks of one class, from the bottom up, that pass on one stream."""

    name: str  #: last part of `path`, such as ``encoder``; empty for the only stack of a model
    path: str  #: module that holds this stack alone
    width: int  #: units of the stream
    shape: tuple[int, int]  #: trials and tokens of the probe pass
    blocks: tuple[Block, ...]
    leaves: tuple[Leaf, ...]  #: in the order in which they were called
    embedding: str | None  #: module that starts the stream
    final_norm: str | None  #: module that ends it
    n_copies: int  #: copies of the stream that the blocks pass on; Gemma 3n has 4
    #: Modules whose outputs do not begin with trials, tokens: what comes first, copies or tokens.
    turned: Mapping[str, str]


@dataclass(frozen=True)
class Anatomy:
    """Parts of a model."""

    stacks: tuple[Stack, ...]  #: in the order in which they are called: encoder, decoder
    uncalled: tuple[str, ...]  #: leaf modules that no probe pass called


def dissect(model: nn.Module, passes: Sequence[Pass] | None = None) -> Anatomy:
    """Establish the parts of a model with probe passes, by default over a few tokens."""
    lists = _block_lists(model)
    names = [block for blocks in lists.values() for block in blocks]
    passes = passes or probing.text_passes(model)
    probes = [probing.run(model, one_pass, names) for one_pass in passes]
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

    Lists of classes that transformers never splits or whose outputs it can record; where it does
    not say, the longest list of one class.
    """
    hints = {c.__name__ for c in probing.recordable(model, "hidden_states")}
    hints.update(getattr(model, "_no_split_modules", None) or [])
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
    roots = {name: _root(name, list(lists)) for name in called}
    leaves: dict[str, list[str]] = {name: [] for name in called}
    owner = next(iter(called), "")
    for name in filter(lambda name: owner and is_leaf(model.get_submodule(name)), order):
        inside = (s for s, root in roots.items() if not root or name.startswith(root + "."))
        owner = next(inside, owner)
        leaves[owner].append(name)
    return [_stack(model, roots[n], lists[n], leaves[n], probe) for n in called]


def _root(name: str, lists: Sequence[str]) -> str:
    """Outermost module that holds this list of blocks and no other."""
    others = [other for other in lists if other != name]
    inwards = accumulate(name.split("."), "{}.{}".format)
    alone = (root for root in inwards if not any(o.startswith(f"{root}.") for o in others))
    return next(alone) if others else ""


def _stack(model: nn.Module, root: str, names: list[str], called: list[str], probe: Probe) -> Stack:
    """Describe one stack by the names of its blocks and of the leaves that were called."""
    n_copies, first = 1, ""
    match probe.shapes[names[-1]]:
        case (n_trials, n_tokens, width) if n_trials % N_TRIALS == 0:
            pass
        case (n_tokens, n_trials, width) if n_trials == N_TRIALS:  # XLNet
            first = "tokens"
        case (n_copies, n_trials, n_tokens, width) if n_trials == N_TRIALS:  # Gemma 3n
            first = "copies"
        case output:
            raise UnknownArchitectureError(
                f"block {names[-1]!r} puts out {output}, not (trials, tokens, units)"
            )
    shape = (n_trials, n_tokens)
    orders = (shape, shape[::-1]) if first == "tokens" else (shape,)
    leaves: list[Leaf] = []
    for name in called:
        outside = len(names) + 1 if leaves and leaves[-1].layer else 0
        within = (i for i, block in enumerate(names, start=1) if name.startswith(f"{block}."))
        n_units = _n_units(probe.shapes[name], orders)
        problem = _problem(model.get_submodule(name), name, n_units, probe)
        fed_by = probe.copies.get(name, "")
        leaves.append(Leaf(name, next(within, outside), n_units, problem, fed_by))
    after = takewhile(lambda leaf: leaf.layer != len(names), reversed(leaves))
    norms = (x.name for x in after if x.n_units == width and is_norm(model.get_submodule(x.name)))
    alike = [name for name in called if probe.shapes[name][:2] == (n_tokens, n_trials)]
    turned = {"": [], "copies": names, "tokens": [*alike, *names]}[first]
    return Stack(
        name=root.rpartition(".")[2],
        path=root,
        width=width,
        shape=shape,
        blocks=tuple(find_block(model, block, probe) for block in names),
        leaves=tuple(leaves),
        embedding=_embedding(model, leaves, names[0], probe),
        final_norm=next(norms, None),
        n_copies=n_copies,
        turned=dict.fromkeys(turned, first),
    )


def _n_units(output: tuple[int, ...], orders: Sequence[tuple[int, int]]) -> int:
    """Units of an output that is one vector a token, trials and tokens in one of these orders."""
    match output:
        case (a, b, n_units) if (a, b) in orders:
            return n_units
        case (n_rows, n_units) if n_rows == prod(orders[0]):  # OPT flattens
            return n_units
    return 0


def _problem(module: nn.Module, name: str, n_units: int, probe: Probe) -> str:
    """Why a leaf cannot be recorded, or ``""``."""
    if is_copy(module):
        return "copies its input"
    if not n_units:
        return f"output of shape {probe.shapes[name]} is not (trials, tokens, units)"
    return f"called {probe.calls[name]} times in one pass" if probe.calls[name] != 1 else ""


def _embedding(model: nn.Module, leaves: list[Leaf], first: str, probe: Probe) -> str | None:
    """Embedding of the tokens, or the outermost module that puts out what the first block reads."""
    tokens = probing.embeddings(model, "input")
    for leaf in leaves:
        if model.get_submodule(leaf.name) is tokens and leaf.n_units:
            return leaf.name
    blocks = first.rpartition(".")[0]
    for name, value in probe.values.items():
        is_before = not name.startswith(blocks) and not is_copy(model.get_submodule(name))
        if is_before and probing.is_same(value, probe.inputs[first]):
            return name
    return None
