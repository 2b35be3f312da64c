"""What can be asked about identification?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from llm2nifti.plans import AnyCount, OfTasks


@dataclass(frozen=True, kw_only=True)
class IdentificationPlan(OfTasks):
    """Name held-out runs and prompts by what the other runs evoked.

    Attributes
    ----------
    method : {"ridge", "template"}
        Prompts are named by a ridge classifier of the other runs' prompts, or by the best match
        with the tasks' effects in them, whitened.
    n_boot : int
        Bootstrap samples of topics for intervals.
    untrained : bool
        The same with the untrained copy, where the dataset has one.

    Examples
    --------
    llm2nifti identification ds
    """

    command: ClassVar[str] = "identification"

    method: Literal["ridge", "template"] = "ridge"
    n_boot: AnyCount = 200
    untrained: bool = True
