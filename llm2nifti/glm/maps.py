"""What does a contrast give? Maps of t, z and effect."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

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
    brain : ModelBrain
        Geometry.
    analysed : (n_units,) bool array
        Units that vary in every run; the maps are 0 elsewhere.
    t_values, z_values, effects : (n_units,) array
        t (rank by these: z saturates at 37), z, and the effect in the activations' own units.
    df : float
        Residual degrees of freedom, summed over runs.
    note : str
        What a reader has to know about the inference; empty if nothing.
    """

    name: str
    brain: ModelBrain
    analysed: NDArray[np.bool_] = field(repr=False)
    t_values: NDArray[np.float64] = field(repr=False)
    z_values: NDArray[np.float64] = field(repr=False)
    effects: NDArray[np.float64] = field(repr=False)
    df: float
    note: str = ""

    @cached_property
    def t_img(self) -> nib.Nifti1Image:
        """Image of t."""
        return geometry.to_img(self.brain, self.t_values)

    @cached_property
    def z_img(self) -> nib.Nifti1Image:
        """Image of z."""
        return geometry.to_img(self.brain, self.z_values)

    @cached_property
    def effect_img(self) -> nib.Nifti1Image:
        """Image of the effect."""
        return geometry.to_img(self.brain, self.effects)

    @cached_property
    def mask_img(self) -> nib.Nifti1Image:
        """Image of the units that were analysed."""
        return geometry.to_img(self.brain, self.analysed)

    @property
    def n_constant(self) -> int:
        """Units left out because they never change in some run."""
        return int((~self.analysed).sum())

    def t(self) -> NDArray[np.float64]:
        """(n_units,) t values in unit order; 0 for constant units."""
        return self.t_values

    def p(self) -> NDArray[np.float64]:
        """(n_units,) two-sided p values; 1 for constant units."""
        return 2 * stats.t.sf(np.abs(self.t_values), self.df)

    def share_below(self, alpha: float = 0.05) -> float:
        """Share of the analysed units whose two-sided p is below `alpha`, uncorrected."""
        return float((self.p()[self.analysed] < alpha).mean())

    def __repr__(self) -> str:
        """Say contrast, size and largest |t|."""
        text = (
            f"StatMaps: {self.name}, {self.analysed.sum()} units, df {self.df:.0f}"
            f", |t| up to {np.abs(self.t_values).max():.1f}"
        )
        return f"{text}. {self.note}" if self.note else text
