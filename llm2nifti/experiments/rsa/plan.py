"""What can be asked about representational similarity?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from llm2nifti.plans import Count, Names, OfTasks, Seed, how


@dataclass(frozen=True, kw_only=True)
class RsaPlan(OfTasks):
    """Say which properties of prompts explain how each part of the model represents them.

    Attributes
    ----------
    site : tuple of str
        Only parcels of these sites, such as attn,mlp.
    properties : Path or None
        Your own TSV with a column stim_id and a column for each property: numbers are compared by
        their difference, words by whether they are the same.
    n_null : int
        Permutations of the prompts.
    n_boot : int
        Bootstrap draws over topics.
    seed : int
        Seed of both.
    untrained : bool
        The same with the untrained copy, where the dataset has one.
    redo : bool
        Measure also what did not change since it was measured.

    Examples
    --------
    llm2nifti rsa ds
    """

    command: ClassVar[str] = "rsa"

    site: Names = ()
    properties: Path | None = None
    n_null: Count = 100
    n_boot: Count = 200
    seed: Seed = 0
    untrained: bool = True
    redo: bool = how(False)
