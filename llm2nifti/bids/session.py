"""What did one model do? A session: its runs, its untrained copy, where its results are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from llm2nifti.bids import reading
from llm2nifti.bids.files import locked
from llm2nifti.bids.paths import LabelError, label
from llm2nifti.bids.reading import NoSuchRunError, Run
from llm2nifti.geometry import ModelBrain
from llm2nifti.plans import Json
from llm2nifti.stimuli import REST


class NotRepeatedError(ValueError):
    """Runs of the tasks cannot be compared."""


@dataclass(frozen=True, eq=False)
class Session(Sequence[Run]):
    """One model's recording: the runs of one session of one model in the dataset `root`.

    Those of free generation, which have no conditions to compare, are in `rest` alone.
    """

    root: Path
    runs: tuple[Run, ...]  #: sorted by task and number; at least one

    def __getitem__(self, index: Any) -> Any:
        """A run by its place, or some of them."""
        return self.runs[index]

    def __len__(self) -> int:
        """Number of runs."""
        return len(self.runs)

    @property
    def first(self) -> Run:
        """The first run, which has what all of them share."""
        return self.runs[0]

    @property
    def subject(self) -> str:
        """Label of the model."""
        return self.first.subject

    @property
    def session(self) -> str:
        """Label of the session; empty for a model without sessions."""
        return self.first.session

    @property
    def name(self) -> str:
        """Model and session as in file names."""
        return self.first.paths.who

    @property
    def tasks(self) -> tuple[str, ...]:
        """Labels of the tasks, in order."""
        return tuple(dict.fromkeys(run.task for run in self.runs))

    @property
    def folds(self) -> tuple[int, ...]:
        """Numbers of the runs, each of which can be held out."""
        return tuple(sorted({run.run for run in self.runs}))

    @property
    def brain(self) -> ModelBrain:
        """Geometry that all runs share."""
        return self.first.brain

    @property
    def model(self) -> Json:
        """What the sidecars say of the model."""
        return self.first.sidecar["Model"]

    @property
    def settings(self) -> Json:
        """What the sidecars say of how the model was recorded."""
        return self.first.sidecar.get("Settings", {})

    @property
    def folder(self) -> Path:
        """Where its numbers and its report are; see `llm2nifti.bids.analysis_folder`."""
        return reading.analysis_folder(self.root, self.subject, self.session)

    def of(self, task: str) -> Session:
        """The runs of one task, by its name or label; NoSuchRunError if there are none."""
        return self.only([task])

    def only(self, tasks: Iterable[str]) -> Session:
        """The runs of some tasks; see `of`. No task at all means every one."""
        wanted = {_label(task): task for task in tasks}
        for name, task in wanted.items():
            if name not in self.tasks:
                known = ", ".join(self.tasks)
                raise NoSuchRunError(f"no task {task!r} in the dataset; there are: {known}")
        kept = tuple(run for run in self.runs if not wanted or run.task in wanted)
        return replace(self, runs=kept)

    def without(self, fold: int) -> Session:
        """The runs of all other numbers."""
        return replace(self, runs=tuple(run for run in self.runs if run.run != fold))

    @cached_property
    def rest(self) -> Session | None:
        """The runs of free generation from an empty prompt, or None where there are none."""
        listed = reading.runs_of(self.root, self.subject, self.session)
        kept = tuple(reading.open_run(paths) for paths in listed if paths.task == REST)
        return Session(self.root, kept) if kept else None

    @cached_property
    def untrained(self) -> Session | None:
        """The same runs of the untrained copy, or None where it was not scanned."""
        listed = reading.runs(self.root)
        others = listed[(listed["session"] == self.session) & (listed["subject"] != self.subject)]
        wanted = label(f"{self.subject}-untrained")
        if wanted not in set(others["subject"]):  # one of another name, if it can be no one else's
            copies = others.loc[others["untrained"], "subject"]
            if copies.empty or len(reading.analysed(self.root)) > 1:
                return None
            wanted = copies.iloc[0]
        copy = session(self.root, subject=wanted, session=self.session)
        shown = {(run.task, run.run) for run in self.runs}
        there = (copy.rest or ()) if self.tasks == (REST,) else copy
        kept = tuple(run for run in there if (run.task, run.run) in shown)
        return Session(self.root, kept) if kept else None

    def check_repeated(self) -> None:
        """Raise NotRepeatedError unless every task has the same runs, at least two."""
        numbers = {task: [run.run for run in self.of(task)] for task in self.tasks}
        if len({tuple(n) for n in numbers.values()}) > 1 or len(self.folds) < 2:
            raise NotRepeatedError(
                "comparisons between runs need the same 2 or more runs of every task; there are "
                f"{', '.join(f'{task}: {n}' for task, n in numbers.items())}. Finish the scan first"
            )

    def lock(self) -> AbstractContextManager[None]:
        """Keep other processes from writing to the dataset; see `llm2nifti.bids.locked`."""
        return locked(self.root)

    def __repr__(self) -> str:
        """Say whose session it is and what it holds."""
        who, tasks = " ".join(self.first.paths.folder.parts), ", ".join(self.tasks)
        return f"Session: {who}, {len(self.runs)} runs of {tasks}"


def _label(task: str) -> str:
    """BIDS label of a task's name; empty if it can't have one."""
    try:
        return label(task)
    except LabelError:
        return ""


def session(root: Path | str, *, subject: str | None = None, session: str | None = None) -> Session:
    """Open one session of one model.

    Parameters
    ----------
    root, subject, session
        See `llm2nifti.bids.read`.

    Returns
    -------
    Session

    Raises
    ------
    NoSuchRunError
        If there is no such session; the message lists what there is.

    Examples
    --------
    >>> bids.session("ds")  # doctest: +SKIP
    Session: sub-smollm2135m, 18 runs of archeology, medicalimaging, paleontology, ...
    """
    runs = reading.runs_of(root, subject, session)
    of_tasks = [paths for paths in runs if paths.task != REST]
    return Session(Path(root), tuple(map(reading.open_run, of_tasks or runs)))
