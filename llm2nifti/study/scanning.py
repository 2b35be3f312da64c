"""Scan all runs of a study into a dataset; interrupted work is resumed.

A job is one run of one model and session. Jobs are independent of each other, but for those of an
untrained copy, which replay the tokens of the trained model's run. Short runs that follow each
other are recorded `together`, in one batch.

A `crew` does them, see `llm2nifti.study.crews`. `root`, `plans`, `overwrite` and `verbose` are as
in `llm2nifti.study.scan`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock

from llm2nifti import bids, models, scanner
from llm2nifti.bids import checking, statsmodel
from llm2nifti.bids.writing import copy_shown
from llm2nifti.defaults import BATCH_SIZE
from llm2nifti.media import medium_of
from llm2nifti.models import LoadedModel
from llm2nifti.paradigm import Paradigm
from llm2nifti.plans import ScanPlan, Settings
from llm2nifti.scanner import Shown
from llm2nifti.scanner.stimulus import resolved
from llm2nifti.stimuli import REST
from llm2nifti.study.plans import (
    check_together,
    keep_plans,
    label,
    paradigms,
    reader_of,
    weights_of,
    who,
    with_batch,
    with_kept_batches,
)
from llm2nifti.study.sessions import StudyError

if TYPE_CHECKING:
    from llm2nifti.study.crews import Crew


@dataclass(frozen=True)
class Job:
    """One run of one model and session, or of its untrained copy on the tokens of the model."""

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
        if self.design.task == REST:
            settings = replace(settings, temperature=self.plan.design.rest_temperature)
        generates = resolved(settings, model).mode == "generate"
        if self.untrained and generates and settings.frames == "auto":
            settings = replace(settings, frames="trial")
        return resolved(settings, model)

    def goes_with(self, other: Job) -> bool:
        """Whether another run may be recorded in the same batch; files come one run at a time."""
        is_rest = [one.design.task == REST for one in (self, other)]
        has_files = any(medium_of(one.design.trials) for one in (self, other))
        same = (self.plan, self.untrained) == (other.plan, other.untrained)
        return same and is_rest[0] == is_rest[1] and not has_files

    def is_done(self, root: Path) -> bool:
        """Whether the dataset has this run, complete and undamaged."""
        paths = checking.find_run(root, self.name)
        return paths is not None and checking.is_intact(paths)


def scan(
    root: Path,
    plans: ScanPlan | Sequence[ScanPlan],
    *,
    overwrite: bool = False,
    verbose: int = 1,
    crew: Crew,
) -> None:
    """Record every run of the plans that the dataset does not have yet; call it inside `locked`.

    The plans are kept in the dataset. StudyError if it has others; more models and sessions can be
    added.
    """
    root, plans = bids.paths.as_root(root), _as_list(plans)
    designs = check(root, plans, overwrite=overwrite)
    if not overwrite:
        plans = with_kept_batches(root, plans)
    # Before anything is written or deleted: a wrong name or prompt changes nothing.
    todo = [job.plan for job in _jobs(plans, designs) if overwrite or not job.is_done(root)]
    weights = {weights_of(plan.model): plan for plan in todo}
    sizes = dict(zip(weights, crew.check(list(weights.values()), designs), strict=True))
    plans = [with_batch(plan, sizes.get(weights_of(plan.model))) for plan in plans]
    jobs = _jobs(plans, designs)
    if overwrite:
        bids.dataset.remove_dataset(root)
    # Others may begin it at the same time. One that is begun stays as it is if plans are refused.
    with nullcontext() if bids.dataset.is_begun(root) else bids.files.shared(root):
        bids.dataset.write_dataset_files(root)
    keep_plans(root, plans)
    bids.dataset.attribute(root, plans[0])
    for design in designs:
        copy_shown(root, design.trials, only_known=True)
    for task in dict.fromkeys(design.task for design in designs):
        trials = (design.trials for design in designs if design.task == task)
        statsmodel.write(root, bids.label(task), trials)
    crew.record(root, jobs, verbose=verbose)


def _jobs(plans: Sequence[ScanPlan], designs: Sequence[Paradigm]) -> list[Job]:
    """All runs of every model and session, those of its untrained copy last."""
    jobs: list[Job] = []
    for plan in plans:
        for untrained in (False, True) if plan.model.untrained else (False,):
            jobs += [Job(plan, design, untrained) for design in designs]
    return jobs


def _as_list(plans: ScanPlan | Sequence[ScanPlan]) -> list[ScanPlan]:
    """Plans as a list."""
    return [plans] if isinstance(plans, ScanPlan) else list(plans)


def check(
    root: Path, plans: ScanPlan | Sequence[ScanPlan], *, overwrite: bool = False
) -> list[Paradigm]:
    """Design all runs and look at labels and folder, before anything is written."""
    plans = _as_list(plans)
    bids.dataset.check_folder(root)
    check_together(plans)
    return paradigms(plans[0].design, reader_of(root, plans, overwrite=overwrite))


def _check_weights(root: Path, job: Job, model: LoadedModel) -> None:
    """Raise StudyError if the other runs of the session were made with other weights."""
    choice = job.plan.model
    subject = label(choice, untrained=job.untrained)
    now = model.source["WeightsHash"]
    before = bids.dataset.weights_hash(root, subject, choice.session) or now
    if not models.has_weights(model, before):
        raise StudyError(
            f"the weights of {model.name} changed since this dataset was begun ({before[:12]}... "
            f"then, {now[:12]}... now); use another folder or overwrite=True"
        )


def together(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs that follow each other, in groups whose trials are one batch; larger runs are alone.

    It depends on the plan alone: what shares a batch decides the last digits of values.
    """
    groups: list[list[Job]] = []
    for job in jobs:
        size = job.plan.settings.batch_size or BATCH_SIZE
        before = groups[-1] if groups else []
        n_trials = sum(other.design.n_trials for other in before) + job.design.n_trials
        if before and before[0].goes_with(job) and n_trials <= size:
            before.append(job)
        else:
            groups.append([job])
    return groups


def record(
    root: Path, jobs: Sequence[Job], model: LoadedModel, *, on_trials: Callable[[int], object]
) -> None:
    """Record a group of runs in the work folder, and write those that are not done.

    `on_trials` is called with the number of trials of every finished batch.
    """
    locks = root / bids.WORK / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        # Another process may record the same runs: a worker that a cluster gave up.
        for job in jobs:
            stack.enter_context(FileLock(locks / f"{job.name}.lock"))
        todo = [job for job in jobs if not job.is_done(root)]
        if not todo:
            return
        settings = jobs[0].settings(model)
        for job in todo:
            _check_weights(root, job, model)
            _drop_outdated(root / bids.WORK / job.name, settings)
        replays = jobs[0].untrained and settings.mode == "generate"
        # A single batch is all or nothing: no file of its values before the run's own.
        n_trials = sum(job.design.n_trials for job in jobs)
        is_one_batch = n_trials <= (settings.batch_size or BATCH_SIZE)
        shown = [
            Shown(
                job.design,
                folder=None if is_one_batch else root / bids.WORK / job.name,
                replay=_tokens(root, job) if replays else None,
                is_wanted=job in todo,
            )
            for job in jobs
        ]
        recordings = scanner.scan_together(model, shown, settings=settings, on_trials=on_trials)
        for job, recording in zip(jobs, recordings, strict=True):
            if recording is not None:
                # A file of all runs may have been what was damaged; the first run mended it.
                if not job.is_done(root):
                    bids.write(recording, root, compress=job.plan.compress)
                if (work := root / bids.WORK / job.name).exists():
                    shutil.rmtree(work)


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
