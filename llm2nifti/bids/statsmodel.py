"""How is a task analysed, in words that other programs read? A BIDS Stats Model a task.

It describes what `llm2nifti.glm.fit` does: pybids and fitlins make the same design of it. `root` is
a dataset, `task` a BIDS label, and `runs` are the trials or the events of the task's runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from llm2nifti.bids.files import write_json

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
    # Control is the baseline: with a column of its own, the columns would add up to the constant.
    columns = [1, f"trial_type.{task}"]
    steps: list[dict[str, object]] = [{"Name": "Factor", "Input": ["trial_type"]}]
    if any(map(_has_frames, runs)):
        # Trials without a frame are left out of the means that are taken off: they have 0 then,
        # and are compared with what the others do on average over frames.
        columns.append("question_frame.*")
        steps += [
            {"Name": "DropNA", "Input": ["question_frame"]},
            {"Name": "Factor", "Input": ["question_frame"], "Constraint": "drop_one"},
            {"Name": "Demean", "Input": ["question_frame.*"]},
        ]
    name = f"{task}VsControl"
    contrast = {"Name": name, "ConditionList": columns[1:2], "Weights": [1], "Test": "t"}
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


def _has_frames(trials: pd.DataFrame) -> bool:
    """Whether trials have question frames, and not all the same."""
    return "question_frame" in trials and len({*trials["question_frame"]} - {""}) > 1
