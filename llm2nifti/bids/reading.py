"""What is in a dataset? Find runs and read them, with nothing of the model at hand."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llm2nifti import geometry
from llm2nifti.bids.dataset import DERIVATIVES
from llm2nifti.bids.files import TEXT, label, read_tsv
from llm2nifti.bids.writing import RunPaths
from llm2nifti.recording import REDUCED

_TRIAL_RUN = re.compile(
    r"sub-(?P<subject>[0-9A-Za-z]+)_task-(?P<task>[0-9A-Za-z]+)_run-(?P<run>\d+)"
    r"_space-(?P<space>[0-9A-Za-z]+)_desc-trial_bold\.json"
)


class NoSuchRunError(LookupError):
    """The dataset has no such run."""


@dataclass(frozen=True)
class Run:
    """One run of a dataset, read lazily.

    Attributes
    ----------
    paths : RunPaths
        Where its files are.
    """

    paths: RunPaths

    @property
    def subject(self) -> str:
        """Label of the model."""
        return self.paths.subject

    @property
    def task(self) -> str:
        """Label of the task, which is also the on-condition's trial_type."""
        return self.paths.task

    @property
    def run(self) -> int:
        """Number of the run."""
        return self.paths.run

    @cached_property
    def sidecar(self) -> dict[str, Any]:
        """Prompt-level sidecar."""
        path = self.paths.derivative("desc-trial_bold.json")
        return json.loads(path.read_text("utf-8"))

    @cached_property
    def events(self) -> pd.DataFrame:
        """One row a trial, with onset and duration in seconds."""
        events = read_tsv(self.paths.raw("events.tsv"))
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
        return int(self.sidecar["NumberOfFramesPerTrial"])

    @property
    def frames(self) -> str:
        """What a volume of `frames_img` is: a token, a word, or the whole trial."""
        return str(self.sidecar.get("Frames", "token"))

    @property
    def volume_counts(self) -> NDArray[np.int64]:
        """(n_trials,) volumes of each trial in `frames_img`."""
        counts = self.sidecar.get("NumberOfVolumesPerTrial", self.n_frames)
        return np.full(len(self.events), counts) if isinstance(counts, int) else np.array(counts)

    @cached_property
    def img(self) -> nib.Nifti1Image:
        """Prompt-level 4D image: one volume a trial."""
        return nib.load(self.paths.trial_bold)

    @cached_property
    def frames_img(self) -> nib.Nifti1Image:
        """Raw 4D image: one volume a frame, or a trial where it was recorded so."""
        return nib.load(self.paths.bold)

    @cached_property
    def mask_img(self) -> nib.Nifti1Image:
        """Voxels that hold a unit."""
        return nib.load(self.paths.derivative("desc-brain_mask.nii.gz"))

    @cached_property
    def tokens(self) -> pd.DataFrame:
        """Measures of every frame: token, log probability, entropy and more."""
        return read_tsv(self.paths.derivative("desc-tokens_timeseries.tsv"))

    @property
    def brain(self) -> geometry.ModelBrain:
        """Geometry, rebuilt from the dataset's atlas and units table."""
        return _brain(self.paths.root, self.paths.subject, self.paths.space)

    def values(self) -> NDArray[np.float32]:
        """(n_trials, n_units) prompt-level values in unit order."""
        return geometry.from_img(self.brain, self.img)

    def frame_values(self) -> NDArray[np.float32]:
        """(n_volumes, n_units) token-level values in unit order.

        Raises
        ------
        NoSuchRunError
            If the run was recorded with one volume a trial.
        """
        if self.frames in REDUCED:
            raise NoSuchRunError(
                f"task {self.task} run {self.run} was recorded with --frames {self.frames}: it has "
                "one volume a trial and no tokens"
            )
        return geometry.from_img(self.brain, self.frames_img)

    def __repr__(self) -> str:
        """Say which run it is and its size."""
        n_trials = len(self.events)
        return f"Run: sub-{self.subject}, task {self.task}, run {self.run}, {n_trials} trials"


@lru_cache(maxsize=8)
def _brain(root: Path, subject: str, space: str) -> geometry.ModelBrain:
    """Geometry of a subject; shared, because the units table is large."""
    paths = RunPaths(root, subject, "", 1, space)
    atlas = nib.load(paths.anat("dseg.nii.gz"))
    lut = read_tsv(paths.anat("dseg.tsv"))
    units = read_tsv(paths.anat("units.tsv"))
    return geometry.from_tables(lut, units, atlas.shape, float(atlas.header.get_zooms()[0]))


def anatomy(root: Path | str, subject: str) -> nib.Nifti1Image:
    """Anatomical image of a model, the background of its maps."""
    folder = Path(root) / DERIVATIVES / f"sub-{subject}" / "anat"
    found = sorted(folder.glob("*_T1w.nii.gz"))
    if not found:
        raise NoSuchRunError(f"{folder} has no anatomical image (_T1w.nii.gz)")
    return nib.load(found[0])


def runs(root: Path | str) -> pd.DataFrame:
    """List the complete runs of a dataset.

    Returns
    -------
    DataFrame
        Columns ``subject, untrained, task, run, space``, sorted.

    Raises
    ------
    NoSuchRunError
        If the folder is not a dataset with runs.
    """
    root = Path(root)
    folder = root / DERIVATIVES
    rows = []
    for path in sorted(folder.glob("sub-*/func/*_desc-trial_bold.json")):
        match = _TRIAL_RUN.fullmatch(path.name)
        if match:
            rows.append((match["subject"], match["task"], int(match["run"]), match["space"]))
    if not rows:
        raise NoSuchRunError(
            f"{root} has no recorded runs (no {DERIVATIVES}/sub-*/func/*_desc-trial_bold.json); "
            "make some with: llm2nifti scan " + str(root)
        )
    table = pd.DataFrame(rows, columns=["subject", "task", "run", "space"])
    people = read_tsv(root / "participants.tsv").set_index("participant_id")["untrained"]
    table.insert(1, "untrained", [people.get(f"sub-{s}") == "yes" for s in table["subject"]])
    return table.sort_values(["untrained", "subject", "task", "run"], ignore_index=True)


def read(root: Path | str, *, task: str, run: int = 1, subject: str | None = None) -> Run:
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

    Returns
    -------
    Run

    Raises
    ------
    NoSuchRunError
        If there is no such run; the message lists what there is.

    Examples
    --------
    >>> bids.read("ds", task="medicalimaging", run=1)  # doctest: +SKIP
    Run: sub-smollm2135m, task medicalimaging, run 1, 56 trials
    """
    table = runs(root)
    subject = label(subject) if subject else default_subject(table)
    rows = table[table["subject"] == subject]
    hit = rows[(rows["task"] == label(task)) & (rows["run"] == run)]
    if hit.empty:
        there = ", ".join(f"{t} run {r}" for t, r in zip(rows["task"], rows["run"], strict=True))
        raise NoSuchRunError(
            f"no run {run} of task {task!r} for sub-{subject}; there are: {there or 'none'}"
        )
    return _open(Path(root), hit.iloc[0])


def read_all(root: Path | str, *, subject: str | None = None) -> list[Run]:
    """Read all runs of one model, sorted by task and run; see `read` for `subject`."""
    table = runs(root)
    subject = label(subject) if subject else default_subject(table)
    rows = table[table["subject"] == subject]
    if rows.empty:
        known = ", ".join(table["subject"].unique())
        raise NoSuchRunError(f"no model {subject!r} in {root}; there are: {known}")
    return [_open(Path(root), row) for _, row in rows.iterrows()]


def default_subject(table: pd.DataFrame) -> str:
    """The only trained model of a dataset, or the only model."""
    trained = table.loc[~table["untrained"], "subject"].unique()
    subjects = trained if len(trained) else table["subject"].unique()
    if len(subjects) > 1:
        raise NoSuchRunError(f"the dataset has several models, name one: {', '.join(subjects)}")
    return str(subjects[0])


def _open(root: Path, row: pd.Series) -> Run:
    """Run of one row of `runs`."""
    paths = RunPaths(root, row["subject"], row["task"], int(row["run"]), row["space"])
    if not paths.trial_bold.exists():
        paths = replace(paths, suffix=".nii.gz")
    return Run(paths)
