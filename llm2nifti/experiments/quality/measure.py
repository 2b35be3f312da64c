"""Measure how well the controls of every run match its task prompts."""

from __future__ import annotations

import numpy as np
import pandas as pd

from llm2nifti import glm, networks
from llm2nifti.bids import Session
from llm2nifti.experiments.quality.plan import QualityPlan
from llm2nifti.experiments.quality.result import Active, QualityResult, RunQuality
from llm2nifti.stimuli.measures import MEASURES, difference, with_lengths


def measure(session: Session, plan: QualityPlan, *, verbose: int = 1) -> QualityResult:
    """Read the events of every run: differences between task and control, and topics."""
    session = session.only(plan.task)
    topics = {(run.task, run.run): _topics(run.events) for run in session}
    runs = []
    for run in session:
        others = [
            names
            for (task, number), names in topics.items()
            if task == run.task and number != run.run
        ]
        names = topics[run.task, run.run]
        events = run.events
        is_on = glm.is_on(events)
        runs.append(
            RunQuality(
                task=run.task,
                run=run.run,
                n_task=int(is_on.sum()),
                n_control=int((~is_on).sum()),
                n_topics=len(names),
                n_shared_topics=len(names & set().union(*others)),
                d=_differences(events, is_on),
            )
        )
    active = {task: _active(session.of(task), task) for task in session.tasks}
    return QualityResult(runs, {task: shares for task, shares in active.items() if shares})


def _active(runs: Session, task: str) -> Active | None:
    """Units that respond to a task with and without covariates; None where there is no test."""
    names = _given(runs)
    try:
        return Active(names, _share(runs, task, ()), _share(runs, task, names)) if names else None
    except glm.DesignError:  # a small run has too few prompts for so many columns
        return None


def _given(runs: Session) -> tuple[str, ...]:
    """Measures that all prompts of a task's runs have, and that are not the same for all."""
    known = [_values(run.events) for run in runs]
    return tuple(
        name
        for name in MEASURES
        if all(name in of_run and np.ptp(of_run[name]) > 0 for of_run in known)
    )


def _share(runs: Session, task: str, covariates: tuple[str, ...]) -> float:
    """Share of units that respond to a task, with the measures as covariates."""
    contrast, fits = glm.task_contrast(runs.first.events), []
    for run in runs:
        fits.append(glm.run_contrast(run.values(), run.events, contrast, covariates=covariates))
    maps = glm.pool(contrast, runs.brain, fits)
    return networks.select(maps).n_units / runs.brain.n_units


def _topics(events: pd.DataFrame) -> set[str]:
    """Topics of the task's prompts."""
    return set(events.loc[glm.is_on(events), "topic"].astype(str))


def _differences(events: pd.DataFrame, is_on: np.ndarray) -> dict[str, float]:
    """Cohen's d of every measure that all prompts of a run have."""
    known = _values(events).items()
    out = {name: float(difference(each[is_on], each[~is_on])) for name, each in known}
    return {name: d for name, d in out.items() if np.isfinite(d)}


def _values(events: pd.DataFrame) -> dict[str, np.ndarray]:
    """Values of every measure that all prompts of a run have."""
    table = events if "stim_file" in events else with_lengths(events)
    names = [name for name in MEASURES if name in table]
    values = {name: pd.to_numeric(table[name], errors="coerce").to_numpy(float) for name in names}
    return {name: each for name, each in values.items() if np.isfinite(each).all()}
