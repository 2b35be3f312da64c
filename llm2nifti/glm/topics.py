"""Would other topics of a task activate the same units? Maps of topics, each with controls.

Prompts of one topic are alike, so that a test of prompts speaks of these topics alone. Where a
claim is about the task, the topic is the unit of inference.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from llm2nifti.glm.conditions import is_on
from llm2nifti.glm.designs import NUISANCE, DesignError, design_matrix
from llm2nifti.glm.fitting import RunLike
from llm2nifti.glm.relabelling import NullRates, rates_of

LEAST_TOPICS = 3  # of a task
_FDR = 0.05


@dataclass(frozen=True, eq=False)
class TopicMaps:
    """Maps of a task's topics, independent of each other."""

    topics: list[str]
    #: (n_topics, n_units) mean of a topic's prompts minus that of the controls it was dealt
    values: NDArray[np.float64]
    n_prompts: int  #: of the task

    def t(self) -> NDArray[np.float64]:
        """(n_units,) one-sample t over topics; 0 where a unit does not vary."""
        return one_sample_t(self.values)


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums of the trials of each topic."""

    topics: list[str]
    sums: NDArray[np.float64]  #: (n_topics, n_units)
    counts: NDArray[np.int64]  #: (n_topics,)


def topic_maps(runs: Sequence[RunLike], *, seed: int = 0) -> TopicMaps:
    """Make a map of every topic of a task, minus controls that no other topic is compared with.

    Parameters
    ----------
    runs : sequence of Run
        Runs of one task.
    seed : int, default=0
        Seed of dealing control topics.

    Returns
    -------
    TopicMaps
        For nilearn's `SecondLevelModel`: the maps do not share a prompt, so that a one-sample test
        of them has both the task's topics and the control's as random factors (Clark, 1973, Journal
        of Verbal Learning and Verbal Behavior 12:335).

    Raises
    ------
    DesignError
        If the task has fewer than three topics, or more than there are control topics, or every
        prompt is a topic of its own.

    Notes
    -----
    Question frames are taken out of each run first. Whole topics of the control are dealt to the
    topics of the task, so that copies of a control prompt count once.
    """
    task, control = _sums(runs, of_task=True), _sums(runs, of_task=False)
    check_topics(len(task.topics), len(control.topics), int(task.counts.sum()))
    dealt = _dealt(control.counts, len(task.topics), np.random.default_rng(seed))
    values = task.sums / task.counts[:, None] - dealt @ control.sums
    return TopicMaps(task.topics, values, int(task.counts.sum()))


def check_topics(n_topics: int, n_control: int, n_prompts: int) -> None:
    """Raise DesignError unless topics can be tested."""
    if n_topics < LEAST_TOPICS:
        raise DesignError(f"a test of topics needs {LEAST_TOPICS} of a task, there are {n_topics}")
    if n_topics == n_prompts:
        raise DesignError(
            f"each of the {n_prompts} prompts is a topic of its own, so that the test of prompts "
            "is that of topics"
        )
    if n_control < n_topics:
        raise DesignError(
            f"{n_topics} topics of the task need as many topics of controls, there are {n_control}"
        )


def pseudo_topics(
    runs: Sequence[RunLike], *, n_topics: int, n: int = 100, seed: int = 0
) -> NullRates:
    """Take unrelated control topics for those of a task: there is nothing to find.

    Parameters
    ----------
    runs : sequence of Run
        Their control trials are pooled.
    n_topics : int
        Topics of a pseudo-task; all others are its control.
    n, seed : int
        Pseudo-tasks, and the seed by which they are drawn.

    Returns
    -------
    NullRates
        Expected: 4-6 % below .05, FDR discoveries in about 5 %.
    """
    control = _sums(runs, of_task=False)
    check_topics(n_topics, len(control.topics) - n_topics, int(control.counts.sum()))
    rng = np.random.default_rng(seed)
    rates = []
    for _ in range(n):
        order = rng.permutation(len(control.topics))
        chosen, others = order[:n_topics], order[n_topics:]
        weights = np.zeros((n_topics, len(order)))
        weights[np.arange(n_topics), chosen] = 1 / control.counts[chosen]
        weights[:, others] = -_dealt(control.counts[others], n_topics, rng)
        rates.append(rates_of(one_sample_t(weights @ control.sums), n_topics - 1))
    return NullRates(*(np.array(column) for column in zip(*rates, strict=True)))


def one_sample_t(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n_units,) t of (n_maps, n_units) values against 0; 0 where a unit does not vary."""
    with warnings.catch_warnings(action="ignore"):  # of units that do not vary
        t = np.asarray(stats.ttest_1samp(values, 0).statistic)
    return np.where(np.isfinite(t), t, 0.0)


def fdr(t: NDArray[np.float64], df: float, alpha: float = _FDR) -> NDArray[np.bool_]:
    """(n_units,) whether a unit passes Benjamini and Hochberg's rate, two-sided."""
    varies = t != 0
    out = np.zeros(len(t), bool)
    p = 2 * stats.t.sf(np.abs(t[varies]), df)
    out[varies] = stats.false_discovery_control(p) < alpha if len(p) else False
    return out


def _sums(runs: Sequence[RunLike], *, of_task: bool) -> _Sums:
    """Sums of task or control trials by topic, without what question frames add."""
    sums: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, int] = {}
    for run in runs:
        events, values = run.events, run.values().astype(np.float64)
        design = design_matrix(events)
        of_frames = [name.startswith(NUISANCE) for name in design]
        X = design.to_numpy()
        values -= X[:, of_frames] @ (np.linalg.pinv(X) @ values)[of_frames]
        rows = is_on(events) == of_task
        for topic, where in pd.Series(np.flatnonzero(rows)).groupby(
            events["topic"].astype(str).to_numpy()[rows]
        ):
            sums[topic] = sums.get(topic, 0.0) + values[where].sum(axis=0)
            counts[topic] = counts.get(topic, 0) + len(where)
    names = sorted(sums)
    if not names:
        raise DesignError(f"there are no {'task' if of_task else 'control'} trials")
    return _Sums(names, np.stack([sums[n] for n in names]), np.array([counts[n] for n in names]))


def _dealt(counts: NDArray[np.int64], n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(n, n_control_topics) weights that give each of `n` topics the mean of its controls.

    They are dealt in turn, those of many trials first, and no control topic to two of them.
    """
    order = rng.permutation(len(counts))
    order = order[np.argsort(-counts[order], kind="stable")]
    dealt = np.zeros((n, len(counts)))
    dealt[np.arange(len(order)) % n, order] = 1
    return dealt / (dealt @ counts)[:, None]
