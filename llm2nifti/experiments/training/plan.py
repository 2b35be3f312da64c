"""What can be asked about training?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llm2nifti.plans import Count, PlanError, Positive, WithModel, how


@dataclass(frozen=True, kw_only=True)
class TrainPlan(WithModel):
    """Fine-tune on one task: the network's modules against random ones and all.

    Attributes
    ----------
    task : str
        Whose text and network.
    top : int or None
        Modules to train; by default a tenth of all that own weights.
    seeds : int
        Trainings of each condition; each draws other random modules.
    epochs : int
        Passes over the texts.
    n_training : int
        Prompts to train on, at most: the first of the development split.
    n_texts : int
        Held-out prompts of each task and of control, at most.
    learning_rate : tuple of float
        Learning rates to try, on the development split alone; where the best lies at an end, up to
        two beyond it are tried, too.
    r : int
        Rank of the LoRA updates.
    lora_alpha : float
        LoRA scale: lora_alpha / r.
    stimuli : str or None
        Your own TSV, with both splits.
    threads : int or None
        Threads that torch computes with.
    overwrite : bool
        Replace earlier results of the task.

    Examples
    --------
    llm2nifti train ds-units --task pathology
    """

    command: ClassVar[str] = "train"

    task: str
    top: Count | None = None
    seeds: Count = 3
    epochs: Count = 4
    n_training: Count = 96
    n_texts: Count = 48
    learning_rate: tuple[Positive, ...] = (3e-4, 1e-3, 3e-3)
    r: Count = 8
    lora_alpha: Positive = 16.0
    stimuli: str | None = None
    threads: Count | None = how(None)
    overwrite: bool = how(False)

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if not self.learning_rate:
            raise PlanError("learning_rate", "is empty; give at least one")

    @property
    def step(self) -> float:
        """Mean ratio of neighbouring learning rates."""
        rates = self.learning_rate
        return float((max(rates) / min(rates)) ** (1 / max(1, len(set(rates)) - 1)))
