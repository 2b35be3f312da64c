"""How do unit values become images of a `brain` and back? Nothing is ever resampled."""

from __future__ import annotations

import zlib
from typing import Any

import nibabel as nib
import numpy as np
from isal.isal_zlib import IsalError
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from llm2nifti.geometry.brain import ModelBrain

# What reading a damaged image raises, in nibabel and in what unpacks it.
UNREADABLE: tuple[Any, ...] = (OSError, EOFError, ValueError, zlib.error, IsalError)
UNREADABLE += (ImageFileError, HeaderDataError)


class UnreadableImageError(ValueError):
    """The file of an image is damaged."""


class SpaceError(ValueError):
    """An image does not live in the space of this model brain."""


def to_volume(brain: ModelBrain, values: NDArray, *, fill: float = 0) -> NDArray:
    """Put (..., n_units) values into (nx, ny, nz, ...) voxels, `fill` where there is no unit.

    Leading axes become the trailing axes; Fortran order, as NIfTI stores it.
    """
    values = np.asarray(values)
    if values.shape[-1] != brain.n_units:
        raise ValueError(f"values have {values.shape[-1]} units, the brain has {brain.n_units}")
    volume = np.full(brain.shape + values.shape[:-1], fill, dtype=values.dtype, order="F")
    x, y, z = brain.voxels.T
    volume[x, y, z] = np.moveaxis(values, -1, 0)
    return volume


def to_img(brain: ModelBrain, values: NDArray, *, t_r: float | None = None) -> nib.Nifti1Image:
    """Make a NIfTI image of unit values.

    Parameters
    ----------
    values : (n_units,) or (n_frames, n_units) array
        Values in recording order; booleans become uint8.
    t_r : float, optional
        Seconds a frame, for 4D images.

    Returns
    -------
    Nifti1Image
        3D or 4D, with mm (and sec) units and an aligned sform and qform.
    """
    values = np.asarray(values)
    if values.dtype == bool:
        values = values.astype(np.uint8)
    return set_header(nib.Nifti1Image(to_volume(brain, values), brain.affine), t_r=t_r)


def set_header(img: nib.Nifti1Image, *, t_r: float | None = None) -> nib.Nifti1Image:
    """Fill the header fields that tools read: units, form codes and the time step."""
    img.header.set_xyzt_units("mm", "sec")
    img.set_sform(img.affine, code="aligned")
    img.set_qform(img.affine, code="aligned")
    if t_r is not None:
        img.header["pixdim"][4] = t_r
    return img


def from_img(brain: ModelBrain, img: nib.Nifti1Image) -> NDArray:
    """Read unit values from an image in the brain's space.

    Parameters
    ----------
    img : Nifti1Image
        3D or 4D image; its shape and affine must be the brain's.

    Returns
    -------
    (n_units,) or (n_frames, n_units) array

    Raises
    ------
    SpaceError
        If the image has another shape or affine; nothing is resampled.
    UnreadableImageError
        If the file is damaged.
    """
    check_space(brain, img)
    x, y, z = brain.voxels.T
    try:
        data = np.asanyarray(img.dataobj)
    except UNREADABLE as error:
        name = img.get_filename()
        raise UnreadableImageError(f"{name}: the file is damaged ({error}); restore it") from error
    return np.moveaxis(data[x, y, z], 0, -1)


def check_space(brain: ModelBrain, img: nib.Nifti1Image) -> None:
    """Raise SpaceError, naming both spaces, unless the image lives in the brain's volume."""
    name = img.get_filename() or "image"
    if tuple(img.shape[:3]) != brain.shape:
        raise SpaceError(
            f"{name} has shape {tuple(img.shape[:3])}, space {brain.space} has {brain.shape}; "
            "use an image made from the same model and sites"
        )
    if not np.allclose(img.affine, brain.affine, atol=1e-4):
        raise SpaceError(
            f"{name} has affine {img.affine.tolist()}, space {brain.space} has "
            f"{brain.affine.tolist()}; resampling would mix units, so it is not done"
        )


def mask_img(brain: ModelBrain) -> nib.Nifti1Image:
    """Binary image of all voxels that hold a unit."""
    return to_img(brain, np.ones(brain.n_units, np.uint8))


def dseg_img(brain: ModelBrain) -> nib.Nifti1Image:
    """Atlas: the 1-based index of the site in each voxel (int32)."""
    return to_img(brain, brain.labels.astype(np.int32))


def anatomy_img(brain: ModelBrain, norms: NDArray) -> nib.Nifti1Image:
    """Anatomical background: log norms scaled to 300..1000 inside the mask, borders dark.

    Of the (n_units,) norms of the weights that write into each unit, zeros and NaN count as the
    smallest norm.
    """
    norms = np.asarray(norms, float)
    good = np.isfinite(norms) & (norms > 0)
    logs = np.zeros(brain.n_units)
    if good.any():
        logs[good] = np.log(norms[good])
        low, high = np.percentile(logs[good], [1, 99])
        logs[~good] = low
        span = high - low or 1.0
        logs = np.clip((logs - low) / span, 0, 1)
    return to_img(brain, (300 + 700 * logs).astype(np.float32))
