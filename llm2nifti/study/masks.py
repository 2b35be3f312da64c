"""Which network is meant? A task of the dataset, or any mask image in the model's space."""

from __future__ import annotations

from pathlib import Path

from llm2nifti import bids, networks
from llm2nifti.bids import Session
from llm2nifti.geometry import ModelBrain
from llm2nifti.study.errors import StudyError


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
    StudyError
        If there is neither such a task nor such a file, or the task is not analysed.
    """
    if Path(name).is_file():
        return image_network(session.brain, name)
    try:
        run = session.of(name).first
    except bids.NoSuchRunError as error:
        raise StudyError(f"no file {name!r}, and {error}") from error
    path = run.paths.network()
    if not path.exists():
        raise StudyError(
            f"task {name!r} has no network yet; make it with: llm2nifti glm {session.root}"
        )
    return networks.from_mask(session.brain, bids.read_img(path), name=run.task)
