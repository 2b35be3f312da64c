"""What can be asked about connectivity?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llm2nifti.plans import Count, Names, OfTasks, Seed, how


@dataclass(frozen=True, kw_only=True)
class ConnectivityPlan(OfTasks):
    """Measure how alike the parts of a model represent prompts, at rest and in each task.

    Attributes
    ----------
    site : tuple of str
        Only parcels of these sites, such as attn,mlp.
    n_null : int
        Relabelled prompts for the change between tasks and control.
    seed : int
        Seed of all nulls.
    untrained : bool
        The same with the untrained copy, where the dataset has one.
    redo : bool
        Measure also what did not change since it was measured.

    Examples
    --------
    llm2nifti connectivity ds
    """

    command: ClassVar[str] = "connectivity"

    site: Names = ()
    n_null: Count = 100
    seed: Seed = 0
    untrained: bool = True
    redo: bool = how(False)
