"""What can be asked about identification?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llm2nifti.plans import Names, Plan


@dataclass(frozen=True, kw_only=True)
class IdentificationPlan(Plan):
    """Name held-out runs and prompts by the maps of the other runs.

    Attributes
    ----------
    task : tuple of str
        Only these tasks.
    untrained : bool
        The same with the untrained copy, where the dataset has one.

    Examples
    --------
    llm2nifti identification ds
    """

    command: ClassVar[str] = "identification"

    task: Names = ()
    untrained: bool = True
