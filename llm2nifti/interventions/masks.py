"""Which network is meant? A task of the dataset, or any mask image in the model's space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llm2nifti import bids, networks
from llm2nifti.bids import Session
from llm2nifti.geometry import ModelBrain
from llm2nifti.interventions.editing import InterventionError


def image_network(brain: ModelBrain, path: str | Path) -> networks.Network:
    """Network of a NIfTI image in a model's space, under the name of its file."""
    name = Path(path).name.removesuffix(".gz").removesuffix(".nii")
    return networks.from_mask(brain, bids.read_img(Path(path)), name=name)


def read_network(session: Session, name: str) -> networks.Network:
    """Read a network that the dataset holds, or make one of an image.

    Parameters
    ----------
    session : Session
        Runs of one model.
    name : str
        A task, whose network is that of all its runs together; or the path of a NIfTI image.

    Returns
    -------
    Network

    Raises
    ------
    InterventionError
        If there is neither such a task nor such a file, or the task is not analysed.
    """
    tasks, images = tasks_or_images(session, [name])
    if images:
        return images[0]
    run = session.of(tasks[0]).first
    path = run.paths.network()
    if not path.exists():
        raise InterventionError(
            f"task {name!r} has no network yet; make it with: llm2nifti glm {session.root}"
        )
    return networks.from_mask(session.brain, bids.read_img(path), name=run.task)


def tasks_or_images(
    session: Session, names: Sequence[str]
) -> tuple[list[str], list[networks.Network]]:
    """Tasks, or networks of images, that a user's words mean; no word, or ``all``: every task.

    Raises
    ------
    InterventionError
        If a name is neither a task nor a file, or two files have the same name.
    """
    tasks = list(session.tasks)
    if not names or list(names) == ["all"]:
        return tasks, []
    labels = [_label(name) for name in names]
    if all(label in tasks for label in labels):
        return labels, []
    given: list[networks.Network] = []
    for name in names:
        if not Path(name).is_file():
            raise InterventionError(
                f"{name!r} is neither a task of the dataset ({', '.join(tasks)}) nor an image file"
            )
        network = image_network(session.brain, name)
        if any(network.name == other.name for other in given):
            raise InterventionError(
                f"two masks are named {network.name!r}; rename one of the files"
            )
        given.append(network)
    return [], given


def _label(name: str) -> str:
    """BIDS label of a task's name; empty if it can't have one."""
    try:
        return bids.label(name)
    except bids.LabelError:
        return ""
