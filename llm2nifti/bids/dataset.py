"""What does a dataset say of itself? Descriptions, READMEs, participants, ignored files."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llm2nifti import __version__
from llm2nifti.bids import manifest
from llm2nifti.bids.files import WORK, ExistsError, write_json, write_text
from llm2nifti.bids.participants import PARTICIPANT_COLUMNS, SESSIONS, drop_rows
from llm2nifti.bids.paths import DERIVATIVES
from llm2nifti.bids.readers import read_json
from llm2nifti.media import MEDIA
from llm2nifti.stimuli import CONTROL

DESCRIPTION = "dataset_description.json"
PARTICIPANTS = "participants.tsv"
BIDS_VERSION = "1.10.0"
_MOST_NAMED = 10  # files in a message
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
  frames. Analyse these: tokens of one prompt are not independent observations. A model with random
  weights that was shown another model's tokens keeps nothing else: its raw run is the same
  (`Frames` is `trial`), and `*_desc-tokens_timeseries.tsv` has the tokens.
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
    """Write the files that do not depend on a run, unless they are there; under `shared`.

    Raises
    ------
    ExistsError
        If the folder holds something that is not a dataset of llm2nifti.
    """
    check_folder(root)
    if not is_begun(root):
        manifest.begin(root)
    derivative = root / DERIVATIVES
    config = {"ignore": [{"code": "SIDECAR_KEY_RECOMMENDED"}, {"code": "JSON_KEY_RECOMMENDED"}]}
    contents: dict[Path, str | dict[str, Any]] = {
        root / DESCRIPTION: _description(derivative=False),
        root / "README.md": README,
        root / ".bidsignore": f"{WORK}/\n",
        root / "participants.json": PARTICIPANT_COLUMNS,
        root / VALIDATOR_CONFIG: config,
        derivative / DESCRIPTION: _description(derivative=True),
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


def is_begun(root: Path) -> bool:
    """Whether the folder holds a dataset."""
    return (root / DESCRIPTION).exists()


def check_folder(root: Path) -> None:
    """Raise ExistsError unless the folder is new, empty or an llm2nifti dataset."""
    if root.exists() and not root.is_dir():
        raise ExistsError(f"{root} is a file; choose a new folder")
    foreign = root.exists() and any(p.name != WORK for p in root.iterdir())
    if foreign and not _is_ours(root):
        why = f": {DESCRIPTION} names it nowhere under GeneratedBy"
        raise ExistsError(
            f"{root} is not empty and is not an llm2nifti dataset"
            f"{why if (root / DESCRIPTION).exists() else ''}; choose a new folder"
        )


def _is_ours(root: Path) -> bool:
    """Whether a dataset says that we made it, or was begun by us and not yet described."""
    path = root / DESCRIPTION
    if not path.exists():
        return manifest.has_manifest(root)
    makers = read_json(path).get("GeneratedBy")
    names = [maker.get("Name") for maker in makers or [] if isinstance(maker, dict)]
    return "llm2nifti" in names


def remove_dataset(root: Path) -> None:
    """Delete what llm2nifti wrote to a dataset, as far as it is as it was written.

    Whatever else is there stays, and is named in a `ForeignFileWarning`.

    Raises
    ------
    ExistsError
        If the folder holds something else, a dataset that does not know its files, or one that
        has some of them in a folder somewhere else. Nothing is deleted then.
    """
    check_folder(root)
    if not root.exists() or all(path.name == WORK for path in root.iterdir()):
        return
    if not manifest.has_manifest(root):
        raise ExistsError(
            f"{root} has no {manifest.MANIFEST}, so nothing tells which files are its own; delete "
            "the folder yourself, or choose another"
        )
    ours = manifest.written(root)
    _check_links(root, ours)
    tables = [root / name for name in ours if name == PARTICIPANTS or name.endswith(SESSIONS)]
    for table in tables:
        drop_rows(table, root, {part for name in ours for part in Path(name).parts})
    # The description stays: it says that the folder is ours to write to.
    spared = {root / DESCRIPTION, *tables}
    manifest.remove(root, [path for path in map(root.joinpath, ours) if path not in spared])
    for work in (root / WORK).glob("*"):
        if work.is_dir() and work != root / manifest.ASIDE:
            shutil.rmtree(work, ignore_errors=True)
    _name_what_stays(root)


def _check_links(root: Path, names: Iterable[str]) -> None:
    """Raise ExistsError if files of ours are behind a link to another folder."""
    links = {f for name in names for f in manifest.folders(root, root / name) if f.is_symlink()}
    if links:
        raise ExistsError(
            f"{min(links)} is a link to another folder, where nothing is deleted; remove the link, "
            "or choose another folder"
        )


def _name_what_stays(root: Path) -> None:
    """Warn of the files that are left."""
    spared = {root / DESCRIPTION, root / manifest.MANIFEST}
    left = [p for p in sorted(root.rglob("*")) if p.is_symlink() or p.is_file()]
    left = [p for p in left if p not in spared and p.relative_to(root).parts[0] != WORK]
    if not left:
        return
    names = ", ".join(str(path) for path in left[:_MOST_NAMED])
    more = f" and {len(left) - _MOST_NAMED} more" if len(left) > _MOST_NAMED else ""
    warnings.warn(
        f"kept what llm2nifti did not write, or not as it is now: {names}{more}",
        manifest.ForeignFileWarning,
        stacklevel=3,
    )


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
