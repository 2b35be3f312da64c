"""What can be asked about repeatability?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llm2nifti.plans import Names, Plan


@dataclass(frozen=True, kw_only=True)
class RepeatabilityPlan(Plan):
    """Compare maps between runs: repeatability and overlap of the tasks' networks.

    Attributes
    ----------
    task : tuple of str
        Only these tasks.
    untrained : bool
        The same with the untrained copy, where the dataset has one.

    Examples
    --------
    llm2nifti repeatability ds
    """

    command: ClassVar[str] = "repeatability"

    task: Names = ()
    untrained: bool = True
