"""The whole lesion experiment on a dataset: networks, matched controls, the untrained model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel as nib
import pandas as pd

from llm2nifti import bids, networks
from llm2nifti.bids import Run
from llm2nifti.networks import Network
from llm2nifti.study.lesion_bench import (
    FULL,
    Bench,
    Condition,
    Sizes,
    default_sites,
    evaluations_of,
    results,
    sweep,
)
from llm2nifti.study.lock import StudyError
from llm2nifti.study.reloading import reload

__all__ = ["FULL", "RESULT", "Condition", "Sizes", "lesion_dataset", "read_networks"]

RESULT = "lesion.json"
MASKS = "lesion_masks.json"  # the same of masks that were given


def lesion_dataset(
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
    """Lesion networks of a dataset's model and write what that does to ``lesion.json``.

    Parameters
    ----------
    root : Path
        Root of the dataset.
    conditions : sequence of Condition
        How to lesion; the first is the one that the summary shows. Others that were measured before
        are kept.
    sizes : Sizes, optional
        How much to measure.
    which : str, default="all"
        ``all`` tasks' networks, names of tasks separated by commas, or paths of mask images.
    subject, session : str, optional
        See `llm2nifti.bids.read`.
    untrained : bool, default=True
        Do the same with the untrained copy, where the dataset has one.
    **options : dict
        ``model_name``: where the model is, if the dataset does not say it; ``device``;
        ``overwrite``: forget earlier results; ``quiet``: show no progress bars.

    Returns
    -------
    dict
        The content of ``lesion.json``, or of ``lesion_masks.json`` where masks were given, in the
        session's `llm2nifti.bids.analysis_folder`: ``effects[network][task]`` of the first
        condition, the same of the untrained model, and all ``conditions``.
    """
    sizes = sizes or Sizes()
    root = Path(root)
    runs = bids.read_all(root, subject=subject, session=session)
    tasks, given = read_networks(runs, which)
    folder = bids.analysis_folder(root, runs[0].subject, runs[0].session)
    groups = [runs]
    copy = untrained_runs(root, runs) if untrained and not given else []
    if copy:
        groups.append(copy)
    conditions = [_resolved(condition, runs[0], given) for condition in conditions]
    found: list[list[dict[str, Any]]] = []
    for group in groups:
        name = options.get("model_name")
        model = reload(group[0], name=name, device=options.get("device", "cpu"))
        bench = Bench(model, group, sizes, tasks=tasks, given=given)
        kept = evaluations_of(folder, bench, overwrite=options.get("overwrite", False))
        sweep(bench, conditions, kept, quiet=options.get("quiet", False))
        found.append([results(bench, condition, kept) for condition in conditions])
    content = {
        "model": runs[0].sidecar["Model"],
        "held_out": not given,
        "sizes": asdict(sizes),
        "effects": found[0][0]["effects"],
        "conditions": found[0],
        "untrained": None if len(found) < 2 else {"effects": found[1][0]["effects"]},
    }
    if len(found) > 1:
        content["untrained"]["conditions"] = found[1]
    bids.write_json(folder / (MASKS if given else RESULT), root, content)
    return content


def read_networks(runs: Sequence[Run], which: str) -> tuple[list[str], list[Network]]:
    """Tasks or given networks that a user's words mean.

    Parameters
    ----------
    runs : sequence of Run
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
        If a name is neither a task nor a file.
    """
    tasks = list(dict.fromkeys(run.task for run in runs))
    words = tasks if which == "all" else [word.strip() for word in which.split(",")]
    if all(word in tasks for word in words):
        return words, []
    given = []
    for word in words:
        if not Path(word).is_file():
            raise StudyError(
                f"{word!r} is neither a task of the dataset ({', '.join(tasks)}) nor an image file"
            )
        name = Path(word).name.removesuffix(".gz").removesuffix(".nii")
        given.append(networks.from_mask(runs[0].brain, nib.load(word), name=name))
    return [], given


def untrained_runs(root: Path, runs: Sequence[Run]) -> list[Run]:
    """Runs of the untrained copy of the same tasks, or none."""
    label = bids.label(f"{runs[0].subject}-untrained")
    listed = bids.runs(root)
    there = listed[(listed["subject"] == label) & (listed["session"] == runs[0].session)]
    if there.empty:
        return []
    found = bids.read_all(root, subject=label, session=runs[0].session)
    wanted = {(run.task, run.run) for run in runs}
    return [run for run in found if (run.task, run.run) in wanted]


def _resolved(condition: Condition, run: Run, given: Sequence[Network]) -> Condition:
    """Condition with its sites named; given networks are lesioned as they are."""
    if given:
        return Condition(mode=condition.mode, share=None)
    names = condition.sites or default_sites(run)
    recorded = list(dict.fromkeys(site.name for site in run.brain.sites))
    unknown = [name for name in names if name not in recorded]
    if unknown:
        raise StudyError(
            f"the dataset has no site {unknown[0]!r}; it was scanned with {', '.join(recorded)}"
        )
    return Condition(names, condition.mode, condition.share)


def table(content: dict[str, Any]) -> str:
    """Effects as text: one row a network, one column a task, then what they say together.

    Parameters
    ----------
    content : dict
        Of ``lesion.json``.
    """
    first = content["conditions"][0]
    rows = {
        name: {
            task: f"{e['excess']:+.3f}{'*' if e['excess_interval'][1] < 0 else ''}"
            for task, e in effects.items()
        }
        for name, effects in first["effects"].items()
    }
    share = "" if first["share"] is None else f", {first['share']:.1%} of the units"
    lines = [
        f"lesion ({first['mode']}{share}): change in nats a token beyond matched random units",
        "rows: the network that is lesioned; columns: whose text; *: the 95 % interval is below 0",
        pd.DataFrame.from_dict(rows, orient="index").to_string(),
    ]
    for who, condition in (("", first), ("untrained: ", _first_untrained(content))):
        if condition and "selectivity" in condition:
            lines.append(who + _selectivity_sentence(condition))
    if not content["held_out"]:
        lines.append("the masks were given: whether they saw these texts is not known")
    return "\n".join(lines)


def _first_untrained(content: dict[str, Any]) -> dict[str, Any] | None:
    """First condition of the untrained model."""
    return content["untrained"]["conditions"][0] if content["untrained"] else None


def _selectivity_sentence(condition: dict[str, Any]) -> str:
    """Selectivity and double dissociations in words."""
    s, pairs = condition["selectivity"], condition["double_dissociations"]
    low, high = s["interval"]
    held = sum(pair["holds"] for pair in pairs)
    chance = sum(pair["random_holds"] for pair in pairs) / len(pairs)
    return (
        f"own task minus other tasks: {s['value']:+.3f} [{low:+.3f}, {high:+.3f}], "
        f"matched random {min(s['random']):+.3f} to {max(s['random']):+.3f}; "
        f"double dissociations: {held} of {len(pairs)} pairs (random units cross over in "
        f"{chance:.0%})"
    )
