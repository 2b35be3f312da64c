"""How is a model intervened in? Each condition, and the networks that it takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from llm2nifti import geometry, glm, networks
from llm2nifti.experiments.errors import ExperimentError
from llm2nifti.experiments.lesions.plan import InterventionPlan, LesionPlan, SteerPlan
from llm2nifti.geometry import ModelBrain
from llm2nifti.interventions import lesion, steer
from llm2nifti.interventions.bench import Bench
from llm2nifti.networks import Network, Rule

STREAM = ("embed", "resid", "norm")  # carry the stream; what is lesioned here, layers write again
LESIONS = ("mean", "zero", "resample")


@dataclass(frozen=True)
class Condition:
    """One way to intervene.

    Attributes
    ----------
    sites : tuple of str
        Where the units are.
    mode : {"mean", "zero", "resample", "steer"}
        See `llm2nifti.interventions.lesion`; ``steer`` adds the task's effect to its own network.
    share : float or None
        Share of the units of these sites that respond most; None for networks that are given.
    strength : float
        See `llm2nifti.interventions.steer`; lesions have none.
    spare_template : bool
        Leave the model alone while it reads what all texts begin with: the chat template.
    """

    sites: tuple[str, ...] = ()
    mode: str = "mean"
    share: float | None = 0.01
    strength: float = 1.0
    spare_template: bool = False

    @property
    def rule(self) -> Rule:
        """Which units of a task's contrast are intervened in."""
        return Rule("top", share=self.share or 1, sites=self.sites)


def conditions_of(
    plan: InterventionPlan, brain: ModelBrain, given: Sequence[Network]
) -> list[Condition]:
    """Conditions that a plan asks for, their sites named; given networks are taken as they are.

    Raises
    ------
    ExperimentError
        If the plan does not fit the dataset or the networks.
    """
    if given and isinstance(plan, SteerPlan):
        raise ExperimentError("a mask has no effect to steer along; steer networks of tasks")
    if given and plan.sites:
        raise ExperimentError("masks say themselves where their units are; leave the sites out")
    asked = [*plan.sites] or default_sites(brain, needed=not given)
    recorded = list(dict.fromkeys(site.name for site in brain.sites))
    unknown = [name for name in asked if name not in recorded]
    if unknown:
        raise ExperimentError(
            f"the dataset has no site {unknown[0]!r}; it was scanned with {', '.join(recorded)}"
        )
    mode, strength = "steer", 1.0
    if isinstance(plan, LesionPlan):
        mode = plan.mode
    elif isinstance(plan, SteerPlan):
        strength = plan.strength
    first = Condition(tuple(asked), mode, None, strength, plan.spare_template)
    if given:
        return [replace(first, sites=())]
    out = [replace(first, share=share) for share in plan.share]
    if isinstance(plan, LesionPlan) and plan.full:
        everywhere = (tuple(default_sites(brain)), ("resid",))
        shares = (0.005, 0.01, 0.02, 0.05)
        out += [Condition(*each) for each in product(everywhere, ("mean", "zero"), shares)]
    return list(dict.fromkeys(out))


def default_sites(brain: ModelBrain, *, needed: bool = True) -> list[str]:
    """Sites that are lesioned together by default: all but those that carry the stream."""
    names = list(dict.fromkeys(site.name for site in brain.sites if site.name not in STREAM))
    if needed and not names:
        raise ExperimentError(
            "the dataset has no units but those of the residual stream; choose them with "
            "sites='resid'"
        )
    return names


@dataclass(frozen=True, eq=False)
class Targets:
    """Networks that are intervened in, each made without the run that it is judged on.

    Attributes
    ----------
    bench : Bench
        The model.
    tasks : list of str
        Whose networks, made from the runs, are taken.
    given : list of Network
        Networks that are taken as they are, instead.
    n_random, seed : int
        Matched random networks for each, and their seed.
    """

    bench: Bench
    tasks: list[str]
    given: list[Network]
    n_random: int
    seed: int = 0
    _by_name: dict[str, Network] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Find given networks by their names."""
        self._by_name.update({network.name: network for network in self.given})

    @property
    def names(self) -> list[str]:
        """Names of the networks."""
        return list(self._by_name) or self.tasks

    def kinds(self, condition: Condition) -> list[str]:
        """What is taken for every network: itself, and its controls."""
        has_bottom = condition.share is not None and condition.mode in LESIONS
        random = [f"random{i}" for i in range(self.n_random)]
        return ["lesion", *(["bottom"] if has_bottom else []), *random]

    def each(self, condition: Condition) -> Iterator[tuple[Condition, int, str, str]]:
        """Evaluations: fold by fold, because control trials are kept of one fold."""
        for fold, name in product(self.bench.folds, self.names):
            for kind in self.kinds(condition):
                yield condition, fold, name, kind

    def network(self, condition: Condition, name: str, fold: int, kind: str) -> Network:
        """Units of one evaluation: a network made without the fold, or one of its controls."""
        network = self._by_name.get(name) or self._made(condition, name, fold, kind)
        if not kind.startswith("random"):
            return network
        seed = 1000 * self.seed + int(kind.removeprefix("random"))
        return networks.matched(network, self.bench.controls(fold).activity, seed=seed)

    def _made(self, condition: Condition, task: str, fold: int, kind: str) -> Network:
        """Units that respond most, or least, to a task in the other runs."""
        rule = condition.rule
        if kind == "bottom":
            rule = replace(rule, height_control="bottom")
        t = glm.t_map(self.bench.others(task, fold))
        return networks.ranked(task, self.bench.brain, t, rule)

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
