"""What is in a dataset? Find runs, and numbers of their analysis, and read them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llm2nifti import geometry
from llm2nifti.bids import checking, manifest
from llm2nifti.bids.dataset import PARTICIPANTS, SUMMARY
from llm2nifti.bids.files import write_json
from llm2nifti.bids.paths import DERIVATIVES, RunPaths, as_root, complete_runs, folder_of, label
from llm2nifti.bids.readers import TEXT, DamagedFileError, read_img, read_json, read_tsv
from llm2nifti.plans import Json
from llm2nifti.recording import REDUCED

_SIDECAR: dict[str, type] = {"RepetitionTime": float, "NumberOfFramesPerTrial": int, "Frames": str}
_SIDECAR |= dict.fromkeys(("Model", "Settings", "Versions"), dict)
_EVENTS = {"onset": float, "duration": float, "trial_type": str, "block": int, "prompt": str}
_TOKENS = {"trial": int, "token": str, "token_id": float}
_SITES: dict[str, type] = {"layer": int, "n_units": int}
_SITES |= dict.fromkeys(("site", "module", "where", "side", "part"), str)
_COLUMNS = ["subject", "session", "task", "run", "space"]
Who = tuple[str, str]  # labels of a model and of its session, the latter empty if it has none


class NoSuchRunError(LookupError):
    """The dataset has no such run."""


@dataclass(frozen=True)
class Run:
    """One run of a dataset, read lazily; `paths` says where its files are."""

    paths: RunPaths

    @property
    def subject(self) -> str:
        """Label of the model."""
        return self.paths.subject

    @property
    def session(self) -> str:
        """Label of the session; empty for a model without sessions."""
        return self.paths.session

    @property
    def task(self) -> str:
        """Label of the task, which is also the on-condition's trial_type."""
        return self.paths.task

    @property
    def run(self) -> int:
        """Number of the run."""
        return self.paths.run

    @cached_property
    def sidecar(self) -> Json:
        """Prompt-level sidecar."""
        return read_json(self.paths.derivative("desc-trial_bold.json"), _SIDECAR)

    @cached_property
    def raw_sidecar(self) -> Json:
        """Sidecar of the raw run, which alone says how many frames a trial has."""
        return read_json(self.paths.raw("bold.json"), _SIDECAR)

    @cached_property
    def events(self) -> pd.DataFrame:
        """One row a trial, with onset and duration in seconds."""
        events = read_tsv(self.paths.raw("events.tsv"), _EVENTS)
        text = [column for column in TEXT if column in events]
        events[text] = events[text].astype(object).fillna("")
        return events

    @property
    def t_r(self) -> float:
        """Seconds a volume of `img`: a trial."""
        return float(self.sidecar["RepetitionTime"])

    @property
    def n_frames(self) -> int:
        """Frames a trial; the most, where trials differ."""
        return int(self.raw_sidecar["NumberOfFramesPerTrial"])

    @property
    def frames(self) -> str:
        """What a volume of `frames_img` is: a token, a word, or the whole trial."""
        return str(self.raw_sidecar.get("Frames", "token"))

    @property
    def volume_counts(self) -> NDArray[np.int64]:
        """(n_trials,) volumes of each trial in `frames_img`."""
        counts = self.raw_sidecar.get("NumberOfVolumesPerTrial", self.n_frames)
        return np.full(len(self.events), counts) if isinstance(counts, int) else np.array(counts)

    @cached_property
    def img(self) -> nib.Nifti1Image:
        """Prompt-level 4D image: one volume a trial."""
        return self._img(self.paths.trial_bold, len(self.events))

    @cached_property
    def frames_img(self) -> nib.Nifti1Image:
        """Raw 4D image: one volume a frame, or a trial where it was recorded so."""
        return self._img(self.paths.bold, int(self.volume_counts.sum()))

    def _img(self, path: Path, n_volumes: int) -> nib.Nifti1Image:
        """4D image whose volumes are those of the trials in the table of events."""
        img, events = read_img(path), self.paths.raw("events.tsv").name
        if img.shape[3:] != (n_volumes,):
            asked = f"the {n_volumes} volumes that {events} asks for"
            raise DamagedFileError(path, f"an image of shape {img.shape}, not of {asked}")
        return img

    @cached_property
    def mask_img(self) -> nib.Nifti1Image:
        """Voxels that hold a unit."""
        return read_img(self.paths.derivative("desc-brain_mask.nii.gz"))

    @cached_property
    def tokens(self) -> pd.DataFrame:
        """Measures of every frame: token, log probability, entropy and more."""
        return read_tsv(self.paths.derivative("desc-tokens_timeseries.tsv"), _TOKENS)

    @property
    def brain(self) -> geometry.ModelBrain:
        """Geometry, rebuilt from the dataset's atlas and units table; all runs share one object."""
        return _read_brain(replace(self.paths, task="", run=1, suffix=""))

    def values(self) -> NDArray[np.float32]:
        """(n_trials, n_units) prompt-level values in unit order."""
        return geometry.from_img(self.brain, self.img)

    def frame_values(self) -> NDArray[np.float32]:
        """(n_volumes, n_units) token-level values in unit order.

        NoSuchRunError if the run was recorded with one volume a trial.
        """
        if self.frames in REDUCED:
            how = f"recorded with frames={self.frames!r}: it has one volume a trial and no tokens"
            raise NoSuchRunError(f"task {self.task} run {self.run} was {how}")
        return geometry.from_img(self.brain, self.frames_img)

    def __repr__(self) -> str:
        """Say which run it is and its size."""
        who, n_trials = " ".join(self.paths.folder.parts), len(self.events)
        return f"Run: {who}, task {self.task}, run {self.run}, {n_trials} trials"


@lru_cache(maxsize=8)
def _read_brain(paths: RunPaths) -> geometry.ModelBrain:
    """Geometry of a model or session; kept, because the units table is large."""
    atlas = read_img(paths.anat("dseg.nii.gz"))
    lut = read_tsv(paths.anat("dseg.tsv"), _SITES)
    path = paths.anat("units.tsv")
    units = read_tsv(path, dict.fromkeys("ijk", int))
    voxels = units[["i", "j", "k"]].to_numpy()
    if len(units) != lut["n_units"].sum() or (voxels < 0).any():
        raise DamagedFileError(path, f"{len(units)} units, {lut['n_units'].sum()} in dseg.tsv")
    if (voxels >= atlas.shape).any():
        raise DamagedFileError(path, f"a voxel outside the volume of {atlas.shape}")
    return geometry.from_tables(lut, units, atlas.shape, float(atlas.header.get_zooms()[0]))


def anatomy(root: Path | str, subject: str, session: str = "") -> nib.Nifti1Image:
    """Anatomical image of a model or of one of its sessions, the background of its maps."""
    folder = Path(root) / DERIVATIVES / folder_of(subject, session) / "anat"
    images = sorted(folder.glob("*_T1w.nii.gz"))
    if not images:
        raise NoSuchRunError(f"{folder} has no anatomical image (_T1w.nii.gz)")
    return read_img(images[0])


def runs(root: Path | str) -> pd.DataFrame:
    """List the complete runs of a dataset.

    Returns
    -------
    DataFrame
        Columns ``subject, session, untrained, task, run, space``, sorted; a session is empty where
        the model has none.

    Raises
    ------
    NoSuchRunError
        If the folder is not a dataset with runs.
    """
    root = as_root(root)
    folders = ("sub-*/func/*", "sub-*/ses-*/func/*")
    listed = [paths for folder in folders for paths in complete_runs(root, folder)]
    if not listed:
        raise NoSuchRunError(
            f"{root} has no recorded runs (no {DERIVATIVES}/sub-*/func/*_desc-trial_bold.json); "
            f"make some with: llm2nifti scan {root}"
        )
    table = pd.DataFrame(map(attrgetter(*_COLUMNS), listed), columns=_COLUMNS)
    path = root / PARTICIPANTS
    people = read_tsv(path, {"participant_id": str, "untrained": str})
    untrained = dict(zip(people["participant_id"], people["untrained"] == "yes", strict=True))
    ids = "sub-" + table["subject"]
    if lost := set(ids) - set(untrained):
        raise DamagedFileError(path, f"{min(lost)} has runs and no row")
    table.insert(2, "untrained", [untrained[name] for name in ids])
    return table.sort_values(["untrained", *_COLUMNS], ignore_index=True)


def read(
    root: Path | str,
    *,
    task: str,
    run: int = 1,
    subject: str | None = None,
    session: str | None = None,
) -> Run:
    """Read one run.

    Parameters
    ----------
    root : path-like
        Root of the dataset.
    task : str
        Name or label of the task.
    run : int, default=1
        Number of the run.
    subject : str, optional
        Name or label of the model; by default the only trained one.
    session : str, optional
        Label of the session; by default the only one of the model.

    Raises
    ------
    NoSuchRunError
        If there is no such run; the message lists what there is.

    Examples
    --------
    >>> bids.read("ds", task="medicalimaging", run=1)  # doctest: +SKIP
    Run: sub-smollm2135m, task medicalimaging, run 1, 56 trials
    """
    listed = runs_of(root, subject, session)
    for paths in listed:
        if (paths.task, paths.run) == (label(task), run):
            return open_run(paths)
    there = ", ".join(f"{paths.task} run {paths.run}" for paths in listed)
    who = " ".join(listed[0].folder.parts)
    raise NoSuchRunError(f"no run {run} of task {task!r} for {who}; there are: {there}")


def runs_of(root: Path | str, subject: str | None, session: str | None) -> list[RunPaths]:
    """Runs of one session of one model, which are given as to `read`; at least one."""
    table = runs(root)
    rows = table[table["subject"] == label(subject)] if subject else _analysed(table)
    names = rows["subject"].unique()
    if len(names) > 1:
        raise NoSuchRunError(f"the dataset has several models, name one: {', '.join(names)}")
    name = names[0] if len(names) else label(str(subject))
    if rows.empty:
        known = ", ".join(table["subject"].unique())
        raise NoSuchRunError(f"no model {name!r} in {root}; there are: {known}")
    sessions = list(rows["session"].unique())
    if session is None and len(sessions) > 1:
        raise NoSuchRunError(f"sub-{name} has several sessions, name one: {', '.join(sessions)}")
    wanted = sessions[0] if session is None else label(session) if session else ""
    if wanted not in sessions:
        known = ", ".join(filter(None, sessions)) or "none"
        raise NoSuchRunError(f"sub-{name} has no session {session!r}; there are: {known}")
    rows = rows.loc[rows["session"] == wanted, _COLUMNS]
    return [RunPaths(root=Path(root), **row).as_stored() for row in rows.to_dict("records")]


def analysed(root: Path | str) -> list[Who]:
    """Sessions that are analysed: all of the trained models, or of all if none is trained."""
    rows = _analysed(runs(root))
    return list(dict.fromkeys(zip(rows["subject"], rows["session"], strict=True)))


def _analysed(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the trained models, or of all if there are none."""
    return table if table["untrained"].all() else table[~table["untrained"]]


def analysis_folder(root: Path | str, subject: str, session: str = "") -> Path:
    """Where the numbers and the report of one session, given by its BIDS labels, are.

    The dataset's own derivative folder while nothing else is analysed, otherwise the session's.
    """
    whole = Path(root) / DERIVATIVES
    alone = not session and analysed(root) == [(subject, session)]
    return whole if alone else whole / folder_of(subject, session)


def open_run(paths: RunPaths) -> Run:
    """Run whose files pass a quick look; DamagedFileError if one does not."""
    for problem in checking.problems_of(paths):
        raise DamagedFileError(problem.path, problem.text)
    return Run(paths)


def read_summary(root: Path, who: Who | None = None) -> Json:
    """Content of a dataset's, or of one session's, summary.json; empty if there is none."""
    root, path = Path(root), _summary_path(root, who)
    if not path.exists():
        return {}
    is_ours = manifest.name_of(root, path) in manifest.written(root)
    if is_ours and not manifest.is_as_written(root, path):
        raise DamagedFileError(path, "not what was written")
    return read_json(path)


def update_summary(root: Path, who: Who | None = None, **parts: Any) -> Json:
    """Replace parts of a summary, or remove those that are None, and return the whole.

    `who` are the labels of a model and of its session; by default it is the dataset's own summary.
    """
    content = {**read_summary(root, who), **parts}
    content = {key: content[key] for key in sorted(content) if content[key] is not None}
    write_json(_summary_path(root, who), Path(root), content)
    return content


def _summary_path(root: Path, who: Who | None) -> Path:
    """Where a summary is."""
    return analysis_folder(root, *who) / SUMMARY.name if who else Path(root) / SUMMARY
