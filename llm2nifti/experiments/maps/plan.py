"""What can be asked about maps?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from llm2nifti.plans import Level, Names, OfTasks, OnWorkers, PlanError, Share


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
        Only units that are higher than in the control.
    frames : {"trial", "token"}
        Fit trials, or tokens (AR(1), as in the paper).
    contrast : str or None
        Maps of this contrast instead, such as "pathology - medicalimaging".
    covariate : tuple of str
        Numeric columns of the events to take out, such as characters.
    modulate : tuple of str
        Numeric columns of the events whose slope within each task is modelled; contrast
        pathology_by_surprisal is such a slope.
    rectify : bool
        Fit absolute activations, as published localizers do.

    Examples
    --------
    llm2nifti glm ds --contrast "pathology - medicalimaging" --covariate characters
    """

    command: ClassVar[str] = "glm"

    alpha: Level = 0.05
    height_control: Literal["fdr", "bonferroni", "fpr", "top", "permutation"] = "fdr"
    share: Share = 0.01
    one_sided: bool = False
    frames: Literal["trial", "token"] = "trial"
    contrast: str | None = None
    covariate: Names = ()
    modulate: Names = ()
    rectify: bool = False

    def __post_init__(self) -> None:
        """Check every value, and that a permutation tests what is asked for."""
        super().__post_init__()
        if self.height_control == "permutation" and self.more:
            raise PlanError(
                "height_control",
                f"is 'permutation', which exchanges task and control trials as they are, without "
                f"{self.more}; use fdr or bonferroni",
            )

    @property
    def more(self) -> str:
        """What is asked beside the tasks' own contrasts, in words; empty if nothing."""
        parts = [f"{self.contrast}"] if self.contrast else []
        parts += [f"given {', '.join(self.covariate)}"] if self.covariate else []
        parts += [f"modulated by {', '.join(self.modulate)}"] if self.modulate else []
        parts += ["absolute activations"] if self.rectify else []
        return ", ".join(parts)
