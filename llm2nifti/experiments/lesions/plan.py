"""What can be asked about lesions and steering?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from llm2nifti.plans import Count, Names, PlanError, Seed, WithModel, how

HalfShare = Annotated[float, Meta(gt=0, le=0.5)]


@dataclass(frozen=True, kw_only=True)
class InterventionPlan(WithModel):
    """What lesions and steering have in common.

    Attributes
    ----------
    network : tuple of str
        Tasks, or mask images made in this space; by default every task.
    sites : tuple of str
        Where the units are, such as attn,mlp; by default all but the stream's.
    share : tuple of float
        Share of the units at these sites, those with the largest t; the first is told first.
    spare_template : bool
        Let the model read the chat template undisturbed.
    n_random : int
        Matched random networks for each network.
    n_prompts : int
        Held-out prompts of each task and run.
    seed : int
        Seed of the random networks.
    untrained : bool
        The same with the untrained copy.
    overwrite : bool
        Forget what was measured before.
    """

    network: Names = ()
    sites: Names = ()
    share: tuple[HalfShare, ...] = (0.01,)
    spare_template: bool = False
    n_random: Count = 5
    n_prompts: Count = 8
    seed: Seed = 0
    untrained: bool = True
    overwrite: bool = how(False)

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if not self.share:
            raise PlanError("share", "is empty; give at least one")


@dataclass(frozen=True, kw_only=True)
class LesionPlan(InterventionPlan):
    """Take each network out of action and measure what that does to every task.

    Attributes
    ----------
    mode : {"mean", "zero", "resample"}
        What takes the place of values: the mean of control trials, zero, or other values.
    full : bool
        Mean and zero, 0.5 to 5 %, and the stream: hours.

    Examples
    --------
    llm2nifti lesion ds --network all; or: llm2nifti lesion ds --network mask.nii.gz
    """

    command: ClassVar[str] = "lesion"

    mode: Literal["mean", "zero", "resample"] = "mean"
    full: bool = False


@dataclass(frozen=True, kw_only=True)
class SteerPlan(InterventionPlan):
    """Push the model along a task's effect: its answers, or what that does to every task.

    Attributes
    ----------
    strength : float
        How often the effect is added; below 0 is away.
    prompt : tuple of str
        Show answers to this, along the effect of one task.
    n_tokens : int
        Most tokens of an answer.

    Examples
    --------
    llm2nifti steer ds --network pathology --strength 2 --prompt 'What shall we do today?'
    """

    command: ClassVar[str] = "steer"

    strength: float = 1.0
    prompt: tuple[str, ...] = ()
    n_tokens: Count = 40

    def __post_init__(self) -> None:
        """Check the values, and that answers are asked of one condition."""
        super().__post_init__()
        if self.prompt and (self.spare_template or len(self.share) > 1):
            raise PlanError("prompt", "goes with one share, and without spare_template=True")
