"""How is the comparison of several models told? Sentences and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from llm2nifti.experiments.group.parts import Carried, DepthLevel, ModelPair, VoxelLevel, Written
from llm2nifti.tell import Table
from llm2nifti.tell.wording import count, interval, number, p_value, percent, with_interval

LEAST = 6  # as in `llm2nifti.glm.second_level`, which needs nilearn
ABOUT_PAIRS = [
    "Debiased linear CKA of every parcel of one model with every parcel of the other, by what the "
    "same prompts evoke; means of runs and question frames are taken out. Best match: mean over "
    "the first model's parcels of the most similar parcel of the second. Beside it, the same with "
    "prompts shuffled within runs, and, where only which prompt of a condition is which is lost, "
    "within runs and conditions. Depth r: rank correlation of the relative depths of a parcel and "
    "of its best match. RDMs: whitened correlation of crossnobis distances of topics, beside "
    "exchanged topics.",
]
ABOUT_CARRIED = [
    "A task's effect in the source is written as a mixture of the source's responses to shared "
    "prompts (ridge regression), and the same mixture of the target's responses is compared, by "
    "its cosine, with the target's effect in a run that was held out. The regression has seen "
    "neither that run nor any prompt of the task in either model. Target's other runs: the "
    "target's effect from these in place of the carried one. Other tasks: the carried map with the "
    "target's maps of other tasks.",
]


Names = Mapping[str, str]  # what readers see in place of the names of models and sessions


def names_for(members: Sequence[str]) -> dict[str, str]:
    """Names for readers: of ``sub-a_ses-b``, ``a b``, or ``b`` where all are sessions of ``a``."""
    parts = {name: name.removeprefix("sub-").split("_ses-") for name in members}
    n_subjects = len({of_one[0] for of_one in parts.values()})
    first = 0 if n_subjects > 1 or min(map(len, parts.values())) < 2 else 1
    return {name: " ".join(of_one[first:]) for name, of_one in parts.items()}


def _too_few(n: int, what: str) -> str:
    """Say what so few maps do not show."""
    if n >= LEAST:
        return f"P values are family-wise: the largest t when maps of {n} {what} flip signs."
    return (
        f"With {n} {what}, no test at .05 over {what} is possible by sign flips (that takes "
        f"{LEAST}): what is shown holds for these {what}, and nothing can be concluded about "
        "others."
    )


def about_depth(levels: Sequence[DepthLevel], what: str) -> list[str]:
    """What is compared in the common space, and how far it can be generalised."""
    n = len(levels[0].models)
    return [
        "Layers of different models have no common number, units no common order. The common "
        "space has one cell for each site and bin of relative depth, and one value that no basis, "
        "width or scale changes: the squared length of a task's effect over units, from products "
        "of different runs, in units of the noise of a prompt. Without an effect it is 0 on "
        "average.",
        _too_few(n, what),
    ]


def depth_table(levels: Sequence[DepthLevel], names: Names) -> Table:
    """Where effects are largest, and what passes."""
    rows = []
    for level in levels:
        if level.kind != "effect":
            continue
        profile = next(x for x in levels if (x.task, x.kind) == (level.task, "profile"))
        cells = {s: np.mean([g[s] for g in level.models.values()], axis=0) for s in level.t}
        site = max(cells, key=lambda name: float(cells[name].max()))
        at = int(np.argmax(cells[site]))
        row = {"Task": level.task, "Largest at": f"{site}, {_depth(at, len(cells[site]))} deep"}
        for name, grid in level.models.items():
            row[names[name]] = number(grid[site][at], 3)
        row["Mean of all cells"] = number(float(np.mean(list(cells.values()))), 3)
        row["Cells with an effect"] = _passing(level)
        row["Cells unlike the mean"] = _passing(profile)
        rows.append(row)
    return Table.of("Effect energy in the common space", rows, ("Task", "Largest at"))


def _depth(i: int, n: int) -> str:
    """Middle of a bin in percent."""
    return percent((i + 0.5) / n, 0)


def _passing(level: DepthLevel) -> str:
    """Cells at a family-wise .05."""
    if level.p_max is None:
        return "not tested"
    p = np.array(list(level.p_max.values()))
    return f"{count(int((p < 0.05).sum()))} of {count(p.size)}"


def about_voxels(levels: Sequence[VoxelLevel]) -> list[str]:
    """What is compared unit by unit."""
    n = min(len(level.sessions) for level in levels)
    return [
        "Sessions of one geometry are compared unit by unit: SecondLevelModel on their effect "
        "maps. That asks for units in the same order, which checkpoints, data types and seeds of "
        "sampling share and models trained apart do not: correlations of maps near 0 mean that "
        "the rest of this table says nothing. Sessions saw the same prompts, so what varies is "
        "the session alone, and not the stimuli.",
        _too_few(n, "sessions"),
    ]


def voxel_table(levels: Sequence[VoxelLevel]) -> Table:
    """Second level over sessions."""
    rows = [
        {
            "Task": level.task,
            "Sessions": count(len(level.sessions)),
            "Same task r": with_interval(level.same_r.value, level.same_r),
            "Different tasks r": number(level.cross_r),
            "p < .05 (5 % by chance)": percent(level.below_05),
            "FDR .05": f"{count(level.n_fdr)} of {count(level.n_units)}",
            "Family-wise .05": "not tested" if level.n_max is None else count(level.n_max),
        }
        for level in levels
    ]
    return Table.of("Effects over sessions of one geometry; ranges over pairs", rows)


def pair_tables(pairs: Sequence[ModelPair], names: Names) -> list[Table]:
    """Similarity of models."""
    rows, rdms = [], []
    for pair in pairs:
        name = f"{names[pair.a]}, {names[pair.b]}"
        row = {
            "Models": name,
            "Mean": number(pair.mean),
            "Best match": number(pair.best),
            "Shuffled": interval(pair.best_null),
            "p": p_value(pair.best_p),
            "Within conditions": number(pair.condition),
            "Cells above all shuffled": percent(pair.share_above),
            "Depth r": number(pair.depth_r),
            "Shuffled ": interval(pair.depth_null),
            "p ": p_value(pair.depth_p),
        }
        if any(other.untrained is not None for other in pairs):
            row["First untrained"] = number(pair.untrained)
        rows.append(row)
        if pair.rdm_best is not None and pair.rdm_p is not None:
            rdms.append(
                {
                    "Models": name,
                    "Topics": count(pair.n_topics or 0),
                    "Best match of RDMs": number(pair.rdm_best),
                    "Exchanged topics": interval(pair.rdm_null),
                    "p": p_value(pair.rdm_p),
                }
            )
    tables = [Table.of("Similarity of parcels by CKA", rows)]
    return [*tables, Table.of("Similarity of parcels by RDMs", rdms)] if rdms else tables


def carried_tables(
    carried: Sequence[Carried], written: Sequence[Written], names: Names
) -> list[Table]:
    """Carried maps, and networks that were written."""
    rows = []
    for one in carried:
        row = {
            "From": names[one.source],
            "Into": names[one.target],
            "Task": one.task,
            "Cosine": with_interval(one.cosine.value, one.cosine),
            "Shuffled": interval(one.null),
            "p": p_value(one.p),
            "Other tasks": number(one.cross),
            "Target's other runs": number(one.repeat),
        }
        if any(other.untrained is not None for other in carried):
            row["From untrained"] = number(one.untrained)
        rows.append(row)
    words = ("From", "Into", "Task")
    tables = [Table.of("Carried maps; ranges over held-out runs", rows, words)]
    nets = [
        {
            "Network": one.what,
            "From": names[one.source],
            "File": one.mask,
            "Units": count(one.n_units),
            "Dice with the target's": number(one.dice),
            "Shuffled": interval(one.null),
            "p": "–" if one.p is None else p_value(one.p),
        }
        for one in written
    ]
    if nets:
        tables.append(Table.of("Carried networks", nets, ("Network", "From", "File")))
    return tables
