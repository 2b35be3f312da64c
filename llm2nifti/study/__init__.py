"""The whole job: scan, analyse, nulls, report; interrupted work is resumed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llm2nifti import bids, glm
from llm2nifti.defaults import N_RELABELLINGS
from llm2nifti.study.analysis import (
    analyse_identification,
    analyse_maps,
    analyse_null,
    analyse_similarity,
)
from llm2nifti.study.errors import StudyError
from llm2nifti.study.overview import compare_sessions
from llm2nifti.study.sessions import analyse, analyse_all, forget
from llm2nifti.study.summary import (
    describe_dataset,
    networks_table,
    overview_table,
    read_summary,
    table,
    tree,
    update_summary,
)

if TYPE_CHECKING:  # scanning needs torch, which the analysis commands do not load
    from llm2nifti.study.scanning import Crew, Plan

__all__ = [
    "StudyError",
    "analyse",
    "analyse_all",
    "analyse_identification",
    "analyse_maps",
    "analyse_null",
    "analyse_similarity",
    "compare_sessions",
    "describe_dataset",
    "forget",
    "mapped",
    "networks_table",
    "overview_table",
    "read_summary",
    "run",
    "scan",
    "table",
    "tree",
    "update_summary",
]


def scan(
    root: Path,
    plans: Plan | Sequence[Plan],
    *,
    overwrite: bool = False,
    quiet: bool = False,
    threads: int | None = None,
    dask: str | None = None,
) -> None:
    """Record every run of some plans, alone in the dataset.

    Parameters
    ----------
    root : Path
        Root of the dataset; an interrupted scan in it is resumed.
    plans : Plan or sequence of Plan
        What to scan, one plan a model and session.
    overwrite : bool, default=False
        Delete what llm2nifti wrote to this folder before, and start anew.
    quiet : bool, default=False
        Show no progress bars.
    threads : int, optional
        Number of threads that torch computes with; part of what decides the last digits.
    dask : str, optional
        Address of a Dask scheduler whose workers do the work, or ``local:N`` for N new processes;
        see `llm2nifti.study.cluster.connected`. By default this process does it.
    """
    from llm2nifti.study import scanning

    scanning.check(root, plans)
    with bids.locked(root), _crew(dask, threads) as crew:
        scanning.scan(root, plans, overwrite=overwrite, quiet=quiet, crew=crew)
        bids.clear_work(root, recordings=True)


def run(
    root: Path,
    plans: Plan | Sequence[Plan],
    *,
    overwrite: bool = False,
    n_null: int = N_RELABELLINGS,
    quiet: bool = False,
    threads: int | None = None,
    dask: str | None = None,
) -> Path:
    """Scan, analyse and report, alone in the dataset from beginning to end.

    Parameters
    ----------
    root, plans, overwrite, quiet, threads, dask
        See `scan`.
    n_null : int, default=200
        Relabellings of the null experiments.

    Returns
    -------
    Path
        The report; with several models or sessions, the page that compares them.
    """
    from llm2nifti.study import repairing, scanning

    glm.check_count(n_null)
    scanning.check(root, plans)
    with bids.locked(root), _crew(dask, threads) as crew:
        scanning.scan(root, plans, overwrite=overwrite, quiet=quiet, crew=crew)
        path = analyse_all(root, n_null=n_null, quiet=quiet, mapper=crew.map)
        repairing.finish(root)
        bids.clear_work(root, recordings=True)
    return path


@contextmanager
def mapped(dask: str | None) -> Iterator[glm.Mapper]:
    """Map of a cluster, which does a function for many items, or the builtin one for None.

    Parameters
    ----------
    dask : str or None
        See `scan`.
    """
    if dask is None:
        yield map
        return
    with _crew(dask, threads=1) as crew:
        yield crew.map


@contextmanager
def _crew(dask: str | None, threads: int | None) -> Iterator[Crew]:
    """Workers of a cluster, or this process."""
    from llm2nifti.study import scanning

    scanning.check_threads(threads)
    if dask is None:
        with scanning.torch_threads(threads):
            yield scanning.ThisProcess()
        return
    from llm2nifti.study import cluster

    with cluster.connected(dask, threads=threads) as workers:
        yield workers
