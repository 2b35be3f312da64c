"""Analyse the sessions of a dataset, each on its own, and report them; no model is needed.

`root` is the dataset; a session is named by the labels of its model and of itself (`who`).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from llm2nifti import bids, glm
from llm2nifti.bids import Session, checking, manifest
from llm2nifti.bids.paths import REPORT
from llm2nifti.defaults import N_RELABELLINGS
from llm2nifti.progress import stage, track
from llm2nifti.study.analysis import (
    analyse_identification,
    analyse_maps,
    analyse_null,
    analyse_similarity,
)
from llm2nifti.study.overview import compare_sessions
from llm2nifti.study.summary import Who, describe_dataset, read_summary, update_summary, versions

Mapper = glm.Mapper


def analyse(
    root: Path,
    *,
    subject: str | None = None,
    session: str | None = None,
    n_null: int = N_RELABELLINGS,
    quiet: bool = False,
    mapper: Mapper = map,
) -> dict[str, Any]:
    """Do the whole analysis of one session and write its summary.

    Parameters
    ----------
    root : Path
        Root of the dataset.
    subject, session : str, optional
        See `llm2nifti.bids.read`; by default the only session there is.
    n_null : int, default=200
        Relabellings of the null experiments.
    quiet : bool, default=False
        Show no progress bars.
    mapper : callable, default=map
        Does a function for each of some items; here the maps of each task.

    Returns
    -------
    dict
        The content of ``summary.json`` in the session's `llm2nifti.bids.analysis_folder`.
    """
    root = Path(root).resolve()  # the mapper may work in another folder
    recording = bids.session(root, subject=subject, session=session)
    who = (recording.subject, recording.session)
    parts: dict[str, Any] = describe_dataset(recording)
    with stage("glm", quiet=quiet):
        parts["tasks"] = _all_maps(recording, mapper, quiet=quiet)
    repeated = _is_repeated(recording)
    contrasts = glm.contrasts_of(recording) if repeated else None
    if repeated:
        with stage("similarity", quiet=quiet):
            parts["similarity"] = analyse_similarity(recording, contrasts=contrasts, quiet=quiet)
    if repeated and len(recording.tasks) > 1:
        with stage("identification", quiet=quiet):
            parts["identification"] = analyse_identification(recording, contrasts=contrasts)
    with stage("nulls", quiet=quiet):
        parts["null"] = analyse_null(recording, n=n_null, quiet=quiet)
    parts["untrained"] = _analyse_untrained(recording, quiet=quiet)
    parts["options"] = {"n_null": n_null}
    parts["made_from"] = made_from(root, who)
    old = ("similarity", "identification", "sessions", "between_sessions", "reported")
    missing = dict.fromkeys(old)
    return update_summary(root, who, **{**missing, **parts})


def _all_maps(session: Session, mapper: Mapper, *, quiet: bool) -> dict[str, Any]:
    """Maps of all tasks: here with one bar for all runs, or task by task where the mapper says."""
    if mapper is map:
        return analyse_maps(session, quiet=quiet)
    tasks = [session.of(task) for task in session.tasks]
    parts = mapper(partial(analyse_maps, quiet=True), tasks)
    bar = track(parts, "glm tasks", total=len(tasks), unit="task", quiet=quiet)
    return {task: numbers for part in bar for task, numbers in part.items()}


def analyse_all(
    root: Path,
    *,
    n_null: int = N_RELABELLINGS,
    quiet: bool = False,
    mapper: Mapper = map,
) -> Path:
    """Analyse and report every session; where there are several, compare them on one more page.

    Parameters
    ----------
    root : Path
        Root of the dataset.
    n_null : int, default=200
        Relabellings of the null experiments.
    quiet : bool, default=False
        Show no progress bars.
    mapper : callable, default=map
        Does a function for each of some items: the sessions, or the tasks of one.

    Returns
    -------
    Path
        The report of the only session, or the page that compares all of them.

    Notes
    -----
    A session is analysed anew only where its runs, files of the analysis, options or versions are
    others than those of its summary, and reported anew where there are other results.
    """
    from llm2nifti import report

    sessions = bids.analysed(root)
    how: dict[str, Any] = {"root": Path(root).resolve(), "n_null": n_null}
    if bids.analysis_folder(root, *sessions[0]) == Path(root) / bids.DERIVATIVES:
        return bring_up_to_date(sessions[0], **{**how, "root": root}, quiet=quiet, mapper=mapper)
    todo = [who for who in sessions if not is_reported(root, who, n_null=n_null)]
    done = mapper(partial(bring_up_to_date, **how), todo)
    for _ in track(done, "analyse", total=len(todo), unit="session", quiet=quiet):
        pass
    compare_sessions(root)
    return report.write_overview(root)


def bring_up_to_date(
    who: Who, *, root: Path, n_null: int, quiet: bool = True, mapper: Mapper = map
) -> Path:
    """Analyse and report one session, as far as something changed.

    Parameters
    ----------
    who : (str, str)
        Labels of the model and of the session.
    root, n_null, quiet, mapper
        See `analyse_all`.

    Returns
    -------
    Path
        Its report.
    """
    from llm2nifti import report

    labels = {"subject": who[0], "session": who[1]}
    if not is_analysed(root, who, n_null=n_null):
        analyse(root, **labels, n_null=n_null, quiet=quiet, mapper=mapper)
    if not is_reported(root, who, n_null=n_null):
        report.write(root, **labels, quiet=quiet)
        update_summary(root, who, reported=_results(root, who))
    return bids.analysis_folder(root, *who) / REPORT


def forget(root: Path) -> None:
    """Have every session analysed and reported anew by the next `analyse_all`."""
    try:
        sessions = bids.analysed(root)
    except bids.NoSuchRunError:
        return
    with bids.locked(root):
        for who in sessions:
            if read_summary(root, who):
                update_summary(root, who, made_from=None)


def is_analysed(root: Path, who: Who, *, n_null: int) -> bool:
    """Whether a session's summary is of its runs as they are, by these options and versions.

    The maps and networks that belong to it have to be as they were written.
    """
    summary = read_summary(root, who)
    made_by = summary.get("versions", {})
    return (
        summary.get("options") == {"n_null": n_null}
        and summary.get("made_from", "") == made_from(root, who)
        and all(made_by.get(name) == number for name, number in versions().items())
        and checking.are_intact(root, checking.analysis_files(root, bids.folder_of(*who)))
    )


def is_reported(root: Path, who: Who, *, n_null: int) -> bool:
    """Whether a session is analysed, and its report shows the results that there are."""
    page = bids.analysis_folder(root, *who) / REPORT
    is_there = checking.are_intact(root, [page])
    summary = read_summary(root, who)
    return (
        is_there
        and summary.get("reported") == _results(root, who)
        and is_analysed(root, who, n_null=n_null)
    )


def made_from(root: Path, who: Who) -> str | None:
    """What tells whether the runs of a session, or of its untrained copy, have changed.

    None where there is no manifest to tell.
    """
    if not manifest.has_manifest(root):
        return None
    subject, session = who
    subjects = (subject, bids.label(f"{subject}-untrained"))
    folders = [bids.folder_of(name, session) for name in subjects]
    return checking.digest(root, ("run", "anatomy"), folders)


def _results(root: Path, who: Who) -> str:
    """What tells whether results of interventions have changed."""
    folder = bids.analysis_folder(root, *who)
    return checking.digest(root, ("results",), [folder.relative_to(root)])


def _is_repeated(session: Session) -> bool:
    """Whether every task has at least 2 runs of at least 2 on-blocks."""
    n_blocks = min(
        r.events.loc[r.events["trial_type"] != glm.CONTROL, "block"].nunique() for r in session
    )
    n_runs = {len(session.of(task)) for task in session.tasks}
    return len(n_runs) == 1 and min(n_runs) > 1 and n_blocks > 1


def _analyse_untrained(session: Session, *, quiet: bool) -> dict[str, Any] | None:
    """The same figures for the untrained copy: a baseline of input similarity, not a null."""
    copy = session.untrained
    if copy is None:
        return None
    out: dict[str, Any] = {"subject": copy.subject, "model": copy.model, "tasks": {}}
    with stage("untrained copy", quiet=quiet):
        contrasts = glm.contrasts_of(copy)
        for task in copy.tasks:
            runs = [c for (name, _), c in contrasts.items() if name == task]
            out["tasks"][task] = {"share_below_05": glm.pool(task, copy.brain, runs).share_below()}
        if _is_repeated(copy):
            how: dict[str, Any] = {"contrasts": contrasts}
            out["similarity"] = analyse_similarity(copy, **how, intervals=False, quiet=quiet)
            if len(copy.tasks) > 1:
                out["identification"] = analyse_identification(copy, **how)
    return out
