"""Intervene with every network and measure what that does; what is done is kept, and resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import product

import numpy as np
from numpy.typing import NDArray

from llm2nifti import bids, geometry, glm, networks
from llm2nifti.bids import Session
from llm2nifti.experiments.errors import ExperimentError
from llm2nifti.experiments.journal import ResultJournal, hash_texts
from llm2nifti.experiments.lesions.plan import InterventionPlan, SteerPlan
from llm2nifti.experiments.lesions.result import (
    Answers,
    Copy,
    InterventionResult,
    LesionResult,
    MaskResult,
    Measured,
    Sizes,
    SteeredAnswer,
    SteerResult,
)
from llm2nifti.geometry import ModelBrain
from llm2nifti.interventions import lesion, steer
from llm2nifti.interventions.bench import Bench
from llm2nifti.interventions.reloading import reload, tasks_or_images
from llm2nifti.networks import Network, Rule, dissociation
from llm2nifti.progress import track
from llm2nifti.scanner import answer

STREAM = ("embed", "resid", "norm")  # carry the stream; what is lesioned here, layers write again


def measure(
    session: Session, plan: InterventionPlan, *, verbose: int = 1
) -> InterventionResult | Answers:
    """Lesion or steer networks of a dataset's model, and measure what that does to text.

    The first condition is the one that tables and pages show; what was measured earlier of other
    conditions is kept beside it. Answers where the plan has prompts. ExperimentError or
    InterventionError if the plan makes no sense for the dataset, which needs at least 2 runs of
    every task, or if the model is not the one that was scanned.
    """
    tasks, given = tasks_or_images(session, plan.network)
    if isinstance(plan, SteerPlan) and plan.prompt:
        if given or len(tasks) != 1 or not plan.network:
            raise ExperimentError("answers are steered along the effect of one task; name it")
        return _answers(session, plan, tasks[0], verbose=verbose)
    conditions = conditions_of(plan, session.brain, given)
    kind: type[InterventionResult] = SteerResult if isinstance(plan, SteerPlan) else LesionResult
    kind = MaskResult if given else kind
    kept, names = kind.read(session), [field.name for field in fields(Condition)]
    earlier = [
        Condition(**{name: getattr(of_kept, name) for name in names})
        for of_kept in (kept.conditions if kept else [])
    ]
    sizes = Sizes(plan.n_random, plan.n_prompts, plan.seed)
    copy = session.untrained if plan.untrained and not given else None
    measured = []
    for group in [session, copy] if copy else [session]:
        bench = Bench(reload(group.first, plan), group, plan.n_prompts)
        targets = Targets(bench, tasks, given, plan.n_random, plan.seed)
        settings = {
            "sizes": asdict(sizes),
            "weights": group.model["WeightsHash"],
            "runs": [[run.task, run.run] for run in group],
            "texts": hash_texts(group),
            "space": group.brain.space,
        }
        name = f"sub-{group.subject}_{kind.file.removesuffix('.json')}_evaluations.jsonl"
        journal = ResultJournal(session.folder / name, settings, overwrite=plan.overwrite)
        _sweep(targets, conditions, journal, verbose=verbose)
        known = [c for c in earlier if all(_key(targets, *e) in journal for e in targets.each(c))]
        shown = dict.fromkeys([*conditions, *known])
        measured.append([_measured(targets, c, journal) for c in shown])
    return kind(
        model=session.model,
        held_out=not given,
        sizes=sizes,
        conditions=measured[0],
        untrained=Copy(measured[1]) if copy else None,
    )


def _sweep(
    targets: Targets, conditions: list[Condition], journal: ResultJournal, *, verbose: int
) -> None:
    """Do every evaluation that is not there yet."""
    if any(condition.spare_template for condition in conditions):
        targets.bench.check_template()
    verb = "steer" if conditions[0].mode == "steer" else "lesion"
    label = f"{verb} sub-{targets.bench.session.subject}"
    todo = [each for condition in conditions for each in targets.each(condition)]
    for each in track(todo, label, unit="text set", verbose=verbose):
        journal.get(_key(targets, *each), partial(targets.change, *each))


def _key(targets: Targets, condition: Condition, fold: int, name: str, kind: str) -> str:
    """Name of one evaluation; two masks of one name have two."""
    how = [condition.sites, condition.mode, condition.share, condition.strength]
    spared = ["spare template"] * condition.spare_template
    masks = [network.signs for network in targets.given if network.name == name]
    digests = [hashlib.sha256(signs.tobytes()).hexdigest() for signs in masks]
    return json.dumps([targets.bench.session.subject, *how, *spared, *digests, fold, name, kind])


def _measured(targets: Targets, condition: Condition, journal: ResultJournal) -> Measured:
    """Effects of one condition in one model, the texts of all folds together."""

    def of(name: str, kind: str) -> dict[str, NDArray[np.float64]]:
        keys = [_key(targets, condition, fold, name, kind) for fold in targets.bench.folds]
        folds = [journal[key] for key in keys]
        return {task: np.concatenate([fold[task] for fold in folds]) for task in folds[0]}

    changes, seed = [], targets.seed
    for name in targets.names:
        by_kind = {kind: of(name, kind) for kind in targets.kinds(condition)}
        whole, bottom = by_kind.pop("lesion"), by_kind.pop("bottom", {})
        random = {task: np.stack([r[task] for r in by_kind.values()]) for task in whole}
        changes.append(dissociation.Changes(name, whole, random, bottom))
    is_compared = not targets.given and len(changes) > 1
    has_pairs = is_compared and condition.mode != "steer"
    return Measured(
        **asdict(condition),
        effects={
            c.network: {task: dissociation.effect(c, task, seed=seed) for task in c.lesion}
            for c in changes
        },
        selectivity=dissociation.selectivity(changes, seed=seed) if is_compared else None,
        double_dissociations=(
            dissociation.double_dissociations(changes, seed=seed) if has_pairs else None
        ),
    )


def _answers(session: Session, plan: SteerPlan, task: str, *, verbose: int) -> Answers:
    """Answers to prompts while the model is steered along one task's effect, and without."""
    run, brain, images = session.of(task).first, session.brain, {}
    for stat in ("effect", "t"):
        path = run.paths.stat_map(stat)
        if not path.exists():
            raise ExperimentError(
                f"task {task!r} has no {path.name}; make it with: llm2nifti glm {session.root}"
            )
        images[stat] = bids.read_img(path)
    (condition,) = conditions_of(plan, brain, [])
    t = geometry.from_img(brain, images["t"])
    network = networks.ranked(task, brain, t, condition.rule)
    model, template = reload(session.first, plan), session.settings["template"]
    todo = [(prompt, strength) for prompt in plan.prompt for strength in (0.0, plan.strength)]
    out = []
    for prompt, strength in track(todo, "steer", verbose=verbose):
        with steer(model, images["effect"], strength, network=network):
            response = answer(model, prompt, n_tokens=plan.n_tokens, template=template)
        out.append(SteeredAnswer(prompt, strength, response))
    return Answers(out)


@dataclass(frozen=True)
class Condition:
    """One way to intervene."""

    sites: tuple[str, ...]
    mode: str  #: of a lesion; "steer" adds the task's effect to its own network
    share: float | None  #: of the units of these sites, those that respond most; None for masks
    strength: float = 1.0  #: of steering
    spare_template: bool = False  #: leave the model alone while it reads the chat template

    @property
    def rule(self) -> Rule:
        """Which units of a task's contrast are intervened in."""
        return Rule("top", share=self.share or 1, sites=self.sites)


def conditions_of(
    plan: InterventionPlan, brain: ModelBrain, given: Sequence[Network]
) -> list[Condition]:
    """Conditions that a plan asks for, their sites named; given networks are taken as they are.

    By default all sites are lesioned together but those that carry the stream. ExperimentError if
    the plan does not fit the dataset or the networks.
    """
    if given and isinstance(plan, SteerPlan):
        raise ExperimentError("a mask has no effect to steer along; steer networks of tasks")
    if given and plan.sites:
        raise ExperimentError("masks say themselves where their units are; leave the sites out")
    recorded = list(dict.fromkeys(site.name for site in brain.sites))
    default = tuple(name for name in recorded if name not in STREAM)
    unknown = [name for name in plan.sites if name not in recorded]
    if unknown:
        raise ExperimentError(
            f"the dataset has no site {unknown[0]!r}; it was scanned with {', '.join(recorded)}"
        )
    mode, strength = getattr(plan, "mode", "steer"), getattr(plan, "strength", 1.0)
    if given:
        return [Condition((), mode, None, strength, plan.spare_template)]
    is_full = getattr(plan, "full", False)
    if not default and (is_full or not plan.sites):
        raise ExperimentError(
            "the dataset has no units but those of the residual stream; choose them with "
            "sites='resid'"
        )
    sites = plan.sites or default
    out = [Condition(sites, mode, share, strength, plan.spare_template) for share in plan.share]
    if is_full:
        combined = product((default, ("resid",)), ("mean", "zero"), (0.005, 0.01, 0.02, 0.05))
        out += [Condition(*each) for each in combined]
    return list(dict.fromkeys(out))


@dataclass(frozen=True, eq=False)
class Targets:
    """Networks that are intervened in, each made without the run that it is judged on.

    They are those of the tasks, or given ones as they are; each has matched random networks.
    """

    bench: Bench
    tasks: list[str]
    given: list[Network]
    n_random: int
    seed: int = 0

    @property
    def names(self) -> list[str]:
        """Names of the networks."""
        return [network.name for network in self.given] or self.tasks

    def kinds(self, condition: Condition) -> list[str]:
        """What is taken for every network: itself, and its controls."""
        has_bottom = condition.share is not None and condition.mode != "steer"
        random = [f"random{i}" for i in range(self.n_random)]
        return ["lesion", *["bottom"] * has_bottom, *random]

    def each(self, condition: Condition) -> list[tuple[Condition, int, str, str]]:
        """Evaluations: fold by fold, because control trials are kept of one fold."""
        return list(product([condition], self.bench.folds, self.names, self.kinds(condition)))

    def network(self, condition: Condition, name: str, fold: int, kind: str) -> Network:
        """Units of one evaluation: a network made without the fold, or one of its controls."""
        if kind.startswith("random"):
            network = self.network(condition, name, fold, "lesion")
            seed = 1000 * self.seed + int(kind.removeprefix("random"))
            return networks.matched(network, self.bench.controls(fold).activity, seed=seed)
        for network in self.given:
            if network.name == name:
                return network
        rule = condition.rule
        if kind == "bottom":
            rule = replace(rule, height_control="bottom")
        t = glm.t_map(self.bench.others(name, fold))
        return networks.ranked(name, self.bench.brain, t, rule)

    def change(
        self, condition: Condition, fold: int, name: str, kind: str
    ) -> dict[str, list[float]]:
        """What one intervention does to each text of the fold, by task."""
        acting = self.acting(condition, fold, name, kind)
        return self.bench.change(fold, acting, spare_template=condition.spare_template)

    def acting(
        self, condition: Condition, fold: int, name: str, kind: str
    ) -> AbstractContextManager[None]:
        """Do one intervention."""
        bench, network = self.bench, self.network(condition, name, fold, kind)
        if condition.mode != "steer":
            controls = None if condition.mode == "zero" else bench.controls(fold)
            return lesion(bench.model, network, condition.mode, controls=controls)  # type: ignore[arg-type]
        img = geometry.to_img(bench.brain, self._effect(condition, name, fold, network, kind))
        return steer(bench.model, img, condition.strength, brain=bench.brain)

    def _effect(
        self, condition: Condition, task: str, fold: int, network: Network, kind: str
    ) -> NDArray[np.float64]:
        """What is added to each unit: the task's effect; of random units, that of the network's.

        In each site of a layer, random units get the values of the network's units there, shuffled:
        as much is added, in other places.
        """
        mean = self.bench.effect(task, fold)
        if not kind.startswith("random"):
            return np.where(network.units, mean, 0)
        members = self.network(condition, task, fold, "lesion").units
        rng = np.random.default_rng([self.seed, int(kind.removeprefix("random"))])
        effect = np.zeros(self.bench.brain.n_units)
        for site in self.bench.brain.sites:
            inside = self.bench.brain.slice_of(site)
            values = rng.permutation(mean[inside][members[inside]])
            effect[inside][network.units[inside]] = values
        return effect
