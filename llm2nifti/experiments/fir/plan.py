"""What can be asked about responses over frames?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llm2nifti.plans import Count, Level, OfTasks, Seed


@dataclass(frozen=True, kw_only=True)
class FirPlan(OfTasks):
    """Map every task's response at each generated token (finite impulse response).

    Attributes
    ----------
    alpha : float
        Level of the false discovery rate.
    n_null : int
        Shuffles of each run's labels, whose rates stand beside.
    seed : int
        Seed of the shuffles.

    Examples
    --------
    llm2nifti fir ds --task pathology
    """

    command: ClassVar[str] = "fir"

    alpha: Level = 0.05
    n_null: Count = 5
    seed: Seed = 0
