"""Intervene with every network and measure what that does; what is done is kept, and resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields

import numpy as np
from numpy.typing import NDArray

from llm2nifti import bids, geometry, networks
from llm2nifti.bids import Session
from llm2nifti.experiments.errors import ExperimentError
from llm2nifti.experiments.journal import ResultJournal, hash_texts
from llm2nifti.experiments.lesions.conditions import LESIONS, Condition, Targets, conditions_of
from llm2nifti.experiments.lesions.effects import Copy, Measured, Sizes
from llm2nifti.experiments.lesions.plan import InterventionPlan, SteerPlan
from llm2nifti.experiments.lesions.result import (
    Answers,
    InterventionResult,
    LesionResult,
    MaskResult,
    SteeredAnswer,
    SteerResult,
)
from llm2nifti.interventions import steer
from llm2nifti.interventions.bench import Bench
from llm2nifti.interventions.masks import tasks_or_images
from llm2nifti.interventions.reloading import reload
from llm2nifti.networks import Network, dissociation
from llm2nifti.progress import track
from llm2nifti.scanner import answer


def measure(
    session: Session, plan: InterventionPlan, *, verbose: int = 1
) -> InterventionResult | Answers:
    """Lesion or steer networks of a dataset's model, and measure what that does to text.

    Parameters
    ----------
    session : Session
        At least 2 runs of every task of one model.
    plan : LesionPlan or SteerPlan
        How to intervene; the first condition is the one that tables and pages show. What was
        measured earlier of other conditions is kept beside it.
    verbose : int, default=1
        0 shows no progress.

    Returns
    -------
    InterventionResult or Answers
        Answers where the plan has prompts.

    Raises
    ------
    ExperimentError, llm2nifti.interventions.InterventionError
        If the plan makes no sense for the dataset, or the model is not the one that was scanned.
    """
    if isinstance(plan, SteerPlan) and plan.prompt:
        return _answers(session, plan, verbose=verbose)
    tasks, given = tasks_or_images(session, plan.network)
    conditions = conditions_of(plan, session.brain, given)
    kind: type[InterventionResult] = SteerResult if isinstance(plan, SteerPlan) else LesionResult
    kind = MaskResult if given else kind
    earlier = [c for c in _earlier(kind, session) if c not in conditions]
    copy = session.untrained if plan.untrained and not given else None
    measured = []
    for group in (session, copy):
        if group is None:
            continue
        bench = Bench(reload(group.first, plan), group, plan.n_prompts)
        targets = Targets(bench, tasks, given, plan.n_random, plan.seed)
        journal = _journal(session, targets, plan, kind)
        _sweep(targets, conditions, journal, verbose=verbose)
        known = [c for c in earlier if all(_key(targets, *e) in journal for e in targets.each(c))]
        measured.append([_measured(targets, c, journal) for c in [*conditions, *known]])
    return kind(
        model=session.model,
        held_out=not given,
        sizes=Sizes(plan.n_random, plan.n_prompts, plan.seed),
        conditions=measured[0],
        untrained=Copy(measured[1]) if len(measured) > 1 else None,
    )


def _earlier(kind: type[InterventionResult], session: Session) -> list[Condition]:
    """Conditions of an earlier result."""
    kept = kind.read(session)
    names = [field.name for field in fields(Condition)]
    if kept is None:
        return []
    return [Condition(**{name: getattr(m, name) for name in names}) for m in kept.conditions]


def _journal(
    session: Session, targets: Targets, plan: InterventionPlan, kind: type[InterventionResult]
) -> ResultJournal:
    """Evaluations of one model that are kept beside the results, or a new file for them."""
    group = targets.bench.session
    settings = {
        "sizes": asdict(Sizes(plan.n_random, plan.n_prompts, plan.seed)),
        "weights": group.model["WeightsHash"],
        "runs": [[run.task, run.run] for run in group],
        "texts": hash_texts(group),
        "space": group.brain.space,
    }
    name = f"sub-{group.subject}_{kind.file.removesuffix('.json')}_evaluations.jsonl"
    return ResultJournal(session.folder / name, settings, overwrite=plan.overwrite)


def _sweep(
    targets: Targets, conditions: Sequence[Condition], journal: ResultJournal, *, verbose: int
) -> None:
    """Do every evaluation that is not there yet."""
    bench = targets.bench
    if any(condition.spare_template for condition in conditions):
        bench.check_template()
    verb = "steer" if conditions[0].mode == "steer" else "lesion"
    todo = [each for condition in conditions for each in targets.each(condition)]
    label = f"{verb} sub-{bench.session.subject}"
    for condition, fold, name, kind in track(todo, label, unit="text set", verbose=verbose):

        def change(c: Condition = condition, f: int = fold, n: str = name, k: str = kind) -> object:
            return bench.change(f, targets.acting(c, f, n, k), spare_template=c.spare_template)

        journal.get(_key(targets, condition, fold, name, kind), change)


def _key(targets: Targets, condition: Condition, fold: int, name: str, kind: str) -> str:
    """Name of one evaluation; two masks of one name have two."""
    how = [getattr(condition, field) for field in ("sites", "mode", "share", "strength")]
    spared = ["spare template"] * condition.spare_template
    given = [_digest(network) for network in targets.given if network.name == name]
    subject = targets.bench.session.subject
    return json.dumps([subject, *how, *spared, *given, fold, name, kind])


def _digest(network: Network) -> str:
    """What tells a network from another of the same name."""
    return hashlib.sha256(network.signs.tobytes()).hexdigest()


def _measured(targets: Targets, condition: Condition, journal: ResultJournal) -> Measured:
    """Effects of one condition in one model."""
    changes = [_changes(targets, condition, name, journal) for name in targets.names]
    seed, is_compared = targets.seed, not targets.given and len(changes) > 1
    has_pairs = is_compared and condition.mode in LESIONS
    pairs = dissociation.double_dissociations(changes, seed=seed) if has_pairs else None
    return Measured(
        **asdict(condition),
        effects={
            c.network: {task: dissociation.effect(c, task, seed=seed) for task in c.lesion}
            for c in changes
        },
        selectivity=dissociation.selectivity(changes, seed=seed) if is_compared else None,
        double_dissociations=pairs,
    )


def _changes(
    targets: Targets, condition: Condition, name: str, journal: ResultJournal
) -> dissociation.Changes:
    """Changes of one network's lesions, the texts of all folds together."""

    def of(kind: str) -> dict[str, NDArray[np.float64]]:
        keys = [_key(targets, condition, fold, name, kind) for fold in targets.bench.folds]
        folds: list[Mapping[str, Sequence[float]]] = [journal[key] for key in keys]
        return {task: np.concatenate([f[task] for f in folds]) for task in folds[0]}

    random = [of(f"random{i}") for i in range(targets.n_random)]
    stacked = {task: np.stack([r[task] for r in random]) for task in random[0]}
    bottom = of("bottom") if "bottom" in targets.kinds(condition) else {}
    return dissociation.Changes(name, of("lesion"), stacked, bottom)


def _answers(session: Session, plan: SteerPlan, *, verbose: int) -> Answers:
    """Answers to prompts while the model is steered along one task's effect, and without."""
    tasks, given = tasks_or_images(session, plan.network)
    if given or len(tasks) != 1 or not plan.network:
        raise ExperimentError("answers are steered along the effect of one task; name it")
    run, brain = session.of(tasks[0]).first, session.brain
    for path in (run.paths.stat_map("effect"), run.paths.stat_map("t")):
        if not path.exists():
            raise ExperimentError(
                f"task {tasks[0]!r} has no {path.name}; make it with: llm2nifti glm {session.root}"
            )
    (condition,) = conditions_of(plan, brain, [])
    t = geometry.from_img(brain, bids.read_img(run.paths.stat_map("t")))
    network = networks.ranked(tasks[0], brain, t, condition.rule)
    effect_img = bids.read_img(run.paths.stat_map("effect"))
    model, template = reload(session.first, plan), session.settings["template"]
    todo = [(prompt, strength) for prompt in plan.prompt for strength in (0.0, plan.strength)]
    out = []
    for prompt, strength in track(todo, "steer", verbose=verbose):
        with steer(model, effect_img, strength, network=network):
            response = answer(model, prompt, n_tokens=plan.n_tokens, template=template)
        out.append(SteeredAnswer(prompt, strength, response))
    return Answers(out)
