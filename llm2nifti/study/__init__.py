"""The whole job: scan, analyse, nulls, report; interrupted work is resumed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from llm2nifti import bids, glm
from llm2nifti.bids import Run
from llm2nifti.defaults import N_RELABELLINGS
from llm2nifti.study.analysis import (
    analyse_identification,
    analyse_maps,
    analyse_null,
    analyse_similarity,
    by_task,
)
from llm2nifti.study.lock import StudyError, locked
from llm2nifti.study.summary import (
    describe_dataset,
    networks_table,
    null_table,
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
    "analyse_identification",
    "analyse_maps",
    "analyse_null",
    "analyse_similarity",
    "by_task",
    "describe_dataset",
    "locked",
    "networks_table",
    "null_table",
    "read_summary",
    "run",
    "scan",
    "table",
    "tree",
    "update_summary",
]


def analyse(root: Path, *, n_null: int = N_RELABELLINGS, quiet: bool = False) -> dict[str, Any]:
    """Do the whole analysis of a dataset and write its summary.

    Parameters
    ----------
    root : Path
        Root of the dataset.
    n_null : int, default=200
        Relabellings of the null experiments.
    quiet : bool, default=False
        Show no progress bars.

    Returns
    -------
    dict
        The content of ``derivatives/llm2nifti/summary.json``.
    """
    runs = bids.read_all(root)
    parts: dict[str, Any] = describe_dataset(runs)
    parts["tasks"] = analyse_maps(runs, quiet=quiet)
    repeated = _is_repeated(runs)
    if repeated:
        parts["similarity"] = analyse_similarity(runs, quiet=quiet)
    if repeated and len(by_task(runs)) > 1:
        parts["identification"] = analyse_identification(runs)
    parts["null"] = analyse_null(runs, n=n_null, quiet=quiet)
    parts["untrained"] = _analyse_untrained(root, quiet=quiet)
    return update_summary(root, **{"similarity": None, "identification": None, **parts})


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
        The report.
    """
    from llm2nifti import report
    from llm2nifti.study import scanning

    glm.check_count(n_null)
    scanning.check(root, plan)
    with locked(root):
        scanning.scan(root, plan, overwrite=overwrite, quiet=quiet)
        analyse(root, n_null=n_null, quiet=quiet)
        path = report.write(root, quiet=quiet)
        bids.clear_work(root)
    return path


def _is_repeated(runs: Sequence[Run]) -> bool:
    """Whether every task has at least 2 runs of at least 2 on-blocks."""
    n_blocks = min(
        r.events.loc[r.events["trial_type"] != glm.CONTROL, "block"].nunique() for r in runs
    )
    n_runs = {len(some) for some in by_task(runs).values()}
    return len(n_runs) == 1 and min(n_runs) > 1 and n_blocks > 1


def _analyse_untrained(root: Path, *, quiet: bool) -> dict[str, Any] | None:
    """The same figures for the untrained copy: a baseline of input similarity, not a null."""
    listed = bids.runs(root)
    subjects = listed.loc[listed["untrained"], "subject"].unique()
    if not len(subjects):
        return None
    runs = bids.read_all(root, subject=str(subjects[0]))
    out: dict[str, Any] = {"subject": str(subjects[0]), "model": runs[0].sidecar["Model"]}
    out["tasks"] = {}
    for task, task_runs in tqdm(by_task(runs).items(), desc="glm untrained", disable=quiet or None):
        maps = glm.fit(task_runs, quiet=quiet).contrast(f"{task} - {glm.CONTROL}")
        out["tasks"][task] = {"share_below_05": maps.share_below()}
    if _is_repeated(runs):
        out["similarity"] = analyse_similarity(runs, intervals=False, quiet=quiet)
        if len(out["tasks"]) > 1:
            out["identification"] = analyse_identification(runs)
    return out
