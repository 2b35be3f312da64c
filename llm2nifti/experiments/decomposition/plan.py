"""What can be asked about components and parcels?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from llm2nifti.plans import Count, Plan, Seed, how


@dataclass(frozen=True, kw_only=True)
class DecomposePlan(Plan):
    """Decompose runs without labels: components and parcels, reproducible and matched with tasks.

    Attributes
    ----------
    method : {"canica", "dictlearning"}
        Nilearn's CanICA (independent maps) or DictLearning (sparse maps).
    n_components : int
        Components; fewer than the prompts of a run.
    n_parcels : int
        Parcels of k-means.
    n_shuffles : int
        Shuffled labels, rotations and shuffled units of the nulls.
    seed : int
        Seed of the decompositions and of the nulls.
    rest : bool
        Decompose free generation (scan --rest) instead of the tasks' prompts.
    untrained : bool
        The same with the untrained copy, where the dataset has one.
    redo : bool
        Measure also what did not change since it was measured.

    Examples
    --------
    llm2nifti decompose ds --method dictlearning --n-components 20
    """

    command: ClassVar[str] = "decompose"

    method: Literal["canica", "dictlearning"] = "canica"
    n_components: Count = 15  # reproduced best beyond chance: docs/decomposition.md
    n_parcels: Count = 12
    n_shuffles: Count = 200
    seed: Seed = 0
    rest: bool = False
    untrained: bool = True
    redo: bool = how(False)
