"""Which units respond? nilearn's GLM, slab by slab, with the settings that suit activations."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any, Literal, Protocol

import nibabel as nib
import numpy as np
import pandas as pd
from nilearn.glm.contrasts import Contrast, compute_contrast
from nilearn.glm.first_level import run_glm
from nilearn.glm.regression import SimpleRegressionResults
from numpy.typing import NDArray
from scipy import stats
from threadpoolctl import ThreadpoolController
from tqdm import tqdm

from llm2nifti import geometry
from llm2nifti.cluster import Mapper
from llm2nifti.geometry import ModelBrain
from llm2nifti.glm.conditions import ROLE, is_on, named_contrasts, task_contrast
from llm2nifti.glm.designs import (
    DesignError,
    contrast_vector,
    contrast_vectors,
    design_matrix,
    with_names,
)
from llm2nifti.glm.maps import StatMaps, pool
from llm2nifti.glm.slabs import NoiseModel, Slab, cut, plain_files, read_slab

Frames = Literal["trial", "token"]
NOISE_MODELS: dict[Frames, NoiseModel] = {"trial": "ols", "token": "ar1"}

TOKEN_NOTE = (
    "Token-level inference: tokens of a prompt are not independent, p values are too small "
    "(see llm2nifti null)"
)


class RunLike(Protocol):
    """What `fit` needs of a run; `llm2nifti.bids.Run` has it."""

    @property
    def task(self) -> str: ...  # noqa: D102
    @property
    def run(self) -> int: ...  # noqa: D102
    @property
    def events(self) -> pd.DataFrame: ...  # noqa: D102
    @property
    def volume_counts(self) -> NDArray[np.int64]: ...  # noqa: D102
    @property
    def frames(self) -> str: ...  # noqa: D102
    @property
    def img(self) -> nib.Nifti1Image: ...  # noqa: D102
    @property
    def frames_img(self) -> nib.Nifti1Image: ...  # noqa: D102
    @property
    def brain(self) -> ModelBrain: ...  # noqa: D102
    def values(self) -> NDArray[np.float32]: ...  # noqa: D102
    def frame_values(self) -> NDArray[np.float32]: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class Part:
    """A fitted slab of one run."""

    run: int  #: position among the runs that are fitted together
    units: NDArray[np.int64]  #: (n,) those that vary in this run; the others are not fitted
    labels: NDArray  #: (n,) noise model of each unit, a key of `results`
    results: dict[Any, SimpleRegressionResults]  #: coefficients and residual variance


@dataclass(frozen=True, eq=False)
class Fit:
    """Fitted runs; ask them for contrasts."""

    #: parts, designs: every slab of every run, and the design matrix of each run
    parts: list[Part] = field(repr=False)
    designs: list[pd.DataFrame] = field(repr=False)
    brain: ModelBrain  #: brain, note: geometry, and what a reader has to know about the inference
    note: str = ""
    named: dict[str, str] = field(default_factory=dict)  #: contrasts by their names

    @cached_property
    def analysed(self) -> NDArray[np.bool_]:
        """(n_units,) units that vary in every run."""
        n_varying = np.zeros(self.brain.n_units, int)
        for part in self.parts:
            n_varying[part.units] += 1
        return n_varying == len(self.designs)

    @property
    def n_constant(self) -> int:
        """Units left out because they never change."""
        return int((~self.analysed).sum())

    def of_run(self, number: int) -> Fit:
        """The fit of one run alone, by its position."""
        parts = [replace(part, run=0) for part in self.parts if part.run == number]
        return replace(self, parts=parts, designs=[self.designs[number]])

    def contrast(self, definition: str) -> StatMaps:
        """Compute a contrast such as ``"medicalimaging - control"``.

        Parameters
        ----------
        definition : str
            Sum or difference of columns of the design, with weights if need be. Conditions of
            different tasks are each taken minus the controls of their own runs, and a condition
            alone, such as ``"medicalimaging"``, is taken minus the control, too. Where a task has
            conditions of its own, its name stands for what it asks (``"language"``), and names of
            two-level columns for their main effects (``"animacy"``, ``"animacy:tense"``).

        Returns
        -------
        StatMaps
            Runs combine by nilearn's fixed effects.

        Raises
        ------
        DesignError
            If the contrast names no column, cannot be estimated, or would test a mean against 0.

        Examples
        --------
        >>> fit.contrast("pathology - medicalimaging")  # doctest: +SKIP
        """
        spelled = with_names(definition, self.named, self.designs)
        groups = contrast_vectors(self.designs, spelled)
        contrasts = [
            [
                _contrast((p for p in self.parts if p.run == run), vector, self.brain.n_units)
                for run, vector in vectors.items()
            ]
            for vectors in groups
        ]
        return pool(definition, self.brain, *contrasts, note=self.note)


def _contrast(parts: Iterable[Part], vector: NDArray[np.float64], n_units: int) -> Contrast:
    """Contrast of one run's parts, in all units; those that do not vary add nothing to a sum."""
    effect, variance = np.zeros((2, n_units))
    dof = 0.0
    for part in (part for part in parts if len(part.units)):
        one = compute_contrast(part.labels, part.results, vector, stat_type="t")
        effect[part.units], variance[part.units], dof = one.effect, one.variance, one.dof
    return Contrast(effect, variance, dof=dof)


def fit(
    runs: RunLike | Sequence[RunLike],
    *,
    frames: Frames = "trial",
    covariates: Sequence[str] = (),
    modulators: Sequence[str] = (),
    rectify: bool = False,
    mapper: Mapper = map,
    verbose: int = 1,
) -> Fit:
    """Fit nilearn's GLM to one or several runs.

    Parameters
    ----------
    runs : Run or sequence of Run
        Runs of one model brain, from `llm2nifti.bids.read`.
    frames : {"trial", "token"}
        One volume a prompt by ordinary least squares, or every generated token with AR(1)
        prewhitening; tokens of one prompt are not independent, so its p values are too small.
    covariates, modulators : sequence of str
        Further columns of the design, see `design_matrix`.
    rectify : bool, default=False
        Fit absolute values: how far a unit is from 0, whatever its sign, as published localizers of
        models do. What comes out belongs to the basis that the model computes in.
    mapper : callable, default=map
        Called as ``mapper(fit_slab, slabs)``; yields the results in any order. The ``map`` of an
        executor computes slabs in other processes, or on machines that see the same files; for a
        ``.nii.gz``, which is unpacked first, that includes the temporary folder (``TMPDIR``).
    verbose : int, default=1
        0 shows no progress.

    Returns
    -------
    Fit
        The same numbers as nilearn's FirstLevelModel with no HRF, drift, scaling or smoothing, in
        a fraction of the memory: nilearn's `run_glm` goes over each run in slabs.

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
    if frames not in NOISE_MODELS:
        raise DesignError(f"frames is {frames!r}; use trial or token")
    runs = list(runs) if isinstance(runs, Sequence) else [runs]
    more = {"covariates": tuple(covariates), "modulators": tuple(modulators)}
    imgs, designs = _opened(runs, is_token=frames == "token", **more)
    brain, noise_model = runs[0].brain, NOISE_MODELS[frames]
    with plain_files(imgs) as paths, one_thread():
        slabs = [
            slab
            for run, (path, design) in enumerate(zip(paths, designs, strict=True))
            for slab in cut(brain, path, design, run=run, noise_model=noise_model)
        ]
        slabs = [replace(slab, rectify=rectify) for slab in slabs]
        done, n = mapper(fit_slab, slabs), len(slabs)
        parts = list(
            tqdm(done, "glm", n, leave=False, unit="slab", disable=None if verbose else True)
        )
    note = TOKEN_NOTE if frames == "token" else ""
    fitted = Fit(parts, designs, brain, note, _named(runs))
    if not fitted.analysed.any():
        raise DesignError(
            f"all of {brain.n_units} units are constant within a run; record it again"
        )
    return fitted


def _named(runs: Sequence[RunLike]) -> dict[str, str]:
    """Contrasts that have a name which means the same in all runs."""
    meanings: dict[str, set[str]] = {}
    for run in (run for run in runs if ROLE in run.events):
        for name, definition in named_contrasts(run.task, run.events).items():
            meanings.setdefault(name, set()).add(definition)
    return {name: one.pop() for name, one in meanings.items() if len(one) == 1}


def _opened(
    runs: Sequence[RunLike], *, is_token: bool, **more: Sequence[str]
) -> tuple[list[nib.Nifti1Image], list[pd.DataFrame]]:
    """Image and design of each run; an error unless they are in one space and fit each other."""
    spaces = list(dict.fromkeys(run.brain.space for run in runs))
    if not spaces:
        raise DesignError("no run to fit")
    if len(spaces) > 1:
        raise DesignError(
            f"runs live in different spaces ({', '.join(spaces[:2])}); fit them apart"
        )
    imgs, designs = [], []
    for i, run in enumerate(runs, start=1):
        if is_token:
            check_tokens(run)
        imgs.append(run.frames_img if is_token else run.img)
        n_frames = run.volume_counts if is_token else 1
        designs.append(design_matrix(run.events, n_frames=n_frames, **more))
        geometry.check_space(run.brain, imgs[-1])
        if imgs[-1].shape[3:] != (len(designs[-1]),):
            raise DesignError(
                f"image {i} has shape {imgs[-1].shape}, its events ask for {len(designs[-1])} "
                "volumes; record or write the run again"
            )
    return imgs, designs


def check_tokens(run: RunLike) -> None:
    """Raise DesignError unless the run has a volume a token."""
    if run.frames in ("trial", "last"):
        raise DesignError(f"the run has one volume a trial (frames={run.frames!r}) and no tokens")


def fit_slab(slab: Slab) -> Part:
    """Fit one slab."""
    values = read_slab(slab.path, slab.voxels)
    if slab.rectify:
        np.abs(values, out=values)
    with one_thread():  # again, because this may be another process than that of `fit`
        part = fit_values(values, slab.design, slab.noise_model)
    return replace(part, run=slab.run, units=slab.units[part.units])


def fit_values(values: NDArray, design: NDArray[np.float64], noise_model: NoiseModel) -> Part:
    """Fit an (n_volumes, n) array and its (n_volumes, n_columns) design by nilearn's `run_glm`."""
    varies = (values != values[0]).any(axis=0)
    units = np.flatnonzero(varies)
    if not len(units):
        return Part(0, units, np.empty(0), {})
    if not varies.all():
        values = values[:, varies]
    labels, results = run_glm(values, design, noise_model=noise_model)
    kept = {label: SimpleRegressionResults(result) for label, result in results.items()}
    return Part(0, units, labels, kept)


_libraries = cache(ThreadpoolController)  # to look for them takes a few milliseconds


@contextmanager
def one_thread() -> Iterator[None]:
    """Linear algebra in one thread: for products of matrices as small as these, more are slower.

    A context, or with ``@one_thread()`` a decorator.
    """
    with _libraries().limit(limits=1, user_api="blas"):
        yield


def run_contrast(
    values: NDArray, events: pd.DataFrame, definition: str, *, covariates: Sequence[str] = ()
) -> Contrast:
    """Nilearn's contrast of one run from its (n_trials, n_units) array.

    Contrasts of several runs add up (``a + b``) as nilearn's fixed effects do; ``.stat()`` gives t.
    """
    design = design_matrix(events, covariates=covariates)
    vector = contrast_vector(design, definition)
    return _contrast([fit_values(values, design.to_numpy(), "ols")], vector, values.shape[1])


def contrasts_of(runs: Iterable[RunLike]) -> dict[tuple[str, int], Contrast]:
    """Nilearn's contrast of every run's task against its control, by task and number."""
    return {
        (run.task, run.run): run_contrast(run.values(), run.events, task_contrast(run.events))
        for run in runs
    }


def welch_disagreement(runs: Sequence[RunLike], maps: StatMaps, *, alpha: float = 0.05) -> float:
    """Share of units where Welch's test (unequal variances) decides otherwise than the model.

    Both tests at the uncorrected level `alpha`, two-sided; Welch's on residuals of the nuisance
    columns, the runs' means removed.
    """
    adjusted, is_control = [], []
    for run in runs:
        X, values = design_matrix(run.events).to_numpy(), run.values().astype(float)
        n_conditions = run.events["trial_type"].nunique()
        beta = np.linalg.pinv(X) @ values
        values -= X[:, n_conditions:] @ beta[n_conditions:]
        values -= values.mean(axis=0)
        adjusted.append(values)
        is_control.append(~is_on(run.events))
    rows, off = np.concatenate(adjusted), np.concatenate(is_control)
    with warnings.catch_warnings(action="ignore"):  # constant units have no p value
        p: Any = stats.ttest_ind(rows[~off], rows[off], equal_var=False).pvalue
    differs = (np.nan_to_num(p, nan=1.0) < alpha) != (maps.p() < alpha)
    return float(differs[maps.analysed].mean())
