"""The whole job: scan, analyse, nulls, report; interrupted work is resumed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llm2nifti import bids
from llm2nifti.plans import Plan, ScanPlan
from llm2nifti.study.sessions import StudyError, analyse, analyse_all, forget, tree

__all__ = ["StudyError", "analyse", "analyse_all", "forget", "run", "scan", "tree"]


def scan(
    root: Path,
    plans: ScanPlan | Sequence[ScanPlan],
    *,
    overwrite: bool = False,
    verbose: int = 1,
    threads: int | None = None,
    n_jobs: int = 1,
    dask: str | None = None,
) -> None:
    """Record every run of some plans, alone in the dataset.

    Parameters
    ----------
    root : Path
        Root of the dataset; an interrupted scan in it is resumed.
    plans : ScanPlan or sequence of ScanPlan
        What to scan, one plan a model and session.
    overwrite : bool, default=False
        Delete what llm2nifti wrote to this folder before, and start anew.
    verbose : int, default=1
        0 shows no progress.
    threads : int, optional
        Number of threads that torch computes with; part of what decides the last digits.
    n_jobs : int, default=1
        Processes that do the work: 1 is this one, -1 one for each core.
    dask : str, optional
        Address of a Dask scheduler whose workers do it instead, such as ``tcp://host:8786``.
    """
    from llm2nifti.study import crews, scanning  # need torch, which an analysis does not load

    scanning.check(root, plans, overwrite=overwrite)
    with bids.locked(root), crews.crew_of(n_jobs, dask, threads) as crew:
        scanning.scan(root, plans, overwrite=overwrite, verbose=verbose, crew=crew)
        bids.writing.clear_work(root, recordings=True)


def run(  # noqa: PLR0913 - each is an option of the command line, too
    root: Path,
    plans: ScanPlan | Sequence[ScanPlan],
    *,
    overwrite: bool = False,
    measured: Sequence[Plan] = (),
    verbose: int = 1,
    threads: int | None = None,
    n_jobs: int = 1,
    dask: str | None = None,
) -> Path:
    """Scan, analyse and report, alone in the dataset from beginning to end.

    Parameters
    ----------
    root, plans, overwrite, verbose, threads, n_jobs, dask
        See `scan`.
    measured : sequence of Plan
        Experiments that every session goes through before it is reported; a
        `llm2nifti.experiments.nulls.plan.NullPlan` says how many relabellings the analysis makes.

    Returns
    -------
    Path
        The report; with several models or sessions, the page that compares them.
    """
    from llm2nifti.study import crews, repairing, scanning

    scanning.check(root, plans, overwrite=overwrite)
    with bids.locked(root), crews.crew_of(n_jobs, dask, threads) as crew:
        scanning.scan(root, plans, overwrite=overwrite, verbose=verbose, crew=crew)
        path = analyse_all(root, measured=measured, verbose=verbose, mapper=crew.map)
        repairing.finish(root)
        bids.writing.clear_work(root, recordings=True)
    return path
