"""What can be asked about decoding?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llm2nifti.plans import Count, Names, OfTasks, Seed, how


@dataclass(frozen=True, kw_only=True)
class DecodePlan(OfTasks):
    """Decode tasks from every part of the model, over its depth and over tokens.

    Attributes
    ----------
    site : tuple of str
        Only parcels of these sites, such as attn,mlp.
    n_null : int
        Permutations of the labels.
    n_boot : int
        Bootstrap draws of the intervals.
    seed : int
        Seed of both.
    frames : bool
        Also train at one token and test at the others.
    untrained : bool
        The same with the untrained copy, where the dataset has one.
    redo : bool
        Measure also what did not change since it was measured.

    Examples
    --------
    llm2nifti decode ds
    """

    command: ClassVar[str] = "decode"

    site: Names = ()
    n_null: Count = 200
    n_boot: Count = 200
    seed: Seed = 0
    frames: bool = True
    untrained: bool = True
    redo: bool = how(False)
