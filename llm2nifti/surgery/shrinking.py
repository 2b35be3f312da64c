"""How does a model get smaller where whole units go? Its config is asked, shapes answer.

Nothing says which number of a config is the width of a hidden layer, nor which weights feed it. So
every number that could be is changed, the model is built without weights, and the shapes that
changed show both. No table of model names.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PretrainedConfig

from llm2nifti.models import weights

Remaining = dict[str, NDArray[np.bool_]]  # by projection: which of the units that it reads remain
Index = NDArray[np.int64]
AxisIndex = dict[tuple[int, int], Index]  # by the axis's old and new length: what remains
ConfigChange = dict[str, int]
Settings = dict[str, tuple[int | None, int]]  # that changed: before (None where left open), after


class ShrinkError(ValueError):
    """An architecture cannot be made smaller this way."""


@dataclass(frozen=True, eq=False)
class Cut:
    """What to keep of one hidden layer in every block."""

    blocks: Mapping[str, AxisIndex]  #: of each projection that reads it: what an axis keeps
    candidates: list[ConfigChange]  #: what could give these lengths, the likeliest first
    width: tuple[int, int]  #: of the hidden layer, before and after


def cut_units(config: Any, remaining: Remaining) -> Cut:
    """Plan to keep only the units that remain in some block.

    `config` is that of the model's language part, `remaining` marks which of the (n_units,) that
    each projection reads remain. The cut is as wide as the block where most do; others keep the
    first of their removed units as padding. ShrinkError if one keeps all, or they differ in width.
    """
    old, new = _widths(remaining)
    blocks: dict[str, AxisIndex] = {}
    for name, keep in remaining.items():
        index = padded(keep, new)
        blocks[name] = {(old, new): index, (2 * old, 2 * new): np.append(index, index + old)}
    candidates = [{key: new} for key in _keys(config, old) + _keys(config, None)]
    return Cut(blocks, candidates, (old, new))


def cut_heads(config: Any, remaining: Remaining) -> Cut:
    """Plan to keep only whole key-value groups of heads in which some unit remains.

    See `cut_units`; FusedError if the config names no number of heads.
    """
    n_q, n_kv = weights.heads(config)
    n_units = {len(keep) for keep in remaining.values()}
    if len(n_units) > 1 or max(n_units) % n_q or n_q % n_kv:
        raise ShrinkError(f"{sorted(n_units)} units are not {n_q} heads of {n_kv} groups")
    size, shared = max(n_units) // n_q, n_q // n_kv  # units of a head, heads of a group
    groups: Remaining = {}
    for name, keep in remaining.items():
        groups[name] = np.any(keep.reshape(n_kv, -1), axis=1)
    _, n = _widths(groups, "key-value group")
    blocks: dict[str, AxisIndex] = {}
    for name, keep in groups.items():
        group = padded(keep, n)
        heads, kv = spread(group, shared), spread(group, size)
        q = spread(heads, size)
        whole = np.concatenate([q, kv + n_q * size, kv + (n_q + n_kv) * size])  # contiguous
        blocks[name] = {
            ((n_q + 2 * n_kv) * size, (shared + 2) * n * size): whole,
            (n_q, shared * n): heads,
            (n_kv, n): group,
            (n_kv * size, n * size): kv,
            (n_q * size, shared * n * size): q,
        }
    # Many architectures read head_dim although their config does not have it.
    sizes = [{}, *({name: size} for name in ["head_dim", *_keys(config, None)])]
    candidates = []
    for extra, name in product(sizes, _keys(config, n_q)):
        shares = [{key: n} for key in _keys(config, n_kv) if key != name]
        candidates += [{name: shared * n, **share, **extra} for share in [*shares, {}]]
    return Cut(blocks, candidates, (n_q * size, shared * n * size))


def _keys(config: Any, number: int | None) -> list[str]:
    """Settings that only this architecture has and that are this whole number, or None."""
    common = PretrainedConfig().to_dict()
    own_items = [(key, value) for key, value in config.to_dict().items() if key not in common]
    # True is not 1.
    return [key for key, value in own_items if type(value) is type(number) and value == number]


def _widths(remaining: Remaining, what: str = "unit") -> tuple[int, int]:
    """Number of units or groups in a block, and the most that remain; at least 1."""
    lengths = {len(keep) for keep in remaining.values()}
    if len(lengths) > 1:
        raise ShrinkError(f"the layers differ in their number of {what}s: {sorted(lengths)}")
    old, new = max(lengths), max(1, *(int(keep.sum()) for keep in remaining.values()))
    if new == old:
        raise ShrinkError(f"one layer keeps every {what}, and all layers need the same number")
    return old, new


def padded(keep: NDArray[np.bool_], n: int) -> Index:
    """Positions of what is kept and, up to `n`, of the first that is not; in order.

    >>> padded(np.array([False, True, False, True]), 3)
    array([0, 1, 3])
    """
    return np.sort(np.argsort(~keep, kind="stable")[:n])


def spread(index: Index, size: int) -> Index:
    """Positions of all members of some groups of `size`.

    >>> spread(np.array([0, 2]), 2)
    array([0, 1, 4, 5])
    """
    return (index[:, None] * size + np.arange(size)).ravel()


def shrink(module: Any, blocks: Mapping[str, str], cut: Cut) -> tuple[Any, Settings]:
    """Build the smaller model, and say what changed in its config; the old one stays.

    `blocks` names the block of each projection; removed units are zeros in `module`. ShrinkError
    if no change of the config gives the shapes that are needed.
    """
    for settings in cut.candidates:
        try:
            config = copy.deepcopy(module.config)
            text = config.get_text_config()
            for key, value in settings.items():
                setattr(text, key, value)
            with torch.device("meta"):
                shapes = {n: v.shape for n, v in type(module)(config).state_dict().items()}
        except Exception:  # whatever an architecture says to a setting that it cannot have
            continue
        state = _sliced(module, shapes, blocks, cut)
        if state is not None:
            before = module.config.get_text_config().to_dict()
            pairs = {key: (before.get(key), n) for key, n in settings.items()}
            changed = {key: (old, new) for key, (old, new) in pairs.items() if old != new}
            return _built(module, config, state), changed
    raise ShrinkError(
        f"no setting of {type(module.config).__name__} makes {cut.width[0]} units "
        f"{cut.width[1]} in these layers and leaves the rest alone"
    )


def _sliced(
    module: nn.Module, shapes: Mapping[str, torch.Size], blocks: Mapping[str, str], cut: Cut
) -> dict[str, torch.Tensor] | None:
    """Weights of the smaller model, or None if its shapes are not those that are needed."""
    state = dict(module.state_dict())
    if state.keys() != shapes.keys():
        return None
    changed = {name: shape for name, shape in shapes.items() if state[name].shape != shape}
    if not {f"{projection}.weight" for projection in cut.blocks} <= changed.keys():
        return None
    sizes = {f"{blocks[projection]}.": sizes for projection, sizes in cut.blocks.items()}
    for name, shape in changed.items():
        keep = next((sizes[block] for block in sizes if name.startswith(block)), {})
        pairs = list(zip(state[name].shape, shape, strict=False))
        is_planned = all(old == new or (old, new) in keep for old, new in pairs)
        if state[name].ndim != len(shape) or not is_planned:
            return None
        for axis, (old, new) in enumerate(pairs):
            if old != new:
                index = torch.from_numpy(keep[old, new]).to(state[name].device)
                state[name] = state[name].index_select(axis, index)
    return state


def _built(module: Any, config: Any, state: Mapping[str, torch.Tensor]) -> Any:
    """Model of a config with these weights; what is no weight, it computes by itself."""
    with torch.random.fork_rng():
        new = type(module)._from_config(config, dtype=module.dtype)
    new.to(next(module.parameters()).device)
    # Weights are copied, so that nothing is shared with the old model.
    new.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(module.get_parameter(name).requires_grad)
    new.tie_weights()
    if getattr(module, "generation_config", None) is not None:
        new.generation_config = copy.deepcopy(module.generation_config)
    return new.train(module.training)
