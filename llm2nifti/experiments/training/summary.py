"""What came out of the trainings? Changes of the loss with intervals, and their differences.

Intervals are bootstrapped over prompts and seeds together (both are drawn with replacement, 2,000
times, percentiles). Conditions are paired: the same prompts and seeds are drawn for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm2nifti.plans import Json
from llm2nifti.stimuli import CONTROL

CONDITIONS = ("network", "random", "all")
OTHERS = "other tasks"
MORE = "task more than other tasks"
N_DRAWS = 2000

Losses = Mapping[str, NDArray[np.float64]]  # by task, (n_seeds, n_prompts)


def summarise(
    what: Mapping[str, Any],
    rates: Mapping[str, Mapping[float, Mapping[str, Any]]],
    base: Mapping[str, Any],
    pieces: Mapping[tuple[str, int], Mapping[str, Any]],
) -> Json:
    """Put the results of all trainings together.

    `what` describes the experiment, with its ``task``. `rates` has for each condition and learning
    rate the ``loss`` on held-out development prompts, `base` the ``losses`` of the untouched model
    by task, `pieces` the ``losses``, ``epochs``, ``modules``, ``n_weights`` of each condition and
    seed. The result has for each condition, and for ``differences`` of conditions, the change of
    the loss (negative is better) by task, of the ``other tasks`` together, and of the ``task more
    than other tasks``; each with ``value``, ``interval`` and ``seeds``.
    """
    task = str(what["task"])
    before = {name: np.array(losses) for name, losses in base["losses"].items()}
    figures = _figures(task, list(before))
    changes: dict[str, Losses] = {}
    conditions: Json = {}
    for name in CONDITIONS:
        trained = [piece for (condition, _), piece in pieces.items() if condition == name]
        changes[name] = {
            each: np.array([piece["losses"][each] for piece in trained]) - losses
            for each, losses in before.items()
        }
        tried = {
            f"{rate:g}": _known(rates[name][rate]["loss"], None) for rate in sorted(rates[name])
        }
        conditions[name] = {
            "n_modules": len(trained[0]["modules"]),
            "n_weights": trained[0]["n_weights"],
            "rate": best_rate(rates[name]),
            "rates": tried,
            "change": _estimates(figures, changes[name]),
            "epochs": [piece["epochs"] for piece in trained],
            "modules": [piece["modules"] for piece in trained] if name == "random" else None,
        }
    differences = {
        f"network - {other}": _estimates(figures, changes["network"], changes[other])
        for other in CONDITIONS[1:]
    }
    return {
        **what,
        "base": {name: float(losses.mean()) for name, losses in before.items()},
        "n_held_out": {name: len(losses) for name, losses in before.items()},
        "conditions": conditions,
        "differences": differences,
    }


def best_rate(tried: Mapping[float, Mapping[str, Any]]) -> float:
    """Learning rate with the smallest ``loss``; one that is no number was too large."""
    return min(tried, key=lambda rate: _known(tried[rate]["loss"], np.inf))


def _known(loss: float | None, otherwise: Any) -> Any:
    """A loss, or something else where it is none."""
    return loss if loss is not None and np.isfinite(loss) else otherwise


def _figures(task: str, names: list[str]) -> dict[str, NDArray[np.float64]]:
    """What is reported, each as weights of the tasks' mean changes."""
    one = np.eye(len(names))
    figures = {name: one[i] for i, name in enumerate(names)}
    others = [name for name in names if name not in (task, CONTROL)]
    if others:
        figures[OTHERS] = np.mean([figures[name] for name in others], axis=0)
        figures[MORE] = figures[task] - figures[OTHERS]
    return figures


def _estimates(
    figures: Mapping[str, NDArray], change: Losses, minus: Losses | None = None
) -> dict[str, Json]:
    """Figures, or the differences of two conditions in them, with intervals."""
    if minus is not None:
        change = {name: values - minus[name] for name, values in change.items()}
    rng = np.random.default_rng(20231110)
    n_seeds = len(next(iter(change.values())))
    counts = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), N_DRAWS)
    columns = []
    for values in change.values():
        n = values.shape[1]
        prompts = rng.multinomial(n, np.full(n, 1 / n), N_DRAWS)
        columns.append(((counts @ values) * prompts).sum(axis=1) / (n_seeds * n))
    draws = np.stack(columns, axis=1)  # (n_draws, n_tasks)
    by_seed = np.stack([values.mean(axis=1) for values in change.values()], axis=1)
    return {
        name: {
            "value": float(by_seed.mean(axis=0) @ weights),
            "interval": np.percentile(draws @ weights, [2.5, 97.5]).tolist(),
            "seeds": (by_seed @ weights).tolist(),
        }
        for name, weights in figures.items()
    }
