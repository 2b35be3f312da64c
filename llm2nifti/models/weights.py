"""How strong are the weights that write into each unit? The background of the maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import align_module_device
from numpy.typing import NDArray
from torch import nn

from llm2nifti.geometry import Site
from llm2nifti.hooks import Point
from llm2nifti.models import fused
from llm2nifti.models.anatomy import Stack


def weight_norms(
    model: nn.Module, stacks: Sequence[Stack], sites: tuple[Site, ...]
) -> NDArray[np.float32]:
    """(n_units,) norms of the weights that write into each unit, for the anatomical image.

    What is added to the stream has the rows of its projection, ``resid`` all those of its block,
    inputs of a projection the weights that read them; 0 where a module has no weights.
    """
    blocks = {block.name: block for stack in stacks for block in stack.blocks}
    writers = {
        part: block.projections.get(role, part)
        for block in blocks.values()
        for role, part in block.parts.items()
    }
    parts = []
    for site in sites:
        if site.module in blocks:
            block = blocks[site.module]
            squares = [
                (block.scales.get(role, 1) * write_norms(model, Point(writers[part]), site.n_units))
                ** 2
                for role, part in block.parts.items()
            ]
            parts.append(sum(squares, torch.zeros(site.n_units)).sqrt())
            continue
        module = site.module if site.where == "input" else writers.get(site.module, site.module)
        within = fused.positions(model, site)
        if within is None:
            parts.append(write_norms(model, Point(module, site.where), site.n_units))
        else:
            _, n_fused = fused.widths(model.get_submodule(module))
            parts.append(write_norms(model, Point(module), n_fused)[within])
    return np.concatenate([part.numpy() for part in parts]).astype(np.float32)


def write_norms(model: nn.Module, point: Point, n_units: int) -> torch.Tensor:
    """(n_units,) float32 norms of the weights that write into each unit of a module's output.

    For a module's input, the weights that read it. Modules without weights give zeros; stacked
    experts, a part of the module, count together.
    """
    try:
        module = model.get_submodule(point.module)
    except AttributeError:  # the hidden units of experts pass a module that is there on demand
        return torch.zeros(n_units)
    owner = module
    if not isinstance(getattr(module, "weight", None), torch.Tensor):
        stacked = [name for name, _ in module.named_parameters() if name.endswith("down_proj")]
        if not stacked:
            return torch.zeros(n_units)
        owner = module.get_submodule(stacked[0].rpartition(".")[0])
    with align_module_device(owner):  # brings back weights that accelerate keeps elsewhere
        held: Any = getattr(owner, "weight" if owner is module else "down_proj")
        weight: torch.Tensor = held.detach().float().cpu()
    if weight.ndim == 1:
        return weight.abs() if len(weight) == n_units else torch.zeros(n_units)
    # torch's Linear stores (out, in), Conv1D and embeddings (in, out), experts (n, out, in).
    axis = 0 if isinstance(module, nn.Linear) else 1
    axis = axis if point.where == "output" else 1 - axis
    others = [i for i in range(weight.ndim) if i != axis]
    norms = torch.linalg.vector_norm(weight, dim=others)
    return norms if len(norms) == n_units else torch.zeros(n_units)
