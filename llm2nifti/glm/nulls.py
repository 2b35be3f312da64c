"""What does nothing look like? Relabelled controls, and whole control topics as pseudo-tasks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from nilearn.glm.contrasts import compute_contrast
from nilearn.glm.first_level import run_glm
from nilearn.mass_univariate import permuted_ols
from numpy.typing import NDArray
from scipy import stats
from tqdm import tqdm

from llm2nifti.defaults import N_RELABELLINGS
from llm2nifti.glm.designs import CONTROL, DesignError, nuisance
from llm2nifti.glm.fitting import RunLike, without_constants

_BATCH = 20  # relabellings tested together; bounds memory at 20 x units


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


def t_of_labels(
    values: NDArray, labels: NDArray, confounds: NDArray | None = None
) -> NDArray[np.float64]:
    """T of many labellings of the same trials, by nilearn's `permuted_ols`.

    Parameters
    ----------
    values : (n_trials, n_units) array
        Activations.
    labels : (n_trials, n_labellings) array
        Regressors, each tested alone.
    confounds : (n_trials, n_confounds) array, optional
        Nuisance columns; a constant is always included.

    Returns
    -------
    (n_labellings, n_units) array
        0 for constant units.
    """
    has_confounds = confounds is not None and confounds.size
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of units that are 0 throughout
        result = permuted_ols(
            np.asarray(labels, float),
            np.asarray(without_constants(values), float),
            confounding_vars=confounds if has_confounds else None,
            model_intercept=True,
            n_perm=0,
            two_sided_test=True,
            output_type="dict",
            verbose=0,
        )
    return np.nan_to_num(result["t"], posinf=0, neginf=0)


def relabelled(
    runs: Sequence[RunLike], *, n: int = N_RELABELLINGS, seed: int = 0, quiet: bool = False
) -> NullRates:
    """Relabel control trials as task and control within runs: nothing is there to find.

    Parameters
    ----------
    runs : sequence of Run
        Their control trials are used, run by run.
    n : int, default=200
        Relabellings over all runs together.
    seed : int, default=0
        Seed of the relabellings.
    quiet : bool, default=False
        Show no progress bar.

    Returns
    -------
    NullRates
        Expected: 4–6 % below .05, .05–.2 % below .001, FDR discoveries in about 5 %.
    """
    check_count(n)
    rng = np.random.default_rng(seed)
    rates = []
    shares = [len(part) for part in np.array_split(np.arange(n), len(runs))]
    with tqdm(total=n, desc="null: relabelled controls", disable=quiet or None) as bar:
        for run, n_here in zip(runs, shares, strict=True):
            values, events = _controls(run)
            confounds = nuisance(events).to_numpy()
            n_on = round(len(values) / 2.5)  # 1.5 control trials a task trial, as designs allow
            base = np.arange(len(values)) < n_on
            labels = np.stack([rng.permutation(base) for _ in range(n_here)] or [base], axis=1)
            df = _residual_df(len(values), confounds)
            for start in range(0, n_here, _BATCH):
                t = t_of_labels(values, labels[:, start : min(start + _BATCH, n_here)], confounds)
                rates += [_rates(row, df) for row in t]
                bar.update(len(t))
    return _collect("control trials relabelled within runs", rates)


def pseudo_tasks(
    runs: Sequence[RunLike],
    *,
    n_on: int,
    n_off: int,
    n: int = N_RELABELLINGS,
    seed: int = 0,
    quiet: bool = False,
) -> NullRates:
    """Take whole control topics for a task: what any coherent topic activates.

    Parameters
    ----------
    runs : sequence of Run
        Their control trials are pooled.
    n_on : int
        Trials of a task run: whole topics are drawn until there are as many.
    n_off : int
        Control trials of a task run: one from each of as many other topics.
    n : int, default=200
        Pseudo-tasks.
    seed : int, default=0
        Seed of the draw.
    quiet : bool, default=False
        Show no progress bar.

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
    rates = []
    for _ in tqdm(range(n), desc="null: pseudo-tasks", disable=quiet or None):
        on, off = _draw_topics(topics, n_on, n_off, rng)
        rows = np.r_[on, off]
        confounds = nuisance(events.iloc[rows]).to_numpy()
        labels = (np.arange(len(rows)) < len(on))[:, None]
        t = t_of_labels(values[rows], labels, confounds)
        rates.append(_rates(t[0], _residual_df(len(rows), confounds)))
    return _collect("whole control topics as pseudo-tasks", rates)


def token_level(run: RunLike, *, n: int = 5, seed: int = 0) -> NullRates:
    """Relabel control trials of one run and test its tokens with AR(1) prewhitening.

    Shows how far token-level p values are from nominal.

    Parameters
    ----------
    run : Run
        Its token-level volumes are read.
    n : int, default=5
        Relabellings; each takes seconds.
    seed : int, default=0
        Seed of the relabellings.
    """
    rng = np.random.default_rng(seed)
    is_control = (run.events["trial_type"] == CONTROL).to_numpy()
    if run.frames in ("trial", "last"):
        raise DesignError(f"the run has one volume a trial (frames={run.frames!r}) and no tokens")
    counts = run.volume_counts
    values = without_constants(run.frame_values()[np.repeat(is_control, counts)])
    confounds = nuisance(run.events[is_control]).to_numpy()
    _residual_df(is_control.sum(), confounds)
    base = np.arange(is_control.sum()) < round(is_control.sum() / 2.5)
    rates = []
    for _ in range(n):
        X = np.column_stack([rng.permutation(base), confounds, np.ones(len(base))])
        X = np.repeat(X, counts[is_control], axis=0).astype(float)
        labels, results = run_glm(values, X, noise_model="ar1")
        contrast = compute_contrast(labels, results, np.eye(X.shape[1])[0], stat_type="t")
        rates.append(_rates(np.nan_to_num(np.ravel(contrast.stat())), len(X) - X.shape[1]))
    return _collect("control tokens relabelled by prompt, AR(1)", rates)


def shuffled_maps(run: RunLike, *, n: int, seed: int = 0) -> NDArray[np.float64]:
    """T maps of a run with its trial types shuffled.

    Returns
    -------
    (n, n_units) array
    """
    rng = np.random.default_rng([seed, *run.task.encode()])
    is_on = (run.events["trial_type"] != CONTROL).to_numpy()
    labels = np.stack([rng.permutation(is_on) for _ in range(n)], axis=1)
    return t_of_labels(run.values(), labels, nuisance(run.events).to_numpy())


def _controls(run: RunLike) -> tuple[NDArray, pd.DataFrame]:
    """Values and events of a run's control trials."""
    keep = (run.events["trial_type"] == CONTROL).to_numpy()
    if keep.sum() < 4:
        raise DesignError(f"run of task {run.task!r} has {keep.sum()} control trials, needs 4")
    return run.values()[keep], run.events[keep].reset_index(drop=True)


def _residual_df(n_trials: int, confounds: NDArray) -> int:
    """Residual degrees of freedom of one label, a constant and the confounds."""
    df = n_trials - 2 - confounds.shape[1]
    if df < 1:
        raise DesignError(
            f"{n_trials} trials are too few for {confounds.shape[1]} question-frame columns; scan "
            "more trials_per_block"
        )
    return df


def _draw_topics(
    topics: NDArray, n_on: int, n_off: int, rng: np.random.Generator
) -> tuple[NDArray, NDArray]:
    """Trials of whole topics for the on-condition, and one trial of each of other topics."""
    order = rng.permutation(np.unique(topics))
    on: list[int] = []
    n_topics = 0
    while len(on) < n_on and n_topics < len(order):
        on += list(np.flatnonzero(topics == order[n_topics]))
        n_topics += 1
    others = order[n_topics : n_topics + n_off]
    if len(on) < n_on or len(others) < n_off:
        raise DesignError(
            f"pseudo-tasks need {n_on} trials of whole topics and {n_off} of others; the controls "
            f"have {len(topics)} trials of {len(order)} topics. Scan more runs"
        )
    off = [int(rng.choice(np.flatnonzero(topics == topic))) for topic in others]
    return np.array(on[:n_on]), np.array(off)


def _rates(t: NDArray, df: float) -> tuple[float, float, bool]:
    """Shares of units below .05 and .001, and whether any passes FDR, of the units that vary."""
    p = 2 * stats.t.sf(np.abs(t[t != 0]), df)
    any_fdr = bool((stats.false_discovery_control(p) < 0.05).any()) if len(p) else False
    return float((p < 0.05).mean()), float((p < 0.001).mean()), any_fdr


def _collect(name: str, rates: list[tuple[float, float, bool]]) -> NullRates:
    """NullRates from one tuple a relabelling."""
    below_05, below_001, any_fdr = (np.array(column) for column in zip(*rates, strict=True))
    return NullRates(name, below_05, below_001, any_fdr)
