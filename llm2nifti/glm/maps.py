"""What does a contrast give? Maps of t, z and effect."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from llm2nifti import geometry
from llm2nifti.geometry import ModelBrain


@dataclass(frozen=True, eq=False)
class StatMaps:
    """Maps of one contrast.

    Attributes
    ----------
    name : str
        The contrast.
    t_img, z_img, effect_img : Nifti1Image
        t values (rank by these: z saturates at 37), z values, and the effect in the activations'
        own units.
    mask_img : Nifti1Image
        Units that were analysed.
    brain : ModelBrain
        Geometry.
    df : float
        Residual degrees of freedom, summed over runs.
    n_constant : int
        Units left out because they never change.
    note : str
        What a reader has to know about the inference; empty if nothing.
    """

    name: str
    t_img: nib.Nifti1Image
    z_img: nib.Nifti1Image
    effect_img: nib.Nifti1Image
    mask_img: nib.Nifti1Image
    brain: ModelBrain
    df: float
    n_constant: int
    note: str = ""

    def t(self) -> NDArray[np.float64]:
        """(n_units,) t values in unit order; 0 for constant units."""
        return np.asarray(geometry.from_img(self.brain, self.t_img), float)

    def p(self) -> NDArray[np.float64]:
        """(n_units,) two-sided p values; 1 for constant units."""
        return 2 * stats.t.sf(np.abs(self.t()), self.df)

    def share_below(self, alpha: float = 0.05) -> float:
        """Share of the analysed units whose two-sided p is below `alpha`, uncorrected."""
        analysed = geometry.from_img(self.brain, self.mask_img) > 0
        return float((self.p()[analysed] < alpha).mean())

    def __repr__(self) -> str:
        """Say contrast, size and largest |t|."""
        text = (
            f"StatMaps: {self.name}, {self.brain.n_units - self.n_constant} units, df {self.df:.0f}"
            f", |t| up to {np.abs(self.t()).max():.1f}"
        )
        return f"{text}. {self.note}" if self.note else text
