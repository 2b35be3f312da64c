"""How do keys and values grow without being copied? In a buffer that has room for what comes."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer; new ones are written behind them while there is room.

    transformers' own layer makes a new tensor for every token. Beyond the room, so does this one.

    Parameters
    ----------
    keys, values : (n_trials, n_heads, n_tokens + room, width) tensor
        Buffers.
    n_tokens : int
        How much of them is filled.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, n_tokens: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._buffers = (keys, values)
        self.keys, self.values = keys[:, :, :n_tokens], values[:, :, :n_tokens]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the keys and values of new tokens; return all."""
        start = self.keys.shape[-2]
        stop = start + key_states.shape[-2]
        keys, values = self._buffers
        in_place = self.keys.data_ptr() == keys.data_ptr() and stop <= keys.shape[-2]
        if not in_place or len(keys) != len(key_states):
            return super().update(key_states, value_states, *args, **kwargs)
        keys[:, :, start:stop], values[:, :, start:stop] = key_states, value_states
        self.keys, self.values = keys[:, :, :stop], values[:, :, :stop]
        return self.keys, self.values
