"""Which network is meant? A task of the dataset, or any mask image in the model's space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llm2nifti import bids, networks
from llm2nifti.bids import Run
from llm2nifti.study.analysis import by_task
from llm2nifti.study.lock import StudyError


def runs_of(runs: Sequence[Run], task: str) -> list[Run]:
    """Runs of one task.

    Parameters
    ----------
    runs : sequence of Run
        Runs of one model.
    task : str
        Name or label of the task.

    Returns
    -------
    list of Run

    Raises
    ------
    StudyError
        If there is none.
    """
    tasks = by_task(runs)
    try:
        label = bids.label(task)
    except bids.LabelError:
        label = ""
    if label not in tasks:
        raise StudyError(f"no task {task!r} in the dataset; there are: {', '.join(tasks)}")
    return tasks[label]


def image_network(runs: Sequence[Run], path: str | Path) -> networks.Network:
    """Network of a NIfTI image, under the name of its file.

    Parameters
    ----------
    runs : sequence of Run
        Runs of the model in whose space the image is.
    path : str or Path
        Where it is.

    Returns
    -------
    Network
    """
    name = Path(path).name.removesuffix(".gz").removesuffix(".nii")
    return networks.from_mask(runs[0].brain, bids.read_img(Path(path)), name=name)


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
        return image_network(runs, name)
    try:
        own = runs_of(runs, name)[0]
    except StudyError as error:
        raise StudyError(f"no file {name!r}, and {error}") from error
    path = own.paths.network()
    if not path.exists():
        raise StudyError(
            f"task {name!r} has no network yet; make it with: llm2nifti glm {own.paths.root}"
        )
    return networks.from_mask(own.brain, bids.read_img(Path(path)), name=own.task)
