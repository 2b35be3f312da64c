"""Is an effect there in a population of models or topics? nilearn's second level."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import pandas as pd
from nilearn.glm.second_level import SecondLevelModel, non_parametric_inference
from numpy.typing import NDArray

LEAST = 6  # maps: of 5, the smallest two-sided p of sign flips is 2 / 32, above .05


@dataclass(frozen=True, eq=False)
class SecondLevel:
    """One-sample test of maps, each of another model, session or topic."""

    n: int  #: maps
    t: NDArray[np.float64]  #: (n_voxels,) inside the mask
    p: NDArray[np.float64]  #: uncorrected, from Student's t, two-sided
    p_max: NDArray[np.float64] | None  #: family-wise, from sign flips; None of fewer than `LEAST`
    t_img: nib.Nifti1Image  #: image of t


def second_level(
    imgs: Sequence[nib.Nifti1Image], mask_img: nib.Nifti1Image, *, n_perm: int, seed: int = 0
) -> SecondLevel:
    """Test whether the mean of some maps differs from 0, two-sided.

    Parameters
    ----------
    imgs : sequence of Nifti1Image
        One map a model, session or topic, at least two, all in one space.
    mask_img : Nifti1Image
        Voxels to test.
    n_perm : int
        Sign flips; the smallest p is ``1 / (n_perm + 1)``. 0 leaves the family-wise test out.
    seed : int, default=0
        Seed of the flips.

    Notes
    -----
    Parametric: `SecondLevelModel`, no smoothing. Family-wise: `non_parametric_inference`, which
    compares each t with the largest of all voxels when the signs of whole maps are flipped; that
    needs maps whose errors are symmetric around 0, and at least `LEAST` of them.
    """
    design = pd.DataFrame({"intercept": np.ones(len(imgs))})
    with warnings.catch_warnings(action="ignore"):  # of headers
        model = SecondLevelModel(mask_img=mask_img, smoothing_fwhm=None, verbose=0)
        model.fit(list(imgs), design_matrix=design)
        maps = model.compute_contrast("intercept", output_type="all")
        p_max = None
        if n_perm and len(imgs) >= LEAST:
            how = {"n_perm": n_perm, "random_state": seed, "two_sided_test": True, "verbose": 0}
            logs = non_parametric_inference(
                list(imgs), design_matrix=design, mask=mask_img, model_intercept=False, **how
            )
            p_max = 10.0 ** -_inside(logs, mask_img)
    one_sided = _inside(maps["p_value"], mask_img)
    return SecondLevel(
        n=len(imgs),
        t=_inside(maps["stat"], mask_img),
        p=2 * np.minimum(one_sided, 1 - one_sided),
        p_max=p_max,
        t_img=maps["stat"],
    )


def _inside(img: nib.Nifti1Image, mask_img: nib.Nifti1Image) -> NDArray[np.float64]:
    """(n_voxels,) values in the mask, in C order of the voxels."""
    return np.asarray(img.dataobj, float)[np.asarray(mask_img.dataobj) != 0]
