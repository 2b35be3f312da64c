"""What did pruning cost? Perplexities by task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llm2nifti.interventions.bench import ByTask
from llm2nifti.networks.dissociation import draws_beyond
from llm2nifti.plans import Json

N_BOOTSTRAPS = 2000


def summarise(folds: Sequence[dict[str, ByTask]]) -> Json:
    """Perplexities and their differences by task, the prompts of all folds together.

    Parameters
    ----------
    folds : sequence of dict
        For each held-out run: mean log probabilities of each text, by variant and task. Variants:
        ``before``, ``network``, ``magnitude``, ``random 0``, ..., ``matched 0``, ...

    Returns
    -------
    dict
        For each task the perplexities; ``delta``, the mean loss of log probability a token in nats
        under the network's removal, with the 95 % bootstrap ``interval`` over prompts; and
        ``beyond``, by how much that exceeds the loss of each other way, with an interval for which
        its random draws are resampled, too.
    """
    common = [name for name in folds[0] if all(name in fold for fold in folds)]
    out = {}
    for task in folds[0]["before"]:
        values = {name: np.concatenate([fold[name][task] for fold in folds]) for name in common}
        out[task] = _one_task(values)
    return out


def _one_task(values: ByTask) -> Json:
    """Numbers of one task from (n_prompts,) mean log probabilities."""
    perplexity = {name: float(np.exp(-v.mean())) for name, v in values.items()}
    loss = {name: values["before"] - v for name, v in values.items()}
    out: Json = {"n_prompts": len(values["before"])}
    out |= {name: perplexity[name] for name in ("before", "network", "magnitude")}
    out["delta"], out["interval"] = float(loss["network"].mean()), _interval(loss["network"])
    out["beyond"] = {}
    for kind in ("magnitude", "random", "matched"):
        names = [name for name in values if name.split(" ")[0] == kind]
        if kind != "magnitude":
            out[kind] = [perplexity[name] for name in names]
        if names:
            others = np.stack([loss[name] for name in names])
            value = float(loss["network"].mean() - others.mean())
            out["beyond"][kind] = {"value": value, "interval": _interval(loss["network"], others)}
    return out


def _interval(
    values: NDArray[np.float64], others: NDArray[np.float64] | None = None
) -> list[float]:
    """95 % percentile bootstrap interval of the mean over prompts, minus that of other sets."""
    rng = np.random.default_rng(20231110)
    rows = rng.integers(len(values), size=(N_BOOTSTRAPS, len(values)))
    if others is None:
        draws = values[rows].mean(axis=1)
    else:
        sets = rng.integers(len(others), size=(len(others), N_BOOTSTRAPS))
        draws = draws_beyond(values, others, rows, sets)
    low, high = np.quantile(draws, [0.025, 0.975])
    return [float(low), float(high)]
