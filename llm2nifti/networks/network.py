"""Which set of units is it? Networks from thresholded maps or from any mask image."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import nibabel as nib
import numpy as np
import pandas as pd
from nilearn.glm import threshold_stats_img
from numpy.typing import NDArray
from scipy import stats

from llm2nifti import geometry
from llm2nifti.geometry import ModelBrain

HeightControl = Literal["fdr", "bonferroni", "fpr", "top"]


class ThresholdError(ValueError):
    """A map cannot be thresholded this way."""


class StatMapsLike(Protocol):
    """What `threshold` needs of a contrast; `llm2nifti.glm.StatMaps` has it."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def z_img(self) -> nib.Nifti1Image: ...  # noqa: D102
    @property
    def mask_img(self) -> nib.Nifti1Image: ...  # noqa: D102
    @property
    def brain(self) -> ModelBrain: ...  # noqa: D102
    def t(self) -> NDArray[np.float64]: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class Network:
    """A set of units.

    Attributes
    ----------
    name : str
        What it is the network of.
    brain : ModelBrain
        Geometry.
    signs : (n_units,) int8 array
        1 for units that respond more, -1 for less, 0 for units outside the network.
    how : str
        How it was found.
    weights : (n_units,) float array, optional
        How much each unit counts, 0 to 1, where the network came from a map that says so.
    """

    name: str
    brain: ModelBrain
    signs: NDArray[np.int8]
    how: str = "mask image"
    weights: NDArray[np.float64] | None = None

    @property
    def units(self) -> NDArray[np.bool_]:
        """(n_units,) whether each unit belongs to the network."""
        return self.signs != 0

    @property
    def n_units(self) -> int:
        """Units in the network."""
        return int(self.units.sum())

    @property
    def strengths(self) -> NDArray[np.float64]:
        """(n_units,) how much each unit counts: its weight, or 1; 0 outside the network."""
        return self.units.astype(float) if self.weights is None else self.weights * self.units

    def at(self, *sites: str) -> Network:
        """Keep the units at sites of these names, such as ``attn`` and ``mlp``.

        Raises
        ------
        ThresholdError
            If a site was not recorded.
        """
        recorded = list(dict.fromkeys(site.name for site in self.brain.sites))
        unknown = [name for name in sites if name not in recorded]
        if unknown:
            raise ThresholdError(
                f"network {self.name!r} has no site {unknown[0]!r}; its dataset was scanned with "
                f"{', '.join(recorded)}"
            )
        inside = np.repeat(
            [site.name in sites for site in self.brain.sites], np.diff(self.brain.offsets)
        )
        return replace(self, signs=np.where(inside, self.signs, 0).astype(np.int8))

    def mask_img(self) -> nib.Nifti1Image:
        """Binary NIfTI image of the network."""
        return geometry.to_img(self.brain, self.units)

    def profile(self) -> pd.DataFrame:
        """Distribution over layers and sites.

        Returns
        -------
        DataFrame
            One row a recorded site of a layer: ``layer, site, n_units, n_active, share``.
        """
        rows = []
        for site in self.brain.sites:
            active = int(self.units[self.brain.slice_of(site)].sum())
            rows.append((site.layer, site.name, site.n_units, active, active / site.n_units))
        return pd.DataFrame(rows, columns=["layer", "site", "n_units", "n_active", "share"])

    def __repr__(self) -> str:
        """Size, then units by site and by third of the depth."""
        n, total = self.n_units, self.brain.n_units
        text = f"Network {self.name!r}: {n} of {total} units ({n / total:.1%}), {self.how}"
        if not n:
            return text
        profile = self.profile()
        sites = profile.groupby("site", sort=False)["n_active"].sum()
        by_site = ", ".join(f"{site} {count}" for site, count in sites.items())
        best = profile.sort_values("share", ascending=False).iloc[0]
        n_up = int((self.signs > 0).sum())
        return (
            f"{text}\n  by site: {by_site}\n  more active {n_up}, less active {n - n_up}; "
            f"densest: layer {best['layer']} {best['site']} ({best['share']:.0%})"
        )


def threshold(
    maps: StatMapsLike,
    *,
    alpha: float = 0.05,
    height_control: HeightControl = "fdr",
    two_sided: bool = True,
    top: float = 0.01,
) -> Network:
    """Keep the units that respond to a contrast.

    Parameters
    ----------
    maps : StatMaps
        From ``llm2nifti.glm.fit(...).contrast(...)``.
    alpha : float, default=0.05
        Level of ``fdr``, ``bonferroni`` (family-wise) and ``fpr`` (uncorrected).
    height_control : {"fdr", "bonferroni", "fpr", "top"}
        The first three are nilearn's `threshold_stats_img`, on z because it assumes z; ``top``
        keeps the units with the largest t, because z saturates. For permutation see
        `threshold_by_permutation`, which needs the trials.
    two_sided : bool, default=True
        Also keep units that respond less.
    top : float, default=0.01
        Share of all units that ``top`` keeps.

    Returns
    -------
    Network

    Raises
    ------
    ThresholdError
        If a level or method is not allowed.

    Examples
    --------
    >>> networks.threshold(stats, alpha=0.05, height_control="fdr")  # doctest: +SKIP
    """
    for name, value in (("alpha", alpha), ("top", top)):
        if not 0 < value < 1:
            raise ThresholdError(f"{name} is {value}; it must lie between 0 and 1")
    t = maps.t()
    side = "two-sided" if two_sided else "one-sided"
    if height_control == "top":
        keep = largest(np.abs(t) if two_sided else t, top)
        how = f"top {top:.1%} by t, {side}"
    elif height_control in ("fdr", "bonferroni", "fpr"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "no voxel survives" is a result, not a warning
            img, _ = threshold_stats_img(
                maps.z_img,
                mask_img=maps.mask_img,
                alpha=alpha,
                height_control=height_control,
                two_sided=two_sided,
            )
        keep = geometry.from_img(maps.brain, img) != 0
        how = f"{height_control} {alpha:g}, {side}"
    else:
        raise ThresholdError(
            f"height_control is {height_control!r}; use fdr, bonferroni, fpr, top, or "
            "threshold_by_permutation"
        )
    return Network(maps.name, maps.brain, (np.sign(t) * keep).astype(np.int8), how)


def threshold_by_permutation(
    brain: ModelBrain,
    values: NDArray,
    is_task: NDArray[np.bool_],
    confounds: NDArray | None = None,
    *,
    alpha: float = 0.05,
    two_sided: bool = True,
    n_perm: int = 1000,
) -> Network:
    """Keep the units whose |t| exceeds the largest |t| under permutation (family-wise error).

    nilearn's `permuted_ols`. It permutes all trials alike and knows no runs: pass run
    and question-frame columns as `confounds`.

    Parameters
    ----------
    brain : ModelBrain
        Geometry.
    values : (n_trials, n_units) array
        Prompt-level activations.
    is_task : (n_trials,) bool array
        The condition of each trial.
    confounds : (n_trials, n_confounds) array, optional
        Nuisance columns, without a constant.
    alpha : float, default=0.05
        Family-wise error rate.
    two_sided : bool, default=True
        Also keep units that respond less.
    n_perm : int, default=1000
        Permutations; the smallest p is ``1 / (n_perm + 1)``.

    Returns
    -------
    Network

    Notes
    -----
    Freedman and Lane's scheme with the maximum statistic, as implemented in nilearn.
    """
    from nilearn.mass_univariate import permuted_ols

    if not 0 < alpha < 1:
        raise ThresholdError(f"alpha is {alpha}; it must lie between 0 and 1")
    if n_perm + 1 < 1 / alpha:
        raise ThresholdError(f"n_perm is {n_perm}; alpha {alpha:g} needs at least {1 / alpha:.0f}")
    varies = np.ptp(values, axis=0) > 0
    result = permuted_ols(
        np.asarray(is_task, float)[:, None],
        np.asarray(values, float)[:, varies],
        confounding_vars=confounds if confounds is not None and confounds.size else None,
        n_perm=n_perm,
        two_sided_test=two_sided,
        random_state=0,
        output_type="dict",
        verbose=0,
    )
    signs = np.zeros(brain.n_units, np.int8)
    passes = result["logp_max_t"][0] >= -np.log10(alpha) - 1e-9  # p = alpha passes
    signs[varies] = np.sign(result["t"][0]) * passes
    side = "two-sided" if two_sided else "one-sided"
    how = f"permutation max-T {alpha:g}, {side}, {n_perm} draws"
    return Network("task - control", brain, signs, how)


def from_mask(brain: ModelBrain, img: nib.Nifti1Image, *, name: str = "mask") -> Network:
    """Make a network of any image in the model's space; non-zero voxels belong to it.

    Parameters
    ----------
    brain : ModelBrain
        Geometry.
    img : Nifti1Image
        A binary mask, also one drawn by hand; an atlas of whole numbers; or a map, such as a
        thresholded t map, whose magnitudes weight the units (the largest counts 1).
    name : str, default="mask"
        What to call the network.

    Returns
    -------
    Network

    Raises
    ------
    llm2nifti.geometry.SpaceError
        If the image has another shape or affine.
    ThresholdError
        If the image has several volumes, or no voxel of the model is non-zero.
    """
    values = np.nan_to_num(np.asarray(geometry.from_img(brain, img), float))
    if values.ndim != 1:
        raise ThresholdError(f"mask {name!r} has {len(values)} volumes; give a 3D image")
    if not values.any():
        raise ThresholdError(f"mask {name!r} marks no unit of space {brain.space}")
    sizes = np.abs(values)
    is_map = bool((values % 1).any()) and len(np.unique(sizes[sizes > 0])) > 1
    weights = sizes / sizes.max() if is_map else None
    return Network(name, brain, np.sign(values).astype(np.int8), "mask image", weights)


def largest(scores: NDArray, share: float) -> NDArray[np.bool_]:
    """Mark the given share of the scores, at least one, that are largest; ties by position."""
    k = max(1, round(share * len(scores)))
    order = np.where(np.isnan(scores), np.inf, -scores)
    last = np.partition(order, k - 1)[k - 1]
    keep = order < last
    keep[np.flatnonzero(order == last)[: k - keep.sum()]] = True
    return keep


def chance_overlap(n_units: int, size_a: int, size_b: int, *, alpha: float = 0.05) -> float:
    """Overlap in units that random networks of these sizes exceed with probability `alpha`."""
    return float(stats.hypergeom.isf(alpha, n_units, size_a, size_b))
