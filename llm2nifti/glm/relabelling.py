"""What do other labels of the same trials give? Shuffles, blocks left out, and nothing to find.

A labelling is a row of one matrix product, so that hundreds of them cost about what one fit does.
`n` labellings are drawn with a `seed`; with `verbose` 0 there is no bar.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from nilearn.glm.contrasts import compute_contrast
from numpy.typing import NDArray
from scipy import linalg, stats
from tqdm import tqdm

from llm2nifti.defaults import N_RELABELLINGS
from llm2nifti.glm.conditions import is_on, pairs_of
from llm2nifti.glm.designs import DesignError, nuisance
from llm2nifti.glm.fitting import RunLike, check_tokens, fit_values
from llm2nifti.plans import Json

_TOGETHER = 2048  # units; their trials fit into the cache of a processor
_NOTHING = 1e-12  # of a unit's sum of squares: what rounding leaves of a constant
_TOKEN_UNITS = 2000  # units that the token-level rate is measured on, evenly spread
_BATCH = 50  # pseudo-tasks tested together; bounds memory at 50 x units


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of trials."""

    is_on: NDArray[np.bool_]  #: (n_labellings, n_kept) bool array; regressors, each tested alone
    #: (n_kept, n_confounds) array; nuisance columns; a constant is always included
    confounds: NDArray[np.float64]
    #: (n_kept,) int array, optional; trials that are labelled, by default all
    kept: NDArray[np.int64] | None = None

    @cached_property
    def basis(self) -> NDArray[np.float64]:
        """(n_kept, rank) orthonormal basis of the constant and the confounds."""
        return linalg.orth(np.column_stack([np.ones(len(self.confounds)), self.confounds]))

    @property
    def df(self) -> int:
        """Residual degrees of freedom."""
        return self.is_on.shape[1] - 1 - self.basis.shape[1]

    @cached_property
    def regressors(self) -> NDArray[np.float64]:
        """(n_labellings, n_kept) labels that are orthogonal to the confounds, of norm 1 or 0."""
        is_on = self.is_on.astype(float)
        rows = is_on - is_on @ self.basis @ self.basis.T
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.where(norms > 1e-8 * np.sqrt(rows.shape[1]), rows / np.maximum(norms, 1e-300), 0)

    def testable(self) -> Labels:
        """Those labellings that can be told from the confounds."""
        return replace(self, is_on=self.is_on[self.regressors.any(axis=1)])

    def check(self) -> None:
        """Raise DesignError unless there are enough trials, and all labellings are testable."""
        if self.df < 1:
            raise DesignError(
                f"{self.is_on.shape[1]} trials are too few for {self.confounds.shape[1]} "
                "question-frame columns; scan more trials_per_block"
            )
        if not self.regressors.any(axis=1).all():
            raise DesignError(
                "the labels are mixed up with question frames: one of these is shown in one "
                "condition only; scan more trials_per_block"
            )


def t_of_labels(values: NDArray, labels: Sequence[Labels]) -> NDArray[np.float64]:
    """T of many labellings of the same trials by ordinary least squares.

    Parameters
    ----------
    values, labels : (n_trials, n_units) array, sequence of Labels
        Activations, and labellings; those of one `Labels` share trials and confounds.

    Returns
    -------
    (n_labellings, n_units) array
        0 for units that are constant in the labelled trials.

    Notes
    -----
    With regressor and data orthogonal to the confounds (Frisch, Waugh and Lovell), the effect of a
    regressor of norm 1 is its product with the data, and what it leaves of their sum of squares is
    the residual one. Values are centred first, so that little is lost in the subtraction.
    """
    for group in labels:
        group.check()
    out = np.empty((sum(len(group.is_on) for group in labels), values.shape[1]))
    for start in range(0, values.shape[1], _TOGETHER):
        part = slice(start, start + _TOGETHER)
        Y = values[:, part].astype(np.float64)
        Y -= Y.mean(axis=0)
        t = [_t(Y if group.kept is None else Y[group.kept], group) for group in labels]
        out[:, part] = np.concatenate(t)
    return out


def _t(Y: NDArray[np.float64], labels: Labels) -> NDArray[np.float64]:
    """(n_labellings, n) t values of units, from their centred (n_kept, n) values."""
    whole = np.einsum("ij,ij->j", Y, Y)
    explained = labels.basis.T @ Y
    effects = labels.regressors @ Y
    rest = whole - np.einsum("ij,ij->j", explained, explained) - effects**2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(rest > _NOTHING * whole, effects * np.sqrt(labels.df / rest), 0)


def shuffle(events: pd.DataFrame, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(n_trials,) labels in random order; members of a minimal pair change places, or not."""
    on, pairs = is_on(events), pairs_of(events)
    if not pairs.any():
        return rng.permutation(on)
    _, pair = np.unique(pairs, return_inverse=True)
    return on != rng.integers(0, 2, pair.max() + 1, bool)[pair]


def shuffled(run: RunLike, *, n: int, seed: int = 0) -> Labels:
    """Trial types of a run, shuffled `n` times; what cannot be tested is drawn again.

    Raises DesignError if question frames leave too few shuffles that can be tested.
    """
    rng = np.random.default_rng([seed, *run.task.encode()])
    draws = np.stack([shuffle(run.events, rng) for _ in range(10 * n)])
    labels = Labels(draws, nuisance(run.events).to_numpy()).testable()
    if len(labels.is_on) < n:
        raise DesignError(
            f"task {run.task}, run {run.run}: question frames are mixed up with nearly every "
            "shuffle of the trials; scan more trials_per_block"
        )
    return replace(labels, is_on=labels.is_on[:n])


def without(events: pd.DataFrame, *, by: str = "block") -> list[Labels]:
    """Trial types of a run with one block, or topic, left out at a time, for the jackknife.

    Every on-block goes with an equal share of the control trials, so that their ratio stays.
    """
    on = is_on(events)
    return [
        Labels(on[keep][None], nuisance(events[keep]).to_numpy(), np.flatnonzero(keep))
        for keep in delete_masks(events, by=by)
    ]


def delete_masks(events: pd.DataFrame, *, by: str = "block") -> list[NDArray[np.bool_]]:
    """Trials to keep when each on-block or topic, with its share of the control, is left out."""
    is_control = ~is_on(events)
    groups = list(dict.fromkeys(events.loc[~is_control, by]))
    shares = np.array_split(np.flatnonzero(is_control), len(groups))
    masks = []
    for group, share in zip(groups, shares, strict=True):
        keep = ~((events[by] == group).to_numpy() & ~is_control)
        keep[share] = False
        masks.append(keep)
    return masks


def random_factor(runs: Sequence[RunLike]) -> str:
    """What other experiments would draw anew: ``topic``, or ``block`` where topics are no groups.

    Topics need at least three a run, and more prompts than topics.
    """
    for run in runs:
        topics = run.events.loc[is_on(run.events), "topic"]
        if not 3 <= topics.nunique() < len(topics):
            return "block"
    return "topic"


@dataclass(frozen=True, eq=False)
class NullRates:
    """What a null experiment finds."""

    #: below_05, below_001: (n_relabellings,) array; share of units with two-sided p below .05 and
    #: .001 in each relabelling
    below_05: NDArray[np.float64]
    below_001: NDArray[np.float64]
    any_fdr: NDArray[np.bool_]  #: (n_relabellings,) bool array; whether any unit passes FDR at .05

    def summary(self) -> Json:
        """Means over the relabellings, with the standard deviation of the .05 rate."""
        return {
            "n_relabellings": len(self.below_05),
            "below_05": float(self.below_05.mean()),
            "below_05_sd": float(self.below_05.std()),
            "below_001": float(self.below_001.mean()),
            "any_fdr": float(self.any_fdr.mean()),
        }


def relabelled(
    runs: Sequence[RunLike], *, n: int = N_RELABELLINGS, seed: int = 0, verbose: int = 1
) -> NullRates:
    """Relabel control trials as task and control within runs: nothing is there to find.

    Parameters
    ----------
    runs : sequence of Run
        Their control trials are used, run by run; `n` is over all of them together.

    Returns
    -------
    NullRates
        Expected: 4–6 % below .05, .05–.2 % below .001, FDR discoveries in about 5 %.
    """
    if n < 1:
        raise DesignError(f"{n} relabellings asked for; use at least 1, better 200")
    rng = np.random.default_rng(seed)
    rates = []
    shares = [len(part) for part in np.array_split(np.arange(n), len(runs))]
    with tqdm(total=n, desc="null: relabelled controls", disable=None if verbose else True) as bar:
        for run, n_here in zip(runs, shares, strict=True):
            if not n_here:
                continue  # more runs than relabellings
            values, events = _controls(run)
            base = _base(len(values))
            draws = np.stack([rng.permutation(base) for _ in range(n_here)])
            labels = Labels(draws, nuisance(events).to_numpy()).testable()
            rates += [rates_of(row, labels.df) for row in t_of_labels(values, [labels])]
            bar.update(n_here)
    return _collect(rates)


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
        Their control trials are pooled; DesignError if these have too few topics or trials.
    n_on, n_off : int
        Trials of a task run: whole topics are drawn until there are as many; and its control
        trials: one from each of as many other topics.

    Returns
    -------
    NullRates
        A task's active share means domain specificity only as far as it exceeds these.
    """
    pooled = [_controls(run) for run in runs]
    events = pd.concat([e for _, e in pooled], ignore_index=True)
    values = np.concatenate([v for v, _ in pooled])
    names, topics = np.unique(events["topic"].to_numpy(object), return_inverse=True)
    if len(names) == len(topics):
        raise DesignError(
            "every control prompt is a topic of its own: pseudo-tasks would be relabelled controls"
        )
    rng = np.random.default_rng(seed)
    labelled = np.arange(n_on + n_off)[None] < n_on
    draws = [_draw_topics(topics, n_on, n_off, rng) for _ in range(n)]
    drawn = [Labels(labelled, nuisance(events.iloc[rows]).to_numpy(), rows) for rows in draws]
    labels = [one for one in drawn if len(one.testable().is_on)]
    rates = []
    with tqdm(
        total=len(labels), desc="null: pseudo-tasks", disable=None if verbose else True
    ) as bar:
        for start in range(0, len(labels), _BATCH):
            batch = labels[start : start + _BATCH]
            t = t_of_labels(values, batch)
            rates += [rates_of(row, one.df) for row, one in zip(t, batch, strict=True)]
            bar.update(len(batch))
    return _collect(rates)


def token_level(run: RunLike, *, n: int = 5, seed: int = 0) -> NullRates:
    """Relabel control trials of one run and test its tokens with AR(1) prewhitening.

    Shows how far token-level p values are from nominal in `n` relabellings. Prewhitening takes
    long, so the rates are those of `_TOKEN_UNITS` units, evenly spread over the brain.
    """
    rng = np.random.default_rng(seed)
    is_control = ~is_on(run.events)
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
        rates.append(rates_of(np.nan_to_num(np.ravel(contrast.stat())), len(X) - X.shape[1]))
    return _collect(rates)


def _controls(run: RunLike) -> tuple[NDArray, pd.DataFrame]:
    """Values and events of a run's control trials."""
    keep = ~is_on(run.events)
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


def rates_of(t: NDArray, df: float) -> tuple[float, float, bool]:
    """Shares of units below .05 and .001, and whether any passes FDR, of the units that vary."""
    sizes, n_varying = np.abs(t), int((t != 0).sum())
    if not n_varying:
        raise DesignError("no unit varies in the relabelled trials; record them again")
    p = 2 * stats.t.sf(np.sort(sizes[sizes > stats.t.isf(0.025, df)])[::-1], df)
    # Benjamini and Hochberg's: no larger p can pass.
    any_fdr = bool((p * n_varying < 0.05 * np.arange(1, len(p) + 1)).any())
    return len(p) / n_varying, float((p < 0.001).sum() / n_varying), any_fdr


def _collect(rates: list[tuple[float, float, bool]]) -> NullRates:
    """NullRates from one tuple a relabelling that could be tested."""
    if not rates:
        raise DesignError("no labels can be told from question frames; scan more trials_per_block")
    return NullRates(*(np.array(column) for column in zip(*rates, strict=True)))
