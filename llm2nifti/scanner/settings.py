"""How is a run recorded?"""

from __future__ import annotations

from dataclasses import dataclass

from llm2nifti.defaults import BATCH_SIZE


class ScanError(ValueError):
    """A paradigm cannot be run through this model."""


@dataclass(frozen=True)
class Settings:
    """How to record.

    Attributes
    ----------
    sites : str
        What to record; see `llm2nifti.models.sites.find_sites`.
    template : {"auto", "chat", "none"}
        Whether prompts are wrapped in the model's chat template.
    batch_size : int
        Trials generated together. It is part of the plan: another size changes values by rounding.
    temperature : float
        0 is greedy; otherwise tokens are sampled with one generator a trial.
    seed : int
        Seed of the sampling.
    """

    sites: str = "default"
    template: str = "auto"
    batch_size: int = BATCH_SIZE
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.batch_size < 1:
            raise ScanError(f"batch_size is {self.batch_size}; it must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise ScanError(f"temperature is {self.temperature}; it must be 0 or more")
