"""Scan all runs of a study into a dataset; interrupted work is resumed.

A job is one run of one model and session. Jobs are independent of each other, but for those of an
untrained copy, which replay the tokens of the trained model's run.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import torch
from filelock import FileLock

from llm2nifti import bids, models
from llm2nifti.bids import checking
from llm2nifti.bids.writing import restore_shown
from llm2nifti.models import LoadedModel
from llm2nifti.paradigm import Paradigm
from llm2nifti.progress import stage
from llm2nifti.scanner import ScanError, Settings
from llm2nifti.scanner import check as check_prompts
from llm2nifti.scanner import scan as scan_run
from llm2nifti.study.errors import StudyError
from llm2nifti.study.plans import (
    PLAN_FILE,
    Design,
    ModelChoice,
    Plan,
    check_labels,
    check_shared,
    keep_plans,
)

__all__ = [
    "PLAN_FILE",
    "Crew",
    "Design",
    "Job",
    "ModelChoice",
    "Plan",
    "Settings",
    "check",
    "record",
    "scan",
]


@dataclass(frozen=True)
class Job:
    """One run of one model and session.

    Attributes
    ----------
    plan : Plan
        What is scanned, and how.
    design : Paradigm
        What is shown.
    untrained : bool
        Whether the untrained copy is scanned, on the tokens of the trained model.
    """

    plan: Plan
    design: Paradigm
    untrained: bool = False

    @property
    def name(self) -> str:
        """Labels of the run as in file names."""
        choice = self.plan.model
        who = bids.folder_of(choice.label(untrained=self.untrained), choice.session).parts
        return f"{'_'.join(who)}_task-{bids.label(self.design.task)}_run-{self.design.run}"

    def settings(self, model: LoadedModel) -> Settings:
        """How a model, trained or not, is recorded, in words that say it all.

        Of the untrained copy the mean of each trial's tokens is kept, unless the plan asks for
        tokens: it is a baseline at the level of prompts, and its tokens are not its own.
        """
        settings = self.plan.settings
        generates = settings.mode_for(model) == "generate"
        if self.untrained and generates and settings.frames == "auto":
            settings = replace(settings, frames="trial")
        return settings.resolved(model)

    def is_done(self, root: Path) -> bool:
        """Whether the dataset has this run, complete and undamaged."""
        paths = checking.find_run(root, self.name)
        return paths is not None and checking.is_intact(paths)


class Crew(Protocol):
    """Who does the work: this process, or the workers of a cluster."""

    def check(self, plans: Sequence[Plan], designs: Sequence[Paradigm]) -> None:
        """Raise unless every model has the sites and every prompt fits it."""

    def record(self, root: Path, jobs: Sequence[Job], *, quiet: bool) -> None:
        """Do all jobs; those of untrained copies come after those they replay."""

    @property
    def map(self) -> Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]:
        """Do a function for each of some items, as the builtin does: parts of the analysis."""


def scan(
    root: Path,
    plans: Plan | Sequence[Plan],
    *,
    overwrite: bool = False,
    quiet: bool = False,
    crew: Crew | None = None,
) -> None:
    """Record every run of the plans that the dataset does not have yet; call it inside `locked`.

    Parameters
    ----------
    root : Path
        Root of the dataset; created if needed.
    plans : Plan or sequence of Plan
        What to do. It is kept in the dataset, and a dataset with other plans is refused; more
        models and sessions can be added.
    overwrite : bool, default=False
        Delete what llm2nifti wrote to this folder before, and start anew.
    quiet : bool, default=False
        Show no progress bar.
    crew : Crew, optional
        Who does the work; by default this process.

    Raises
    ------
    StudyError
        If the folder holds a dataset with another plan, or is in use.
    """
    root, plans = bids.as_root(root), _as_list(plans)
    crew = crew or ThisProcess()
    designs = check(root, plans)
    jobs = [job for plan in plans for job in _jobs(plan, designs)]
    # Before anything is written or deleted: a wrong name or prompt changes nothing.
    todo = [job.plan for job in jobs if overwrite or not job.is_done(root)]
    weights = {plan.model.weights(): plan for plan in todo}
    crew.check(list(weights.values()), designs)
    if overwrite:
        bids.remove_dataset(root)
    # Others may begin it at the same time. One that is begun stays as it is if plans are refused.
    with nullcontext() if bids.is_begun(root) else bids.shared(root):
        bids.write_dataset_files(root)
    keep_plans(root, plans)
    for design in designs:
        restore_shown(root, design.trials)
    crew.record(root, jobs, quiet=quiet)


def _as_list(plans: Plan | Sequence[Plan]) -> list[Plan]:
    """Plans as a list."""
    return [plans] if isinstance(plans, Plan) else list(plans)


def check(root: Path, plans: Plan | Sequence[Plan]) -> list[Paradigm]:
    """Design all runs and look at labels and folder, before anything is written."""
    plans = _as_list(plans)
    bids.check_folder(root)
    check_labels(plans)
    check_shared(plans)
    return plans[0].design.paradigms()


def _jobs(plan: Plan, designs: Sequence[Paradigm]) -> list[Job]:
    """Runs of a model, then those of its untrained copy."""
    copies = [False, True] if plan.model.untrained else [False]
    return [Job(plan, design, untrained) for untrained in copies for design in designs]


def check_threads(number: int | None) -> None:
    """Raise StudyError if a number of threads is below 1."""
    if number is not None and number < 1:
        raise StudyError(f"threads is {number}; it must be at least 1")


@contextmanager
def torch_threads(number: int | None) -> Iterator[None]:
    """Set the number of threads that torch computes with, and put it back; None changes nothing.

    Raises
    ------
    StudyError
        If the number is below 1.
    """
    check_threads(number)
    if number is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class ThisProcess:
    """Does all jobs here, one after the other, and keeps one model loaded."""

    map = map  # of the analysis

    def __init__(self) -> None:
        self._key: tuple[ModelChoice, bool] | None = None
        self._model: LoadedModel | None = None

    def load(self, choice: ModelChoice, *, untrained: bool) -> LoadedModel:
        """Model of a plan, loaded unless it is the last one that was."""
        key = (choice.weights(), untrained)
        if self._model is None or self._key != key:
            self._model = None  # room for the next one
            self._key, self._model = key, choice.load(untrained=untrained)
        if self._model.source.get("Session", "") != choice.session:
            source = {**self._model.source, "Session": choice.session}
            self._model = replace(self._model, source=source)
        return self._model

    def check(self, plans: Sequence[Plan], designs: Sequence[Paradigm]) -> None:
        """Raise unless every model has the sites and every prompt fits it."""
        for plan in plans:
            check_model(plan, designs, self.load(plan.model, untrained=False))

    def record(self, root: Path, jobs: Sequence[Job], *, quiet: bool) -> None:
        """Do all jobs in order: one stage a model and session."""
        for who, same in groupby(jobs, key=lambda job: job.name.partition("_task-")[0]):
            todo = list(same)
            n_trials = sum(job.design.n_trials for job in todo)
            with stage(f"scan {who}", total=n_trials, unit="trial", quiet=quiet) as bar:
                for job in todo:
                    self._record(root, job, bar)
        self._key = self._model = None  # what follows needs none

    def _record(self, root: Path, job: Job, bar: Any) -> None:
        """Do one job, unless it is done."""
        bar.set_description(f"scan {job.name}")
        if job.is_done(root):
            bar.update(job.design.n_trials)
            return
        model = self.load(job.plan.model, untrained=job.untrained)
        record(root, job, model, on_trials=bar.update)


def check_model(plan: Plan, designs: Sequence[Paradigm], model: LoadedModel) -> None:
    """Raise unless the model has the sites and every prompt fits it: before hours of work."""
    for design in designs:
        try:
            check_prompts(model, design, plan.settings)
        except ScanError as error:
            place = f"task {design.task}, run {design.run}"
            raise ScanError(f"{error} ({place}{plan.design.row_of(str(error))})") from None


def _check_weights(root: Path, job: Job, model: LoadedModel) -> None:
    """Raise StudyError if the other runs of the session were made with other weights."""
    choice = job.plan.model
    label = choice.label(untrained=job.untrained)
    now = model.source["WeightsHash"]
    before = bids.weights_hash(root, label, choice.session) or now
    if not models.has_weights(model, before):
        raise StudyError(
            f"the weights of {model.name} changed since this dataset was begun ({before[:12]}... "
            f"then, {now[:12]}... now); use another folder or overwrite=True"
        )


def record(root: Path, job: Job, model: LoadedModel, *, on_trials: Callable[[int], object]) -> None:
    """Record one run in the work folder, write it, and drop the working copy.

    Parameters
    ----------
    root : Path
        Root of the dataset.
    job : Job
        What to record; nothing is done if the dataset has it.
    model : LoadedModel
        The job's model.
    on_trials : callable
        Called with the number of trials of every finished batch.
    """
    with _alone(root, job):
        if job.is_done(root):
            return
        _check_weights(root, job, model)
        folder, settings = root / bids.WORK / job.name, job.settings(model)
        _drop_outdated(folder, settings)
        recording = scan_run(
            model,
            job.design,
            settings=settings,
            folder=folder,
            replay=_tokens(root, job) if job.untrained and settings.mode == "generate" else None,
            on_trials=on_trials,
        )
        bids.write(recording, root, compress=job.plan.compress)
        shutil.rmtree(folder)


@contextmanager
def _alone(root: Path, job: Job) -> Iterator[None]:
    """Wait for another process that records the same run: a worker that a cluster gave up."""
    folder = root / bids.WORK / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{job.name}.lock"):
        yield


def _tokens(root: Path, job: Job) -> list[list[int]]:
    """Tokens that the trained model generated in the same run, trial by trial."""
    name = replace(job, untrained=False).name
    paths = checking.find_run(root, name)  # not `bids.read`, which looks at all runs there are
    if paths is None:
        raise bids.NoSuchRunError(f"{root} has no run {name}, whose tokens are replayed")
    ids = bids.Run(paths).tokens.groupby("trial")["token_id"]
    return [list(map(int, tokens)) for _, tokens in ids]


def _drop_outdated(folder: Path, settings: Settings) -> None:
    """Delete a half-made recording whose sidecar could not be true, or of other volumes.

    The number of threads may be another one now, and copies were once recorded token by token.
    """
    path = folder / "plan.json"
    if path.exists():
        before = bids.read_json(path, {"info": dict}).get("info", {})
        frames = before.get("Settings", {}).get("frames")
        if (before.get("Threads"), frames) != (torch.get_num_threads(), settings.frames):
            shutil.rmtree(folder)
