"""Which model, and which network, is meant? The one that was scanned; a task, or a mask image."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from llm2nifti import bids, models, networks
from llm2nifti.bids import Run, Session
from llm2nifti.geometry import ModelBrain
from llm2nifti.interventions.acts import InterventionError
from llm2nifti.models import LoadedModel
from llm2nifti.networks import Network
from llm2nifti.plans import WithModel


def reload(run: Run, plan: WithModel | None = None, *, other_weights: bool = False) -> LoadedModel:
    """Load the model of a run, or of its untrained copy, and make sure that it is the same.

    The plan says where it is if the dataset does not (a folder or file is known to it only by its
    own name), and where to put it. InterventionError if its weights are not those that were
    scanned, which `other_weights` makes a warning; ModelError if it can't be found.
    """
    plan = plan or WithModel()
    scanned = run.sidecar["Model"]
    revision = str(scanned.get("Revision", "n/a"))
    try:
        model = models.load(
            plan.model or str(scanned["Name"]),
            untrained=str(scanned["WeightsHash"]).startswith("random weights"),
            device=plan.device,
            trust_remote_code=plan.trust_remote_code,
            dtype=str(scanned["DType"]),
            revision=None if revision == "n/a" else revision,
        )
    except models.ModelError as error:
        hint = "" if plan.model else "; say where it is with model=..."
        raise models.ModelError(f"{error}{hint}") from error
    loaded, expected = model.source["WeightsHash"], scanned["WeightsHash"]
    if not models.has_weights(model, expected):
        message = (
            f"model {model.name!r} has other weights ({loaded}) than those that sub-{run.subject} "
            f"was scanned with ({expected})"
        )
        if not other_weights:
            raise InterventionError(f"{message}; give the scanned model with model=...")
        warnings.warn(message, stacklevel=2)
    return model


def tasks_or_images(session: Session, names: Sequence[str]) -> tuple[list[str], list[Network]]:
    """Tasks, or networks of images, that a user's words mean; no word, or ``all``: every task.

    InterventionError if a name is neither a task nor a file, or two files have the same name.
    """
    tasks = list(session.tasks)
    if not names or list(names) == ["all"]:
        return tasks, []
    labels = []
    with suppress(bids.LabelError):  # no task has a name that can't be a label
        labels = [bids.label(name) for name in names]
    if labels and set(labels) <= set(tasks):
        return labels, []
    given: dict[str, Network] = {}
    for name in names:
        if not Path(name).is_file():
            raise InterventionError(
                f"{name!r} is neither a task of the dataset ({', '.join(tasks)}) nor an image file"
            )
        network = image_network(session.brain, name)
        if network.name in given:
            raise InterventionError(
                f"two masks are named {network.name!r}; rename one of the files"
            )
        given[network.name] = network
    return [], list(given.values())


def image_network(brain: ModelBrain, path: str) -> Network:
    """Network of a NIfTI image in a model's space, under the name of its file."""
    name = Path(path).name.removesuffix(".gz").removesuffix(".nii")
    return networks.from_mask(brain, bids.read_img(Path(path)), name=name)


def read_network(session: Session, name: str) -> Network:
    """Network that a dataset holds, of all runs of a task together, or that of an image.

    InterventionError if there is neither such a task nor such a file, or the task is not analysed.
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
