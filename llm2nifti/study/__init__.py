"""The whole job: scan, analyse, nulls, report; interrupted work is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llm2nifti import bids, glm
from llm2nifti.defaults import N_RELABELLINGS
from llm2nifti.study.analysis import (
    analyse_identification,
    analyse_maps,
    analyse_null,
    analyse_similarity,
    by_task,
)
from llm2nifti.study.lock import StudyError, locked
from llm2nifti.study.overview import compare_sessions
from llm2nifti.study.sessions import analyse, analyse_all
from llm2nifti.study.summary import (
    describe_dataset,
    networks_table,
    null_table,
    overview_table,
    read_summary,
    table,
    tree,
    update_summary,
)

if TYPE_CHECKING:  # scanning needs torch, which the analysis commands do not load
    from llm2nifti.study.scanning import Plan

__all__ = [
    "StudyError",
    "analyse",
    "analyse_all",
    "analyse_identification",
    "analyse_maps",
    "analyse_null",
    "analyse_similarity",
    "by_task",
    "compare_sessions",
    "describe_dataset",
    "locked",
    "networks_table",
    "null_table",
    "overview_table",
    "read_summary",
    "run",
    "scan",
    "table",
    "tree",
    "update_summary",
]


def scan(root: Path, plan: Plan, *, overwrite: bool = False, quiet: bool = False) -> None:
    """Record every run of a plan, alone in the dataset; see `llm2nifti.study.scanning.scan`."""
    from llm2nifti.study import scanning

    scanning.check(root, plan)
    with locked(root):
        scanning.scan(root, plan, overwrite=overwrite, quiet=quiet)
        bids.clear_work(root)


def run(
    root: Path,
    plan: Plan,
    *,
    overwrite: bool = False,
    n_null: int = N_RELABELLINGS,
    quiet: bool = False,
) -> Path:
    """Scan, analyse and report, alone in the dataset from beginning to end.

    Parameters
    ----------
    root : Path
        Root of the dataset; an interrupted run in it is resumed.
    plan : Plan
        What to scan.
    overwrite : bool, default=False
        Delete what llm2nifti wrote to this folder before, and start anew.
    n_null : int, default=200
        Relabellings of the null experiments.
    quiet : bool, default=False
        Show no progress bars.

    Returns
    -------
    Path
        The report; with several models or sessions, the page that compares them.
    """
    from llm2nifti.study import scanning

    glm.check_count(n_null)
    scanning.check(root, plan)
    with locked(root):
        scanning.scan(root, plan, overwrite=overwrite, quiet=quiet)
        path = analyse_all(root, n_null=n_null, quiet=quiet)
        bids.clear_work(root)
    return path
