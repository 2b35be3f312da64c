"""Work that the processes of a Dask cluster do, with errors and interruptions of ours.

What is lost with a worker is done again by another one.
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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import count
from multiprocessing import resource_tracker
from typing import Any

from tqdm import tqdm

from llm2nifti.progress import stage

_PATIENCE = 20  # seconds to wait for a scheduler, and for its first worker
# torch's threads and matplotlib's figures belong to the process, so it does one task at a time.
_ONE_AT_A_TIME = threading.Lock()

Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


class DaskError(ValueError):
    """There is no such cluster."""


class ClusterError(ValueError):
    """The cluster failed, not what it was asked to do."""

    exit_code = 1


@contextmanager
def mapped(n_jobs: int, dask: str | None) -> Iterator[Mapper]:
    """Map of the workers that are asked for, which does a function for many items."""
    where = asked(n_jobs, dask)
    with nullcontext() if where is None else connected(where, threads=1) as workers:
        yield workers.map if workers else map


def asked(n_jobs: int, dask: str | None) -> int | str | None:
    """Number of new processes or address of a scheduler; None where this process does the work."""
    if dask is not None:
        if n_jobs != 1:
            raise DaskError(f"n_jobs is {n_jobs}, and dask {dask!r}; give one of them")
        if not re.fullmatch(r"(\w+://)?[^/\s]+:\d+", dask):
            raise DaskError(
                f"dask is {dask!r}; give the address of a scheduler, such as tcp://host:8786, or "
                "n_jobs for processes of this machine"
            )
        return dask
    if n_jobs < 1 and n_jobs != -1:
        raise DaskError(f"n_jobs is {n_jobs}; give -1 for one process a core, or 1 or more")
    n = _machine()[1] if n_jobs == -1 else n_jobs
    return None if n == 1 else n


@contextmanager
def connected(where: int | str, *, threads: int | None = None) -> Iterator[Workers]:
    """Use the workers of a Dask cluster.

    They are those of the scheduler at an address, such as ``tcp://host:8786``, or as many new
    processes on this machine. In each worker torch computes with some `threads`; by default with
    its share of its machine's cores, the smallest of all workers.
    """
    try:
        import distributed
    except ImportError:
        raise DaskError(
            "several processes need the package distributed; install it: "
            "pip install 'llm2nifti[cluster]'"
        ) from None
    with _silence(), _cluster(where) as address:
        try:
            client = distributed.Client(address, timeout=_PATIENCE, set_as_default=False)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ClusterError(f"no Dask scheduler answers at {where} ({reason})") from None
        workers = Workers(client)
        try:
            workers.begin(threads)
            yield workers
        finally:
            workers.end()


@contextmanager
def _silence() -> Iterator[None]:
    """Keep what distributed logs of lost workers to itself: a person gets one line of ours."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in levels:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


@contextmanager
def _cluster(where: int | str) -> Iterator[Any]:
    """Address of a scheduler, or a new cluster of so many processes on this machine."""
    if isinstance(where, str):
        yield where
        return
    from distributed import LocalCluster

    with _interrupts_held():  # also for workers that are started later, in the cluster's threads
        cluster = LocalCluster(
            n_workers=where,
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
    """Workers of a cluster, through its `client`; see `connected`."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.token = uuid.uuid4().hex[:8]  # tells this use of the workers from others
        self.threads = 1  # that torch computes with in each worker
        self._futures: list[Any] = []
        self._numbers = count()

    def begin(self, threads: int | None) -> None:
        """Wait for the first worker and, without a number of threads, share out the cores."""
        try:
            self._client.wait_for_workers(1, timeout=_PATIENCE)
        except TimeoutError:
            raise ClusterError("the Dask scheduler has no worker; start some first") from None
        if threads is None:
            machines = list(self._client.run(_machine).values())
            n_workers = Counter(name for name, _ in machines)
            threads = max(1, min(cores // n_workers[name] for name, cores in machines))
        self.threads = threads

    def end(self) -> None:
        """Cancel what is left, and let the workers forget what they keep."""
        with suppress(Exception):  # the cluster may be gone
            self._client.cancel(self._futures)
            self._client.run(_forget, on_error="ignore")
        self._client.close()

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Results of a function for each item, in order, as the builtin gives them."""
        for item in items:
            self.submit(function, item, name="analyse")
        yield from self._results(lambda futures, **_: futures)

    def submit(self, function: Callable[..., Any], *args: Any, name: str) -> Any:
        """Give a task to the cluster; earlier ones are more urgent, and futures are waited for."""
        number = next(self._numbers)
        how = {"key": f"llm2nifti-{name}-{self.token}-{number}", "priority": -number, "pure": False}
        self._futures.append(self._client.submit(_alone, function, *args, **how))
        return self._futures[-1]

    def finish(self, what: str, *, verbose: int, n_done: int = 0) -> None:
        """Wait for all tasks, with a progress bar."""
        from distributed import as_completed

        total = len(self._futures) + n_done
        with stage(what, total=total, unit="batch", initial=n_done, verbose=verbose) as bar:
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


# -- what workers do -------------------------------------------------------------------------------

_kept: dict[str, Any] = {}  # of this worker process, by the token of its work


def _forget() -> None:
    """Drop what is kept."""
    _kept.clear()


def kept(token: str, make: Callable[[], Any]) -> Any:
    """What a worker process keeps for one use of it, such as a loaded model; the last one only."""
    if token not in _kept:
        _kept.clear()
        _kept[token] = make()
    return _kept[token]


def _alone(function: Callable[..., Any], *args: Any) -> Any:
    """Do one task at a time."""
    with _ONE_AT_A_TIME:
        # By default the bars of all processes share one, which a killed worker would leave behind.
        tqdm.set_lock(threading.RLock())
        return function(*args)


def _machine() -> tuple[str, int]:
    """Name of this machine and cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return socket.gethostname(), len(affinity(0)) if affinity else os.cpu_count() or 1
