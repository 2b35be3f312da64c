"""What does a dataset say of itself? Descriptions, READMEs, ignored files. What may be deleted?"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

from llm2nifti import __version__
from llm2nifti.bids import manifest
from llm2nifti.bids.files import WORK, ExistsError, write_json, write_text
from llm2nifti.bids.participants import PARTICIPANT_COLUMNS, PARTICIPANTS, SESSIONS, drop_rows
from llm2nifti.bids.paths import DERIVATIVES
from llm2nifti.bids.readers import read_json
from llm2nifti.media import MEDIA
from llm2nifti.stimuli import CONTROL

DESCRIPTION = "dataset_description.json"
SUMMARY = DERIVATIVES / "summary.json"
VALIDATOR_CONFIG = ".bids-validator-config.json"
_MOST_NAMED = 10  # files in a message
_TEXTS = Path(__file__).parent
# What interventions write, of all runs together: hours of work.
RESULTS = ("lesion.json", "lesion_masks.json", "steer.json", "detection.json", "training.json")
_IGNORED = ["*.html", "summary.json", *RESULTS, "*_evaluations.jsonl", "figures", "figures/"]
_IGNORED += ["*_statmap.*", "*_timeseries.*", "*_units.tsv", "*_desc-trial_events.tsv"]


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
    contents: dict[Path, str | Mapping[str, object]] = {
        root / DESCRIPTION: _description(derivative=False),
        root / "README.md": (_TEXTS / "readme.md").read_text("utf-8"),
        root / ".bidsignore": f"{WORK}/\n",
        root / "participants.json": PARTICIPANT_COLUMNS,
        root / VALIDATOR_CONFIG: config,
        derivative / DESCRIPTION: _description(derivative=True),
        derivative / "README.md": (_TEXTS / "readme_derivatives.md").read_text("utf-8"),
        derivative / ".bidsignore": "\n".join(_IGNORED) + "\n",
        derivative / VALIDATOR_CONFIG: config,
    }
    for path, content in contents.items():
        if path.exists():
            continue
        if isinstance(content, str):
            write_text(path, root, content)
        else:
            write_json(path, root, content)


def _description(*, derivative: bool) -> dict[str, object]:
    """Content of dataset_description.json."""
    kind = "prompt-level runs and maps" if derivative else "activations as task runs"
    source = "bids::../../" if derivative else "bids::stimuli"
    paper = (
        "Nencka AS, Muftuler LT, LaViolette P, Koch KM (2023). On Functional Activations in Deep "
        "Neural Networks. arXiv:2311.10898"
    )
    maker = {
        "Name": "llm2nifti",
        "Version": __version__,
        "Description": "Records language models as task fMRI runs.",
    }
    return {
        "Name": f"Language model {kind}",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative" if derivative else "raw",
        "License": "CC0",
        "Authors": ["The llm2nifti developers", "The authors of the scanned model"],
        "Keywords": ["language model", "activations", "task design"],
        "Acknowledgements": "n/a",
        "HowToAcknowledge": "Cite llm2nifti and the scanned model.",
        "Funding": ["n/a"],
        "EthicsApprovals": ["No human or animal took part."],
        "ReferencesAndLinks": [paper],
        "HEDVersion": "8.3.0",
        "GeneratedBy": [maker],
        "SourceDatasets": [{"URL": source, "Version": __version__}],
        **({"DatasetLinks": {"raw": "../../"}} if derivative else {}),
    }


def is_begun(root: Path) -> bool:
    """Whether the folder holds a dataset."""
    return (root / DESCRIPTION).exists()


def check_folder(root: Path) -> None:
    """Raise ExistsError unless the folder is new, empty or an llm2nifti dataset."""
    if root.exists() and not root.is_dir():
        raise ExistsError(f"{root} is a file; choose a new folder")
    if _is_empty(root):
        return
    is_ours, why = manifest.has_manifest(root), ""  # it may be begun by us and not yet described
    if is_begun(root):
        makers = read_json(root / DESCRIPTION).get("GeneratedBy") or []
        is_ours = "llm2nifti" in [m.get("Name") for m in makers if isinstance(m, dict)]
        why = f": {DESCRIPTION} names it nowhere under GeneratedBy"
    if not is_ours:
        raise ExistsError(
            f"{root} is not empty and is not an llm2nifti dataset{why}; choose a new folder"
        )


def _is_empty(root: Path) -> bool:
    """Whether a folder is new, or holds nothing but unfinished work."""
    return not root.exists() or all(path.name == WORK for path in root.iterdir())


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
    if _is_empty(root):
        return
    if not manifest.has_manifest(root):
        raise ExistsError(
            f"{root} has no {manifest.MANIFEST}, so nothing tells which files are its own; delete "
            "the folder yourself, or choose another"
        )
    ours = manifest.written(root)
    inside = {folder for name in ours for folder in manifest.folders(root, root / name)}
    links = [folder for folder in inside if folder.is_symlink()]
    if links:
        raise ExistsError(
            f"{min(links)} is a link to another folder, where nothing is deleted; remove the link, "
            "or choose another folder"
        )
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


def _name_what_stays(root: Path) -> None:
    """Warn of the files that are left."""
    spared = {root / DESCRIPTION, root / manifest.MANIFEST}
    paths = [path for path in sorted(root.rglob("*")) if path.is_symlink() or path.is_file()]
    left = [str(p) for p in paths if p not in spared and p.relative_to(root).parts[0] != WORK]
    if left:
        more = f" and {len(left) - _MOST_NAMED} more" if len(left) > _MOST_NAMED else ""
        text = "kept what llm2nifti did not write, or not as it is now: "
        text += ", ".join(left[:_MOST_NAMED]) + more
        warnings.warn(text, manifest.ForeignFileWarning, stacklevel=3)


def write_events_json(root: Path, task: str, title: str, *, medium: str = "") -> None:
    """Write the root sidecar that explains the columns of a task's events."""
    path = root / f"task-{task}_events.json"
    if path.exists():
        return
    levels = {task: f"prompts about {title}", CONTROL: "prompts about unrelated everyday topics"}
    if medium:
        levels = {task: f"{MEDIA[medium]} of {title}", CONTROL: f"control {MEDIA[medium]}"}
    program = {"OperatingSystem": "n/a", "SoftwareName": "llm2nifti"}
    content: dict[str, object] = {
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
        "StimulusPresentation": {**program, "SoftwareVersion": __version__, "Code": "n/a"},
    }
    if medium:
        shown = f"File of the {MEDIA[medium].removesuffix('s')} that was shown, under stimuli/"
        content["stim_file"] = {"Description": shown}
    write_json(path, root, content)
