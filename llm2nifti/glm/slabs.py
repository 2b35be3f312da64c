"""How is a run fitted that is too large to hold at once? In slabs, by nilearn's `run_glm`.

nilearn's masker holds several copies of a run. Here a slab, a range of voxels in the order of the
file (x fastest, z slowest), is read volume by volume, fitted and forgotten; what stays are the
coefficients and the residual variance of every unit, which is all that a contrast needs.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pandas as pd
from isal import igzip
from nilearn.glm.contrasts import Contrast, compute_contrast
from nilearn.glm.first_level import run_glm
from nilearn.glm.regression import SimpleRegressionResults
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController
from tqdm import tqdm

from llm2nifti import geometry
from llm2nifti.geometry import UNREADABLE, ModelBrain, UnreadableImageError
from llm2nifti.glm.designs import DesignError, contrast_vector
from llm2nifti.glm.maps import StatMaps

NoiseModel = Literal["ols", "ar1"]
Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]

SLAB_VALUES = 2**22  # voxels x volumes of a slab: 32 MB in float64, of which run_glm makes copies
MIN_VOXELS = 4096  # of a slab: shorter pieces of a volume cost more to ask for than to read


@dataclass(frozen=True, eq=False)
class Slab:
    """A part of one run to fit; small, and can be pickled.

    Attributes
    ----------
    run : int
        Position of the run among those that are fitted together.
    path : Path
        Uncompressed NIfTI file of the run.
    units : (n,) int array
        Units, in the order of their voxels.
    voxels : (n,) int array
        Their ascending positions in a volume.
    design : (n_volumes, n_columns) array
        Design matrix of the run.
    noise_model : {"ols", "ar1"}
        See nilearn.
    """

    run: int
    path: Path
    units: NDArray[np.int64]
    voxels: NDArray[np.int64]
    design: NDArray[np.float64]
    noise_model: NoiseModel


@dataclass(frozen=True, eq=False)
class SlabFit:
    """What `fit_slab` found.

    Attributes
    ----------
    run : int
        Position of the run.
    units : (n,) int array
        Units that vary in this run; the others are not fitted.
    labels : (n,) array
        Noise model of each unit, a key of `results`.
    results : dict
        nilearn's `SimpleRegressionResults` of each noise model.
    """

    run: int
    units: NDArray[np.int64]
    labels: NDArray
    results: dict[Any, SimpleRegressionResults]


@dataclass(frozen=True, eq=False)
class FittedSlabs:
    """A large model, fitted slab by slab; ask it for contrasts.

    Attributes
    ----------
    fits : list of SlabFit
        Of every slab of every run.
    designs : list of DataFrame
        Design matrix of each run.
    brain : ModelBrain
        Geometry.
    analysed : (n_units,) bool array
        Units that vary in every run.
    note : str
        What a reader has to know about the inference.
    """

    fits: list[SlabFit] = field(repr=False)
    designs: list[pd.DataFrame] = field(repr=False)
    brain: ModelBrain
    analysed: NDArray[np.bool_] = field(repr=False)
    note: str = ""

    @property
    def n_constant(self) -> int:
        """Units left out because they never change."""
        return int((~self.analysed).sum())

    def contrast(self, definition: str) -> StatMaps:
        """Compute a contrast of conditions; several runs combine by nilearn's fixed effects.

        The file is not read again. See `llm2nifti.glm.FittedRuns.contrast`.

        Raises
        ------
        DesignError
            If the contrast names no column or cannot be estimated.
        """
        vectors = [contrast_vector(design, definition) for design in self.designs]
        contrasts = [self._contrast_of(run, vector) for run, vector in enumerate(vectors)]
        # As in nilearn's compute_fixed_effect_contrast: the effect is the mean over runs.
        total = sum(contrasts[1:], contrasts[0]) * (1 / len(contrasts))
        return StatMaps(
            name=definition,
            t_img=self._img(total.stat()),
            z_img=self._img(total.z_score()),
            effect_img=self._img(total.effect_size()),
            mask_img=geometry.to_img(self.brain, self.analysed),
            brain=self.brain,
            df=float(total.dof),
            n_constant=self.n_constant,
            note=self.note,
        )

    def _contrast_of(self, run: int, vector: NDArray[np.float64]) -> Contrast:
        """Contrast of one run in the analysed units."""
        effect, variance = np.zeros((2, self.brain.n_units))
        dof = 0.0
        for fit in (fit for fit in self.fits if fit.run == run and len(fit.units)):
            part = compute_contrast(fit.labels, fit.results, vector, stat_type="t")
            effect[fit.units], variance[fit.units], dof = part.effect, part.variance, part.dof
        return Contrast(effect[self.analysed], variance[self.analysed], dof=dof)

    def _img(self, analysed: NDArray[np.float64]) -> nib.Nifti1Image:
        """Image of values of the analysed units, 0 elsewhere."""
        values = np.zeros(self.brain.n_units)
        values[self.analysed] = analysed
        return geometry.to_img(self.brain, values)


def fit_slabs(
    imgs: Sequence[nib.Nifti1Image],
    designs: Sequence[pd.DataFrame],
    *,
    brain: ModelBrain,
    noise_model: NoiseModel = "ols",
    note: str = "",
    mapper: Mapper = map,
    quiet: bool = False,
) -> FittedSlabs:
    """Fit runs slab by slab, without loading them.

    Parameters
    ----------
    imgs : sequence of Nifti1Image
        4D images, not loaded. Uncompressed files are read in place. A ``.nii.gz`` cannot be read
        in pieces: it is unpacked into a temporary file, as an image in memory is written to one.
    designs : sequence of DataFrame
        Design matrix of each run.
    brain : ModelBrain
        Geometry of all of them.
    noise_model : {"ols", "ar1"}
        See nilearn.
    note : str
        What a reader has to know about the inference.
    mapper : callable, default=map
        Called as ``mapper(fit_slab, slabs)``; yields the results in any order. The ``map`` of an
        executor computes slabs in other processes, or on machines that see the same files; for a
        ``.nii.gz`` that includes the temporary folder (the variable ``TMPDIR``).
    quiet : bool, default=False
        Show no progress bar.

    Returns
    -------
    FittedSlabs

    Raises
    ------
    SpaceError
        If an image does not live in the brain's space.
    DesignError
        If no unit varies in all runs.
    """
    for img in imgs:
        geometry.check_space(brain, img)
    with plain_files(imgs) as paths, _one_thread():
        slabs = [
            slab
            for run, (path, design) in enumerate(zip(paths, designs, strict=True))
            for slab in cut(brain, path, design, run=run, noise_model=noise_model)
        ]
        done, n = mapper(fit_slab, slabs), len(slabs)
        fits = list(tqdm(done, "glm", n, leave=False, unit="slab", disable=quiet or None))
    n_varying = np.zeros(brain.n_units, int)
    for fit in fits:
        n_varying[fit.units] += 1
    analysed = n_varying == len(imgs)
    check_varying(analysed)
    return FittedSlabs(fits, list(designs), brain, analysed, note)


def check_varying(varies: NDArray[np.bool_]) -> None:
    """Raise DesignError unless some unit varies."""
    if not varies.any():
        raise DesignError(f"all of {len(varies)} units are constant within a run; record it again")


def _one_thread() -> AbstractContextManager:
    """Linear algebra in one thread: for products of matrices as flat as these, more are slower."""
    return _libraries().limit(limits=1, user_api="blas")


@cache
def _libraries() -> ThreadpoolController:
    """Libraries of this process that have threads; to look for them takes a few milliseconds."""
    return ThreadpoolController()


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
    """Cut a run into slabs of about `SLAB_VALUES` values.

    Bounded by voxels, not by units: gaps between units are read with them.

    Parameters
    ----------
    brain : ModelBrain
        Geometry.
    path : Path
        Uncompressed NIfTI file of the run.
    design : DataFrame
        Design matrix of the run.
    run, noise_model
        See `Slab`.

    Returns
    -------
    list of Slab
        Every unit is in one of them.
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


def fit_slab(slab: Slab) -> SlabFit:
    """Fit one slab by nilearn's `run_glm`: the same numbers as its FirstLevelModel's."""
    values = read_slab(slab.path, slab.voxels)
    varies = (values != values[0]).any(axis=0)
    if not varies.any():
        return SlabFit(slab.run, slab.units[varies], np.empty(0), {})
    if not varies.all():
        values = values[:, varies]
    with _one_thread():  # again, because this may be another process than that of `fit_slabs`
        labels, results = run_glm(values, slab.design, noise_model=slab.noise_model)
    kept = {label: SimpleRegressionResults(result) for label, result in results.items()}
    return SlabFit(slab.run, slab.units[varies], labels, kept)


def read_slab(path: Path, voxels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Read some voxels of all volumes.

    Within a volume, the range from the first voxel to the last is one contiguous piece of the file.
    One small buffer takes the pieces in turn: faster than nibabel's slicing (four times) and than a
    memory map (twice), whose pages would also count as memory in use.

    Parameters
    ----------
    path : Path
        Uncompressed 4D NIfTI file.
    voxels : (n,) int array
        Ascending positions in a volume, x fastest.

    Returns
    -------
    (n_volumes, n) array
        Scaled as the header says; NaN and infinity become 0, as in nilearn.
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
    finite = np.isfinite(values)
    if not finite.all():
        values[~finite] = 0
    return values
