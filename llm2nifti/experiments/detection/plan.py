"""What can be asked about detection?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llm2nifti.plans import Count, Level, Plan, Share, how


@dataclass(frozen=True, kw_only=True)
class DetectPlan(Plan):
    """Measure how well, and how early, networks tell what a prompt is about.

    Attributes
    ----------
    share : float
        Share of the attn and mlp units in a network.
    threshold : float
        False-positive rate of the thresholds.
    n_boot : int
        Bootstrap draws of the intervals.
    redo : bool
        Measure also what did not change since it was measured.

    Examples
    --------
    llm2nifti detect ds
    """

    command: ClassVar[str] = "detect"

    share: Share = 0.01
    threshold: Level = 0.05
    n_boot: Count = 1000
    redo: bool = how(False)
