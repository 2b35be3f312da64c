"""What is compared with what? All trials of an experiment, and a task against the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llm2nifti import glm
from llm2nifti.bids import Run
from llm2nifti.evidence import Evidence
from llm2nifti.experiments.detection.result import Roc, Series
from llm2nifti.experiments.results import Interval
from llm2nifti.networks import detection
from llm2nifti.networks.detection import Bootstrap

TRIVIAL = "randomstrings"  # no words: left out of means over tasks, as in identification
Areas = dict[str, dict[str, list[NDArray[np.float64]]]]  # comparison, task: one a number of tokens


class Trials:
    """All trials of some runs in order, and how methods are compared on them.

    Parameters
    ----------
    runs : sequence of Run
        Runs.
    evidence : Evidence
        What they say.
    """

    def __init__(self, runs: Sequence[Run], evidence: Evidence) -> None:
        events = pd.concat([run.events.assign(fold=run.run) for run in runs], ignore_index=True)
        self.tasks = evidence.tasks
        self.kind = events["trial_type"].to_numpy(str)
        self.fold = events["fold"].to_numpy()
        self.prompts = events["prompt"].to_list()
        self.is_control = self.kind == glm.CONTROL
        named = [task for task in self.tasks if task != TRIVIAL]
        self.counted = named if len(named) > 1 else list(self.tasks)

    def off(self, task: str, comparison: str) -> NDArray[np.bool_]:
        """Trials that a task is told from: control prompts, or prompts of the other tasks."""
        return (
            self.is_control if comparison == "control" else ~self.is_control & (self.kind != task)
        )

    def areas(self, draws: Bootstrap, scores: Any) -> Areas:
        """AUC and its draws of ``scores(task, off)``, an (n_trials, n_tokens) array."""
        out: Areas = {}
        for comparison in ("control", "others"):
            out[comparison] = {}
            for i, task in enumerate(self.tasks):
                off = self.off(task, comparison)
                by_token = scores(i, off)
                on = self.kind == task
                out[comparison][task] = [draws.areas(column, on, off) for column in by_token.T]
        return out

    def mean(self, areas: Areas, comparison: str) -> list[NDArray[np.float64]]:
        """Mean over tasks, a number of tokens; random strings are easy and do not count."""
        columns = [areas[comparison][task] for task in self.counted]
        return [np.mean(column, axis=0) for column in zip(*columns, strict=True)]

    def summary(self, areas: Areas) -> dict[str, Series]:
        """Estimates with intervals, by comparison."""
        return {
            comparison: Series(
                tasks={t: [_estimate(a) for a in series] for t, series in by_task.items()},
                mean=[_estimate(a) for a in self.mean(areas, comparison)],
            )
            for comparison, by_task in areas.items()
        }

    def curves(self, scores: NDArray) -> Roc:
        """ROC curves against control after the first token and after all."""
        hits = []
        for token in (0, -1):
            of_task = {}
            for i, task in enumerate(self.tasks):
                rows, is_on = self.is_control | (self.kind == task), self.kind == task
                curve = detection.roc(scores[rows, token, i], is_on[rows], self.fold[rows])
                of_task[task] = curve.tolist()
            hits.append(of_task)
        return Roc(detection.GRID.tolist(), *hits)


def _estimate(areas: NDArray) -> Interval:
    """Value and interval of an area and its draws."""
    return Interval(**detection.estimate(areas))
