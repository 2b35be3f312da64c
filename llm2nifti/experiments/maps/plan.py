"""What can be asked about maps?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from llm2nifti.plans import Level, OfTasks, OnWorkers, Share


@dataclass(frozen=True, kw_only=True)
class GlmPlan(OfTasks, OnWorkers):
    """Fit nilearn's GLM, write statistical maps and networks.

    Attributes
    ----------
    alpha : float
        Level of the threshold.
    height_control : {"fdr", "bonferroni", "fpr", "top", "permutation"}
        Threshold; permutation is max-T.
    share : float
        Share of all units that top keeps.
    one_sided : bool
        Only units that respond more.
    frames : {"trial", "token"}
        Fit trials, or tokens (AR(1), as in the paper).

    Examples
    --------
    llm2nifti glm ds --task pathology --alpha 0.01
    """

    command: ClassVar[str] = "glm"

    alpha: Level = 0.05
    height_control: Literal["fdr", "bonferroni", "fpr", "top", "permutation"] = "fdr"
    share: Share = 0.01
    one_sided: bool = False
    frames: Literal["trial", "token"] = "trial"
