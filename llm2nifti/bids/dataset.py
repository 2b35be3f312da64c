"""What does a dataset say of itself? Descriptions, READMEs, participants, ignored files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from llm2nifti import __version__
from llm2nifti.bids.files import WORK, ExistsError, read_tsv, write_json, write_text
from llm2nifti.bids.participants import PARTICIPANT_COLUMNS
from llm2nifti.bids.paths import DERIVATIVES
from llm2nifti.media import MEDIA
from llm2nifti.stimuli import CONTROL

BIDS_VERSION = "1.10.0"
SUMMARY = DERIVATIVES / "summary.json"
VALIDATOR_CONFIG = ".bids-validator-config.json"
AUTHORS = ["The llm2nifti developers", "The authors of the scanned model"]
PAPER = (
    "Nencka AS, Muftuler LT, LaViolette P, Koch KM (2023). On Functional Activations in Deep "
    "Neural Networks. arXiv:2311.10898"
)
README = """# Language model activations as task fMRI runs

This dataset was written by llm2nifti. The participants are language models: each was shown
block-designed prompts, images or sounds, and the outputs of its layers were recorded while it
generated or read.
**No one took part, no brain was measured and nothing here is BOLD signal**: the suffix `bold` is
used because the tools for task fMRI read it. One voxel is one unit (one scalar output of one layer)
and one volume is one frame (one generated token, or a token, a word or the whole of a stimulus that
was read: see `Frames` in the sidecars); a frame lasts 1 s by convention.

- `sub-*/func/*_bold.nii`: one volume a frame. `*_events.tsv`: one row a prompt, image or sound.
  `participants.tsv` describes the models. One that was recorded in several ways (revisions, data
  types, seeds) has sessions: `sub-*/ses-*/func/`, described in `sub-*/sub-*_sessions.tsv`.
- `derivatives/llm2nifti/sub-*/func/*_desc-trial_bold.nii`: one volume a prompt, the mean of its
  frames. Analyse these: tokens of one prompt are not independent observations.
- `derivatives/llm2nifti/sub-*/anat/`: where the units live: atlas by layer and site (`_dseg`), the
  table of units, and an anatomical image made of weight norms.

## Analysis with nilearn

    from nilearn.glm.first_level import first_level_from_bids

The derivative sidecars hold `StartTime` and `RepetitionTime`, and control prompts are the baseline
once their rows are dropped from the events. Use no HRF, no drift, no scaling and no smoothing.

## Validation

`bids-validator-deno . --config .bids-validator-config.json` gives no error and no warning. The
configuration ignores only recommended sidecar keys that describe a scanner (echo time, flip angle,
coil, ...): a language model has none, and inventing them would be worse than leaving them out.
Without it there is still no error.
"""
DERIVATIVE_README = """# llm2nifti derivatives

Prompt-level runs (`_desc-trial_bold`), masks, atlas, statistical maps, networks, figures and the
report (`report.html`, numbers in `summary.json`; with several models or sessions also one in each
folder). One voxel is one unit of a language model;
nothing here is BOLD signal and no one took part. Neighbouring voxels hold units that are
neighbours in an arbitrary order: smoothing and cluster statistics mean nothing.
"""
# What interventions write, of all runs together: hours of work.
RESULTS = (
    "lesion.json",
    "lesion_masks.json",
    "steer.json",
    "detection.json",
    "training.json",
)
IGNORED = [
    "*.html",
    "summary.json",
    *RESULTS,
    "*_evaluations.jsonl",
    "figures",
    "figures/",
    "*_statmap.*",
    "*_timeseries.*",
    "*_units.tsv",
    "*_desc-trial_events.tsv",
]


def write_dataset_files(root: Path) -> None:
    """Write the files that do not depend on a run, unless they are there.

    Raises
    ------
    ExistsError
        If the folder holds something that is not a dataset of llm2nifti.
    """
    check_folder(root)
    derivative = root / DERIVATIVES
    config = {"ignore": [{"code": "SIDECAR_KEY_RECOMMENDED"}, {"code": "JSON_KEY_RECOMMENDED"}]}
    # The description comes first: it says whose folder this is, also after an interruption.
    contents: dict[Path, str | dict[str, Any]] = {
        root / "dataset_description.json": _description(derivative=False),
        root / "README.md": README,
        root / ".bidsignore": f"{WORK}/\n",
        root / "participants.json": PARTICIPANT_COLUMNS,
        root / VALIDATOR_CONFIG: config,
        derivative / "dataset_description.json": _description(derivative=True),
        derivative / "README.md": DERIVATIVE_README,
        derivative / ".bidsignore": "\n".join(IGNORED) + "\n",
        derivative / VALIDATOR_CONFIG: config,
    }
    for path, content in contents.items():
        if path.exists():
            continue
        if isinstance(content, str):
            write_text(path, root, content)
        else:
            write_json(path, root, content)


def check_folder(root: Path) -> None:
    """Raise ExistsError unless the folder is new, empty or an llm2nifti dataset."""
    if root.exists() and not root.is_dir():
        raise ExistsError(f"{root} is a file; choose a new folder")
    foreign = root.exists() and any(p.name != WORK for p in root.iterdir())
    if foreign and not _is_ours(root):
        raise ExistsError(
            f"{root} is not empty and is not an llm2nifti dataset; choose a new folder"
        )


def remove_dataset(root: Path) -> None:
    """Delete what llm2nifti wrote to a dataset; files of other tools stay.

    Raises
    ------
    ExistsError
        If the folder holds something else.
    """
    check_folder(root)
    if not _is_ours(root):
        return
    people = root / "participants.tsv"
    named = list(read_tsv(people)["participant_id"]) if people.exists() else []
    # A table that was edited by hand must not lead out of the dataset, or to all of it.
    ours = [name for name in named if re.fullmatch(r"sub-[0-9A-Za-z]+", str(name))]
    shown = [name for subject in ours for name in _images_of(root / subject)]
    for path in [*(root / name for name in ours), root / DERIVATIVES]:
        if path.exists():
            shutil.rmtree(path)
    single = ["README.md", "participants.tsv", "participants.json", ".bidsignore"]
    # The description stays: it says that the folder is ours to write to.
    single += [VALIDATOR_CONFIG, "code/llm2nifti_plan.json"]
    single += [f"stimuli/{name}" for name in shown]
    for path in [*root.glob("task-*_events.json"), *(root / name for name in single)]:
        path.unlink(missing_ok=True)
    for work in (root / WORK).glob("*"):
        if work.is_dir():
            shutil.rmtree(work, ignore_errors=True)


def _images_of(folder: Path) -> set[str]:
    """Images under ``stimuli/`` that a model was shown."""
    tables = [read_tsv(path) for path in folder.glob("**/func/*_events.tsv")]
    shown = {str(name) for t in tables if "stim_file" in t for name in t["stim_file"]}
    return {name for name in shown if name == Path(name).name}


def _is_ours(root: Path) -> bool:
    """Whether a folder has our description, which is written first."""
    path = root / "dataset_description.json"
    return path.exists() and '"llm2nifti"' in path.read_text("utf-8")


def _description(*, derivative: bool) -> dict[str, Any]:
    """Content of dataset_description.json."""
    kind = "prompt-level runs and maps" if derivative else "activations as task runs"
    content: dict[str, Any] = {
        "Name": f"Language model {kind}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative" if derivative else "raw",
        "License": "CC0",
        "Authors": AUTHORS,
        "Keywords": ["language model", "activations", "task design"],
        "Acknowledgements": "n/a",
        "HowToAcknowledge": "Cite llm2nifti and the scanned model.",
        "Funding": ["n/a"],
        "EthicsApprovals": ["No human or animal took part."],
        "ReferencesAndLinks": [PAPER],
        "HEDVersion": "8.3.0",
        "GeneratedBy": [
            {
                "Name": "llm2nifti",
                "Version": __version__,
                "Description": "Records language models as task fMRI runs.",
            }
        ],
        "SourceDatasets": [{"URL": "bids::../../", "Version": __version__}]
        if derivative
        else [{"URL": "bids::stimuli", "Version": __version__}],
    }
    if derivative:
        content["DatasetLinks"] = {"raw": "../../"}
    return content


def write_events_json(root: Path, task: str, title: str, *, medium: str = "") -> None:
    """Write the root sidecar that explains the columns of a task's events."""
    path = root / f"task-{task}_events.json"
    if path.exists():
        return
    levels = {task: f"prompts about {title}", CONTROL: "prompts about unrelated everyday topics"}
    if medium:
        levels = {task: f"{MEDIA[medium]} of {title}", CONTROL: f"control {MEDIA[medium]}"}
    content: dict[str, Any] = {
        "onset": {"Description": "Start of the trial's first frame", "Units": "s"},
        "duration": {"Description": "Frames of the trial times the frame time", "Units": "s"},
        "trial_type": {"Description": "Condition of the block", "Levels": levels},
        "block": {"Description": "Number of the block in the run, from 1"},
        "stim_id": {"Description": "Identifier of the prompt in the stimulus set"},
        "topic": {"Description": "Subfield or everyday topic of the concept"},
        "concept": {"Description": "Noun phrase that the prompt asks about"},
        "question_frame": {"Description": "Sentence pattern of the prompt; a nuisance factor"},
        "prompt": {"Description": "Text that was shown"},
        "response": {"Description": "Text that the model generated"},
        "StimulusPresentation": {
            "OperatingSystem": "n/a",
            "SoftwareName": "llm2nifti",
            "SoftwareVersion": __version__,
            "Code": "n/a",
        },
    }
    if medium:
        shown = f"File of the {MEDIA[medium].removesuffix('s')} that was shown, under stimuli/"
        content["stim_file"] = {"Description": shown}
    write_json(path, root, content)
