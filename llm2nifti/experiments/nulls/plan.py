"""What can be asked about nulls?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llm2nifti.defaults import N_RELABELLINGS
from llm2nifti.plans import Count, OfTasks, Seed


@dataclass(frozen=True, kw_only=True)
class NullPlan(OfTasks):
    """Measure false positive rates: relabelled controls and pseudo-tasks.

    Attributes
    ----------
    n : int
        Relabellings.
    seed : int
        Seed of the relabellings.

    Examples
    --------
    llm2nifti null ds --n 200
    """

    command: ClassVar[str] = "null"

    n: Count = N_RELABELLINGS
    seed: Seed = 0
