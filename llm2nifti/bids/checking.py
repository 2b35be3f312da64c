"""Are the files of a dataset there, and as they were written? No model is needed to tell.

A quick look compares sizes, reads headers of images and hashes what is small; a thorough one
hashes everything. `root` is a dataset.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from llm2nifti.bids import manifest
from llm2nifti.bids.dataset import GROUP, NO_RESULTS, VALIDATOR_CONFIG
from llm2nifti.bids.manifest import Content, name_of
from llm2nifti.bids.paths import DERIVATIVES, DESCRIPTION, RunPaths, complete_runs

_SMALL = 2**20  # bytes of a file that a quick look hashes, too
_EDITABLE = re.compile(r"(derivatives/llm2nifti/)?[^/]*|sub-[^/]*/[^/]*_sessions\.(tsv|json)")
_DESCRIBING = ("README.md", ".bidsignore", DESCRIPTION, VALIDATOR_CONFIG)
# What a file belongs to, by the first pattern that its path in the dataset has.
_PARTS = {
    "run": re.compile(r"(^|/)func/[^/]*_run-\d+_(?!.*_statmap\.)[^/]*$"),
    "anatomy": re.compile(r"/anat/[^/]*_space-[0-9A-Za-z]+_(dseg|T1w|units)\.[^/]*$"),
    "stimuli": re.compile("^stimuli/"),
    "results": re.compile(
        rf"^{DERIVATIVES.as_posix()}/(sub-[^/]*/(ses-[^/]*/)?)?"
        rf"(?!({'|'.join(map(re.escape, NO_RESULTS))})$)[^/]*\.jsonl?$"
        r"|_(relmat|components)\.[^/]*$|_desc-(kmeans|canica|dictlearning)_[^/]*$"
        rf"|^{DERIVATIVES.as_posix()}/{GROUP}/"
    ),
    "analysis": re.compile(
        rf"^{DERIVATIVES.as_posix()}/(?!(.*/)?({'|'.join(map(re.escape, _DESCRIBING))})$)"
    ),
    "dataset": re.compile(""),
}


@dataclass(frozen=True)
class Problem:
    """What is wrong with one file, and what it belongs to: one of `_PARTS`."""

    path: Path
    text: str
    part: str


def part_of(name: str) -> str:
    """What a file of the manifest belongs to, such as ``run`` or ``stimuli``."""
    return next(part for part, pattern in _PARTS.items() if pattern.search(name))


def problems(root: Path) -> list[Problem]:
    """What is wrong with the files that llm2nifti wrote to a dataset, sorted by path.

    Tables and texts that people edit, such as ``participants.tsv`` and ``README.md``, only need to
    be there. Without a manifest, the files that each run has only need to be readable.
    """
    return list(_problems(root, dict(sorted(expected(root).items())), thorough=True))


def problems_of(paths: RunPaths) -> Iterator[Problem]:
    """What is wrong with the files of a run and its anatomy, at a quick look."""
    root, ours = paths.root, manifest.written(paths.root)
    names = [name_of(root, path) for path in (*paths.needed, *paths.anatomy)]
    events = name_of(root, paths.derivative("desc-trial_events.tsv"))
    if events in ours:  # trials last differently
        names.append(events)
    return _problems(root, {name: ours.get(name) for name in names})


def _problems(
    root: Path, contents: Mapping[str, Content | None], *, thorough: bool = False
) -> Iterator[Problem]:
    """What is wrong with files, whose content is given as far as it is known."""
    for name, content in contents.items():
        text = problem_of(root / name, content, thorough=thorough)
        # A process that was killed may have renamed the file and not said so yet.
        if text and not manifest.is_as_written(root, root / name):
            yield Problem(root / name, text, part_of(name))


def expected(root: Path) -> dict[str, Content | None]:
    """Files that a dataset should have, by their path in it, with their content if it is known."""
    if manifest.has_manifest(root):
        return {
            name: None if part_of(name) == "dataset" and _EDITABLE.fullmatch(name) else content
            for name, content in manifest.written(root).items()
        }
    runs = complete_runs(root, "sub-*/**/func/*")
    files = [path for paths in runs for path in (*paths.needed, *paths.anatomy)]
    return dict.fromkeys(name_of(root, path) for path in files)


def is_intact(paths: RunPaths) -> bool:
    """Whether a run is complete: its files and its anatomy pass a quick look."""
    return next(problems_of(paths), None) is None


def are_intact(root: Path, files: Iterable[Path]) -> bool:
    """Whether files pass a quick look; what no manifest knows only has to be readable."""
    ours = manifest.written(root)
    return not any(problem_of(path, ours.get(name_of(root, path))) for path in files)


def has_runs(root: Path) -> bool:
    """Whether we recorded anything in a dataset, be it no longer complete."""
    names: Iterable[str] = manifest.written(root)
    if not manifest.has_manifest(root):
        names = (name_of(root, path) for path in root.glob("sub-*/**/func/*_bold.json"))
    return any(part_of(name) == "run" and (root / name).exists() for name in names)


def find_run(root: Path, name: str) -> RunPaths | None:
    """Paths of a run by its name, such as ``sub-x_task-t_run-1``; None if it has no sidecar."""
    folder = name.partition("_task-")[0].replace("_", "/")
    return next(complete_runs(root, f"{folder}/func/{name}_space-*"), None)


def analysis_files(root: Path, folder: Path) -> list[Path]:
    """Maps and networks of a model or session, whose `folder` is such as ``sub-x/ses-y``."""
    start = f"{(DERIVATIVES / folder).as_posix()}/"
    images = [n for n in manifest.written(root) if n.startswith(start) and n.endswith(".nii.gz")]
    return [root / name for name in images if part_of(name) == "analysis"]


def digest(
    root: Path, parts: Iterable[str], folders: Iterable[Path], *, but_task: str | None = None
) -> str:
    """SHA-256 of what the manifest says of the files of some `parts` in some `folders`.

    Folders of a model or session, such as ``sub-x/ses-y``, are those in the derivatives, too. Runs
    of one task may be left out.
    """
    starts = tuple(f"{f.as_posix()}/" for folder in folders for f in (folder, DERIVATIVES / folder))
    ours, parts = manifest.written(root), set(parts)
    names = sorted(name for name in ours if name.startswith(starts) and part_of(name) in parts)
    if but_task:
        names = [name for name in names if f"_task-{but_task}_" not in name]
    return hashlib.sha256("".join(ours[name].line(name) for name in names).encode()).hexdigest()


def foreign_files(root: Path) -> Iterator[Path]:
    """Files of a dataset that llm2nifti did not write."""
    known = {*manifest.written(root), manifest.MANIFEST.as_posix()}
    for path in sorted(root.rglob("*")):
        name = name_of(root, path)
        if path.is_file() and name not in known and not name.startswith(f"{manifest.WORK}/"):
            yield path


def problem_of(path: Path, content: Content | None, *, thorough: bool = False) -> str | None:
    """What is wrong with a file, as far as its `content` is known; None if nothing is."""
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if content is not None and content.size >= 0:
        if content.size != size:
            return f"{size} bytes, {content.size} were written"
        if thorough or size <= _SMALL:
            return None if content.is_in(path) else "not what was written"
    return _unreadable(path, size)


def _unreadable(path: Path, size: int) -> str | None:
    """Why a file whose content is not known, or not hashed, can't be read."""
    try:
        if path.name.endswith((".nii", ".nii.gz")):
            img = nib.load(path)
            n_bytes = int(np.prod(img.shape)) * img.get_data_dtype().itemsize
            whole = n_bytes + img.dataobj.offset
            if path.suffix == ".nii" and size != whole:
                return f"{size} bytes, its header says {whole}"
        elif path.suffix == ".json":
            json.loads(path.read_text("utf-8"))
        elif path.suffix == ".tsv" and not path.read_text("utf-8").strip():
            return "empty"
    except (ImageFileError, HeaderDataError) as error:
        return f"not a NIfTI image ({error})"
    except ValueError as error:
        return f"not readable ({error})"
    return None
