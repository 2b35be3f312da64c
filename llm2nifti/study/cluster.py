"""Who scans when this process does not? The workers of a Dask cluster, one run a task.

A worker keeps one model loaded, records a run in the dataset's own work folder (which it must see
under the same path) and writes it there. What is lost with a worker is done again by another one,
which goes on from the last finished batch.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from itertools import count
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llm2nifti import bids, models
from llm2nifti.paradigm import Paradigm
from llm2nifti.progress import stage
from llm2nifti.study.errors import StudyError
from llm2nifti.study.plans import Plan
from llm2nifti.study.scanning import Job, ThisProcess, check_model, record, torch_threads

_LOCAL = "local:"
_PATIENCE = 20  # seconds to wait for a scheduler, and for its first worker
# torch's threads and matplotlib's figures belong to the process, so it does one task at a time.
_ONE_AT_A_TIME = threading.Lock()


class ClusterError(StudyError):
    """The cluster failed, not what it was asked to do."""

    exit_code = 1


@contextmanager
def connected(where: str, *, threads: int | None = None) -> Iterator[Workers]:
    """Use the workers of a Dask cluster.

    Parameters
    ----------
    where : str
        Address of a scheduler, such as ``tcp://host:8786``; or ``local:N`` for N new processes on
        this machine.
    threads : int, optional
        Threads that torch computes with in each worker; by default the worker's share of its
        machine's cores, the smallest of all workers.

    Yields
    ------
    Workers

    Raises
    ------
    StudyError
        If the address is none, or dask's ``distributed`` is not installed.
    ClusterError
        If no scheduler answers, or it has no worker.
    """
    try:
        import distributed
    except ImportError:
        raise StudyError(
            "dask needs the package distributed; install it: pip install 'llm2nifti[cluster]'"
        ) from None
    with _silence(), _cluster(where) as address:
        try:
            client = distributed.Client(address, timeout=_PATIENCE, set_as_default=False)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ClusterError(f"no Dask scheduler answers at {where} ({reason})") from None
        workers = Workers(client, threads)
        try:
            workers.begin()
            yield workers
        finally:
            workers.end()


@contextmanager
def _silence() -> Iterator[None]:
    """Keep what distributed logs of lost workers to itself: a person gets one line of ours."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _cluster(where: str) -> Iterator[Any]:
    """Address of a scheduler, or a new cluster on this machine for ``local:N``."""
    number = where.removeprefix(_LOCAL)
    if number == where and re.fullmatch(r"(\w+://)?[^/\s]+:\d+", where):
        yield where
        return
    if number == where or not number.isdecimal() or int(number) < 1:
        raise StudyError(
            f"dask is {where!r}; give local:N with N of 1 or more, or the address of a "
            "scheduler, such as tcp://host:8786"
        )
    from distributed import LocalCluster

    with _interrupts_held():  # also for workers that are started later, in the cluster's threads
        cluster = LocalCluster(
            n_workers=int(number),
            threads_per_worker=1,
            memory_limit=0,  # memory-mapped recordings count, but can always be given back
            dashboard_address="localhost:0",  # None is port 8787, and a warning where it is taken
            silence_logs=logging.CRITICAL,
        )
    with cluster:
        yield cluster


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Leave Ctrl-C to this thread: threads and processes begun meanwhile never see it.

    Ctrl-C and the end of a terminal reach the whole group of processes, and the one that has the
    client sees to them.
    """
    mask = getattr(signal, "pthread_sigmask", None)
    if mask is None:  # Windows
        yield
        return
    before = mask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        resource_tracker.ensure_running()  # a process as well; it lets SIGINT through afterwards
        mask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        mask(signal.SIG_SETMASK, before)


class Workers:
    """Does jobs on the workers of a cluster; see `connected`.

    Parameters
    ----------
    client : distributed.Client
        A connected client.
    threads : int, optional
        See `connected`.
    """

    def __init__(self, client: Any, threads: int | None) -> None:
        self._client = client
        self._threads = threads
        self._token = uuid.uuid4().hex[:8]  # a model loaded for another study is not used
        self._futures: list[Any] = []
        self._numbers = count()

    def begin(self) -> None:
        """Wait for the first worker and share out the cores."""
        try:
            self._client.wait_for_workers(1, timeout=_PATIENCE)
        except TimeoutError:
            raise ClusterError("the Dask scheduler has no worker; start some first") from None
        if self._threads is None:
            machines = list(self._client.run(_machine).values())
            n_workers = Counter(name for name, _ in machines)
            self._threads = max(1, min(cores // n_workers[name] for name, cores in machines))

    def end(self) -> None:
        """Cancel what is left, and let the workers drop their model."""
        with suppress(Exception):  # the cluster may be gone
            self._client.cancel(self._futures)
            self._client.run(_forget, on_error="ignore")
        self._client.close()

    def check(self, plans: Sequence[Plan], designs: Sequence[Paradigm]) -> None:
        """Raise unless every model has the sites and every prompt fits it."""
        for plan in plans:
            self._submit(_check, _anywhere(plan), list(designs), self._token, name=plan.who)
        self._finish("check", quiet=True)

    def record(self, root: Path, jobs: Sequence[Job], *, quiet: bool) -> None:
        """Do all jobs; those of untrained copies come after those they replay."""
        root = root.resolve()
        begun: dict[str, Any] = {}
        with _permit(root, self._token) as permit:
            for job in jobs:
                if not job.is_done(root):
                    begun[job.name] = self._submit(
                        _record,
                        root,
                        replace(job, plan=_anywhere(job.plan)),
                        permit,
                        self._threads,
                        begun.get(replace(job, untrained=False).name) if job.untrained else None,
                        name=job.name,
                    )
            self._finish("scan", quiet=quiet, n_done=len(jobs) - len(begun))

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Results of a function for each item, in order, as the builtin gives them."""
        for item in items:
            self._submit(_apply, function, item, name="analyse")
        yield from self._results(lambda futures, **_: futures)

    def _submit(self, function: Callable, *args: Any, name: str) -> Any:
        """Give a task to the cluster; earlier ones are more urgent."""
        number = next(self._numbers)
        key = f"llm2nifti-{name}-{self._token}-{number}"
        future = self._client.submit(function, *args, key=key, priority=-number, pure=False)
        self._futures.append(future)
        return future

    def _finish(self, what: str, *, quiet: bool, n_done: int = 0) -> None:
        """Wait for all tasks, with a progress bar."""
        from distributed import as_completed

        total = len(self._futures) + n_done
        with stage(what, total=total, unit="run", initial=n_done, quiet=quiet) as bar:
            for _ in self._results(as_completed):
                bar.update()

    def _results(self, order: Callable[..., Iterable[Any]]) -> Iterator[Any]:
        """Results of all tasks in some order; the first error cancels what is left."""
        from concurrent.futures import CancelledError

        from distributed import KilledWorker

        future: Any = None
        try:
            for future in order(self._futures, loop=self._client.loop):
                yield future.result()
            self._futures = []
        except KilledWorker as error:
            raise ClusterError(
                f"{error.task!r} was lost with its worker again and again; is there too little "
                "memory? Use fewer workers or a smaller batch; the same command resumes"
            ) from None
        except (CancelledError, OSError):
            if future is not None and future.status == "error":
                raise  # of the work itself, such as a full disk or a missing file
            raise ClusterError(
                "the connection to the Dask scheduler was lost; the same command resumes"
            ) from None
        finally:
            if self._futures:
                self._client.cancel(self._futures)
                self._futures = []


def _anywhere(plan: Plan) -> Plan:
    """Plan whose files are found from any folder."""
    model, design = plan.model, plan.design
    path = Path(model.name)
    if path.exists() and model.name not in models.BUNDLED:
        model = replace(model, name=str(path.resolve()), subject=model.title)
    if design.stimuli_path:
        design = replace(design, stimuli_path=str(Path(design.stimuli_path).resolve()))
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


@lru_cache(maxsize=1)
def _own(token: str) -> ThisProcess:
    """What the worker process keeps loaded for one study."""
    return ThisProcess()


def _forget() -> None:
    """Drop the model."""
    _own.cache_clear()


@contextmanager
def _alone() -> Iterator[None]:
    """Do one task at a time."""
    with _ONE_AT_A_TIME:
        # By default the bars of all processes share one, which a killed worker would leave behind.
        tqdm.set_lock(threading.RLock())
        yield


def _machine() -> tuple[str, int]:
    """Name of this machine and cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return socket.gethostname(), len(affinity(0)) if affinity else os.cpu_count() or 1


def _check(plan: Plan, designs: list[Paradigm], token: str) -> None:
    """Raise unless the model has the sites and every prompt fits it."""
    with _alone():
        check_model(plan, designs, _own(token).load(plan.model, untrained=False))


def _record(root: Path, job: Job, permit: Path, threads: int, _after: object) -> str:
    """Record one run, after the run that it replays."""

    def stop_if_asked(_n_trials: int) -> None:
        if not permit.exists():
            raise ClusterError(f"recording {job.name} was stopped")

    with _alone(), torch_threads(threads):
        stop_if_asked(0)
        if not job.is_done(root):
            token = permit.name.removeprefix("permit-")
            model = _own(token).load(job.plan.model, untrained=job.untrained)
            record(root, job, model, on_trials=stop_if_asked)
    return job.name


def _apply(function: Callable[[Any], Any], item: Any) -> Any:
    """Do one part of the analysis."""
    with _alone():
        return function(item)
