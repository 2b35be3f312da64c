"""What do all prompts begin with? A chat template, mostly: it is read once a batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch

from llm2nifti.models import LoadedModel

SHORTEST = 8  # tokens; below, the extra pass costs more than it saves


@torch.no_grad()
def shared_prefix(model: LoadedModel, encoded: Sequence[list[int]]) -> list[int]:
    """Tokens that every prompt begins with, if the model can go on from their cache.

    Parameters
    ----------
    model : LoadedModel
        The model.
    encoded : sequence of list of int
        Token ids of all prompts of a run; each keeps at least one token of its own.

    Returns
    -------
    list of int
        Empty if they share too little, or the model's cache is not one that simply grows (sliding
        windows, state spaces).
    """
    columns = zip(*encoded, strict=False)
    prefix = [column[0] for column in takewhile(lambda ids: len(set(ids)) == 1, columns)]
    prefix = prefix[: min(map(len, encoded)) - 1]
    if len(prefix) < SHORTEST:
        return []
    layers = getattr(_read(model, prefix), "layers", None) or []
    grows = bool(layers) and all(type(layer).__name__ == "DynamicLayer" for layer in layers)
    return prefix if grows else []


@torch.no_grad()
def prefix_cache(model: LoadedModel, prefix: list[int], n_trials: int) -> Any:
    """Cache of a prefix for a batch: read once, repeated for every trial."""
    cache = _read(model, prefix)
    cache.batch_repeat_interleave(n_trials)
    return cache


def _read(model: LoadedModel, prefix: list[int]) -> Any:
    """Keys and values after reading the prefix; None if the model keeps none."""
    ids = torch.tensor([prefix], device=model.device)
    return getattr(model.module(input_ids=ids, use_cache=True), "past_key_values", None)
