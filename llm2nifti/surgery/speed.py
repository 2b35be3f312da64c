"""How much faster is a pruned model? Pairs of measurements, one right after the other."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import torch
from scipy import stats

from llm2nifti.hooks import first_tensor
from llm2nifti.models import LoadedModel


@torch.no_grad()
def compare_speed(
    before: LoadedModel, after: LoadedModel, *, n_pairs: int = 10, shape: tuple[int, int] = (8, 64)
) -> dict[str, Any]:
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
    dict
        For ``prefill`` and ``generate``: median tokens a second ``before`` and ``after``, the mean
        ``ratio`` after / before and its 95 % ``interval`` (Student's t, on logarithms).
    """
    vocabulary = before.module.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, shape, generator=generator).to(before.device)
    acts: dict[str, tuple[int, Callable[[Any], Any]]] = {
        "prefill": (ids.numel(), lambda module: module(input_ids=ids)),
        "generate": (len(ids) * 8, lambda module: _generate(module, ids[:, :8])),
    }
    return {name: _pairs(before, after, n_pairs, *act) for name, act in acts.items()}


def _generate(module: Any, ids: torch.Tensor) -> Any:
    """Generate 8 tokens, whatever they are."""
    return module.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
        pad_token_id=0,
    )


def _pairs(
    before: LoadedModel, after: LoadedModel, n_pairs: int, n_tokens: int, act: Callable[[Any], Any]
) -> dict[str, Any]:
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
