"""Analyse the sessions of a dataset, each on its own, and report them; no model is needed.

`root` is the dataset; a session is named by the labels of its model and of itself (`who`).
`n_null` relabellings are made; `measured`, `mapper` and `verbose` are those of `analyse_all`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from llm2nifti import bids, experiments, glm, report
from llm2nifti.bids import Session, checking
from llm2nifti.bids.paths import REPORT
from llm2nifti.bids.reading import Who
from llm2nifti.bids.sessions import sessions as open_all
from llm2nifti.cluster import Mapper
from llm2nifti.defaults import N_RELABELLINGS
from llm2nifti.experiments.identification.measure import measure as identify
from llm2nifti.experiments.identification.plan import IdentificationPlan
from llm2nifti.experiments.identification.result import IdentificationResult
from llm2nifti.experiments.journal import digest_of_runs, versions
from llm2nifti.experiments.maps.measure import measure as fit_maps
from llm2nifti.experiments.maps.plan import GlmPlan
from llm2nifti.experiments.maps.result import TaskMaps
from llm2nifti.experiments.nulls.measure import measure as measure_nulls
from llm2nifti.experiments.nulls.plan import NullPlan
from llm2nifti.experiments.quality.plan import QualityPlan
from llm2nifti.experiments.repeatability.measure import Contrasts
from llm2nifti.experiments.repeatability.measure import measure as compare
from llm2nifti.experiments.repeatability.plan import RepeatabilityPlan
from llm2nifti.experiments.repeatability.result import RepeatabilityResult
from llm2nifti.experiments.results import Json
from llm2nifti.experiments.topics.plan import TopicsPlan
from llm2nifti.plans import Plan
from llm2nifti.progress import stage, track
from llm2nifti.report.summary import SessionSummary, UntrainedSummary

_MOST_FILES = 12  # files of one folder that the tree names; of more, the first _FIRST_FILES
_FIRST_FILES = 4


class StudyError(ValueError):
    """A study or an experiment cannot be done with this dataset."""


def tree(root: Path) -> str:
    """The dataset as a tree; long folders are cut short, with the number of files."""
    return "\n".join([f"{root}/", *_branches(Path(root), "")])


def _branches(folder: Path, indent: str) -> list[str]:
    """Lines of one folder of the tree."""
    entries = sorted(p for p in folder.iterdir() if p.name != bids.WORK)
    files = [p.name for p in entries if p.is_file()]
    shown = files if len(files) <= _MOST_FILES else files[:_FIRST_FILES]
    lines = [f"{indent}|-- {name}" for name in shown]
    if len(shown) < len(files):
        lines.append(f"{indent}|-- ... {len(files) - len(shown)} more files")
    for child in filter(Path.is_dir, entries):
        lines += [f"{indent}|-- {child.name}/", *_branches(child, indent + "|   ")]
    return lines


def analyse(
    session: Session, *, n_null: int = N_RELABELLINGS, verbose: int = 1, mapper: Mapper = map
) -> SessionSummary:
    """Do the whole analysis of one session and write its summary.

    Parameters
    ----------
    session : Session
        Runs of one model.
    n_null : int, default=200
        Relabellings of the null experiments.
    verbose : int, default=1
        0 shows no progress.
    mapper : callable, default=map
        Does a function for each of some items; here the maps of each task.

    Returns
    -------
    SessionSummary
        The content of ``summary.json`` in the session's folder.
    """
    with stage("glm", verbose=verbose):
        tasks = _all_maps(session, mapper, verbose=verbose)
    similarity, naming = _compared(session, verbose=verbose)
    with stage("nulls", verbose=verbose):
        null = measure_nulls(session, NullPlan(n=n_null), verbose=verbose)
    # Before the summary, which says that everything is there.
    for plan, name in ((QualityPlan(), "quality"), (TopicsPlan(), "topics")):
        with stage(name, verbose=verbose):
            experiments.measure(session, plan, verbose=0, is_locked=True)
    summary = SessionSummary(
        model=session.model,
        design=_design(session),
        versions={**session.first.sidecar["Versions"], **versions()},
        tasks=tasks,
        null=null,
        similarity=similarity,
        identification=naming,
        untrained=_untrained(session, verbose=verbose),
        options={"n_null": n_null},
        made_from=digest_of_runs(session),
    )
    who, content = (session.subject, session.session), summary.content()
    old = dict.fromkeys(set(bids.read_summary(session.root, who)) - set(content))
    bids.update_summary(session.root, who, **old, **content)
    return summary


def _all_maps(session: Session, mapper: Mapper, *, verbose: int) -> dict[str, TaskMaps]:
    """Maps of all tasks: here with one bar for all runs, or task by task where the mapper says."""
    if mapper is map:
        return fit_maps(session, GlmPlan(), mapper=map, verbose=verbose).tasks
    tasks = [session.of(task) for task in session.tasks]
    parts = mapper(partial(fit_maps, plan=GlmPlan(), mapper=map, verbose=0), tasks)
    bar = track(parts, "glm tasks", total=len(tasks), unit="task", verbose=verbose)
    return {task: numbers for part in bar for task, numbers in part.tasks.items()}


def _design(session: Session) -> Json:
    """Design and settings, read from the runs' sidecars."""
    first = session.first
    events, brain, sidecar = first.events, first.brain, first.sidecar
    is_control = ~glm.is_on(events)
    return {
        "subject": first.subject,
        "session": first.session,
        "tasks": list(session.tasks),
        "n_runs": len(session.folds),
        "n_blocks": int(events.loc[~is_control, "block"].nunique()),
        "n_task_trials": int((~is_control).sum()),
        "n_control_trials": int(is_control.sum()),
        "n_frames": first.n_frames,
        "frame_seconds": first.t_r / first.n_frames,
        "mode": session.settings.get("mode", "generate"),
        "frames": first.frames,
        "shown": sidecar.get("Stimuli", "images" if "stim_file" in events else "prompts"),
        "n_units": brain.n_units,
        "n_layers": len({site.layer for site in brain.sites}),
        "shape": list(brain.shape),
        "space": brain.space,
        "sites": sidecar["Sites"],
        "settings": sidecar["Settings"],
        "decoding": sidecar["Decoding"],
        "chat_template": sidecar["ChatTemplate"],
        "threads": sidecar["Threads"],
    }


def _is_repeated(session: Session) -> bool:
    """Whether every task has at least 2 runs of at least 2 on-blocks."""
    n_blocks = min(run.events.loc[glm.is_on(run.events), "block"].nunique() for run in session)
    n_runs = {len(session.of(task)) for task in session.tasks}
    return len(n_runs) == 1 and min(n_runs) > 1 and n_blocks > 1


def _compared(
    session: Session, contrasts: Contrasts | None = None, *, verbose: int
) -> tuple[RepeatabilityResult | None, IdentificationResult | None]:
    """Comparisons between runs, as far as there are enough; given contrasts are of a copy.

    Those of an untrained copy are a part of its own stage, and have no intervals.
    """
    similarity = naming = None
    if _is_repeated(session):
        is_copy, shown = contrasts is not None, 0 if contrasts else verbose
        contrasts = contrasts or glm.contrasts_of(session)
        how: dict[str, Any] = {"contrasts": contrasts, "verbose": verbose}
        with stage("similarity", verbose=shown):
            alone = RepeatabilityPlan(untrained=False)
            similarity = compare(session, alone, intervals=not is_copy, **how)
        if len(session.tasks) > 1:
            with stage("identification", verbose=shown):
                naming = identify(session, IdentificationPlan(untrained=False), **how)
    return similarity, naming


def _untrained(session: Session, *, verbose: int) -> UntrainedSummary | None:
    """The same figures for the untrained copy."""
    copy, shares = session.untrained, {}
    if copy is None:
        return None
    with stage("untrained copy", verbose=verbose):
        contrasts = glm.contrasts_of(copy)
        for task in copy.tasks:
            runs = [c for (name, _), c in contrasts.items() if name == task]
            shares[task] = {"share_below_05": glm.pool(task, copy.brain, runs).share_below()}
        similarity, naming = _compared(copy, contrasts, verbose=verbose)
    return UntrainedSummary(copy.subject, shares, copy.model, similarity, naming)


def analyse_all(
    root: Path, *, measured: Sequence[Plan] = (), verbose: int = 1, mapper: Mapper = map
) -> Path:
    """Analyse and report every session; where there are several, compare them on one more page.

    Parameters
    ----------
    root : Path
        Root of the dataset.
    measured : sequence of Plan
        Experiments that every session goes through before it is reported, and those of the whole
        dataset, which come last; a `NullPlan` says how many relabellings the analysis makes.
    verbose : int, default=1
        0 shows no progress.
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
    sessions = bids.analysed(root)
    n_null = next((plan.n for plan in measured if isinstance(plan, NullPlan)), N_RELABELLINGS)
    whole = [plan for plan in measured if plan.whole]
    measured = [plan for plan in measured if not (plan.whole or isinstance(plan, NullPlan))]
    each = partial(bring_up_to_date, n_null=n_null, measured=measured)
    if bids.analysis_folder(root, *sessions[0]) == Path(root) / bids.DERIVATIVES:
        return each(sessions[0], root=root, verbose=verbose, mapper=mapper)
    each = partial(each, root=Path(root).resolve(), verbose=0)  # workers are in another folder
    todo = [who for who in sessions if measured or not is_reported(root, who, n_null=n_null)]
    for _ in track(mapper(each, todo), "analyse", total=len(todo), unit="session", verbose=verbose):
        pass
    for plan in whole:
        experiments.measure(open_all(root), plan, verbose=verbose, is_locked=True)
    report.compare_sessions(root)
    return report.write_overview(root)


def bring_up_to_date(
    who: Who,
    *,
    root: Path,
    n_null: int,
    measured: Sequence[Plan] = (),
    verbose: int = 1,
    mapper: Mapper = map,
) -> Path:
    """Analyse, measure and report one session, as far as something changed."""
    labels = {"subject": who[0], "session": who[1]}
    if not is_analysed(root, who, n_null=n_null):
        session = bids.session(Path(root).resolve(), **labels)
        analyse(session, n_null=n_null, verbose=verbose, mapper=mapper)
    for plan in measured:
        experiments.measure(bids.session(root, **labels), plan, verbose=verbose, is_locked=True)
    if not is_reported(root, who, n_null=n_null):
        report.write(root, **labels, verbose=verbose)
        bids.update_summary(root, who, reported=_results(root, who))
    return bids.analysis_folder(root, *who) / REPORT


def forget(root: Path) -> None:
    """Have every session analysed and reported anew by the next `analyse_all`."""
    try:
        sessions = bids.analysed(root)
    except bids.NoSuchRunError:
        return
    with bids.locked(root):
        for who in sessions:
            if bids.read_summary(root, who):
                bids.update_summary(root, who, made_from=None)


def is_analysed(root: Path, who: Who, *, n_null: int) -> bool:
    """Whether a session's summary is of its runs as they are, by these options and versions.

    The maps and networks that belong to it have to be as they were written.
    """
    summary = bids.read_summary(root, who)
    made_by = summary.get("versions", {})
    now = digest_of_runs(bids.session(root, subject=who[0], session=who[1]))
    return (
        summary.get("options") == {"n_null": n_null}
        and summary.get("made_from", "") == now
        and all(made_by.get(name) == number for name, number in versions().items())
        and checking.are_intact(root, checking.analysis_files(root, bids.folder_of(*who)))
    )


def is_reported(root: Path, who: Who, *, n_null: int) -> bool:
    """Whether a session is analysed, and its report shows the results that there are."""
    return (
        checking.are_intact(root, [bids.analysis_folder(root, *who) / REPORT])
        and bids.read_summary(root, who).get("reported") == _results(root, who)
        and is_analysed(root, who, n_null=n_null)
    )


def _results(root: Path, who: Who) -> str:
    """What tells whether results of interventions have changed."""
    folder = bids.analysis_folder(root, *who)
    return checking.digest(root, ("results",), [folder.relative_to(root)])
