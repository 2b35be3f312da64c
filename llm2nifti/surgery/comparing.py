"""What is a pruned model compared with? As many units chosen otherwise, and the speed before."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, TypedDict

import numpy as np
import torch
from scipy import stats
from torch import nn
from torch.nn.utils import prune as torch_prune

from llm2nifti.hooks import first_tensor
from llm2nifti.models import LoadedModel
from llm2nifti.networks import Network
from llm2nifti.surgery.feeding import column_axis, owning_sites
from llm2nifti.surgery.pruning import members


def smallest(model: LoadedModel, removed: Network) -> Network:
    """Units whose weights are smallest, as many in each site of each layer as in `removed`.

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

    It may share units with `removed`; see `llm2nifti.networks.matched` for a control that does not,
    and whose units are as active.
    """
    rng = np.random.default_rng([seed, 20231110])
    signs = np.zeros(removed.brain.n_units, np.int8)
    for site in owning_sites(removed.brain):
        inside = members(removed, site)
        signs[removed.brain.slice_of(site)] = rng.permutation(inside)
    return Network(f"random, as {removed.name}", removed.brain, signs, f"random, seed {seed}")


class Speed(TypedDict):
    """Median tokens a second before and after, and the mean ratio after / before.

    Its 95 % interval is Student's t, on logarithms.
    """

    before: float
    after: float
    ratio: float
    interval: list[float]
    n_pairs: int


@torch.no_grad()
def compare_speed(
    before: LoadedModel, after: LoadedModel, *, n_pairs: int = 10, shape: tuple[int, int] = (8, 64)
) -> dict[str, Speed]:
    """Tokens a second of two models, and their ratio.

    Parameters
    ----------
    before, after : LoadedModel
        Causal models with the same vocabulary.
    n_pairs : int, default=10
        Pairs; which of the two comes first alternates, so that a slow moment of the machine hits
        both alike.
    shape : (int, int), default=(8, 64)
        Prompts and tokens of each. ``prefill`` reads them; ``generate`` reads the first 8 tokens
        and generates 8.

    Returns
    -------
    dict of Speed
        For ``prefill`` and ``generate``.
    """
    vocabulary = before.module.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, shape, generator=generator).to(before.device)
    start = ids[:, :8]
    options = {
        "attention_mask": torch.ones_like(start),
        "max_new_tokens": 8,
        "min_new_tokens": 8,
        "do_sample": False,
        "pad_token_id": 0,
    }
    acts: dict[str, tuple[int, Callable[[Any], Any]]] = {
        "prefill": (ids.numel(), lambda module: module(input_ids=ids)),
        "generate": (len(ids) * 8, lambda module: module.generate(start, **options)),
    }
    return {name: _pairs(before, after, n_pairs, *act) for name, act in acts.items()}


def _pairs(
    before: LoadedModel, after: LoadedModel, n_pairs: int, n_tokens: int, act: Callable[[Any], Any]
) -> Speed:
    """Speeds of one act."""
    both = (before.module, after.module)
    for module in both:  # the first call allocates
        _wait(act(module))
    rates = np.empty((n_pairs, 2))
    for i in range(n_pairs):
        for which in (0, 1) if i % 2 else (1, 0):
            start = perf_counter()
            _wait(act(both[which]))
            rates[i, which] = n_tokens / (perf_counter() - start)
    logs = np.log(rates[:, 1] / rates[:, 0])
    half = stats.t.ppf(0.975, n_pairs - 1) * logs.std(ddof=1) / np.sqrt(n_pairs)
    return {
        "before": float(np.median(rates[:, 0])),
        "after": float(np.median(rates[:, 1])),
        "ratio": float(np.exp(logs.mean())),
        "interval": np.exp([logs.mean() - half, logs.mean() + half]).tolist(),
        "n_pairs": n_pairs,
    }


def _wait(result: Any) -> None:
    """Read a value: a GPU computes until then, while Python goes on."""
    tensor, _ = first_tensor(result)
    if tensor is not None:
        tensor.flatten()[-1].item()
