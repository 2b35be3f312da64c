"""Scan all runs of a study into a dataset; interrupted work is resumed.

A job is one run of one model and session. Jobs are independent of each other, but for those of an
untrained copy, which replay the tokens of the trained model's run. Short runs that follow each
other are recorded `together`, in one batch.

A `crew` does them: this process, or the workers of a Dask cluster, one batch of runs a task. A
worker keeps one model loaded, records runs in the dataset's own work folder (which it must see
under the same path) and writes them there. What is lost with a worker is done again by another
one, which goes on from the last finished batch. `root`, `plans`, `overwrite` and `verbose` are as
in `llm2nifti.study.scan`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import groupby, product
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from llm2nifti import bids, cluster, models, scanner
from llm2nifti.bids import checking, statsmodel
from llm2nifti.bids.writing import copy_shown
from llm2nifti.cluster import ClusterError, Workers
from llm2nifti.media import medium_of
from llm2nifti.models import LoadedModel
from llm2nifti.paradigm import Paradigm
from llm2nifti.plans import ModelChoice, ScanPlan, Settings
from llm2nifti.progress import stage
from llm2nifti.scanner import ScanError, Shown
from llm2nifti.scanner.kernels import check_threads, torch_threads
from llm2nifti.scanner.stimulus import resolved
from llm2nifti.stimuli import REST
from llm2nifti.study.plans import (
    check_together,
    keep_plans,
    label,
    load,
    paradigms,
    row_of,
    title,
    weights_of,
    who,
)
from llm2nifti.study.sessions import StudyError


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
    designs = check(root, plans)
    jobs: list[Job] = []
    for plan in plans:
        for untrained in (False, True) if plan.model.untrained else (False,):
            jobs += [Job(plan, design, untrained) for design in designs]
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
        copy_shown(root, design.trials, only_known=True)
    for task in dict.fromkeys(design.task for design in designs):
        trials = (design.trials for design in designs if design.task == task)
        statsmodel.write(root, bids.label(task), trials)
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
        size = job.plan.settings.batch_size
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
        shown = [
            Shown(
                job.design,
                folder=root / bids.WORK / job.name,
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
                shutil.rmtree(root / bids.WORK / job.name)


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


# -- who scans -------------------------------------------------------------------------------------


@contextmanager
def crew_of(n_jobs: int, dask: str | None, threads: int | None) -> Iterator[Crew]:
    """Workers of a cluster, or this process."""
    check_threads(threads)
    where = cluster.asked(n_jobs, dask)
    if where is None:
        with torch_threads(threads):
            yield ThisProcess()
    else:
        with cluster.connected(where, threads=threads) as workers:
            yield DaskCrew(workers)


class ThisProcess:
    """Does all jobs here, one after the other, and keeps one model loaded.

    No variable holds a model while the next one is loaded: there may be memory for one.
    """

    map = map  # of the analysis

    def __init__(self) -> None:
        self._kept: tuple[tuple[ModelChoice, bool], LoadedModel] | None = None

    def load(self, choice: ModelChoice, *, untrained: bool) -> LoadedModel:
        """Model of a plan, loaded unless it is the last one that was."""
        key = (weights_of(choice), untrained)
        if self._kept is None or self._kept[0] != key:
            self._kept = None  # room for the next one
            self._kept = key, load(choice, untrained=untrained)
        model = self._kept[1]
        if model.source.get("Session", "") != choice.session:
            model = replace(model, source={**model.source, "Session": choice.session})
        return model

    def check(self, plans: Sequence[ScanPlan], designs: Sequence[Paradigm]) -> None:
        """Raise unless every model has the sites and every prompt fits it: before hours of work."""
        for plan, design in product(plans, designs):
            try:
                scanner.check(self.load(plan.model, untrained=False), design, plan.settings)
            except ScanError as error:
                place = f"task {design.task}, run {design.run}"
                raise ScanError(f"{error} ({place}{row_of(plan.design, str(error))})") from None

    def record(self, root: Path, jobs: Sequence[Job], *, verbose: int) -> None:
        """Do all jobs in order, unless they are done: one stage a model and session."""
        for whose, same in groupby(jobs, key=lambda job: who(job.plan, untrained=job.untrained)):
            todo = list(same)
            n_trials = sum(job.design.n_trials for job in todo)
            with stage(f"scan {whose}", total=n_trials, unit="trial", verbose=verbose) as bar:
                for group in together(todo):
                    first = group[0]
                    bar.set_description(f"scan {first.name}")
                    if all(job.is_done(root) for job in group):
                        bar.update(sum(job.design.n_trials for job in group))
                    else:
                        choice, copy = first.plan.model, first.untrained
                        record(root, group, self.load(choice, untrained=copy), on_trials=bar.update)
        self._kept = None  # what follows needs no model


class DaskCrew:
    """Does jobs on the workers of a cluster."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self.map = workers.map

    def check(self, plans: Sequence[ScanPlan], designs: Sequence[Paradigm]) -> None:
        """Raise unless every model has the sites and every prompt fits it."""
        for plan in plans:
            args = (_anywhere(plan), list(designs), self._workers.token)
            self._workers.submit(_check, *args, name=who(plan))
        self._workers.finish("check", verbose=0)

    def record(self, root: Path, jobs: Sequence[Job], *, verbose: int) -> None:
        """Do all jobs; those of untrained copies come after those they replay."""
        root, workers = root.resolve(), self._workers
        begun: dict[str, Any] = {}
        groups = together(jobs)
        permit = root / bids.WORK / f"permit-{workers.token}"
        permit.touch()  # once it is gone, workers stop after the batch they are at
        try:
            for group in groups:
                if not all(job.is_done(root) for job in group):
                    first = {other.name: 0 for job in group for other in _before(job, jobs)}
                    after = [begun[name] for name in first if name in begun]
                    sent = [replace(job, plan=_anywhere(job.plan)) for job in group]
                    args = (root, sent, permit, workers.threads, after)
                    future = workers.submit(_record, *args, name=group[0].name)
                    begun |= {job.name: future for job in group}
            n_sent = len({id(future) for future in begun.values()})
            workers.finish("scan", verbose=verbose, n_done=len(groups) - n_sent)
        finally:
            permit.unlink(missing_ok=True)


def _before(job: Job, jobs: Sequence[Job]) -> list[Job]:
    """Jobs that come first: that whose tokens are replayed, and one that describes the session.

    The table of sessions has the temperature of tasks, not that of rest.
    """
    first = [replace(job, untrained=False)] if job.untrained else []
    if job.design.task == REST:
        mine = (job.plan, job.untrained)
        first.append(next(other for other in jobs if (other.plan, other.untrained) == mine))
    return first


Crew = ThisProcess | DaskCrew


def _anywhere(plan: ScanPlan) -> ScanPlan:
    """Plan whose files are found from any folder."""
    model, design = plan.model, plan.design
    path = Path(model.name)
    if path.exists() and model.name not in models.BUNDLED:
        model = replace(model, name=str(path.resolve()), subject=title(model))
    if design.stimuli:
        design = replace(design, stimuli=str(Path(design.stimuli).resolve()))
    return replace(plan, model=model, design=design)


# -- what workers do -------------------------------------------------------------------------------


def _check(plan: ScanPlan, designs: list[Paradigm], token: str) -> None:
    """Raise unless the model has the sites and every prompt fits it."""
    cluster.kept(token, ThisProcess).check([plan], designs)


def _record(root: Path, jobs: list[Job], permit: Path, threads: int, _after: object) -> str:
    """Record a group of runs, after those that they replay."""
    first = jobs[0]

    def stop_if_asked(_n_trials: int) -> None:
        if not permit.exists():
            raise ClusterError(f"recording {first.name} was stopped")

    with torch_threads(threads):
        stop_if_asked(0)
        if not all(job.is_done(root) for job in jobs):
            here: ThisProcess = cluster.kept(permit.name.removeprefix("permit-"), ThisProcess)
            model = here.load(first.plan.model, untrained=first.untrained)
            record(root, jobs, model, on_trials=stop_if_asked)
    return first.name
