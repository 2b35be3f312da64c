"""Which network is meant? A task of the dataset, or any mask image in the model's space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib

from llm2nifti import bids, networks
from llm2nifti.bids import Run
from llm2nifti.study.analysis import by_task
from llm2nifti.study.lock import StudyError


def read_network(runs: Sequence[Run], name: str) -> networks.Network:
    """Read a network that the dataset holds, or make one of an image.

    Parameters
    ----------
    runs : sequence of Run
        Runs of one model.
    name : str
        A task, whose network is that of all its runs together; or the path of a NIfTI image.

    Returns
    -------
    Network

    Raises
    ------
    StudyError
        If there is neither such a task nor such a file, or the task is not analysed.
    """
    if Path(name).is_file():
        return networks.from_mask(runs[0].brain, nib.load(name), name=Path(name).name)
    tasks = by_task(runs)
    try:
        task = bids.label(name)
    except bids.LabelError:
        task = ""
    if task not in tasks:
        raise StudyError(f"no file {name!r}, and no such task; there are: {', '.join(tasks)}")
    path = tasks[task][0].paths.network()
    if not path.exists():
        root = tasks[task][0].paths.root
        raise StudyError(f"task {name!r} has no network yet; make it with: llm2nifti glm {root}")
    return networks.from_mask(runs[0].brain, nib.load(path), name=task)
