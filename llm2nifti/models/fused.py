"""Where are the queries, keys and values in the output of one fused projection?

Nothing in a model says how the rows of ``c_attn`` or ``query_key_value`` are laid out, and a wrong
guess would give numbers all the same. So the layout has to be declared.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from llm2nifti.geometry import Site
from llm2nifti.models.cache import ModelError

LAYOUTS = {
    "contiguous": "all queries, then all keys, then all values (GPT-2, Falcon-7B)",
    "interleaved": "query, key and value of one head after another (GPT-NeoX, BLOOM)",
}


class FusedError(ModelError):
    """A fused projection cannot be split as declared."""


def indices(config: Any, layout: str, which: str, n_units: int) -> torch.Tensor:
    """Positions of the queries, keys or values in a fused output of `n_units`, (n_which,) int64.

    Of the `LAYOUTS`, ``interleaved`` has the queries of a group, its key, its value, where queries
    share keys. A FusedError says that the numbers of heads in the config do not fit.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> indices(SimpleNamespace(num_attention_heads=2), "interleaved", "k", 12).tolist()
    [2, 3, 8, 9]
    """
    if layout not in LAYOUTS:
        known = "; ".join(f"{name}: {text}" for name, text in LAYOUTS.items())
        raise FusedError(f"layout is {layout!r}; use one of: {known}")
    n_q, n_kv = heads(config)
    size, rest = divmod(n_units, n_q + 2 * n_kv)
    if rest or n_q % n_kv:
        raise FusedError(f"{n_units} units are not {n_q} query and twice {n_kv} key-value heads")
    n_groups = 1 if layout == "contiguous" else n_kv
    per_group = {"q": n_q // n_groups, "k": n_kv // n_groups, "v": n_kv // n_groups}
    group = torch.arange(n_units).reshape(n_groups, -1)
    start = sum(per_group[name] for name in "qkv"[: "qkv".index(which)]) * size
    return group[:, start : start + per_group[which] * size].flatten()


def widths(module: Any) -> tuple[int, int]:
    """Units that a projection reads and writes: Linear stores (out, in), Conv1D (in, out)."""
    rows, columns = module.weight.shape
    return (columns, rows) if isinstance(module, nn.Linear) else (rows, columns)


def positions(model: nn.Module, site: Site) -> torch.Tensor | None:
    """Where a site's units are in the output of a fused projection; None where they are all."""
    if not site.part:
        return None
    which, layout = site.part.split(":")
    _, n_units = widths(model.get_submodule(site.module))
    return indices(model.config, layout, which, n_units)


def heads(config: Any) -> tuple[int, int]:
    """Numbers of query heads and of key-value heads; a FusedError where a config names none."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    names = ("num_attention_heads", "n_head", "num_heads")
    n_q = next((getattr(config, n) for n in names if getattr(config, n, None)), 0)
    if not n_q:
        raise FusedError(f"the config names no number of heads ({', '.join(names)})")
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", 0):
        return n_q, 1
    shared = ("num_key_value_heads", "num_kv_heads")
    return n_q, next((getattr(config, n) for n in shared if getattr(config, n, None)), n_q)
