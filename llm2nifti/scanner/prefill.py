"""How are prompts read with the least work? What they begin with together is read once.

All tokens of the prompts but the last are read ahead of generation, in three levels: what all
prompts of the batch share (a chat template), what groups of them share (a question frame), and
the rest, in batches of about the same length, so that little padding is computed. The keys and
values of all levels become one cache from which generation goes on, one token a step.

No padding ever stands between two tokens of a prompt: sliding windows and some position biases
(MPT) count places in the cache, whatever the mask says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from itertools import takewhile
from typing import Any

import numpy as np
import torch

from llm2nifti.models import LoadedModel

N_CHUNKS = 4  # batches of about the same length; more have too few rows for fast products


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts of a batch, padded so that they end together.

    Attributes
    ----------
    ids, mask : (n_trials, longest) int64 tensor
        Tokens and attention mask; padding comes first, or last (see `pad`).
    cache : transformers.DynamicCache or None
        Keys and values of all but the last token; None where nothing was read ahead.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    cache: Any = None


def pad(encoded: Sequence[Sequence[int]], fill: int, *, at_end: bool = False) -> Prompts:
    """Pad token ids to one length.

    Parameters
    ----------
    encoded : sequence of sequence of int
        Token ids of each prompt.
    fill : int
        Padding token.
    at_end : bool, default=False
        Put the padding behind the tokens, not before them.
    """
    longest = max(map(len, encoded))
    ids = torch.full((len(encoded), longest), fill)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(encoded):
        start = 0 if at_end else longest - len(tokens)
        ids[row, start : start + len(tokens)] = torch.tensor(tokens, dtype=ids.dtype)
        mask[row, start : start + len(tokens)] = 1
    return Prompts(ids, mask)


def read_ahead(
    model: LoadedModel, encoded: Sequence[list[int]], fill: int, *, room: int = 0
) -> Prompts:
    """Read all but the last token of every prompt.

    Parameters
    ----------
    model : LoadedModel
        A model whose cache simply grows; see `can_continue`.
    encoded : sequence of list of int
        Token ids of the prompts of a batch.
    fill : int
        Padding token.
    room : int, default=0
        Tokens that will follow: the cache keeps room for them.

    Returns
    -------
    Prompts
        With a cache, unless every prompt has a single token.
    """
    heads = [tokens[:-1] for tokens in encoded]
    n_common = common_length(heads)
    n_shared = n_common + _group_length([tokens[n_common:] for tokens in heads])
    prompts = pad(encoded, fill)
    if prompts.ids.shape[1] == 1:
        return prompts
    device = model.device
    cache = extend(model, None, torch.tensor([heads[0][:n_common]]))
    starts = sorted({tuple(tokens[n_common:n_shared]) for tokens in heads})
    group = np.array([starts.index(tuple(tokens[n_common:n_shared])) for tokens in heads])
    cache = extend(model, select(cache, [0] * len(starts)), torch.tensor(starts))
    order = np.argsort([len(tokens) for tokens in heads], kind="stable")
    chunks = [rows for rows in np.array_split(order, min(N_CHUNKS, len(order))) if len(rows)]
    read = []
    for rows in chunks:
        rest = pad([heads[row][n_shared:] for row in rows], fill, at_end=True)
        start = select(cache, group[rows])
        read.append(extend(model, start, rest.ids, rest.mask))
    merged = _merge(read, chunks, [len(tokens) for tokens in heads], room)
    return Prompts(prompts.ids.to(device), prompts.mask.to(device), merged)


def can_continue(model: LoadedModel) -> bool:
    """Whether the model's keys and values go into a plain cache that only grows.

    State spaces keep other things, and some models bring caches of their own.
    """
    if model.kind != "causal":
        return False
    try:
        cache = extend(model, None, torch.zeros((1, 2), dtype=torch.int64))
        layers = cache.layers
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError):
        return False  # its forward takes no such cache
    grows = all(
        type(layer).__name__ == "DynamicLayer" and layer.get_seq_length() == 2 for layer in layers
    )
    return grows and len(layers) == len(model.anatomy.stacks[-1].blocks)


@torch.no_grad()
def leaves_padding_out(model: LoadedModel) -> bool:
    """Whether padding before a prompt changes nothing; RWKV reads it whatever the mask says."""
    ids, mask = torch.tensor([[1, 0, 2, 3]]), torch.tensor([[0, 1, 1, 1]])
    logits = []
    for first in (0, 1):
        inputs = {"input_ids": ids[:, first:], "attention_mask": mask[:, first:]}
        if "position_ids" in signature(model.module.forward).parameters:
            inputs["position_ids"] = positions(inputs["attention_mask"])
        inputs = {name: value.to(model.device) for name, value in inputs.items()}
        logits.append(model.module(**inputs).logits[0, -1].float())
    return bool((logits[0] - logits[1]).norm() < 0.05 * logits[1].norm())


def select(cache: Any, rows: Sequence[int] | np.ndarray) -> Any:
    """Copy of a cache with these rows of its batch; None stays None."""
    from transformers import DynamicCache

    if cache is None:
        return None
    new = DynamicCache()
    for i, layer in enumerate(cache.layers):
        index = torch.as_tensor(np.asarray(rows), device=layer.keys.device)
        new.update(layer.keys[index], layer.values[index], i)
    return new


@torch.no_grad()
def extend(
    model: LoadedModel, cache: Any, ids: torch.Tensor, mask: torch.Tensor | None = None
) -> Any:
    """Cache after reading more tokens, without the head."""
    from transformers import DynamicCache

    if not ids.shape[1]:
        return cache
    cache = DynamicCache() if cache is None else cache
    n_before = cache.get_seq_length()
    mask = torch.ones_like(ids) if mask is None else mask
    mask = torch.cat([torch.ones(len(ids), n_before, dtype=mask.dtype), mask], dim=1)
    trunk = model.module.get_decoder()
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if "position_ids" in signature(trunk.forward).parameters:
        inputs["position_ids"] = positions(mask)[:, n_before:]
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    trunk(**inputs, past_key_values=cache, use_cache=True)
    return cache


def positions(mask: torch.Tensor) -> torch.Tensor:
    """(n_trials, n_tokens) position of every token, padding not counted."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def common_length(heads: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with."""
    columns = zip(*heads, strict=False)
    return sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, columns))


def _group_length(rests: Sequence[Sequence[int]]) -> int:
    """Tokens that groups of prompts should read together: the length that computes the least."""
    shortest = min(map(len, rests))
    costs = [
        len({tuple(rest[:n]) for rest in rests}) * n - len(rests) * n for n in range(shortest + 1)
    ]
    return int(np.argmin(costs))


def _merge(
    caches: Sequence[Any], chunks: Sequence[np.ndarray], lengths: Sequence[int], room: int
) -> Any:
    """One cache from those of the chunks, all prompts ending together; zeros where nothing is."""
    from transformers import DynamicCache

    from llm2nifti.scanner.roomy import RoomyLayer

    merged = DynamicCache()
    longest = max(lengths)
    # A chunk of prompts that have one token and share none has read nothing.
    filled = [(c, rows) for c, rows in zip(caches, chunks, strict=True) if c is not None]
    for i, layer in enumerate(filled[0][0].layers):
        both: list[torch.Tensor] = []
        for name in ("keys", "values"):
            first = getattr(layer, name)
            whole = first.new_zeros(len(lengths), first.shape[1], longest + room, first.shape[3])
            for cache, rows in filled:
                part = getattr(cache.layers[i], name)
                for k, row in enumerate(rows):
                    whole[row, :, longest - lengths[row] : longest] = part[k, :, : lengths[row]]
            both.append(whole)
        merged.layers.append(RoomyLayer(both[0], both[1], longest))
    return merged
