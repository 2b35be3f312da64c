"""How is a model intervened in, and how much of it is measured?"""

from __future__ import annotations

from dataclasses import dataclass

from llm2nifti.geometry import ModelBrain
from llm2nifti.networks import Rule
from llm2nifti.study.errors import StudyError

STREAM = ("embed", "resid", "norm")  # carry the stream; what is lesioned here, layers write again

LESIONS = ("mean", "zero", "resample")
MODES = (*LESIONS, "steer")


@dataclass(frozen=True)
class Condition:
    """One way to intervene.

    Raises StudyError where a value makes no sense.

    Attributes
    ----------
    sites : tuple of str
        Where the units are; empty for all sites but those of the stream.
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

    def rule(self, brain: ModelBrain) -> Rule:
        """Which units of a task's contrast are intervened in."""
        sites = self.sites or default_sites(brain)
        return Rule("top", share=self.share or 0, sites=sites)

    def __post_init__(self) -> None:
        """Check the values."""
        if self.mode not in MODES:
            raise StudyError(f"mode is {self.mode!r}; use mean, zero, resample or steer")
        if self.share is not None and not 0 < self.share <= 0.5:
            raise StudyError(f"share is {self.share:g}; it must lie above 0 and be at most 0.5")


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Raises StudyError where a value makes no sense.

    Attributes
    ----------
    n_random : int
        Matched random networks for every network.
    n_prompts : int
        Prompts of each task and run.
    seed : int
        Seed of the random networks.
    """

    n_random: int = 5
    n_prompts: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        for name, least in {"n_random": 1, "n_prompts": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise StudyError(f"{name} is {getattr(self, name)}; it must be {least} or more")


def default_sites(brain: ModelBrain) -> tuple[str, ...]:
    """Sites that are lesioned together by default: all but those that carry the stream."""
    names = tuple(dict.fromkeys(site.name for site in brain.sites if site.name not in STREAM))
    if not names:
        raise StudyError(
            "the dataset has no units but those of the residual stream; choose them with "
            "sites='resid'"
        )
    return names


FULL = tuple(  # of lesions
    Condition(sites, mode, share)
    for sites in ((), ("resid",))
    for mode in ("mean", "zero")
    for share in (0.005, 0.01, 0.02, 0.05)
)


def kinds(condition: Condition, sizes: Sizes) -> list[str]:
    """What is lesioned for every network: itself, its controls."""
    bottom = ["bottom"] if condition.share is not None and condition.mode in LESIONS else []
    return ["lesion", *bottom, *(f"random{i}" for i in range(sizes.n_random))]
