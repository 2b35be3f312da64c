"""What can be asked about the quality of a design?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llm2nifti.plans import OfTasks


@dataclass(frozen=True, kw_only=True)
class QualityPlan(OfTasks):
    """Compare task and control prompts in length, word frequency and surprisal.

    Examples
    --------
    llm2nifti quality ds
    """

    command: ClassVar[str] = "quality"
