"""What do contrasts give, also of several runs together? Maps of t, z and effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import nibabel as nib
import numpy as np
from nilearn.glm.contrasts import Contrast
from numpy.typing import NDArray
from scipy import stats

from llm2nifti import geometry
from llm2nifti.geometry import ModelBrain


@dataclass(frozen=True, eq=False)
class StatMaps:
    """Maps of one contrast."""

    name: str  #: name, brain: the contrast, and the geometry
    brain: ModelBrain
    #: (n_units,) bool array; units that vary in every run; the maps are 0 elsewhere
    analysed: NDArray[np.bool_] = field(repr=False)
    pooled: Contrast = field(repr=False)  #: the contrast in these units
    note: str = ""  #: what a reader has to know about the inference; empty if nothing

    @property
    def df(self) -> float:
        """Residual degrees of freedom, summed over runs."""
        return float(self.pooled.dof)

    def _spread(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n_units,) values of the analysed units, 0 elsewhere."""
        out = np.zeros(self.brain.n_units)
        out[self.analysed] = np.ravel(values)
        return out

    @cached_property
    def _t(self) -> NDArray[np.float64]:
        return self._spread(self.pooled.stat())

    @cached_property
    def t_img(self) -> nib.Nifti1Image:
        """Image of t: rank by it, because z saturates at 37."""
        return described(geometry.to_img(self.brain, self.t()), "t", self.name, df=self.df)

    @cached_property
    def z_img(self) -> nib.Nifti1Image:
        """Image of z."""
        values = self._spread(self.pooled.z_score())
        return described(geometry.to_img(self.brain, values), "z", self.name)

    @cached_property
    def effect_img(self) -> nib.Nifti1Image:
        """Image of the effect, the mean over runs, in the activations' own units."""
        values = self._spread(self.pooled.effect_size())
        return described(geometry.to_img(self.brain, values), "effect", self.name)

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
        return self._t

    def p(self) -> NDArray[np.float64]:
        """(n_units,) two-sided p values; 1 for constant units."""
        return 2 * stats.t.sf(np.abs(self._t), self.df)

    def share_below(self, alpha: float = 0.05) -> float:
        """Share of the analysed units whose two-sided p is below `alpha`, uncorrected."""
        return float((self.p()[self.analysed] < alpha).mean())

    def __repr__(self) -> str:
        """Say contrast, size and largest |t|."""
        text = (
            f"StatMaps: {self.name}, {self.analysed.sum()} units, df {self.df:.0f}"
            f", |t| up to {np.abs(self._t).max():.1f}"
        )
        return f"{text}. {self.note}" if self.note else text


def described(
    img: nib.Nifti1Image, kind: str, name: str, *, df: float | None = None
) -> nib.Nifti1Image:
    """Say in an image's header that it is, for example, t of a contrast; return the image."""
    end = "" if df is None else f", {df:.10g} degrees of freedom"
    name = name[: 79 - len(f"{kind} of {end}")]  # bytes that the header has for all
    img.header["descrip"] = f"{kind} of {name}{end}".encode("ascii", "replace")
    intent = {"t": "t test", "z": "z score", "effect": "estimate"}.get(kind, "none")
    img.header.set_intent(intent, () if df is None else (df,), name=kind)
    return img


def pool(name: str, brain: ModelBrain, *groups: Sequence[Contrast], note: str = "") -> StatMaps:
    """Combine the contrasts of runs, each in all units, by nilearn's fixed effects.

    Parameters
    ----------
    name, brain, note : str, ModelBrain, str
        Those of the `StatMaps`.
    *groups : sequence of Contrast
        Contrasts from `run_contrast`. Those of one group are of the same conditions in several
        runs, and their mean is taken; groups, such as the parts of a contrast between tasks, add
        up.
    """
    varies = [contrast.variance > 0 for contrasts in groups for contrast in contrasts]
    analysed = np.all(varies, axis=0)
    # As in nilearn's compute_fixed_effect_contrast: the effect is the mean over runs.
    means = [sum(group[1:], group[0]) * (1 / len(group)) for group in groups]
    total = sum(means[1:], means[0])
    kept = Contrast(np.ravel(total.effect)[analysed], total.variance[analysed], dof=total.dof)
    return StatMaps(name, brain, analysed, kept, note)


def t_map(contrasts: Sequence[Contrast]) -> NDArray[np.float64]:
    """(n_units,) t values of the fixed effect over runs; 0 where a unit is constant in all."""
    total = sum(contrasts[1:], contrasts[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(np.ravel(total.stat()), posinf=0, neginf=0)
