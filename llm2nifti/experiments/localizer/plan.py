"""What can be asked of a localizer?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llm2nifti.plans import Count, OfTasks, Seed, Share


@dataclass(frozen=True, kw_only=True)
class LocalizePlan(OfTasks):
    """Localize a network by conditions of a task's own: sentences against nonwords, and others.

    A folder that has no dataset yet gets one: both conditions are read, half of them in each of two
    runs. With several tasks, each is shown as many prompts as the smallest has.

    Attributes
    ----------
    share : float
        Share of all units that the network keeps: those with the largest t.
    rectify : bool
        Compare absolute activations.
    n_splits : int
        Random halves of the prompts, for the reliability.
    seed : int
        Seed of the design and of the halves.

    Examples
    --------
    llm2nifti localize ds --task language
    """

    command: ClassVar[str] = "localize"

    share: Share = 0.01
    rectify: bool = False
    n_splits: Count = 10
    seed: Seed = 0
