"""Lesion, scale and steer; the control trials that lesions take values of; how units are edited."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Literal, NamedTuple

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray

from llm2nifti import geometry
from llm2nifti.bids import Run
from llm2nifti.geometry import ModelBrain
from llm2nifti.glm import StatMaps, is_on
from llm2nifti.hooks import NoSuchModuleError, Point
from llm2nifti.models import LoadedModel
from llm2nifti.models.points import parts, tapped
from llm2nifti.networks import Controls, Network


class InterventionError(ValueError):
    """An intervention cannot be done to the model."""


class Edited(NamedTuple):
    """The (n,) units of one point that are edited, or looked at."""

    positions: NDArray[np.int64]  # on the last axis of the point's tensor
    units: NDArray[np.int64]  # in the brain's recording order
    width: int | None  # length of that axis, where the brain has all of it


Edit = Callable[[torch.Tensor], torch.Tensor | None]


def control_trials(runs: Run | Sequence[Run]) -> Controls:
    """Collect the control trials of some runs of one model.

    Parameters
    ----------
    runs : Run or sequence of Run
        From `llm2nifti.bids.read`, or a whole `llm2nifti.bids.session`.

    Returns
    -------
    llm2nifti.networks.Controls

    Raises
    ------
    InterventionError
        If there are no runs, or no control trials, or the runs are of different spaces.

    Examples
    --------
    >>> controls = control_trials(bids.session("ds"))  # doctest: +SKIP
    """
    given: list[Run] = list(runs) if isinstance(runs, Sequence) else [runs]
    spaces = sorted({run.brain.space for run in given})
    if len(spaces) != 1:
        raise InterventionError(f"control trials need runs of one space, got {spaces or 'no runs'}")
    rows = [run.values()[~is_on(run.events)] for run in given]
    trials = np.concatenate(rows)
    if not len(trials):
        raise InterventionError("the runs have no control trials")
    return Controls.of(given[0].brain, np.asarray(trials, np.float32))


@contextmanager
def lesion(
    model: LoadedModel,
    network: Network,
    mode: Literal["zero", "mean", "resample"] = "zero",
    *,
    controls: Controls | None = None,
    seed: int = 0,
) -> Iterator[None]:
    """Take the units of a network out of action.

    Parameters
    ----------
    model : LoadedModel
        The model, of the network's space.
    network : Network
        Its units are lesioned at every position, also while the prompt is read. A unit is lesioned
        or not: weights do not count.
    mode : {"zero", "mean", "resample"}, default="zero"
        Put in their place 0; their mean over control trials; or, at every token, their values in a
        control trial drawn at random, anew at each site of each layer.
    controls : Controls, optional
        From `control_trials`; ``mean`` and ``resample`` need them.
    seed : int, default=0
        Seed of ``resample``.

    Raises
    ------
    InterventionError
        If the network is of another space, or the control trials are missing.

    Notes
    -----
    ``attn`` and ``mlp`` units are added to the stream, and ``heads`` and ``mlp_hidden`` are read by
    the layers that compute these. ``resid`` units are the stream itself: later layers write to it
    again, so a unit that is zeroed in one layer does not stay at zero.

    Examples
    --------
    >>> with lesion(model, network, "mean", controls=controls):  # doctest: +SKIP
    ...     model.module.generate(**inputs)
    """
    if mode not in ("zero", "mean", "resample"):
        raise InterventionError(f"mode is {mode!r}; use zero, mean or resample")
    values = None if controls is None else controls.mean if mode == "mean" else controls.trials
    if mode == "zero":
        values = np.zeros(network.brain.n_units)
    elif controls is None or values is None:
        raise InterventionError(f"mode {mode!r} needs control trials: controls=control_trials(...)")
    elif controls.brain.space != network.brain.space:
        raise InterventionError(
            f"the control trials are in space {controls.brain.space}, the network is in "
            f"{network.brain.space}"
        )
    rng = np.random.default_rng([seed, 20231110])
    make = partial(_resample, values, rng) if mode == "resample" else partial(_put, values)
    with edited(model, network.brain, network.units, make):
        yield


@contextmanager
def scale(model: LoadedModel, network: Network, factor: float) -> Iterator[None]:
    """Multiply the units of a network.

    Parameters
    ----------
    model : LoadedModel
        The model, of the network's space.
    network : Network
        Its units; one of weight w is multiplied by ``1 + w * (factor - 1)``.
    factor : float
        0 silences, 1 changes nothing, 2 doubles.

    Raises
    ------
    InterventionError
        If the network is of another space or the factor is not a finite number.
    """
    _check_finite("factor", factor)
    values = 1 + network.strengths * (factor - 1)
    with edited(model, network.brain, network.units, partial(_wide, torch.mul, 1, values)):
        yield


@contextmanager
def steer(
    model: LoadedModel,
    stat_map: StatMaps | nib.Nifti1Image,
    strength: float = 1.0,
    *,
    network: Network | None = None,
    brain: ModelBrain | None = None,
) -> Iterator[None]:
    """Push the model along a contrast: add its effect to its own units.

    Parameters
    ----------
    model : LoadedModel
        The model, of the map's space.
    stat_map : StatMaps or Nifti1Image
        A contrast, or an image of what to add, in the activations' own units.
    strength : float, default=1.0
        1 adds the difference between task and control once; negative values push away.
    network : Network, optional
        Steer these units only, each by its weight. By default all units of the map.
    brain : ModelBrain, optional
        Geometry; needed for an image where no network is given.

    Raises
    ------
    InterventionError
        If map and network are of different spaces, or no geometry is known.

    Notes
    -----
    What is added to ``attn`` and ``mlp`` units stays in the stream. What is added to ``resid``
    units is added once more in every layer, so steer by the one or the other:
    ``network=network.at("attn", "mlp")``.
    """
    _check_finite("strength", strength)
    values, brain = _effects(stat_map, network, brain)
    values = values * strength
    with edited(model, brain, values != 0, partial(_wide, torch.add, 0, values)):
        yield


@contextmanager
def edited(
    model: LoadedModel, brain: ModelBrain, units: NDArray[np.bool_], make: Callable[[Edited], Edit]
) -> Iterator[None]:
    """Edit the marked units, (n_units,) bool, in every forward pass.

    ``make(edited)`` returns the function that takes the tensor of one point, of shape
    (..., n_module_units), and returns a new one, or None to leave it as it is. InterventionError
    where the model does not have the brain's modules, or they have another width.
    """

    def replace(point: Point, tensor: torch.Tensor) -> torch.Tensor | None:
        width = points[point].width
        if width is not None and tensor.shape[-1] != width:
            raise InterventionError(
                f"{point.module!r} has {tensor.shape[-1]} units in this model and {width} in space "
                f"{brain.space}; use a network of the same model"
            )
        return edits[point](tensor)

    with ExitStack() as stack:
        try:
            points = _points(model, brain, units)
            stack.enter_context(tapped(model, list(points), replace))
        except (NoSuchModuleError, AttributeError) as error:  # the latter: a fused projection
            raise InterventionError(
                f"the network is in space {brain.space}, which model {model.name!r} does not have "
                f"({error}); use the model that was scanned"
            ) from error
        edits = {point: make(where) for point, where in points.items()}
        yield


def _points(model: LoadedModel, brain: ModelBrain, units: NDArray[np.bool_]) -> dict[Point, Edited]:
    """What is edited at each point that has any of the units."""
    points: dict[Point, Edited] = {}
    for point, slices in parts(model, brain).items():
        width, positions, members = None, [], []
        for inside, index in slices:
            local = np.flatnonzero(units[inside])
            members.append(local + inside.start)
            positions.append(local if index is None else index.numpy()[local])
            if index is None:
                width = inside.stop - inside.start
        if any(map(len, members)):
            points[point] = Edited(np.concatenate(positions), np.concatenate(members), width)
    return points


def _effects(
    stat_map: StatMaps | nib.Nifti1Image, network: Network | None, brain: ModelBrain | None
) -> tuple[NDArray[np.float64], ModelBrain]:
    """What to add to each unit, and where the units are."""
    img = getattr(stat_map, "effect_img", stat_map)
    home = getattr(stat_map, "brain", None)
    given = [b for b in (home, brain, None if network is None else network.brain) if b is not None]
    if not given:
        raise InterventionError("an image needs brain= or network= to say where its units are")
    spaces = list(dict.fromkeys(b.space for b in given))
    if len(spaces) > 1:
        raise InterventionError(f"map and network are in different spaces: {', '.join(spaces)}")
    values = np.nan_to_num(np.asarray(geometry.from_img(given[0], img), float))
    if values.ndim != 1:
        raise InterventionError(f"the map has {len(values)} volumes; give a 3D image")
    return (values if network is None else values * network.strengths), given[0]


def _check_finite(name: str, value: float) -> None:
    """Raise unless a parameter is a finite number."""
    if not np.isfinite(value):
        raise InterventionError(f"{name} is {value}; it must be a finite number")


def _put(values: NDArray, where: Edited) -> Edit:
    """Edit that puts a value of each unit in its place."""
    index = torch.from_numpy(where.positions)
    chosen = torch.from_numpy(np.asarray(values[where.units], np.float32))
    return lambda x: x.index_copy(-1, index.to(x.device), chosen.to(x).expand(*x.shape[:-1], -1))


def _resample(trials: NDArray, rng: np.random.Generator, where: Edited) -> Edit:
    """Edit that puts values of random control trials in the place of units."""
    index = torch.from_numpy(where.positions)
    values = torch.from_numpy(np.asarray(trials[:, where.units], np.float32))

    def edit(x: torch.Tensor) -> torch.Tensor:
        drawn = torch.from_numpy(rng.integers(len(values), size=x.shape[:-1]))
        return x.index_copy(-1, index.to(x.device), values[drawn].to(x))

    return edit


def _wide(
    combine: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    neutral: float,
    values: NDArray,
    where: Edited,
) -> Edit:
    """Edit that combines the tensor with a vector as wide as it, neutral at all other units."""
    made: dict[tuple[int, torch.dtype, torch.device], torch.Tensor] = {}

    def edit(x: torch.Tensor) -> torch.Tensor:
        key = (x.shape[-1], x.dtype, x.device)
        if key not in made:
            whole = np.full(x.shape[-1], float(neutral))
            whole[where.positions] = values[where.units]
            made[key] = torch.from_numpy(whole).to(x)
        return combine(x, made[key])

    return edit
