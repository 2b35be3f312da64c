"""How are prompts read with the least work? What they begin with together is read once.

All tokens of the prompts but the last are read ahead of generation, in three levels: what all
prompts of the batch share (a chat template), what groups of them share (a question frame), and
the rest, in batches of about the same length, so that little padding is computed. The keys and
values of all levels become one cache from which generation goes on, one token a step.

No padding ever stands between two tokens of a prompt: sliding windows and some position biases
(MPT) count places in the cache, whatever the mask says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import wraps
from inspect import signature
from itertools import takewhile
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import DynamicCache, DynamicLayer

from llm2nifti.models import LoadedModel

N_CHUNKS = 4  # batches of about the same length; more have too few rows for fast products

Inputs = dict[str, Any]  # what a model's forward takes, by name
_Fact = TypeVar("_Fact")


def once_a_model(probe: Callable[[LoadedModel], _Fact]) -> Callable[[LoadedModel], _Fact]:
    """Keep what passes through a model say of its architecture, as long as the model is there."""
    known: WeakKeyDictionary[nn.Module, _Fact] = WeakKeyDictionary()

    @wraps(probe)
    def look_up(model: LoadedModel) -> _Fact:
        if model.module not in known:
            known[model.module] = probe(model)
        return known[model.module]

    return look_up


class Prompts(NamedTuple):
    """Tokens and attention mask of a batch, (n_trials, longest) int64 each.

    The cache holds keys and values of all but the last token, if they were read ahead.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    cache: DynamicCache | None = None


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer; new ones are written behind them while there is room.

    transformers' own layer makes a new tensor for every token. Beyond the room, so does this one.
    Of the `whole` buffers, (n_trials, n_heads, n_tokens + room, width), `n_tokens` are filled.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, n_tokens: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.whole = (keys, values)
        self.keys, self.values = keys[:, :, :n_tokens], values[:, :, :n_tokens]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the keys and values of new tokens; return all."""
        start = self.keys.shape[-2]
        stop = start + key_states.shape[-2]
        keys, values = self.whole
        in_place = self.keys.data_ptr() == keys.data_ptr() and stop <= keys.shape[-2]
        if not in_place or len(keys) != len(key_states):
            return super().update(key_states, value_states, *args, **kwargs)
        keys[:, :, start:stop], values[:, :, start:stop] = key_states, value_states
        self.keys, self.values = keys[:, :, :stop], values[:, :, :stop]
        return self.keys, self.values


def fill_token(model: LoadedModel) -> int:
    """Padding token; its embedding is never attended to."""
    if model.tokenizer is None:
        return 0
    config = model.module.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    names = ("pad_token_id", "eos_token_id")
    pads = [getattr(owner, name, None) for owner in (model.tokenizer, config) for name in names]
    fill = next((pad for pad in pads if pad is not None), 0)
    return int(fill[0] if isinstance(fill, list) else fill)


def pad(model: LoadedModel, encoded: Sequence[Sequence[int]], side: str = "left") -> Prompts:
    """Pad token ids to one length; padding comes before the tokens, or behind them (``right``)."""
    rows = [torch.tensor(tokens, dtype=torch.int64) for tokens in encoded]
    ids, mask = (
        pad_sequence(parts, batch_first=True, padding_value=value, padding_side=side)
        for parts, value in ((rows, fill_token(model)), ([torch.ones_like(r) for r in rows], 0))
    )
    return Prompts(ids.to(model.device), mask.to(model.device))


def read_ahead(model: LoadedModel, encoded: Sequence[list[int]], room: int) -> Prompts:
    """Read all but the last token of every prompt, by a model that `can_continue`.

    The cache keeps room for the tokens that follow; prompts of a single token leave it None.
    """
    heads = [tokens[:-1] for tokens in encoded]
    prompts = pad(model, encoded)
    if not any(heads):
        return prompts
    n_common = common_length(heads)
    n_shared = n_common + _group_length([tokens[n_common:] for tokens in heads])
    cache = extend(model, None, torch.tensor([heads[0][:n_common]]))
    starts = sorted({tuple(tokens[n_common:n_shared]) for tokens in heads})
    group = np.array([starts.index(tuple(tokens[n_common:n_shared])) for tokens in heads])
    cache = extend(model, select(cache, [0] * len(starts)), torch.tensor(starts))
    read = []
    for rows in of_like_length(heads):
        rest = pad(model, [heads[row][n_shared:] for row in rows], "right")
        chunk = extend(model, select(cache, group[rows]), rest.ids, rest.mask)
        if chunk is not None:  # prompts that have one token and share none have read nothing
            read.append((chunk, rows))
    return prompts._replace(cache=_merge(read, [len(tokens) for tokens in heads], room))


def of_like_length(encoded: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Numbers of texts that are read together: batches in which little is padded."""
    order = np.argsort([len(tokens) for tokens in encoded], kind="stable")
    return np.array_split(order, min(N_CHUNKS, len(order)))


def can_continue(model: LoadedModel) -> bool:
    """Whether the model's keys and values go into a plain cache that only grows.

    State spaces keep other things, and some models bring caches of their own.
    """
    return bytes_of_token(model) > 0


@once_a_model
def bytes_of_token(model: LoadedModel) -> int:
    """Memory that keys and values of one token take; 0 in a model that cannot continue."""
    if model.kind != "causal":
        return 0
    try:
        layers = extend(model, None, torch.zeros((1, 2), dtype=torch.int64)).layers
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError):
        return 0  # its forward takes no such cache
    grows = all(type(layer) is DynamicLayer and layer.get_seq_length() == 2 for layer in layers)
    if not grows or len(layers) != len(model.anatomy.stacks[-1].blocks):
        return 0
    return sum(one.nbytes for layer in layers for one in (layer.keys, layer.values)) // 2


@once_a_model
@torch.no_grad()
def leaves_padding_out(model: LoadedModel) -> bool:
    """Whether padding before a prompt changes nothing; RWKV reads it whatever the mask says."""
    ids, mask = torch.tensor([[1, 0, 2, 3]]), torch.tensor([[0, 1, 1, 1]])
    logits = []
    for first in (0, 1):
        inputs = inputs_for(model, model.module, ids[:, first:], mask[:, first:])
        logits.append(model.module(**inputs).logits[0, -1].float())
    padded, plain = logits
    return bool((padded - plain).norm() < 0.05 * plain.norm())


def select(cache: Any, rows: Sequence[int] | np.ndarray) -> Any:
    """Copy of a cache with these rows of its batch; None stays None."""
    new = deepcopy(cache)
    if new is not None:
        new.batch_select_indices(torch.as_tensor(rows))
    return new


@torch.no_grad()
def extend(
    model: LoadedModel, cache: Any, ids: torch.Tensor, mask: torch.Tensor | None = None
) -> Any:
    """Cache after reading more tokens, without the head; None where there is nothing to read."""
    if not ids.shape[1]:
        return cache
    cache = DynamicCache() if cache is None else cache
    mask = after(cache, torch.ones_like(ids) if mask is None else mask)
    trunk = model.module.get_decoder()
    trunk(**inputs_for(model, trunk, ids, mask), past_key_values=cache, use_cache=True)
    return cache


def after(cache: Any, mask: torch.Tensor) -> torch.Tensor:
    """Mask of tokens with that of the cache before them, in which no padding is."""
    n_before = 0 if cache is None else cache.get_seq_length()
    return nn.functional.pad(mask, (n_before, 0), value=1)


def inputs_for(model: LoadedModel, module: Any, ids: torch.Tensor, mask: torch.Tensor) -> Inputs:
    """Inputs of tokens, whose mask is longer than they are where others are cached before them."""
    inputs = {"input_ids": ids, "attention_mask": mask}
    if "position_ids" in signature(module.forward).parameters:
        places = (mask.cumsum(dim=1) - 1).clamp(min=0)  # padding is not counted
        inputs["position_ids"] = places[:, -ids.shape[1] :]
    return {name: value.to(model.device) for name, value in inputs.items()}


def common_length(heads: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with."""
    columns = zip(*heads, strict=False)
    return sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, columns))


def _group_length(rests: Sequence[Sequence[int]]) -> int:
    """Tokens that groups of prompts should read together: the length that computes the least."""
    shortest = min(map(len, rests))
    costs = [(len({tuple(r[:n]) for r in rests}) - len(rests)) * n for n in range(shortest + 1)]
    return int(np.argmin(costs))


def _merge(
    chunks: Sequence[tuple[Any, np.ndarray]], lengths: Sequence[int], room: int
) -> DynamicCache:
    """One cache from those of some rows each, all ending together; zeros where nothing is."""
    merged = DynamicCache()
    n_tokens, longest = np.array(lengths), max(lengths)
    same = [  # where in a chunk its rows of each length are
        [(n, torch.from_numpy(np.flatnonzero(n_tokens[rows] == n))) for n in set(n_tokens[rows])]
        for _, rows in chunks
    ]
    for i in range(len(chunks[0][0].layers)):
        buffers = []
        for name in ("keys", "values"):
            states = [getattr(cache.layers[i], name) for cache, _ in chunks]
            n_heads, _, width = states[0].shape[1:]
            buffer = states[0].new_zeros(len(lengths), n_heads, longest + room, width)
            for part, (_, rows), of_length in zip(states, chunks, same, strict=True):
                for n, places in of_length:
                    into = torch.from_numpy(rows)[places]
                    buffer[into, :, longest - n : longest] = part[places, :, :n]
            buffers.append(buffer)
        for cache, _ in chunks:
            cache.layers[i] = None  # there may be no memory for all layers twice
        merged.layers.append(RoomyLayer(buffers[0], buffers[1], longest))
    return merged
