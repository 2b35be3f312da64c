"""What can be asked about topics?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llm2nifti.plans import AnyCount, Level, OfTasks, Seed


@dataclass(frozen=True, kw_only=True)
class TopicsPlan(OfTasks):
    """Test every task over its topics, so that what passes holds for other topics, too.

    Attributes
    ----------
    alpha : float
        Level of the false discovery rate.
    n_null : int
        Pseudo-tasks of unrelated control topics.
    n_perm : int
        Sign flips of the family-wise test (max-T); 0 leaves it out.
    seed : int
        Seed of dealing control topics, pseudo-tasks and flips.

    Examples
    --------
    llm2nifti topics ds --n-perm 1000
    """

    command: ClassVar[str] = "topics"

    alpha: Level = 0.05
    n_null: AnyCount = 100
    n_perm: AnyCount = 0
    seed: Seed = 0
