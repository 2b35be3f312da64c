"""What do weights say of a module's units: how many, how strong, where queries, keys and values?

Nothing in a model says how the rows of ``c_attn`` or ``query_key_value`` are laid out, and a wrong
guess would give numbers all the same. So the layout has to be declared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from accelerate.utils import align_module_device
from numpy.typing import NDArray
from torch import nn

from llm2nifti.geometry import Site
from llm2nifti.hooks import Point
from llm2nifti.models.anatomy import Stack
from llm2nifti.models.cache import ModelError

LAYOUTS = {
    "contiguous": "all queries, then all keys, then all values (GPT-2, Falcon-7B)",
    "interleaved": "query, key and value of one head after another (GPT-NeoX, BLOOM)",
}


# Norms of a model's sites and the state of its weights that they are of: a study asks for them with
# every batch of runs, and reading all weights of a large model takes seconds.
_KNOWN: WeakKeyDictionary[nn.Module, tuple[Any, NDArray[np.float32]]] = WeakKeyDictionary()


class FusedError(ModelError):
    """A fused projection cannot be split as declared."""


def fused(config: Any, layout: str, which: str, n_units: int) -> torch.Tensor:
    """Positions of the queries, keys or values in a fused output of `n_units`, (n_which,) int64.

    Of the `LAYOUTS`, ``interleaved`` has the queries of a group, its key, its value, where queries
    share keys. A FusedError says that the numbers of heads in the config do not fit.
    """
    if layout not in LAYOUTS:
        known = "; ".join(f"{name}: {text}" for name, text in LAYOUTS.items())
        raise FusedError(f"layout is {layout!r}; use one of: {known}")
    n_q, n_kv = heads(config)
    size, rest = divmod(n_units, n_q + 2 * n_kv)
    if rest or n_q % n_kv:
        raise FusedError(f"{n_units} units are not {n_q} query and twice {n_kv} key-value heads")
    n_groups = 1 if layout == "contiguous" else n_kv
    group = torch.arange(n_units).reshape(n_groups, -1)
    sizes = [n_heads // n_groups * size for n_heads in (n_q, n_kv, n_kv)]
    return group.split(sizes, dim=1)["qkv".index(which)].flatten()


def heads(config: Any) -> tuple[int, int]:
    """Numbers of query heads and of key-value heads; a FusedError where a config names none."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config

    def first(*names: str) -> int:
        return next((getattr(config, name) for name in names if getattr(config, name, None)), 0)

    names = ("num_attention_heads", "n_head", "num_heads")
    n_q = first(*names)
    if not n_q:
        raise FusedError(f"the config names no number of heads ({', '.join(names)})")
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", 0):
        return n_q, 1
    return n_q, first("num_key_value_heads", "num_kv_heads") or n_q


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
    return fused(model.config, layout, which, n_units)


def weight_norms(
    model: nn.Module, stacks: Sequence[Stack], sites: tuple[Site, ...]
) -> NDArray[np.float32]:
    """(n_units,) norms of the weights that write into each unit, for the anatomical image.

    What is added to the stream has the rows of its projection, ``resid`` all those of its block,
    inputs of a projection the weights that read them; 0 where a module has no weights.
    """
    state = (
        sites,
        [(x.data_ptr(), 0 if x.is_inference() else x._version) for x in model.parameters()],
    )
    if model not in _KNOWN or _KNOWN[model][0] != state:
        _KNOWN[model] = state, _weight_norms(model, stacks, sites)
    return _KNOWN[model][1].copy()


def _weight_norms(
    model: nn.Module, stacks: Sequence[Stack], sites: tuple[Site, ...]
) -> NDArray[np.float32]:
    """See `weight_norms`; read from the weights."""
    blocks = {block.name: block for stack in stacks for block in stack.blocks}
    writers = {
        part: block.projections.get(role, part)
        for block in blocks.values()
        for role, part in block.parts.items()
    }
    norms = []
    for site in sites:
        if site.module in blocks:
            block = blocks[site.module]
            added = [
                block.scales.get(role, 1) * write_norms(model, Point(writers[part]), site.n_units)
                for role, part in block.parts.items()
            ]
            norms.append(sum((rows**2 for rows in added), torch.zeros(site.n_units)).sqrt())
            continue
        module = site.module if site.where == "input" else writers.get(site.module, site.module)
        within = positions(model, site)
        n_units = site.n_units if within is None else widths(model.get_submodule(module))[1]
        rows = write_norms(model, Point(module, site.where), n_units)
        norms.append(rows if within is None else rows[within])
    return torch.cat(norms).numpy()


def write_norms(model: nn.Module, point: Point, n_units: int) -> torch.Tensor:
    """(n_units,) float32 norms of the weights that write into each unit of a module's output.

    For a module's input, the weights that read it. Modules without weights give zeros; stacked
    experts, a part of the module, count together.
    """
    try:
        module = model.get_submodule(point.module)
    except AttributeError:  # the hidden units of experts pass a module that is there on demand
        return torch.zeros(n_units)
    owner, name = module, "weight"
    if not isinstance(getattr(module, "weight", None), torch.Tensor):
        stacked = (name for name, _ in module.named_parameters() if name.endswith("down_proj"))
        path, _, name = next(stacked, "").rpartition(".")
        owner = module.get_submodule(path)
    if not name:
        return torch.zeros(n_units)
    with align_module_device(owner):  # brings back weights that accelerate keeps elsewhere
        weight: torch.Tensor = getattr(owner, name).detach().float()
    if weight.ndim == 1:
        norms = weight.abs()
    else:  # torch's Linear stores (out, in), Conv1D and embeddings (in, out), experts (n, out, in)
        axis = 0 if isinstance(module, nn.Linear) == (point.where == "output") else 1
        norms = torch.linalg.vector_norm(weight, dim=[i for i in range(weight.ndim) if i != axis])
    return norms.cpu() if len(norms) == n_units else torch.zeros(n_units)
