"""Scan all runs of a study into a dataset; interrupted work is resumed.

A job is one run of one model and session. Jobs are independent of each other, but for those of an
untrained copy, which replay the tokens of the trained model's run.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from filelock import FileLock

from llm2nifti import bids, models
from llm2nifti.bids import checking
from llm2nifti.bids.writing import restore_shown
from llm2nifti.models import LoadedModel
from llm2nifti.paradigm import Paradigm
from llm2nifti.plans import ScanPlan, Settings
from llm2nifti.scanner import ScanError
from llm2nifti.scanner import check as check_prompts
from llm2nifti.scanner import scan as scan_run
from llm2nifti.scanner.settings import mode_for, resolved
from llm2nifti.study.errors import StudyError
from llm2nifti.study.plans import (
    check_together,
    keep_plans,
    label,
    paradigms,
    row_of,
    weights_of,
    who,
)


@dataclass(frozen=True)
class Job:
    """One run of one model and session.

    Attributes
    ----------
    plan : ScanPlan
        What is scanned, and how.
    design : Paradigm
        What is shown.
    untrained : bool
        Whether the untrained copy is scanned, on the tokens of the trained model.
    """

    plan: ScanPlan
    design: Paradigm
    untrained: bool = False

    @property
    def name(self) -> str:
        """Labels of the run as in file names."""
        whose = who(self.plan, untrained=self.untrained)
        return f"{whose}_task-{bids.label(self.design.task)}_run-{self.design.run}"

    def settings(self, model: LoadedModel) -> Settings:
        """How a model, trained or not, is recorded, in words that say it all.

        Of the untrained copy the mean of each trial's tokens is kept, unless the plan asks for
        tokens: it is a baseline at the level of prompts, and its tokens are not its own.
        """
        settings = self.plan.settings
        generates = mode_for(settings, model) == "generate"
        if self.untrained and generates and settings.frames == "auto":
            settings = replace(settings, frames="trial")
        return resolved(settings, model)

    def is_done(self, root: Path) -> bool:
        """Whether the dataset has this run, complete and undamaged."""
        paths = checking.find_run(root, self.name)
        return paths is not None and checking.is_intact(paths)


class Crew(Protocol):
    """Who does the work: this process, or the workers of a cluster."""

    def check(self, plans: Sequence[ScanPlan], designs: Sequence[Paradigm]) -> None:
        """Raise unless every model has the sites and every prompt fits it."""

    def record(self, root: Path, jobs: Sequence[Job], *, verbose: int) -> None:
        """Do all jobs; those of untrained copies come after those they replay."""

    @property
    def map(self) -> Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]:
        """Do a function for each of some items, as the builtin does: parts of the analysis."""


def scan(
    root: Path,
    plans: ScanPlan | Sequence[ScanPlan],
    *,
    overwrite: bool = False,
    verbose: int = 1,
    crew: Crew,
) -> None:
    """Record every run of the plans that the dataset does not have yet; call it inside `locked`.

    Parameters
    ----------
    root : Path
        Root of the dataset; created if needed.
    plans : ScanPlan or sequence of ScanPlan
        What to do. It is kept in the dataset, and a dataset with other plans is refused; more
        models and sessions can be added.
    overwrite : bool, default=False
        Delete what llm2nifti wrote to this folder before, and start anew.
    verbose : int, default=1
        0 shows no progress.
    crew : Crew
        Who does the work; see `llm2nifti.study.crews`.

    Raises
    ------
    StudyError
        If the folder holds a dataset with another plan, or is in use.
    """
    root, plans = bids.paths.as_root(root), _as_list(plans)
    designs = check(root, plans)
    jobs = [job for plan in plans for job in _jobs(plan, designs)]
    # Before anything is written or deleted: a wrong name or prompt changes nothing.
    todo = [job.plan for job in jobs if overwrite or not job.is_done(root)]
    weights = {weights_of(plan.model): plan for plan in todo}
    crew.check(list(weights.values()), designs)
    if overwrite:
        bids.dataset.remove_dataset(root)
    # Others may begin it at the same time. One that is begun stays as it is if plans are refused.
    with nullcontext() if bids.dataset.is_begun(root) else bids.files.shared(root):
        bids.dataset.write_dataset_files(root)
    keep_plans(root, plans)
    for design in designs:
        restore_shown(root, design.trials)
    crew.record(root, jobs, verbose=verbose)


def _as_list(plans: ScanPlan | Sequence[ScanPlan]) -> list[ScanPlan]:
    """Plans as a list."""
    return [plans] if isinstance(plans, ScanPlan) else list(plans)


def check(root: Path, plans: ScanPlan | Sequence[ScanPlan]) -> list[Paradigm]:
    """Design all runs and look at labels and folder, before anything is written."""
    plans = _as_list(plans)
    bids.dataset.check_folder(root)
    check_together(plans)
    return paradigms(plans[0].design)


def _jobs(plan: ScanPlan, designs: Sequence[Paradigm]) -> list[Job]:
    """Runs of a model, then those of its untrained copy."""
    copies = [False, True] if plan.model.untrained else [False]
    return [Job(plan, design, untrained) for untrained in copies for design in designs]


def check_model(plan: ScanPlan, designs: Sequence[Paradigm], model: LoadedModel) -> None:
    """Raise unless the model has the sites and every prompt fits it: before hours of work."""
    for design in designs:
        try:
            check_prompts(model, design, plan.settings)
        except ScanError as error:
            place = f"task {design.task}, run {design.run}"
            raise ScanError(f"{error} ({place}{row_of(plan.design, str(error))})") from None


def _check_weights(root: Path, job: Job, model: LoadedModel) -> None:
    """Raise StudyError if the other runs of the session were made with other weights."""
    choice = job.plan.model
    subject = label(choice, untrained=job.untrained)
    now = model.source["WeightsHash"]
    before = bids.participants.weights_hash(root, subject, choice.session) or now
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
