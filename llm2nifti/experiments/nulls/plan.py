"""What can be asked about nulls?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llm2nifti.defaults import N_RELABELLINGS
from llm2nifti.plans import Count, Names, Plan, Seed


@dataclass(frozen=True, kw_only=True)
class NullPlan(Plan):
    """Measure false positive rates: relabelled controls and pseudo-tasks.

    Attributes
    ----------
    task : tuple of str
        Only runs of these tasks.
    n : int
        Relabellings.
    seed : int
        Seed of the relabellings.

    Examples
    --------
    llm2nifti null ds --n 200
    """

    command: ClassVar[str] = "null"

    task: Names = ()
    n: Count = N_RELABELLINGS
    seed: Seed = 0
