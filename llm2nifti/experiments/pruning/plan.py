"""What can be asked about pruning?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from llm2nifti.plans import AnyCount, Count, Level, PlanError, WithModel, how


@dataclass(frozen=True, kw_only=True)
class PrunePlan(WithModel):
    """Remove a network's weights, compare with removing as much otherwise, write the model.

    Attributes
    ----------
    network : str
        A task, or a NIfTI mask.
    out : Path
        New folder for the pruned model.
    share : float or None
        Only this share of the units that can be pruned: those with the largest absolute t.
    keep : bool
        Keep these units and prune all others.
    n_random : int
        Random controls of each kind.
    n_prompts : int
        Held-out prompts of each task and run; 0 measures no perplexity.
    n_pairs : int
        Pairs of speed measurements; 0 measures none.
    overwrite : bool
        Replace an earlier pruned model.

    Examples
    --------
    llm2nifti prune ds-units --network pathology --share 0.05 --out small
    """

    command: ClassVar[str] = "prune"

    network: str
    out: Path = how()
    share: Level | None = None
    keep: bool = False
    n_random: Count = 3
    n_prompts: AnyCount = 8
    n_pairs: AnyCount = 10
    overwrite: bool = how(False)

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.n_pairs == 1:
            raise PlanError("n_pairs", "is 1; it must be 0, or 2 or more")
