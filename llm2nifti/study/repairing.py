"""What is damaged in a dataset, and how is it mended? Runs are scanned again, maps fitted again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2nifti import bids
from llm2nifti.bids import checking, manifest
from llm2nifti.bids.checking import Problem
from llm2nifti.defaults import N_RELABELLINGS
from llm2nifti.experiments.nulls.plan import NullPlan
from llm2nifti.plans import Json
from llm2nifti.study.errors import StudyError
from llm2nifti.study.sessions import analyse_all, forget

if TYPE_CHECKING:  # scanning needs torch, which a mere check does not load
    from llm2nifti.plans import ScanPlan

_SCANNED = {"run", "anatomy", "stimuli", "dataset"}
_INTENT = Path("code") / "llm2nifti_repair.json"  # of a repair that has begun
_OF_RESULTS = "measure it again with the command that wrote it, and overwrite=True"
_ADVICE = {
    "analysis": "llm2nifti check {root} --repair analyses again",
    "results": _OF_RESULTS,
}


class DamageError(ValueError):
    """Files of a dataset are not as they were written.

    Parameters
    ----------
    message : str
        How many, and what to do.
    printed : tuple, optional
        The files themselves, as JSON and as text.
    """

    exit_code = 1

    def __init__(self, message: str, printed: tuple[Any, str] | None = None) -> None:
        super().__init__(message)
        self.printed = printed


def check(root: Path) -> list[Problem]:
    """Compare every file that llm2nifti wrote to a dataset with what was written.

    Parameters
    ----------
    root : Path
        Root of the dataset.

    Returns
    -------
    list of Problem
        Empty if all is well.

    Raises
    ------
    llm2nifti.bids.NoSuchRunError
        If there is no dataset with runs.
    """
    if not manifest.has_manifest(root):
        bids.runs(root)  # for its error
    return checking.problems(root)


def advice(root: Path, problems: Sequence[Problem]) -> str:
    """What to do about some problems."""
    scan = f"llm2nifti check {root} --repair scans again"
    parts = dict.fromkeys(problem.part for problem in problems)
    texts = [_ADVICE.get(part, scan).format(root=root) for part in parts]
    accept = (
        f"llm2nifti check {root} --accept takes them as they are, if they were changed on purpose"
    )
    return "; ".join([*dict.fromkeys(texts), accept])


def accept(root: Path) -> list[Problem]:
    """Take files that were changed on purpose as they are; return what is still wrong.

    A session that was analysed is analysed again by the next `llm2nifti.study.run`.
    """
    with bids.locked(root):
        for problem in check(root):
            if problem.path.is_file():
                content = manifest.announce(root, problem.path, problem.path)
                manifest.confirm(root, problem.path, content)
    return check(root)


def repair(
    root: Path, *, model: str | None = None, stimuli: str | None = None, verbose: int = 1
) -> list[Problem]:
    """Mend a dataset: scan damaged runs again, and analyse again if it was analysed.

    Files that are not as they were written are kept in the dataset's work folder.

    Parameters
    ----------
    root : Path
        Root of the dataset.
    model : str, optional
        Where the model is, if it is a folder or file: the dataset knows only its name.
    stimuli : str, optional
        Where the stimuli are, if they are not the bundled ones.
    verbose : int, default=1
        0 shows no progress.

    Returns
    -------
    list of Problem
        What is still wrong: results of interventions, which only their command makes again.

    Raises
    ------
    StudyError
        If the dataset has no plan, or the plan asks for a model or stimuli that are not given.
    llm2nifti.models.ModelError
        If the model can't be loaded. Nothing is changed then.
    """
    problems = check(root)
    todo = _intent(root, problems)
    scans = todo["scans"]
    if scans:
        plans = _plans(root, model=model, stimuli=stimuli)
        _scan_again(root, plans, problems, todo, is_told=model is not None, verbose=verbose)
    else:
        with bids.locked(root):
            _set_aside(root, problems, todo)
    if todo["n_null"] is not None:
        if todo["forgets"]:
            forget(root)
        with bids.locked(root):
            analyse_all(root, measured=[NullPlan(n=todo["n_null"])], verbose=verbose)
    finish(root)
    with bids.locked(root):  # tidies up
        return check(root)


def finish(root: Path) -> None:
    """Forget a repair: it is done, or a whole run has done more."""
    (root / _INTENT).unlink(missing_ok=True)


def is_unfinished(root: Path) -> bool:
    """Whether a repair was ended before it had finished."""
    return (root / _INTENT).exists()


def _intent(root: Path, problems: Sequence[Problem]) -> Json:
    """What there is to do; once begun, also what the repair that was ended had to do.

    A scan deletes what was made from its run before: nobody could tell any more.
    """
    parts = {problem.part for problem in problems}
    names = manifest.written(root)
    was_analysed = any(Path(name).name == bids.SUMMARY.name for name in names)
    todo: Json = {
        "scans": bool(parts & _SCANNED),
        "forgets": "analysis" in parts,
        "n_null": _n_null(root) if was_analysed else None,
    }
    if is_unfinished(root):
        before = bids.read_json(root / _INTENT, {"scans": bool, "forgets": bool})
        todo = {**before, "scans": before["scans"] or todo["scans"]}
    return todo


def _scan_again(
    root: Path,
    plans: list[ScanPlan],
    problems: list[Problem],
    todo: Json,
    *,
    is_told: bool,
    verbose: int,
) -> None:
    """Record damaged runs anew; `is_told` is whether somebody said where the model is."""
    from llm2nifti import models
    from llm2nifti.scanner.threads import torch_threads
    from llm2nifti.study import scanning
    from llm2nifti.study.crews import ThisProcess
    from llm2nifti.study.plans import label

    crew = ThisProcess()
    touched = {part for problem in problems for part in problem.path.parts}
    hit = [
        plan
        for plan in plans
        if touched & {f"sub-{label(plan.model, untrained=copy)}" for copy in (False, True)}
    ]
    with bids.locked(root), torch_threads(_threads(root)):
        try:  # before anything is moved: a model that is not there changes nothing
            crew.check(hit, scanning.check(root, plans))
        except models.ModelError as error:
            hint = "" if is_told else "; say where it is with model=..."
            raise models.ModelError(f"{error}{hint}") from error
        _set_aside(root, problems, todo)
        scanning.scan(root, plans, verbose=verbose, crew=crew)
        bids.writing.clear_work(root, recordings=True)


def _set_aside(root: Path, problems: list[Problem], todo: Json) -> None:
    """Keep damaged files elsewhere; results of interventions stay."""
    temporary = root / manifest.WORK / _INTENT.name
    temporary.write_text(json.dumps(todo), "utf-8")
    temporary.replace(root / _INTENT)
    for problem in problems:
        if problem.part != "results":
            manifest.set_aside(root, problem.path)


def _threads(root: Path) -> int | None:
    """Threads that the runs were recorded with, which decides their last digits."""
    for name in manifest.written(root):
        path = root / name
        if name.endswith("_desc-trial_bold.json") and manifest.is_as_written(root, path):
            return json.loads(path.read_text("utf-8")).get("Threads")
    return None


def _n_null(root: Path) -> int:
    """Relabellings of the analysis that is there; the default if there is none."""
    for name in manifest.written(root):
        path = root / name
        if path.name == bids.SUMMARY.name and manifest.is_as_written(root, path):
            options = json.loads(path.read_text("utf-8")).get("options") or {}
            return int(options.get("n_null", N_RELABELLINGS))
    return N_RELABELLINGS


def _plans(root: Path, *, model: str | None, stimuli: str | None) -> list[ScanPlan]:
    """Plans that a dataset was made by; see `repair`."""
    from llm2nifti.study.plans import PLAN_FILE, plans_of

    if not (root / PLAN_FILE).exists():
        raise StudyError(
            f"{root} has no {PLAN_FILE}, which llm2nifti scan and run write, so it cannot be "
            "scanned again from here; repeat the command or script that made it"
        )
    return plans_of(root, model=model, stimuli=stimuli)
