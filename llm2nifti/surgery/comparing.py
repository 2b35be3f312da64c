"""What is a pruned model compared with? As many units chosen otherwise, and the speed before."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import torch
from scipy import stats

from llm2nifti.models import LoadedModel
from llm2nifti.networks import Network
from llm2nifti.plans import Json
from llm2nifti.surgery.feeding import out_in, owning_sites


def smallest(model: LoadedModel, removed: Network) -> Network:
    """Units whose weights are smallest, as many in each site of each layer as in `removed`.

    Structured magnitude pruning, as `torch.nn.utils.prune.ln_structured` does it: by the Euclidean
    norm of the columns of the projection that reads the units.
    """
    signs = np.zeros(removed.brain.n_units, np.int8)
    for site in owning_sites(removed.brain):
        inside = removed.brain.slice_of(site)
        layer: Any = model.module.get_submodule(site.module)
        norms = out_in(layer, layer.weight.detach().float()).norm(dim=0)
        n_kept = int((~removed.units[inside]).sum())
        signs[inside] = 1
        signs[inside][norms.topk(n_kept).indices.numpy(force=True)] = 0
    return Network(f"magnitude, as {removed.name}", removed.brain, signs, "smallest column norms")


def at_random(removed: Network, *, seed: int = 0) -> Network:
    """Random units, as many in each site of each layer as in `removed`.

    It may share units with `removed`; see `llm2nifti.networks.matched` for a control that does not,
    and whose units are as active.
    """
    rng = np.random.default_rng([seed, 20231110])
    signs = np.zeros(removed.brain.n_units, np.int8)
    for site in owning_sites(removed.brain):
        inside = removed.brain.slice_of(site)
        signs[inside] = rng.permutation(removed.units[inside])
    return Network(f"random, as {removed.name}", removed.brain, signs, f"random, seed {seed}")


@torch.no_grad()
def compare_speed(
    before: LoadedModel, after: LoadedModel, *, n_pairs: int = 10, shape: tuple[int, int] = (8, 64)
) -> dict[str, Json]:
    """Tokens a second of two models, and their ratio.

    Parameters
    ----------
    before, after, n_pairs : LoadedModel, LoadedModel, int
        Causal models with the same vocabulary, and how often they are compared; which comes first
        alternates, so that a slow moment of the machine hits both alike.
    shape : (int, int), default=(8, 64)
        Prompts and tokens of each. ``prefill`` reads them; ``generate`` reads the first 8 tokens
        and generates 8.

    Returns
    -------
    dict of dict
        For ``prefill`` and ``generate``: ``before`` and ``after``, median tokens a second;
        ``ratio``, mean of after / before, with its 95 % ``interval`` (Student's t, on logarithms);
        ``n_pairs``.
    """
    vocabulary = before.module.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, shape, generator=generator).to(before.device)
    start = ids[:, :8]
    options: Json = {"attention_mask": torch.ones_like(start), "pad_token_id": 0}
    options |= {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    acts: dict[str, tuple[int, Callable[[Any], torch.Tensor]]] = {
        "prefill": (ids.numel(), lambda module: module(input_ids=ids).logits),
        "generate": (len(ids) * 8, lambda module: module.generate(start, **options)),
    }
    both = (before.module, after.module)
    return {name: _speed(both, n_pairs, n, act) for name, (n, act) in acts.items()}


def _speed(
    both: tuple[Any, Any], n_pairs: int, n_tokens: int, act: Callable[[Any], torch.Tensor]
) -> Json:
    """Speeds of one act."""

    def rate(module: Any) -> float:
        start = perf_counter()
        act(module).flatten()[-1].item()  # a GPU computes until then, while Python goes on
        return n_tokens / (perf_counter() - start)

    _ = [rate(module) for module in both]  # the first call allocates
    rates = np.empty((n_pairs, 2))
    for i in range(n_pairs):
        for which in (0, 1) if i % 2 else (1, 0):
            rates[i, which] = rate(both[which])
    before, after = np.median(rates, axis=0).tolist()
    logs = np.log(rates[:, 1] / rates[:, 0])
    mean, half = logs.mean(), stats.t.ppf(0.975, n_pairs - 1) * stats.sem(logs)
    interval = np.exp([mean - half, mean + half]).tolist()
    ratio = float(np.exp(mean))
    return dict(before=before, after=after, ratio=ratio, interval=interval, n_pairs=n_pairs)
