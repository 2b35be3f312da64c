"""What can be asked about several models or sessions together?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llm2nifti.plans import Count, Names, OfTasks, Seed, Share, how


@dataclass(frozen=True, kw_only=True)
class GroupPlan(OfTasks):
    """Compare all models and sessions of a dataset: depth, geometry, and maps carried over.

    Attributes
    ----------
    site : tuple of str
        Only parcels of these sites, such as attn,mlp.
    n_bins : int
        Bins of relative depth in the common space.
    n_perm : int
        Sign flips of the second level.
    n_null : int
        Shuffles of prompts, for similarity and for alignment.
    n_prompts : int
        Most prompts that models are compared by.
    carry : str or None
        Task, or NIfTI mask of a network, that is carried into every other session and written.
    source : str or None
        Session it is carried from, such as sub-x or sub-x_ses-y; by default the first.
    share : float
        Share of the units that a carried task's network has.
    seed : int
        Seed of all nulls.
    untrained : bool
        The same with untrained copies, where the dataset has them.
    redo : bool
        Measure also what did not change since it was measured.

    Examples
    --------
    llm2nifti group ds; or: llm2nifti group ds --carry pathology --source sub-smollm2135m
    """

    command: ClassVar[str] = "group"
    whole: ClassVar[bool] = True

    site: Names = ()
    n_bins: Count = 20
    n_perm: Count = 1000
    n_null: Count = 20
    n_prompts: Count = 600
    carry: str | None = None
    source: str | None = None
    share: Share = 0.01
    seed: Seed = 0
    untrained: bool = True
    redo: bool = how(False)
