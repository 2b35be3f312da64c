"""Who scans: this process, or the workers of a Dask cluster, one run a task.

A worker keeps one model loaded, records a run in the dataset's own work folder (which it must see
under the same path) and writes it there. What is lost with a worker is done again by another one,
which goes on from the last finished batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from llm2nifti import bids, cluster, models
from llm2nifti.cluster import ClusterError, Workers
from llm2nifti.models import LoadedModel
from llm2nifti.paradigm import Paradigm
from llm2nifti.plans import ModelChoice, ScanPlan
from llm2nifti.progress import stage
from llm2nifti.scanner.threads import check_threads, torch_threads
from llm2nifti.study.plans import load, title, weights_of, who
from llm2nifti.study.scanning import Crew, Job, check_model, record


@contextmanager
def crew_of(dask: str | None, threads: int | None) -> Iterator[Crew]:
    """Workers of a cluster, or this process."""
    check_threads(threads)
    if dask is None:
        with torch_threads(threads):
            yield ThisProcess()
        return
    with cluster.connected(dask, threads=threads) as workers:
        yield DaskCrew(workers)


class ThisProcess:
    """Does all jobs here, one after the other, and keeps one model loaded."""

    map = map  # of the analysis

    def __init__(self) -> None:
        self._key: tuple[ModelChoice, bool] | None = None
        self._model: LoadedModel | None = None

    def load(self, choice: ModelChoice, *, untrained: bool) -> LoadedModel:
        """Model of a plan, loaded unless it is the last one that was."""
        key = (weights_of(choice), untrained)
        if self._model is None or self._key != key:
            self._model = None  # room for the next one
            self._key, self._model = key, load(choice, untrained=untrained)
        if self._model.source.get("Session", "") != choice.session:
            source = {**self._model.source, "Session": choice.session}
            self._model = replace(self._model, source=source)
        return self._model

    def check(self, plans: Sequence[ScanPlan], designs: Sequence[Paradigm]) -> None:
        """Raise unless every model has the sites and every prompt fits it."""
        for plan in plans:
            check_model(plan, designs, self.load(plan.model, untrained=False))

    def record(self, root: Path, jobs: Sequence[Job], *, verbose: int) -> None:
        """Do all jobs in order: one stage a model and session."""
        for whose, same in groupby(jobs, key=lambda job: job.name.partition("_task-")[0]):
            todo = list(same)
            n_trials = sum(job.design.n_trials for job in todo)
            with stage(f"scan {whose}", total=n_trials, unit="trial", verbose=verbose) as bar:
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


class DaskCrew:
    """Does jobs on the workers of a cluster.

    Parameters
    ----------
    workers : Workers
        From `llm2nifti.cluster.connected`.
    """

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
        with _permit(root, workers.token) as permit:
            for job in jobs:
                if not job.is_done(root):
                    after = begun.get(replace(job, untrained=False).name) if job.untrained else None
                    sent = replace(job, plan=_anywhere(job.plan))
                    args = (root, sent, permit, workers.threads, after)
                    begun[job.name] = workers.submit(_record, *args, name=job.name)
            workers.finish("scan", verbose=verbose, n_done=len(jobs) - len(begun))


def _anywhere(plan: ScanPlan) -> ScanPlan:
    """Plan whose files are found from any folder."""
    model, design = plan.model, plan.design
    path = Path(model.name)
    if path.exists() and model.name not in models.BUNDLED:
        model = replace(model, name=str(path.resolve()), subject=title(model))
    if design.stimuli:
        design = replace(design, stimuli=str(Path(design.stimuli).resolve()))
    return replace(plan, model=model, design=design)


@contextmanager
def _permit(root: Path, token: str) -> Iterator[Path]:
    """File in the work folder; once it is gone, workers stop after the batch they are at."""
    path = root / bids.WORK / f"permit-{token}"
    path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


# -- what workers do -------------------------------------------------------------------------------


def _check(plan: ScanPlan, designs: list[Paradigm], token: str) -> None:
    """Raise unless the model has the sites and every prompt fits it."""
    here: ThisProcess = cluster.kept(token, ThisProcess)
    check_model(plan, designs, here.load(plan.model, untrained=False))


def _record(root: Path, job: Job, permit: Path, threads: int, _after: object) -> str:
    """Record one run, after the run that it replays."""

    def stop_if_asked(_n_trials: int) -> None:
        if not permit.exists():
            raise ClusterError(f"recording {job.name} was stopped")

    with torch_threads(threads):
        stop_if_asked(0)
        if not job.is_done(root):
            here: ThisProcess = cluster.kept(permit.name.removeprefix("permit-"), ThisProcess)
            model = here.load(job.plan.model, untrained=job.untrained)
            record(root, job, model, on_trials=stop_if_asked)
    return job.name
