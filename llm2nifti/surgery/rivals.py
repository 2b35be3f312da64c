"""What else could have been pruned? As many units of each site of each layer, chosen otherwise."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from llm2nifti.models import LoadedModel
from llm2nifti.networks import Network
from llm2nifti.surgery.feeding import column_axis, owning_sites
from llm2nifti.surgery.pruning import members


def smallest(model: LoadedModel, removed: Network) -> Network:
    """Units whose weights are smallest, as many in each site of each layer as in `removed`.

    Parameters
    ----------
    model : LoadedModel
        The model whose weights count.
    removed : Network
        Says how many.

    Returns
    -------
    Network

    Notes
    -----
    Structured magnitude pruning: `torch.nn.utils.prune.ln_structured`, the Euclidean norm of the
    columns of the projection that reads the units.
    """
    signs = np.zeros(removed.brain.n_units, np.int8)
    for site in owning_sites(removed.brain):
        n = int(members(removed, site).sum())
        axis = column_axis(model.module, site.module)
        holder = nn.Module()  # torch prunes a module in place, the model has to stay as it is
        weight = model.module.get_parameter(f"{site.module}.weight").detach()
        holder.weight = nn.Parameter(weight.float().clone())
        torch_prune.ln_structured(holder, "weight", amount=n, n=2, dim=axis)
        mask: torch.Tensor = holder.weight_mask  # type: ignore[assignment]
        signs[removed.brain.slice_of(site)] = (mask == 0).all(dim=1 - axis).cpu().numpy()
    return Network(f"magnitude, as {removed.name}", removed.brain, signs, "smallest column norms")


def at_random(removed: Network, *, seed: int = 0) -> Network:
    """Random units, as many in each site of each layer as in `removed`.

    Parameters
    ----------
    removed : Network
        Says how many.
    seed : int, default=0
        Seed of the draw.

    Returns
    -------
    Network
        It may share units with `removed`; see `llm2nifti.networks.matched` for a control that does
        not, and whose units are as active.
    """
    rng = np.random.default_rng([seed, 20231110])
    signs = np.zeros(removed.brain.n_units, np.int8)
    for site in owning_sites(removed.brain):
        inside = members(removed, site)
        signs[removed.brain.slice_of(site)] = rng.permutation(inside)
    return Network(f"random, as {removed.name}", removed.brain, signs, f"random, seed {seed}")
