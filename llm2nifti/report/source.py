"""What does the page need of the dataset? Its summary, runs, anatomy, maps and networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from llm2nifti import bids, geometry

MOST_MAPS = 24  # tasks whose maps are drawn: more would make the page too large to open
_NEEDED = ("design", "model", "null", "tasks", "versions")


class ReportError(ValueError):
    """A dataset has not been analysed, or not completely."""


@dataclass(frozen=True)
class Source:
    """An analysed dataset.

    Attributes
    ----------
    root : Path
        Root of the dataset.
    folder : Path
        Where the numbers are, and the report goes; see `llm2nifti.bids.analysis_folder`.
    summary : dict
        Content of ``summary.json``.
    session : Session
        Runs of the summary's session.
    bg_img : Nifti1Image
        Anatomical image of the model.
    """

    root: Path
    folder: Path
    summary: dict[str, Any]
    session: bids.Session
    bg_img: nib.Nifti1Image

    @property
    def brain(self) -> geometry.ModelBrain:
        """Geometry of the model."""
        return self.session.brain

    @property
    def tasks(self) -> list[str]:
        """Tasks in the order of the analysis."""
        return list(self.summary["tasks"])

    @property
    def shown(self) -> list[str]:
        """Tasks whose maps the page shows: all, or of many those with the largest networks."""
        numbers = self.summary["tasks"]
        largest = sorted(numbers, key=lambda task: -numbers[task]["n_active"])[:MOST_MAPS]
        return [task for task in numbers if task in set(largest)]

    def first_run(self, task: str) -> bids.Run:
        """First run of a task."""
        return self.session.of(task).first


@dataclass(frozen=True, eq=False)
class TaskMap:
    """Statistic map and network of one task, all runs together.

    Attributes
    ----------
    task : str
        Name of the task.
    t_img : Nifti1Image
        t values of the fixed effect over runs.
    threshold : float or None
        Smallest |t| inside the network; None if it is empty.
    n_units : int
        Units of the network image.
    peak : UnitAddress
        Unit with the largest |t|.
    peak_t : float
        Its t value.
    """

    task: str
    t_img: nib.Nifti1Image
    threshold: float | None
    n_units: int
    peak: geometry.UnitAddress
    peak_t: float


def read_source(
    root: Path | str, *, subject: str | None = None, session: str | None = None
) -> Source:
    """Read what there is.

    Parameters
    ----------
    root : path-like
        Root of the dataset.
    subject, session : str, optional
        See `llm2nifti.bids.read`.

    Returns
    -------
    Source

    Raises
    ------
    ReportError
        If there is no summary, or it has no numbers to report.
    """
    root = Path(root)
    recording = bids.session(root, subject=subject, session=session)
    who = (recording.subject, recording.session)
    folder = bids.analysis_folder(root, *who)
    summary = read_summary(folder, root, needed=_NEEDED)
    lost = sorted(set(summary["tasks"]) - set(recording.tasks))
    if lost:
        raise ReportError(
            f"the summary has task {lost[0]!r}, the dataset has no run of it; {_advice(root)}"
        )
    recording = recording.only(summary["tasks"])
    return Source(root, folder, summary, recording, bids.anatomy(root, *who))


def read_summary(folder: Path, root: Path, *, needed: Sequence[str]) -> dict[str, Any]:
    """Numbers of a folder of a dataset; ReportError if they are missing or lack a part."""
    path = folder / bids.SUMMARY.name
    if not path.exists():
        raise ReportError(f"{path} is missing, so there is nothing to report; {_advice(root)}")
    summary = bids.read_json(path)
    missing = [key for key in needed if not summary.get(key)]
    if missing:
        raise ReportError(f"{path} has no {missing[0]!r}; {_advice(root)}")
    return summary


def _advice(root: Path) -> str:
    """What to do when something is missing."""
    return f"run: llm2nifti run {root}"


def read_task_map(source: Source, task: str) -> TaskMap:
    """Read the map and the network of a task; raises ReportError if a file is missing."""
    paths = source.first_run(task).paths
    brain = source.brain
    t_img = _load(paths.stat_map("t"), source.root)
    t = np.asarray(geometry.from_img(brain, t_img), float)
    desc = source.summary["tasks"][task].get("network", "network")
    active = geometry.from_img(brain, _load(paths.network(desc=desc), source.root)) > 0
    best = int(np.abs(t).argmax())
    return TaskMap(
        task=task,
        t_img=t_img,
        threshold=float(np.abs(t[active]).min()) if active.any() else None,
        n_units=int(active.sum()),
        peak=geometry.locate(brain, brain.voxels[best].tolist(), voxel=True),
        peak_t=float(t[best]),
    )


def _load(path: Path, root: Path) -> nib.Nifti1Image:
    """Image of the analysis."""
    if not path.exists():
        raise ReportError(f"{path} is missing; run: llm2nifti run {root}")
    return bids.read_img(path)
