"""What can be asked about identification?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llm2nifti.plans import OfTasks


@dataclass(frozen=True, kw_only=True)
class IdentificationPlan(OfTasks):
    """Name held-out runs and prompts by the maps of the other runs.

    Attributes
    ----------
    untrained : bool
        The same with the untrained copy, where the dataset has one.

    Examples
    --------
    llm2nifti identification ds
    """

    command: ClassVar[str] = "identification"

    untrained: bool = True
