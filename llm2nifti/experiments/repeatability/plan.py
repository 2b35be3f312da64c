"""What can be asked about repeatability?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llm2nifti.plans import OfTasks


@dataclass(frozen=True, kw_only=True)
class RepeatabilityPlan(OfTasks):
    """Compare maps between runs: repeatability and overlap of the tasks' networks.

    Attributes
    ----------
    untrained : bool
        The same with the untrained copy, where the dataset has one.

    Examples
    --------
    llm2nifti repeatability ds
    """

    command: ClassVar[str] = "repeatability"

    untrained: bool = True
