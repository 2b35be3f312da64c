"""What is damaged in a dataset, and how is it mended? Runs are scanned again, maps fitted again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm2nifti import bids
from llm2nifti.bids import checking, manifest
from llm2nifti.bids.checking import Problem
from llm2nifti.defaults import N_RELABELLINGS
from llm2nifti.experiments.nulls.plan import NullPlan
from llm2nifti.plans import Json, ScanPlan
from llm2nifti.study.sessions import StudyError, analyse_all, forget

_SCANNED = {"run", "anatomy", "stimuli", "dataset"}
_TRIALS = "_desc-trial_bold.json"  # has the number of threads, which decides a run's last digits
_INTENT = Path("code") / "llm2nifti_repair.json"  # of a repair that has begun
_ADVICE = {  # by part; others are scanned again
    "analysis": "llm2nifti check {root} --repair analyses again",
    "results": "measure it again with the command that wrote it, and overwrite=True",
}


class DamageError(ValueError):
    """Files of a dataset are not as they were written; `printed` are they, as JSON and as text."""

    exit_code = 1

    def __init__(self, message: str, printed: tuple[Any, str] | None = None) -> None:
        super().__init__(message)
        self.printed = printed


def check(root: Path) -> list[Problem]:
    """Compare every file that llm2nifti wrote to a dataset with what was written."""
    if not manifest.has_manifest(root):
        bids.runs(root)  # for its error: there is no dataset with runs
    return checking.problems(root)


def advice(root: Path, problems: Sequence[Problem]) -> str:
    """What to do about some problems."""
    scan = f"llm2nifti check {root} --repair scans again"
    parts = dict.fromkeys(problem.part for problem in problems)
    texts = [_ADVICE.get(part, scan).format(root=root) for part in parts]
    texts.append(
        f"llm2nifti check {root} --accept takes them as they are, if they were changed on purpose"
    )
    return "; ".join(dict.fromkeys(texts))


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

    Files that are not as they were written are kept in the dataset's work folder. What is still
    wrong is returned: results of interventions, which only their command makes again. A model or
    stimuli of one's own have to be said: the dataset knows only their names. Nothing is changed by
    a StudyError for want of these or of a plan, nor if the model can't be loaded.
    """
    problems = check(root)
    todo = _intent(root, problems)
    if todo["scans"]:
        from llm2nifti.study.plans import PLAN_FILE, plans_of  # torch, which no mere check loads

        if not (root / PLAN_FILE).exists():
            raise StudyError(
                f"{root} has no {PLAN_FILE}, which llm2nifti scan and run write, so it cannot be "
                "scanned again from here; repeat the command or script that made it"
            )
        plans = plans_of(root, model=model, stimuli=stimuli)
        hint = "; say where it is with model=..." if model is None else ""
        _scan_again(root, plans, problems, todo, hint, verbose=verbose)
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
    parts, n_null = {problem.part for problem in problems}, None
    if any(Path(name).name == bids.SUMMARY.name for name in manifest.written(root)):
        options = _intact(root, f"/{bids.SUMMARY.name}").get("options") or {}
        n_null = int(options.get("n_null", N_RELABELLINGS))
    scans, forgets = bool(parts & _SCANNED), "analysis" in parts
    todo: Json = {"scans": scans, "forgets": forgets, "n_null": n_null}
    if is_unfinished(root):
        before = bids.read_json(root / _INTENT, {"scans": bool, "forgets": bool})
        todo = {**before, "scans": before["scans"] or scans}
    return todo


def _scan_again(
    root: Path,
    plans: list[ScanPlan],
    problems: list[Problem],
    todo: Json,
    hint: str,
    *,
    verbose: int,
) -> None:
    """Record damaged runs anew; the hint is about a model that is not there."""
    from llm2nifti import models
    from llm2nifti.scanner.kernels import torch_threads
    from llm2nifti.study import crews, scanning
    from llm2nifti.study.plans import label

    crew, hit = crews.ThisProcess(), []
    touched = {part for problem in problems for part in problem.path.parts}
    for plan in plans:
        if touched & {f"sub-{label(plan.model, untrained=copy)}" for copy in (False, True)}:
            hit.append(plan)
    with bids.locked(root), torch_threads(_intact(root, _TRIALS).get("Threads")):
        try:  # before anything is moved: a model that is not there changes nothing
            crew.check(hit, scanning.check(root, plans))
        except models.ModelError as error:
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


def _intact(root: Path, ending: str) -> Json:
    """Content of the first JSON file with a name like this that is as written; empty if none is."""
    for name in manifest.written(root):
        if name.endswith(ending) and manifest.is_as_written(root, root / name):
            return json.loads((root / name).read_text("utf-8"))
    return {}
