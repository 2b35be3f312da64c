"""How is a run read that is too large to hold at once? In slabs.

A slab is a range of voxels in the order of the file (x fastest, z slowest), which is read volume by
volume: nilearn's masker would hold several copies of the whole run.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import pandas as pd
from isal import igzip
from numpy.typing import NDArray

from llm2nifti.geometry import UNREADABLE, ModelBrain, UnreadableImageError

NoiseModel = Literal["ols", "ar1"]

SLAB_VALUES = 2**22  # voxels x volumes of a slab: 32 MB in float64, of which run_glm makes copies
MIN_VOXELS = 4096  # of a slab: shorter pieces of a volume cost more to ask for than to read


@dataclass(frozen=True, eq=False)
class Slab:
    """A part of one run to fit; small, and can be pickled."""

    run: int  #: position among the runs that are fitted together
    path: Path  #: uncompressed NIfTI file of the run
    units: NDArray[np.int64]  #: (n,), in the order of their voxels
    voxels: NDArray[np.int64]  #: (n,) ascending positions in a volume
    design: NDArray[np.float64]  #: (n_volumes, n_columns) of the run
    noise_model: NoiseModel  #: as nilearn calls it
    rectify: bool = False  #: whether absolute values are fitted


@contextmanager
def plain_files(imgs: Sequence[nib.Nifti1Image]) -> Iterator[list[Path]]:
    """Uncompressed files of images; what has none lies in a temporary folder until the exit."""
    with tempfile.TemporaryDirectory(prefix="llm2nifti-") as folder:
        yield [_plain_file(img, Path(folder) / f"{i}.nii") for i, img in enumerate(imgs)]


def _plain_file(img: nib.Nifti1Image, temporary: Path) -> Path:
    """The image's own file if it is uncompressed; otherwise `temporary`, written here."""
    path = Path(img.get_filename() or "").resolve()
    unloaded = nib.is_proxy(img.dataobj)
    if unloaded and path.suffix == ".nii":
        return path
    if unloaded and path.name.endswith(".nii.gz"):
        with igzip.open(path) as packed, temporary.open("wb") as file:
            try:
                shutil.copyfileobj(packed, file, 2**20)
            except UNREADABLE as error:
                raise UnreadableImageError(
                    f"{path}: the file is damaged ({error}); restore it"
                ) from error
        return temporary
    data = np.asanyarray(img.dataobj)
    header = img.header.copy()
    header.set_data_dtype(data.dtype)  # or a header of scaled integers would round the values
    type(img)(data, img.affine, header).to_filename(temporary)
    return temporary


def cut(
    brain: ModelBrain, path: Path, design: pd.DataFrame, *, run: int, noise_model: NoiseModel
) -> list[Slab]:
    """Cut a run into slabs of about `SLAB_VALUES` values; every unit is in one of them.

    Bounded by voxels, not by units: gaps between units are read with them.

    Parameters
    ----------
    brain, path, design, run, noise_model
        Geometry, and see `Slab`.
    """
    voxels = np.ravel_multi_index(tuple(brain.voxels.T.astype(np.int64)), brain.shape, order="F")
    order = np.argsort(voxels)
    step = max(MIN_VOXELS, SLAB_VALUES // len(design))
    starts = np.searchsorted(voxels[order], np.arange(step, np.prod(brain.shape), step))
    X = design.to_numpy(float)
    return [
        Slab(run, path, units, voxels[units], X, noise_model)
        for units in np.split(order, starts)
        if len(units)
    ]


def read_slab(path: Path, voxels: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n_volumes, n) values of voxels, scaled; NaN and infinity become 0, as in nilearn.

    `path` is an uncompressed 4D NIfTI file, `voxels` are ascending positions in a volume, x
    fastest. Within a volume, the range from the first voxel to the last is one contiguous piece of
    the file. One small buffer takes the pieces in turn: faster than nibabel's slicing (four times)
    and than a memory map (twice), whose pages would also count as memory in use.
    """
    proxy = nib.load(path).dataobj
    n_voxels = int(np.prod(proxy.shape[:3]))
    first = int(voxels[0])
    piece = np.empty(int(voxels[-1]) - first + 1, proxy.dtype)
    values = np.empty((proxy.shape[3], len(voxels)))
    with path.open("rb", buffering=0) as file:
        for volume, row in enumerate(values):
            file.seek(proxy.offset + (volume * n_voxels + first) * piece.itemsize)
            if file.readinto(piece.data) != piece.nbytes:
                raise UnreadableImageError(
                    f"{path} ends within volume {volume} of {len(values)}; restore it"
                )
            row[:] = piece.take(voxels - first)
    if (proxy.slope, proxy.inter) != (1, 0):
        values *= proxy.slope
        values += proxy.inter
    values[~np.isfinite(values)] = 0
    return values
