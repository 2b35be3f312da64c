"""Fit every frame of a task's trials on its own, beside shuffled labels, and write the maps."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from nilearn.image import concat_imgs
from numpy.typing import NDArray

from llm2nifti import bids, glm, networks
from llm2nifti.bids import Session
from llm2nifti.experiments.fir.plan import FirPlan
from llm2nifti.experiments.fir.result import FirResult, Frame
from llm2nifti.glm.frames import n_frames_of, values_by_frame
from llm2nifti.glm.maps import StatMaps, described
from llm2nifti.progress import track


def measure(session: Session, plan: FirPlan, *, verbose: int = 1) -> FirResult:
    """Map the response of every task at each frame."""
    session = session.only(plan.task)
    n_frames = n_frames_of(session)
    contrasts: dict[tuple[str, int, int], Any] = {}
    shuffled: dict[tuple[str, int, int], NDArray[np.float64]] = {}
    for run in track(session, "frames", unit="run", verbose=verbose):
        labels = glm.shuffled(run, n=plan.n_null, seed=plan.seed + run.run)
        definition = glm.task_contrast(run.events)
        for frame, values in enumerate(values_by_frame(run)):
            key = (run.task, run.run, frame)
            contrasts[key] = glm.run_contrast(values, run.events, definition)
            t = glm.t_of_labels(values, [labels])
            shuffled[key] = np.array([glm.rates_of(row, labels.df)[0] for row in t])
    tasks = {}
    for task in session.tasks:
        runs = session.of(task)
        maps, frames = [], []
        for frame in range(n_frames):
            of_runs = [contrasts[task, number, frame] for number in runs.folds]
            maps.append(glm.pool(glm.task_contrast(runs.first.events), runs.brain, of_runs))
            null = np.concatenate([shuffled[task, number, frame] for number in runs.folds])
            frames.append(_frame(maps[-1], of_runs, null, plan))
        _write(runs, maps)
        tasks[task] = frames
    return FirResult(tasks, plan.alpha, plan.n_null)


def _frame(maps: StatMaps, of_runs: list[Any], null: NDArray, plan: FirPlan) -> Frame:
    """What a task does at one frame."""
    network = networks.select(maps, networks.Rule("fdr", alpha=plan.alpha))
    each = [np.nan_to_num(np.ravel(one.stat())) for one in of_runs]
    pairs = [networks.correlation(a, b) for a, b in combinations(each, 2)]
    return Frame(
        n_active=network.n_units,
        share_active=network.n_units / maps.brain.n_units,
        share_below_05=maps.share_below(),
        null_below_05=float(null.mean()),
        repeatability=float(np.mean(pairs)) if pairs else None,
    )


def _write(runs: Session, maps: list[StatMaps]) -> None:
    """Write the t maps and effects of all frames as one 4D image each."""
    for name in ("t", "effect"):
        imgs = [getattr(one, f"{name}_img") for one in maps]
        img = described(concat_imgs(imgs), name, f"{maps[0].name}, a frame a volume")
        path = runs.first.paths.stat_map(name, contrast=f"{runs.first.task}OverFrames")
        sidecar = {"Contrast": maps[0].name, "Statistic": name, "DegreesOfFreedom": maps[0].df}
        bids.write_img(path, runs.root, img, {**sidecar, "Note": "Volume k is frame k of a trial."})
