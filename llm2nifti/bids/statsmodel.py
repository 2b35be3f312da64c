"""How is a task analysed, in words that other programs read? A BIDS Stats Model a task.

It describes what `llm2nifti.glm.fit` does: pybids and fitlins make the same design of it. `root` is
a dataset, `task` a BIDS label, and `runs` are the trials or the events of the task's runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from llm2nifti.bids.files import write_json
from llm2nifti.stimuli.tables import CONTROL, ROLE

# A BIDS Stats Model has no words for these, only for what is a program's own.
_NILEARN = {
    "hrf_model": None,
    "drift_model": None,
    "signal_scaling": False,
    "noise_model": "ols",
    "smoothing_fwhm": None,
}
_DESCRIPTION = (
    "Ordinary least squares on one volume a prompt, which is the unit of inference, without HRF, "
    "drift, scaling or smoothing; question frames are nuisance; runs combine as fixed effects."
)


def path(root: Path, task: str) -> Path:
    """File of a task's model."""
    return root / "code" / f"model-{task}_smdl.json"


def write(root: Path, task: str, runs: Iterable[pd.DataFrame]) -> None:
    """Write the model of a task, unless it is there."""
    if not path(root, task).exists():
        write_json(path(root, task), root, content(task, runs))


def content(task: str, runs: Iterable[pd.DataFrame]) -> dict[str, object]:
    """Model of a task by the BIDS Stats Models Specification 1.0.

    Returns
    -------
    dict
        Content of the JSON file: a node for each run, and one that combines runs.

    Examples
    --------
    >>> model = content("pathology", [pd.DataFrame({"trial_type": ["control", "pathology"]})])
    >>> model["Nodes"][0]["Model"]["X"]
    [1, 'trial_type.pathology']
    """
    tables = list(runs)
    weights = _weights(task, tables)
    columns: list[object] = [1, *weights]
    steps: list[dict[str, object]] = [{"Name": "Factor", "Input": ["trial_type"]}]
    if any(map(_has_pairs, tables)):
        columns.append("pair.*")
        steps += [
            {"Name": "Factor", "Input": ["pair"], "Constraint": "drop_one"},
            {"Name": "Demean", "Input": ["pair.*"]},
        ]
    if any(map(_has_frames, tables)):
        # Trials without a frame are left out of the means that are taken off: they have 0 then,
        # and are compared with what the others do on average over frames.
        columns.append("question_frame.*")
        steps += [
            {"Name": "DropNA", "Input": ["question_frame"]},
            {"Name": "Factor", "Input": ["question_frame"], "Constraint": "drop_one"},
            {"Name": "Demean", "Input": ["question_frame.*"]},
        ]
    name = f"{task}VsControl"
    of_conditions = {"ConditionList": list(weights), "Weights": list(weights.values())}
    contrast = {"Name": name, **of_conditions, "Test": "t"}
    run = {
        "Level": "Run",
        "Name": "run",
        "GroupBy": ["run", "session", "subject"],
        "Transformations": {"Transformer": "pybids-transforms-v1", "Instructions": steps},
        "Model": {"Type": "glm", "X": columns, "Software": {"nilearn": _NILEARN}},
        "Contrasts": [contrast],
    }
    combined = {
        "Level": "Subject",
        "Name": "subject",
        "GroupBy": ["contrast", "session", "subject"],
        # The specification's "meta" would be a test between runs in fitlins 0.11.
        "Model": {"Type": "Meta", "X": [1]},
        "DummyContrasts": {"Test": "t"},
    }
    return {
        "Name": name,
        "BIDSModelVersion": "1.0.0",
        "Description": _DESCRIPTION,
        "Input": {"task": [task], "desc": ["trial"]},
        "Nodes": [run, combined],
        "Edges": [{"Source": "run", "Destination": "subject"}],
    }


def _weights(task: str, tables: Sequence[pd.DataFrame]) -> dict[str, float]:
    """Weights of conditions in the task's contrast.

    One of the control is the baseline: with a column of its own, the columns would add up to the
    constant.
    """
    sides = {CONTROL: CONTROL, task: "task"}
    for table in (table for table in tables if ROLE in table):
        sides = dict(sorted(zip(table["trial_type"], table[ROLE], strict=True)))
    n = Counter(sides.values())
    weights = {f"trial_type.{k}": 1 / n[v] if v == "task" else -1 / n[v] for k, v in sides.items()}
    baseline = next(f"trial_type.{name}" for name, side in sides.items() if side == CONTROL)
    return {name: weight for name, weight in weights.items() if name != baseline}


def _has_frames(trials: pd.DataFrame) -> bool:
    """Whether trials have question frames, and not all the same."""
    return "question_frame" in trials and len({*trials["question_frame"]} - {""}) > 1


def _has_pairs(trials: pd.DataFrame) -> bool:
    """Whether every trial is of a minimal pair that two conditions share."""
    if ROLE not in trials or "pair" not in trials or trials["pair"].isna().any():
        return False
    return bool(trials.groupby("pair")["trial_type"].nunique().gt(1).any())
