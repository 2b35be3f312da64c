"""Which units respond? nilearn's FirstLevelModel with settings that are right for activations."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import nibabel as nib
import numpy as np
import pandas as pd
from nilearn.glm.contrasts import Contrast, compute_contrast
from nilearn.glm.first_level import FirstLevelModel, run_glm
from numpy.typing import NDArray
from scipy import stats

from llm2nifti import geometry
from llm2nifti.geometry import ModelBrain
from llm2nifti.glm.designs import CONTROL, DesignError, contrast_vector, design_matrix
from llm2nifti.glm.maps import StatMaps
from llm2nifti.glm.slabs import FittedSlabs, Mapper, check_varying, fit_slabs

Frames = Literal["trial", "token"]

LARGE_RUN = 50_000_000  # units x volumes: FirstLevelModel takes 20 bytes each, 1 GB
TOKEN_NOTE = (
    "Token-level inference: tokens of a prompt are not independent, p values are too small "
    "(see llm2nifti null)"
)


class RunLike(Protocol):
    """What `fit` needs of a run; `llm2nifti.bids.Run` has it."""

    @property
    def task(self) -> str: ...  # noqa: D102
    @property
    def events(self) -> pd.DataFrame: ...  # noqa: D102
    @property
    def t_r(self) -> float: ...  # noqa: D102
    @property
    def n_frames(self) -> int: ...  # noqa: D102
    @property
    def volume_counts(self) -> NDArray[np.int64]: ...  # noqa: D102
    @property
    def frames(self) -> str: ...  # noqa: D102
    @property
    def img(self) -> nib.Nifti1Image: ...  # noqa: D102
    @property
    def frames_img(self) -> nib.Nifti1Image: ...  # noqa: D102
    @property
    def mask_img(self) -> nib.Nifti1Image: ...  # noqa: D102
    @property
    def brain(self) -> ModelBrain: ...  # noqa: D102
    def values(self) -> NDArray[np.float32]: ...  # noqa: D102
    def frame_values(self) -> NDArray[np.float32]: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class FittedRuns:
    """A fitted model; ask it for contrasts.

    Attributes
    ----------
    model : nilearn.glm.first_level.FirstLevelModel
        nilearn's own, fitted.
    designs : list of DataFrame
        Design matrix of each run.
    brain : ModelBrain
        Geometry.
    n_constant : int
        Units left out because they never change.
    note : str
        What a reader has to know about the inference.
    """

    model: FirstLevelModel
    designs: list[pd.DataFrame] = field(repr=False)
    brain: ModelBrain
    n_constant: int
    note: str = ""

    def contrast(self, definition: str) -> StatMaps:
        """Compute a contrast of conditions; several runs combine by nilearn's fixed effects.

        Parameters
        ----------
        definition : str
            Such as ``"medicalimaging - control"``.

        Returns
        -------
        StatMaps

        Raises
        ------
        DesignError
            If the contrast names no column or cannot be estimated.
        """
        vectors = [contrast_vector(design, definition) for design in self.designs]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            maps = self.model.compute_contrast(vectors, stat_type="t", output_type="all")
        df = sum(len(d) - np.linalg.matrix_rank(d.to_numpy()) for d in self.designs)
        return StatMaps(
            name=definition,
            t_img=maps["stat"],
            z_img=maps["z_score"],
            effect_img=maps["effect_size"],
            mask_img=self.model.mask_img,
            brain=self.brain,
            df=float(df),
            n_constant=self.n_constant,
            note=self.note,
        )


def fit(
    runs: RunLike | Sequence[RunLike],
    *,
    frames: Frames = "trial",
    mapper: Mapper = map,
    quiet: bool = False,
) -> FittedRuns | FittedSlabs:
    """Fit nilearn's GLM to one or several runs.

    Parameters
    ----------
    runs : Run or sequence of Run
        Runs of one model brain, from `llm2nifti.bids.read`.
    frames : {"trial", "token"}
        ``trial`` analyses one volume a prompt by ordinary least squares. ``token`` analyses every
        generated token with AR(1) prewhitening, as a token-level analysis does it; tokens of one
        prompt are not independent, so its p values are too small.
    mapper : callable, default=map
        What computes the slabs of a large run; see `llm2nifti.glm.fit_slabs`.
    quiet : bool, default=False
        Show no progress bar for a large run.

    Returns
    -------
    FittedRuns or FittedSlabs
        The same numbers and the same ``contrast``. `FittedRuns` holds nilearn's fitted
        FirstLevelModel; where a run has more than `LARGE_RUN` values, nilearn's `run_glm` goes over
        it in slabs, several times faster and in a fraction of the memory.

    Raises
    ------
    DesignError
        If runs differ in their space, a run's events do not match its volumes, no unit varies in
        all runs, or `frames` is unknown.

    Notes
    -----
    The unit of inference is the prompt: stimuli are a random sample of what could have been asked
    (Westfall, Nichols and Yarkoni, 2017, Wellcome Open Research 1:23). No HRF, no drift, no signal
    scaling, no smoothing: trials are independent forward passes, and neighbouring voxels hold units
    in an arbitrary order.

    Examples
    --------
    >>> glm.fit(run).contrast("medicalimaging - control")  # doctest: +SKIP
    """
    if frames not in ("trial", "token"):
        raise DesignError(f"frames is {frames!r}; use trial or token")
    runs = list(runs) if isinstance(runs, Sequence) else [runs]
    if not runs:
        raise DesignError("no run to fit")
    brain = runs[0].brain
    other = next((run for run in runs if run.brain.space != brain.space), None)
    if other is not None:
        raise DesignError(
            f"runs live in different spaces ({brain.space}, {other.brain.space}); fit them apart"
        )
    is_token = frames == "token"
    reduced = next((run.frames for run in runs if run.frames in ("trial", "last")), "")
    if is_token and reduced:
        raise DesignError(f"the run has one volume a trial (frames={reduced!r}) and no tokens")
    imgs = [run.frames_img if is_token else run.img for run in runs]
    designs = [design_matrix(r.events, n_frames=r.volume_counts if is_token else 1) for r in runs]
    _check_volumes(imgs, designs)
    note = TOKEN_NOTE if is_token else ""
    if brain.n_units * max(map(len, designs)) > LARGE_RUN:
        return fit_slabs(
            imgs,
            designs,
            brain=brain,
            noise_model="ar1" if is_token else "ols",
            note=note,
            mapper=mapper,
            quiet=quiet,
        )
    constant = constant_units(imgs, brain)
    check_varying(~constant)
    model = FirstLevelModel(
        t_r=runs[0].t_r / (runs[0].n_frames if is_token else 1),
        hrf_model=None,
        drift_model=None,
        signal_scaling=False,
        smoothing_fwhm=None,
        noise_model="ar1" if is_token else "ols",
        mask_img=geometry.to_img(brain, ~constant),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nilearn warns of every argument that design_matrices void
        model.fit(imgs, design_matrices=designs)
    return FittedRuns(model, designs, brain, int(constant.sum()), note)


def _check_volumes(imgs: Sequence[nib.Nifti1Image], designs: Sequence[pd.DataFrame]) -> None:
    """Raise DesignError unless every run has a volume a row of its design."""
    for i, (img, design) in enumerate(zip(imgs, designs, strict=True), start=1):
        if img.shape[3:] != (len(design),):
            raise DesignError(
                f"image {i} has shape {img.shape}, its events ask for {len(design)} volumes; "
                "record or write the run again"
            )


def constant_units(imgs: Sequence[nib.Nifti1Image], brain: ModelBrain) -> NDArray[np.bool_]:
    """(n_units,) units that never change within some run: their t values would be garbage."""
    constant = np.zeros(brain.n_units, bool)
    for img in imgs:
        values = geometry.from_img(brain, img)
        constant |= np.ptp(values, axis=0) == 0
    return constant


def run_contrast(values: NDArray, events: pd.DataFrame, definition: str) -> Contrast:
    """Contrast of one run from its (n_trials, n_units) array, by nilearn's `run_glm`.

    The same numbers as `fit`, without images: for resampling. Contrasts of several runs add up
    (``a + b``) as nilearn's fixed effects do; ``.stat()`` gives t. A unit that is constant in this
    run adds nothing to the sum, where `fit` leaves it out of all runs.
    """
    design = design_matrix(events)
    vector = contrast_vector(design, definition)
    labels, results = run_glm(without_constants(values), design.to_numpy(), noise_model="ols")
    with np.errstate(divide="ignore", invalid="ignore"):
        return compute_contrast(labels, results, vector, stat_type="t")


def without_constants(values: NDArray) -> NDArray:
    """Set units that never change to 0: rounding would give them any t, and 0 gives none."""
    constant = np.ptp(values, axis=0) == 0
    return np.where(constant, 0, values) if constant.any() else values


def t_map(contrasts: Sequence[Contrast]) -> NDArray[np.float64]:
    """(n_units,) t values of the fixed effect over runs; 0 where a unit is constant."""
    total = sum(contrasts[1:], contrasts[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(np.ravel(total.stat()), posinf=0, neginf=0)


def delete_block_maps(run: RunLike) -> NDArray[np.float64]:
    """T maps of a run with one block left out at a time, for the jackknife.

    Every on-block goes with an equal share of the control trials, so that their ratio stays.

    Returns
    -------
    (n_on_blocks, n_units) array
    """
    values, events = run.values(), run.events
    return np.stack(
        [
            t_map([run_contrast(values[keep], events[keep], f"{run.task} - {CONTROL}")])
            for keep in delete_block_masks(events)
        ]
    )


def delete_block_masks(events: pd.DataFrame) -> list[NDArray[np.bool_]]:
    """Trials to keep when each on-block, with its share of the control, is left out."""
    is_control = (events["trial_type"] == CONTROL).to_numpy()
    on_blocks = list(dict.fromkeys(events.loc[~is_control, "block"]))
    shares = np.array_split(np.flatnonzero(is_control), len(on_blocks))
    masks = []
    for block, share in zip(on_blocks, shares, strict=True):
        keep = ~((events["block"] == block).to_numpy() & ~is_control)
        keep[share] = False
        masks.append(keep)
    return masks


def welch_disagreement(runs: Sequence[RunLike], maps: StatMaps, *, alpha: float = 0.05) -> float:
    """Share of units where Welch's test (unequal variances) decides otherwise than the model.

    Both tests at the uncorrected level `alpha`, two-sided; Welch's on residuals of the nuisance
    columns, the runs' means removed.
    """
    on, off = [], []
    for run in runs:
        design = design_matrix(run.events)
        values = run.values().astype(float)
        extra = [name for name in design if name not in set(run.events["trial_type"])]
        X = design.to_numpy()
        beta = np.linalg.pinv(X) @ values
        adjusted = values - design[extra].to_numpy() @ beta[X.shape[1] - len(extra) :]
        adjusted -= adjusted.mean(axis=0)
        is_control = (run.events["trial_type"] == CONTROL).to_numpy()
        on.append(adjusted[~is_control])
        off.append(adjusted[is_control])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant units have no p value
        result: Any = stats.ttest_ind(np.concatenate(on), np.concatenate(off), equal_var=False)
    analysed = geometry.from_img(maps.brain, maps.mask_img) > 0
    differs = (np.nan_to_num(result.pvalue, nan=1.0) < alpha) != (maps.p() < alpha)
    return float(differs[analysed].mean())
