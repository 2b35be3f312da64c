"""Compare maps between runs, with jackknife intervals and nulls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
from llm2nifti.networks.similarity import TOP, Estimate, corrected

N_SHUFFLES = 20  # shuffled maps a run, for the null of repeatability

Contrasts = Mapping[tuple[str, int], Contrast]
Maps = dict[tuple[str, int], NDArray[np.float64]]


def measure(
    session: Session,
    plan: RepeatabilityPlan,
    *,
    contrasts: Contrasts | None = None,
    intervals: bool = True,
    verbose: int = 1,
) -> RepeatabilityResult:
    """Measure how repeatable and how distinct the maps are.

    Parameters
    ----------
    session : Session
        At least 2 runs of each task of one model.
    plan : RepeatabilityPlan
        What to compare.
    contrasts : mapping, optional
        Of `llm2nifti.glm.contrasts_of`, if they are there already.
    intervals : bool, default=True
        Compute jackknife intervals.
    verbose : int, default=1
        0 shows no progress.

    Returns
    -------
    RepeatabilityResult

    Raises
    ------
    llm2nifti.networks.SimilarityError
        Unless every task has the same runs, at least two.
    """
    session = session.only(plan.task)
    session.check_repeated()
    contrasts = contrasts or glm.contrasts_of(session)
    maps: Maps = {key: glm.t_map([c]) for key, c in contrasts.items()}
    tasks, r = networks.tasks_of(maps), networks.matrix(maps)
    masks = networks.top_masks(maps)
    dice = networks.matrix(masks, networks.dice)
    estimates, why_not = _intervals(session, maps, verbose=verbose) if intervals else (None, None)
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
        intervals_not_possible=why_not,
        closest_pair=None if is_single else _closest(tasks, r, dice, estimates or {}),
        untrained=measure(copy, plan, intervals=False, verbose=verbose) if copy else None,
    )


def _intervals(
    runs: Sequence[Run], maps: Maps, *, verbose: int
) -> tuple[dict[str, Estimate] | None, str | None]:
    """Jackknife intervals of the figures and of every pair, or why there are none."""
    try:
        without = {
            (run.task, run.run): glm.t_of_labels(run.values(), glm.without_blocks(run.events))
            for run in tqdm(runs, desc="jackknife maps", disable=None if verbose else True)
        }
        r = networks.jackknife(maps, without)
        masks = networks.top_masks(without)
        dice = networks.jackknife(networks.top_masks(maps), masks, networks.dice)
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
    shuffles = {
        (run.task, run.run): glm.t_of_labels(
            run.values(), [glm.shuffled(run, n=N_SHUFFLES, seed=run.run)]
        )
        for run in tqdm(runs, desc="shuffled maps", disable=None if verbose else True)
    }
    values = [
        networks.same_and_cross(networks.matrix({key: m[i] for key, m in shuffles.items()}))[0]
        for i in range(N_SHUFFLES)
    ]
    return Shuffled(float(np.mean(values)), float(np.max(values)))


def _closest(
    tasks: Sequence[str], r: NDArray, dice: NDArray, estimates: Mapping[str, Estimate]
) -> list[Pair]:
    """Pairs of different tasks, most similar maps first."""
    pairs = [
        Pair(
            [task, other],
            float(r[i, j]),
            float(dice[i, j]),
            estimates.get(pair_name(task, other)),
        )
        for i, task in enumerate(tasks)
        for j, other in enumerate(tasks[:i])
    ]
    return sorted(pairs, key=lambda pair: -pair.r)
