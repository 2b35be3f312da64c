"""Connect single units at rest, and compare their covariance in tasks."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from llm2nifti import glm
from llm2nifti.bids import Session
from llm2nifti.experiments.connectivity.plan import ConnectivityPlan
from llm2nifti.experiments.connectivity.result import UnitLevel, upper
from llm2nifti.experiments.results import Interval
from llm2nifti.networks.functional import agreement, partial_correlations, tangents
from llm2nifti.parcels import PRIVILEGED, nuisance, parcels_in, read, trials_of

N_UNITS = 40  # at most, those that tasks change most
N_SHUFFLES = 10  # of prompts, unit by unit


def of_units(session: Session, plan: ConnectivityPlan) -> UnitLevel | None:
    """Partial correlations at rest and tangent vectors of tasks; None without such sites.

    Units are chosen by the largest t of any task against control, which says nothing of how they
    go together among control prompts.
    """
    recorded = {site.name for site in session.brain.sites}
    sites = [name for name in PRIVILEGED if name in recorded and name in (plan.site or recorded)]
    if not sites:
        return None
    trials, parcels = trials_of(session), parcels_in(session, sites)
    t = np.max([np.abs(_t(session, task)) for task in session.tasks], axis=0)
    inside = np.concatenate([parcel.units for parcel in parcels])
    n_rest = trials.groupby("run")["is_task"].agg(lambda column: (~column).sum()).min()
    n_units = min(N_UNITS, int(n_rest) // 3)  # or their covariance would be mostly noise
    chosen = np.sort(inside[np.argsort(-t[inside], kind="stable")[:n_units]])
    values = np.empty((len(trials), len(chosen)))
    for parcel, of_parcel in read(session, parcels, verbose=0):
        here = np.isin(chosen, parcel.units)
        values[:, here] = of_parcel[:, np.isin(parcel.units, chosen)]
    columns = nuisance(trials)
    values -= columns @ np.linalg.lstsq(columns, values)[0]
    is_task, run = trials["is_task"].to_numpy(), trials["run"].to_numpy()
    rest = [values[~is_task & (run == n)] for n in session.folds]
    partial = partial_correlations(rest)
    rng = np.random.default_rng(plan.seed)
    null = [
        np.abs(
            upper(partial_correlations([rng.permuted(x, axis=0) for x in rest]).mean(axis=0))
        ).max()
        for _ in range(N_SHUFFLES)
    ]
    r = [_r(a, b) for a, b in combinations(partial, 2)]
    mean = partial.mean(axis=0)
    return UnitLevel(
        units=[_name(session, int(unit)) for unit in chosen],
        partial=mean.round(6).tolist(),
        repeatability=Interval(float(np.mean(r)), min(r), max(r)),
        null_max=float(np.max(null)),
        share_above=float((np.abs(upper(mean)) > np.max(null)).mean()),
        **_of_tasks(session, values, plan),
    )


def _t(session: Session, task: str) -> NDArray[np.float64]:
    """(n_units,) t of a task against control."""
    runs = session.of(task)
    return glm.fit(runs, verbose=0).contrast(glm.task_contrast(runs.first.events)).t()


def _r(a: NDArray, b: NDArray) -> float:
    """Correlation of two matrices over pairs of units."""
    return float(np.corrcoef(upper(a), upper(b))[0, 1])


def _of_tasks(session: Session, values: NDArray, plan: ConnectivityPlan) -> dict[str, float]:
    """How alike covariances of the same task are between runs, and those of different tasks."""
    if len(session.tasks) < 2:
        return {}
    trials = trials_of(session)
    is_task = trials["is_task"].to_numpy()
    groups, shown = trials[is_task].groupby(["task", "run"], sort=False), values[is_task]
    vectors = tangents([shown[rows] for rows in groups.indices.values()])
    keys = list(groups.indices)
    tasks, folds = [str(task) for task, _ in keys], [int(run) for _, run in keys]
    same, cross, p = agreement(vectors, tasks, folds, n_null=plan.n_null, seed=plan.seed)
    return {"same_task_r": same, "cross_task_r": cross, "p": p}


def _name(session: Session, unit: int) -> str:
    """Module and number of a unit, as `llm2nifti where` takes it."""
    brain = session.brain
    place = int(brain.labels[unit]) - 1
    return f"{brain.sites[place].key}:{unit - int(brain.offsets[place])}"
