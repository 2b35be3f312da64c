"""Are the files of a dataset there, and as they were written? No model is needed to tell.

A quick look compares sizes, reads headers of images and hashes what is small; a thorough one
hashes everything.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from llm2nifti.bids import manifest
from llm2nifti.bids.dataset import RESULTS, VALIDATOR_CONFIG
from llm2nifti.bids.manifest import Content
from llm2nifti.bids.paths import DERIVATIVES, RunPaths, folder_of

_SMALL = 2**20  # bytes of a file that a quick look hashes, too
_OF_RUN = re.compile(r"(^|/)func/[^/]*_run-\d+_(?!.*_statmap\.)[^/]*$")
_OF_ANATOMY = re.compile(r"/anat/[^/]*_space-[0-9A-Za-z]+_(dseg|T1w|units)\.[^/]*$")
_EDITABLE = re.compile(r"(derivatives/llm2nifti/)?[^/]*|sub-[^/]*/[^/]*_sessions\.(tsv|json)")

_DESCRIBING = ("README.md", ".bidsignore", "dataset_description.json", VALIDATOR_CONFIG)


@dataclass(frozen=True)
class Problem:
    """What is wrong with one file.

    Attributes
    ----------
    path : Path
        The file.
    text : str
        What is wrong with it.
    part : str
        What it belongs to: ``run``, ``anatomy``, ``stimuli``, ``analysis``, ``results`` of
        interventions, or ``dataset``.
    """

    path: Path
    text: str
    part: str


def part_of(name: str) -> str:
    """What a file of the manifest belongs to; see `Problem`.

    Examples
    --------
    >>> part_of("sub-x/func/sub-x_task-t_run-1_bold.nii"), part_of("stimuli/a.png")
    ('run', 'stimuli')
    """
    if _OF_RUN.search(name):
        return "run"
    if _OF_ANATOMY.search(name):
        return "anatomy"
    if name.startswith("stimuli/"):
        return "stimuli"
    path = Path(name)
    if path.name in RESULTS or path.name.endswith(".jsonl"):
        return "results"
    is_derived = path.is_relative_to(DERIVATIVES) and path.name not in _DESCRIBING
    return "analysis" if is_derived else "dataset"


def problems(root: Path, *, thorough: bool = True) -> list[Problem]:
    """What is wrong with the files that llm2nifti wrote to a dataset.

    Parameters
    ----------
    root : Path
        Root of the dataset.
    thorough : bool, default=True
        Hash large files, too.

    Returns
    -------
    list of Problem
        Sorted by path; empty if every file is there and as it was written. Tables and texts that
        people edit, such as ``participants.tsv`` and ``README.md``, only need to be there. Without
        a manifest, the files that each run has only need to be readable.
    """
    out = []
    for name, content in sorted(expected(root).items()):
        text = problem_of(root / name, content, thorough=thorough)
        if text and not manifest.is_as_written(root, root / name):
            out.append(Problem(root / name, text, part_of(name)))
    return out


def expected(root: Path) -> dict[str, Content | None]:
    """Files that a dataset should have, by their path in it, with their content if it is known."""
    if manifest.has_manifest(root):
        return {
            name: None if _is_editable(name) else content
            for name, content in manifest.written(root).items()
        }
    sidecars = (root / DERIVATIVES).glob("sub-*/**/func/*_desc-trial_bold.json")
    runs = [find_run(root, path.name.partition("_space-")[0]) for path in sidecars]
    files = [path for run in runs if run for path in (*run.needed, *run.anatomy)]
    return dict.fromkeys(path.relative_to(root).as_posix() for path in files)


def is_intact(paths: RunPaths) -> bool:
    """Whether a run is complete: its files and its anatomy pass a quick look."""
    return next(problems_of(paths), None) is None


def problems_of(paths: RunPaths) -> Iterator[Problem]:
    """What is wrong with the files of a run and its anatomy, at a quick look."""
    root, ours = paths.root, manifest.written(paths.root)
    events = paths.derivative("desc-trial_events.tsv")  # where trials last differently
    extra = [events] if events.relative_to(root).as_posix() in ours else []
    for path in (*paths.needed, *paths.anatomy, *extra):
        name = path.relative_to(root).as_posix()
        text = problem_of(path, ours.get(name))
        # A process that was killed may have renamed the file and not said so yet.
        if text and not manifest.is_as_written(root, path):
            yield Problem(path, text, part_of(name))


def are_intact(root: Path, files: Iterable[Path]) -> bool:
    """Whether files pass a quick look; what no manifest knows only has to be readable."""
    ours = manifest.written(root)
    contents = ((path, ours.get(path.relative_to(root).as_posix())) for path in files)
    return all(problem_of(path, content) is None for path, content in contents)


def has_runs(root: Path) -> bool:
    """Whether we recorded anything in a dataset, be it no longer complete."""
    names: Iterable[str] = manifest.written(root)
    if not manifest.has_manifest(root):
        sidecars = root.glob("sub-*/**/func/*_bold.json")
        names = (path.relative_to(root).as_posix() for path in sidecars)
    return any(part_of(name) == "run" and (root / name).exists() for name in names)


def find_run(root: Path, name: str) -> RunPaths | None:
    """Paths of a run by its name, such as ``sub-x_task-t_run-1``; None if it has no sidecar."""
    parts = dict(part.split("-", 1) for part in name.split("_"))
    who = folder_of(parts["sub"], parts.get("ses", ""))
    ending = "_desc-trial_bold.json"
    sidecars = sorted((root / DERIVATIVES / who / "func").glob(f"{name}_space-*{ending}"))
    if not sidecars:
        return None
    space = sidecars[0].name.removeprefix(f"{name}_space-").removesuffix(ending)
    paths = RunPaths(
        root, parts["sub"], parts["task"], int(parts["run"]), space, session=parts.get("ses", "")
    )
    return paths if paths.trial_bold.exists() else replace(paths, suffix=".nii.gz")


def analysis_files(root: Path, folder: Path) -> list[Path]:
    """Maps and networks of a model or session, whose `folder` is such as ``sub-x/ses-y``."""
    start = f"{(DERIVATIVES / folder).as_posix()}/"
    ours = manifest.written(root)
    return [
        root / name
        for name in ours
        if name.startswith(start) and name.endswith(".nii.gz") and part_of(name) == "analysis"
    ]


def digest(root: Path, parts: Iterable[str], folders: Iterable[Path]) -> str:
    """SHA-256 of what the manifest says of some parts of some folders: what a result is made from.

    Parameters
    ----------
    root : Path
        Root of the dataset.
    parts : iterable of str
        See `Problem`.
    folders : iterable of Path
        Folders, relative to the dataset; those of a model or session, such as ``sub-x/ses-y``, are
        looked into in the derivatives, too.
    """
    wanted = set(parts)
    starts = [f"{f.as_posix()}/" for folder in folders for f in (folder, DERIVATIVES / folder)]
    ours = manifest.written(root)
    names = sorted(n for n in ours if n.startswith(tuple(starts)) and part_of(n) in wanted)
    return hashlib.sha256("".join(ours[name].line(name) for name in names).encode()).hexdigest()


def foreign_files(root: Path) -> Iterator[Path]:
    """Files of a dataset that llm2nifti did not write."""
    ours = manifest.written(root)
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        is_known = name in ours or name == manifest.MANIFEST.as_posix()
        if path.is_file() and not is_known and not name.startswith(f"{manifest.WORK}/"):
            yield path


def _is_editable(name: str) -> bool:
    """Whether people edit a file as they describe a dataset."""
    return part_of(name) == "dataset" and bool(_EDITABLE.fullmatch(name))


def problem_of(path: Path, content: Content | None, *, thorough: bool = False) -> str | None:
    """What is wrong with a file; None if nothing is.

    Parameters
    ----------
    path : Path
        The file.
    content : Content or None
        What was written to it, if that is known.
    thorough : bool, default=False
        Hash it however large it is.
    """
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if content is not None and 0 <= content.size != size:
        return f"{size} bytes, {content.size} were written"
    if content is not None and content.size >= 0 and (thorough or size <= _SMALL):
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
