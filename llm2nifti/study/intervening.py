"""The whole experiment of lesions, or of steering: networks, matched controls, untrained copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from llm2nifti import bids
from llm2nifti.bids import Run, Session
from llm2nifti.networks import Network
from llm2nifti.study.bench import Bench
from llm2nifti.study.conditions import Condition, Sizes, default_sites
from llm2nifti.study.effects import evaluations_of, is_measured, results, sweep
from llm2nifti.study.errors import StudyError
from llm2nifti.study.masks import image_network
from llm2nifti.study.reloading import reload


def intervene(
    root: Path,
    conditions: Sequence[Condition] = (Condition(),),
    *,
    sizes: Sizes | None = None,
    which: str = "all",
    subject: str | None = None,
    session: str | None = None,
    untrained: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Lesion or steer networks of a dataset's model and write what that does to text.

    Parameters
    ----------
    root : Path
        Root of the dataset.
    conditions : sequence of Condition
        How to intervene; the first is the one that the table and the report show. What was
        measured earlier of other conditions is kept beside them.
    sizes : Sizes, optional
        How much to measure.
    which : str, default="all"
        ``all`` tasks' networks, names of tasks separated by commas, or paths of mask images.
    subject, session : str, optional
        See `llm2nifti.bids.read`.
    untrained : bool, default=True
        Do the same with the untrained copy, where the dataset has one.
    **options : dict
        ``model_name``: where the model is, if the dataset does not say it; ``device``,
        ``trust_remote_code``: see `llm2nifti.models.load`; ``overwrite``: forget what was measured
        before; ``quiet``: show no progress bars.

    Returns
    -------
    dict
        The content of ``lesion.json``, of ``lesion_masks.json`` where masks were given, or of
        ``steer.json``, in the session's `llm2nifti.bids.analysis_folder`: the
        ``effects[network][task]`` of the first condition, the same of the untrained model, and all
        ``conditions``.

    Raises
    ------
    StudyError
        If the request makes no sense for the dataset, or the model is not the one that was scanned.
    """
    sizes = sizes or Sizes()
    root = Path(root)
    recording = bids.session(root, subject=subject, session=session)
    tasks, given = read_networks(recording, which)
    folder = recording.folder
    groups = [recording]
    if untrained and not given and recording.untrained:
        groups.append(recording.untrained)
    conditions = [_resolved(condition, recording.first, given) for condition in conditions]
    kind = _kind_of(conditions, given)
    path = folder / f"{kind}.json"
    earlier = [condition for condition in _earlier(path) if condition not in conditions]
    measured: list[list[dict[str, Any]]] = []
    for group in groups:
        model = reload(
            group.first,
            name=options.get("model_name"),
            device=options.get("device", "cpu"),
            trust_remote_code=options.get("trust_remote_code", False),
        )
        bench = Bench(model, group, sizes, tasks=tasks, given=given)
        kept = evaluations_of(folder, bench, kind, overwrite=options.get("overwrite", False))
        sweep(bench, conditions, kept, quiet=options.get("quiet", False))
        known = [condition for condition in earlier if is_measured(bench, condition, kept)]
        measured.append([results(bench, condition, kept) for condition in [*conditions, *known]])
    content = {
        "model": recording.model,
        "held_out": not given,
        "sizes": asdict(sizes),
        "effects": measured[0][0]["effects"],
        "conditions": measured[0],
        "untrained": None,
    }
    if len(measured) > 1:
        content["untrained"] = {"effects": measured[1][0]["effects"], "conditions": measured[1]}
    bids.write_json(path, root, content)
    return content


def _kind_of(conditions: Sequence[Condition], given: Sequence[Network]) -> str:
    """Stem of the file of the results: lesions and steering are kept apart."""
    is_steering = {condition.mode == "steer" for condition in conditions}
    if len(is_steering) > 1:
        raise StudyError(
            "lesions and steering are measured apart; ask for them one after the other"
        )
    return "lesion_masks" if given else "steer" if True in is_steering else "lesion"


def _earlier(path: Path) -> list[Condition]:
    """Conditions of an earlier result."""
    if not path.exists():
        return []
    names = [field.name for field in fields(Condition)]
    kept = bids.read_json(path, {"conditions": list})["conditions"]
    values = [{name: condition[name] for name in names if name in condition} for condition in kept]
    return [Condition(**{**value, "sites": tuple(value["sites"])}) for value in values]


def read_networks(session: Session, which: str) -> tuple[list[str], list[Network]]:
    """Tasks or given networks that a user's words mean.

    Parameters
    ----------
    session : Session
        Runs of one model.
    which : str
        ``all``, names of tasks, or paths of images, separated by commas.

    Returns
    -------
    list of str
        Tasks whose networks come from the runs; none for images.
    list of Network
        Networks of the images; none for tasks.

    Raises
    ------
    StudyError
        If a name is neither a task nor a file, or two files have the same name.
    """
    tasks = list(session.tasks)
    words = tasks if which == "all" else [word.strip() for word in which.split(",")]
    if all(word in tasks for word in words):
        return words, []
    given: list[Network] = []
    for word in words:
        if not Path(word).is_file():
            raise StudyError(
                f"{word!r} is neither a task of the dataset ({', '.join(tasks)}) nor an image file"
            )
        network = image_network(session.brain, word)
        if any(network.name == other.name for other in given):
            raise StudyError(f"two masks are named {network.name!r}; rename one of the files")
        given.append(network)
    return [], given


def _resolved(condition: Condition, run: Run, given: Sequence[Network]) -> Condition:
    """Condition with its sites named; given networks are lesioned as they are."""
    if given and condition.mode == "steer":
        raise StudyError("a mask has no effect to steer along; steer networks of tasks")
    if given and condition.sites:
        raise StudyError("masks say themselves where their units are; leave the sites out")
    if given:
        return replace(condition, share=None)
    names = condition.sites or default_sites(run.brain)
    recorded = list(dict.fromkeys(site.name for site in run.brain.sites))
    unknown = [name for name in names if name not in recorded]
    if unknown:
        raise StudyError(
            f"the dataset has no site {unknown[0]!r}; it was scanned with {', '.join(recorded)}"
        )
    return replace(condition, sites=names)
