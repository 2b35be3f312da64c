"""Compare maps between runs, with jackknife intervals and nulls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from nilearn.glm.contrasts import Contrast
from numpy.typing import NDArray
from tqdm import tqdm

from llm2nifti import glm, networks
from llm2nifti.bids import Run, Session
from llm2nifti.experiments.repeatability.plan import RepeatabilityPlan
from llm2nifti.experiments.repeatability.result import (
    Pair,
    RepeatabilityResult,
    Shuffled,
    pair_name,
)
from llm2nifti.networks.similarity import TOP, Estimate, corrected, noise_ceilings

N_SHUFFLES = 20  # shuffled maps a run, for the null of repeatability

Contrasts = Mapping[tuple[str, int], Contrast]
Maps = dict[tuple[str, int], NDArray[np.float64]]
Masks = dict[tuple[str, int], NDArray[np.bool_]]


def measure(
    session: Session,
    plan: RepeatabilityPlan,
    *,
    contrasts: Contrasts | None = None,
    intervals: bool = True,
    verbose: int = 1,
) -> RepeatabilityResult:
    """Measure how repeatable and how distinct the maps are; every task needs the same runs.

    Parameters
    ----------
    session, plan, verbose
        At least 2 runs of each task of one model, what to compare, and 0 for no progress.
    contrasts : mapping, optional
        Of `llm2nifti.glm.contrasts_of`, if they are there already.
    intervals : bool, default=True
        Compute jackknife intervals.
    """
    session = session.only(plan.task)
    session.check_repeated()
    contrasts = contrasts or glm.contrasts_of(session)
    maps: Maps = {key: glm.t_map([c]) for key, c in contrasts.items()}
    tasks, r = networks.tasks_of(maps), networks.matrix(maps)
    masks = networks.top_masks(maps)
    dice = networks.matrix(masks, networks.dice)
    estimates = why_not = None
    if intervals:
        estimates, why_not = _intervals(session, maps, masks, verbose=verbose)
    same, cross = networks.same_and_cross(r)
    is_single = len(tasks) == 1
    copy = session.untrained if plan.untrained and intervals else None
    return RepeatabilityResult(
        tasks=tasks,
        top_share=TOP,
        r=r.tolist(),
        r_corrected=[[None if np.isnan(v) else float(v) for v in row] for row in corrected(r)],
        dice=dice.tolist(),
        jaccard=networks.matrix(masks, networks.jaccard).tolist(),
        dice_chance=TOP,
        same_task_r=same,
        cross_task_r=None if is_single else cross,
        same_minus_cross=None if is_single else same - cross,
        shuffled_same_task_r=_shuffled(session, verbose=verbose),
        intervals=estimates,
        interval_over=glm.random_factor(session) if estimates else None,
        intervals_not_possible=why_not,
        closest_pair=None if is_single else _closest(tasks, r, dice, estimates or {}),
        ceilings=noise_ceilings(maps, {key: float(c.dof) for key, c in contrasts.items()}),
        untrained=measure(copy, plan, intervals=False, verbose=verbose) if copy else None,
    )


def _relabelled(
    runs: Sequence[Run], what: str, labels: Callable[[Run], Sequence[glm.Labels]], verbose: int
) -> Maps:
    """(n_labellings, n_units) maps of each run with other labels than its own."""
    bar = tqdm(runs, desc=f"{what} maps", disable=None if verbose else True)
    return {(run.task, run.run): glm.t_of_labels(run.values(), labels(run)) for run in bar}


def _intervals(
    runs: Sequence[Run], maps: Maps, masks: Masks, *, verbose: int
) -> tuple[dict[str, Estimate] | None, str | None]:
    """Jackknife intervals of the figures and of every pair, or why there are none."""
    by = glm.random_factor(runs)
    try:
        without = _relabelled(runs, "jackknife", lambda r: glm.without(r.events, by=by), verbose)
        r = networks.jackknife(maps, without)
        dice = networks.jackknife(masks, networks.top_masks(without), networks.dice)
    except (glm.DesignError, networks.SimilarityError) as error:
        return None, str(error)
    figures = {task: r[task, task] for task in networks.tasks_of(maps)}
    figures |= {"same_task_r": r["same"], "cross_task_r": r["cross"]}
    figures |= {"same_minus_cross": r["same - cross"]}
    figures |= {"same_dice": dice["same"], "cross_dice": dice["cross"]}
    pairs = [key for key in r if not isinstance(key, str) and key[0] != key[1]]
    figures |= {pair_name(*key): r[key] for key in pairs}
    return {name: e for name, e in figures.items() if not np.isnan(e.value)}, None


def _shuffled(runs: Sequence[Run], *, verbose: int) -> Shuffled:
    """Same-task r when trial types are shuffled within runs."""
    shuffles = _relabelled(
        runs, "shuffled", lambda r: [glm.shuffled(r, n=N_SHUFFLES, seed=r.run)], verbose
    )
    values = [
        networks.same_and_cross(networks.matrix({key: m[i] for key, m in shuffles.items()}))[0]
        for i in range(N_SHUFFLES)
    ]
    return Shuffled(float(np.mean(values)), float(np.max(values)))


def _closest(
    tasks: Sequence[str], r: NDArray, dice: NDArray, estimates: Mapping[str, Estimate]
) -> list[Pair]:
    """Pairs of different tasks, most similar maps first."""
    pairs = []
    for i, task in enumerate(tasks):
        for j, other in enumerate(tasks[:i]):
            interval = estimates.get(pair_name(task, other))
            pairs.append(Pair([task, other], float(r[i, j]), float(dice[i, j]), interval))
    return sorted(pairs, key=lambda pair: -pair.r)
