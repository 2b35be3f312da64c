"""What does nothing look like? Relabelled controls, and whole control topics as pseudo-tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from nilearn.glm.contrasts import compute_contrast
from numpy.typing import NDArray
from scipy import stats
from tqdm import tqdm

from llm2nifti.defaults import N_RELABELLINGS
from llm2nifti.glm.designs import CONTROL, DesignError, nuisance
from llm2nifti.glm.fitting import RunLike, check_tokens, fit_values
from llm2nifti.glm.relabelling import Labels, t_of_labels

_TOKEN_UNITS = 2000  # units that the token-level rate is measured on, evenly spread
_BATCH = 50  # pseudo-tasks tested together; bounds memory at 50 x units


@dataclass(frozen=True, eq=False)
class NullRates:
    """What a null experiment finds.

    Attributes
    ----------
    name : str
        Which null.
    below_05, below_001 : (n_relabellings,) array
        Share of units with two-sided p below .05 and .001 in each relabelling.
    any_fdr : (n_relabellings,) bool array
        Whether any unit passes FDR at .05.
    """

    name: str
    below_05: NDArray[np.float64]
    below_001: NDArray[np.float64]
    any_fdr: NDArray[np.bool_]

    def summary(self) -> dict[str, float | int]:
        """Means over the relabellings, with the standard deviation of the .05 rate."""
        return {
            "n_relabellings": len(self.below_05),
            "below_05": float(self.below_05.mean()),
            "below_05_sd": float(self.below_05.std()),
            "below_001": float(self.below_001.mean()),
            "any_fdr": float(self.any_fdr.mean()),
        }


def check_count(n: int, seed: int = 0) -> None:
    """Raise DesignError unless there is at least one relabelling, and its seed can be one."""
    if seed < 0:
        raise DesignError(f"seed is {seed}; it must be 0 or more")
    if n < 1:
        raise DesignError(f"{n} relabellings asked for; use at least 1, better 200")


def relabelled(
    runs: Sequence[RunLike], *, n: int = N_RELABELLINGS, seed: int = 0, verbose: int = 1
) -> NullRates:
    """Relabel control trials as task and control within runs: nothing is there to find.

    Parameters
    ----------
    runs : sequence of Run
        Their control trials are used, run by run.
    n, seed : int
        Relabellings over all runs together, and the seed of their draw.
    verbose : int, default=1
        0 shows no progress.

    Returns
    -------
    NullRates
        Expected: 4–6 % below .05, .05–.2 % below .001, FDR discoveries in about 5 %.
    """
    check_count(n)
    rng = np.random.default_rng(seed)
    rates = []
    shares = [len(part) for part in np.array_split(np.arange(n), len(runs))]
    with tqdm(total=n, desc="null: relabelled controls", disable=None if verbose else True) as bar:
        for run, n_here in zip(runs, shares, strict=True):
            if not n_here:
                continue  # more runs than relabellings
            values, events = _controls(run)
            base = _base(len(values))
            is_on = np.stack([rng.permutation(base) for _ in range(n_here)])
            labels = Labels(is_on, nuisance(events).to_numpy()).testable()
            rates += [_rates(row, labels.df) for row in t_of_labels(values, [labels])]
            bar.update(n_here)
    return _collect("control trials relabelled within runs", rates)


def pseudo_tasks(
    runs: Sequence[RunLike],
    *,
    n_on: int,
    n_off: int,
    n: int = N_RELABELLINGS,
    seed: int = 0,
    verbose: int = 1,
) -> NullRates:
    """Take whole control topics for a task: what any coherent topic activates.

    Parameters
    ----------
    runs : sequence of Run
        Their control trials are pooled.
    n_on, n_off : int
        Trials of a task run: whole topics are drawn until there are as many; and its control
        trials: one from each of as many other topics.
    n, seed : int
        Pseudo-tasks, and the seed of their draw.
    verbose : int, default=1
        0 shows no progress.

    Returns
    -------
    NullRates
        A task's active share means domain specificity only as far as it exceeds these.

    Raises
    ------
    DesignError
        If the controls have too few topics or trials.
    """
    pooled = [_controls(run) for run in runs]
    events = pd.concat([e for _, e in pooled], ignore_index=True)
    values = np.concatenate([v for v, _ in pooled])
    _, topics = np.unique(events["topic"].to_numpy(object), return_inverse=True)
    rng = np.random.default_rng(seed)
    is_on = np.arange(n_on + n_off)[None] < n_on
    draws = [_draw_topics(topics, n_on, n_off, rng) for _ in range(n)]
    labels = [
        Labels(is_on, nuisance(events.iloc[rows]).to_numpy(), rows).testable() for rows in draws
    ]
    labels = [one for one in labels if len(one.is_on)]
    rates = []
    with tqdm(
        total=len(labels), desc="null: pseudo-tasks", disable=None if verbose else True
    ) as bar:
        for start in range(0, len(labels), _BATCH):
            batch = labels[start : start + _BATCH]
            t = t_of_labels(values, batch)
            rates += [_rates(row, one.df) for row, one in zip(t, batch, strict=True)]
            bar.update(len(batch))
    return _collect("whole control topics as pseudo-tasks", rates)


def token_level(run: RunLike, *, n: int = 5, seed: int = 0) -> NullRates:
    """Relabel control trials of one run and test its tokens with AR(1) prewhitening.

    Shows how far token-level p values are from nominal in `n` relabellings. Prewhitening takes
    long, so the rates are those of `_TOKEN_UNITS` units, evenly spread over the brain.
    """
    rng = np.random.default_rng(seed)
    is_control = (run.events["trial_type"] == CONTROL).to_numpy()
    check_tokens(run)
    counts = run.volume_counts
    n_units = run.brain.n_units
    units = np.linspace(0, n_units - 1, min(n_units, _TOKEN_UNITS)).astype(int)
    values = run.frame_values()[:, units][np.repeat(is_control, counts)]
    confounds = nuisance(run.events[is_control]).to_numpy()
    base = _base(is_control.sum())
    Labels(base[None], confounds).check()
    rates = []
    for _ in range(n):
        X = np.column_stack([rng.permutation(base), confounds, np.ones(len(base))])
        X = np.repeat(X, counts[is_control], axis=0).astype(float)
        part = fit_values(values, X, "ar1")
        contrast = compute_contrast(part.labels, part.results, np.eye(X.shape[1])[0], stat_type="t")
        rates.append(_rates(np.nan_to_num(np.ravel(contrast.stat())), len(X) - X.shape[1]))
    return _collect("control tokens relabelled by prompt, AR(1)", rates)


def _controls(run: RunLike) -> tuple[NDArray, pd.DataFrame]:
    """Values and events of a run's control trials."""
    keep = (run.events["trial_type"] == CONTROL).to_numpy()
    if keep.sum() < 4:
        raise DesignError(f"run of task {run.task!r} has {keep.sum()} control trials, needs 4")
    return run.values()[keep], run.events[keep].reset_index(drop=True)


def _base(n: int) -> NDArray[np.bool_]:
    """(n,) labels to permute: 1.5 control trials a task trial, as designs allow."""
    return np.arange(n) < round(n / 2.5)


def _draw_topics(
    topics: NDArray, n_on: int, n_off: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """`n_on` trials of whole topics, numbered from 0, and one trial of each of `n_off` others."""
    sizes = np.bincount(topics)
    order = rng.permutation(len(sizes))
    n_topics = int(np.searchsorted(np.cumsum(sizes[order]), n_on)) + 1
    on = [i for topic in order[:n_topics] for i in np.flatnonzero(topics == topic)]
    others = order[n_topics : n_topics + n_off]
    if len(on) < n_on or len(others) < n_off:
        raise DesignError(
            f"pseudo-tasks need {n_on} trials of whole topics and {n_off} of others; the controls "
            f"have {len(topics)} trials of {len(order)} topics. Scan more runs"
        )
    off = [rng.choice(np.flatnonzero(topics == topic)) for topic in others]
    return np.array([*on[:n_on], *off])


def _rates(t: NDArray, df: float) -> tuple[float, float, bool]:
    """Shares of units below .05 and .001, and whether any passes FDR, of the units that vary."""
    sizes, n_varying = np.abs(t), int((t != 0).sum())
    if not n_varying:
        raise DesignError("no unit varies in the relabelled trials; record them again")
    p = 2 * stats.t.sf(np.sort(sizes[sizes > stats.t.isf(0.025, df)])[::-1], df)
    # Benjamini and Hochberg's: no larger p can pass.
    any_fdr = bool((p * n_varying < 0.05 * np.arange(1, len(p) + 1)).any())
    return len(p) / n_varying, float((p < 0.001).sum() / n_varying), any_fdr


def _collect(name: str, rates: list[tuple[float, float, bool]]) -> NullRates:
    """NullRates from one tuple a relabelling that could be tested."""
    if not rates:
        raise DesignError("no labels can be told from question frames; scan more trials_per_block")
    below_05, below_001, any_fdr = (np.array(column) for column in zip(*rates, strict=True))
    return NullRates(name, below_05, below_001, any_fdr)
