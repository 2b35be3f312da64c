"""Who scans? This process, or the workers of a Dask cluster, one batch of runs a task.

A worker keeps one model loaded, records runs in the dataset's own work folder (which it must see
under the same path) and writes them there. What is lost with a worker is done again by another
one, which goes on from the last finished batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from llm2nifti import bids, cluster, models, scanner
from llm2nifti.cluster import ClusterError, Workers
from llm2nifti.models import LoadedModel
from llm2nifti.paradigm import Paradigm
from llm2nifti.plans import ModelChoice, ScanPlan
from llm2nifti.progress import stage
from llm2nifti.scanner import ScanError
from llm2nifti.scanner.kernels import check_threads, torch_threads
from llm2nifti.stimuli import REST
from llm2nifti.study.plans import load, row_of, title, weights_of, who
from llm2nifti.study.scanning import Job, record, together


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

    def check(self, plans: Sequence[ScanPlan], designs: Sequence[Paradigm]) -> list[int]:
        """Size of batches of each plan.

        Raise unless every model has the sites and every prompt fits it: before hours of work.
        """
        return [min(self._check(plan, design) for design in designs) for plan in plans]

    def _check(self, plan: ScanPlan, design: Paradigm) -> int:
        """Size of batches of a run."""
        try:
            return scanner.check(self.load(plan.model, untrained=False), design, plan.settings)
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

    def check(self, plans: Sequence[ScanPlan], designs: Sequence[Paradigm]) -> list[int]:
        """Size of batches of each plan; raise as in this process."""
        sizes = []
        for plan in plans:
            args = (_anywhere(plan), list(designs), self._workers.token)
            sizes.append(self._workers.submit(_check, *args, name=who(plan)))
        self._workers.finish("check", verbose=0)
        return [size.result() for size in sizes]

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


def _check(plan: ScanPlan, designs: list[Paradigm], token: str) -> int:
    """Size of batches; raise unless the model has the sites and every prompt fits it."""
    here: ThisProcess = cluster.kept(token, ThisProcess)
    (size,) = here.check([plan], designs)
    return size


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
