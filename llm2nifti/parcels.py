"""Which parts of a model are compared as wholes? Parcels: one site of one layer, or one head of it.

The directions of a parcel's space are a convention where nothing reads single units: whatever is
measured here comes from products of prompts with each other, which no rotation of a parcel's units
and no flip of their signs changes. docs/basis.md says where single units mean something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy import linalg

from llm2nifti import glm
from llm2nifti.bids import Run, Session
from llm2nifti.geometry import ModelBrain
from llm2nifti.glm.fitting import one_thread
from llm2nifti.glm.slabs import plain_files, read_slab
from llm2nifti.progress import track

SPLIT = "heads"  # the site that is cut into heads
# Sites whose single units mean something: something non-linear reads each of them by itself.
PRIVILEGED = ("mlp_hidden", "router", "experts")
MOST = 1000  # parcels: matrices of more would not be read by anyone


class ParcelError(ValueError):
    """The parcels cannot be measured with these runs."""


@dataclass(frozen=True, eq=False)
class Parcel:
    """Units that are compared as a whole."""

    name: str  #: as in the atlas table; of a head with its number from 0
    layer: int
    site: str
    units: NDArray[np.int64]  #: positions in the recording order


def parcels_of(brain: ModelBrain, *, n_heads: int = 0, sites: Sequence[str] = ()) -> list[Parcel]:
    """Parcels of a brain in depth order.

    Parameters
    ----------
    brain : ModelBrain
        Geometry.
    n_heads : int, default=0
        Heads of a layer; those of site ``heads`` are parcels of their own unless it is 0 or there
        would be more than 1,000 parcels.
    sites : sequence of str
        Only these sites, by default all; ParcelError of a site that was not recorded.

    Examples
    --------
    >>> from llm2nifti.geometry import Site, layout
    >>> brain = layout([Site("embed", 0, "wte", 4), Site("heads", 1, "h.0.o", 6, "input")])
    >>> [parcel.name for parcel in parcels_of(brain, n_heads=2)]
    ['layer00_embed', 'layer01_heads0', 'layer01_heads1']
    """
    recorded = list(dict.fromkeys(site.name for site in brain.sites))
    if unknown := set(sites) - set(recorded):
        raise ParcelError(f"no site {min(unknown)!r} in the dataset; there are {recorded}")
    kept = [s for s in brain.sites if not sites or s.name in sites]
    divided = sum(s.name == SPLIT for s in kept) * n_heads <= MOST
    out = []
    for site in sorted(kept, key=lambda s: s.layer):
        units = np.arange(brain.n_units)[brain.slice_of(site)]
        name = f"layer{site.layer:02d}_{site.name}"
        n = n_heads if site.name == SPLIT and divided and n_heads else 1
        if site.n_units % n:
            n = 1
        parts = np.split(units, n)
        names = [name] if n == 1 else [f"{name}{i}" for i in range(n)]
        out += [Parcel(one, site.layer, site.name, p) for one, p in zip(names, parts, strict=True)]
    return out


def parcels_in(session: Session, sites: Sequence[str] = ()) -> list[Parcel]:
    """Parcels of a session; its sidecars say how many heads a layer has."""
    n_heads = session.model.get("Heads", 0)
    return parcels_of(
        session.brain, n_heads=n_heads if isinstance(n_heads, int) else 0, sites=sites
    )


def centre_of(brain: ModelBrain, parcel: Parcel) -> list[float]:
    """Centre of a parcel in mm: x, y and z."""
    middle = brain.voxels[parcel.units].mean(axis=0)
    return [round(float(mm), 3) for mm in apply_affine(brain.affine, middle)]


def read(
    runs: Sequence[Run], parcels: Sequence[Parcel], *, frames: bool = False, verbose: int = 1
) -> Iterator[tuple[Parcel, NDArray[np.float64]]]:
    """Read one parcel after another from all runs, so that no run is held as a whole.

    Yields each parcel with its (n_trials, n_units) values, the trials of all runs in order; with
    `frames`, (n_trials, n_frames, n_units), for runs whose trials have equally many frames.
    """
    brain = runs[0].brain
    places = np.ravel_multi_index(tuple(brain.voxels.T.astype(np.int64)), brain.shape, order="F")
    with plain_files([run.frames_img if frames else run.img for run in runs]) as paths:
        bar = track(parcels, "parcels", unit="parcel", verbose=verbose)
        for _, layer in groupby(bar, key=lambda parcel: parcel.layer):
            group = list(layer)
            units = np.concatenate([parcel.units for parcel in group])
            order = np.argsort(places[units])
            back = np.argsort(order)
            rows = [read_slab(path, places[units[order]])[:, back] for path in paths]
            values = np.concatenate(rows)
            if frames:
                values = values.reshape(-1, runs[0].n_frames, len(units))
            ends = np.cumsum([len(parcel.units) for parcel in group])[:-1]
            yield from zip(group, np.split(values, ends, axis=-1), strict=True)


def each(
    function: Callable[[Parcel, NDArray[np.float64]], Any],
    runs: Sequence[Run],
    parcels: Sequence[Parcel],
    *,
    frames: bool = False,
    verbose: int = 1,
) -> list[Any]:
    """What a function returns for every parcel and its values, in order; see `threaded`.

    Parameters
    ----------
    function : callable
        Of a parcel and its values.
    runs, parcels, frames, verbose
        See `read`.
    """
    pairs = read(runs, parcels, frames=frames, verbose=verbose)
    return threaded(lambda pair: function(*pair), pairs)


def threaded(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """What a function returns for every item, in order; one thread a core, each its own item.

    Linear algebra inside takes one thread: of matrices as small as products of prompts this is
    several times as fast as letting every product take all cores.
    """
    work = delayed(function)
    with one_thread():
        threads = Parallel(n_jobs=-1, prefer="threads", pre_dispatch="n_jobs", batch_size=1)
        return list(threads(work(item) for item in items))


def trials_of(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a trial of all runs in order: their events with ``task``, ``run`` and more.

    ``is_task`` is whether it is of its task, and ``kind`` the task's name then, else ``control``.
    """
    tables = [
        run.events.assign(
            task=run.task,
            run=run.run,
            is_task=glm.is_on(run.events),
            kind=glm.kinds(run.task, run.events),
        )
        for run in runs
    ]
    table = pd.concat(tables, ignore_index=True)
    for column in ("question_frame", "topic"):
        if column not in table:
            table[column] = ""
    table[["question_frame", "topic"]] = table[["question_frame", "topic"]].fillna("")
    return table


def nuisance(trials: pd.DataFrame) -> NDArray[np.float64]:
    """(n_trials, n_columns) columns that are not asked about: runs and question frames."""
    runs = pd.get_dummies(trials["task"] + " " + trials["run"].astype(str), dtype=float)
    return np.column_stack([runs.to_numpy(), glm.nuisance(trials).to_numpy()])


def without_nuisance(trials: pd.DataFrame) -> NDArray[np.float64]:
    """(n_trials, n_left) orthonormal basis of what the nuisance columns leave of the trials.

    Rows in this basis are as independent of each other as the prompts were, which residuals are
    not: estimates that leave out products of a row with itself stay unbiased. ParcelError if fewer
    than 3 are left.
    """
    basis = linalg.null_space(nuisance(trials).T)
    if basis.shape[1] < 3:
        raise ParcelError(
            f"{len(trials)} prompts are too few: run means and question frames leave "
            f"{basis.shape[1]} of them, 3 are needed; scan more trials_per_block"
        )
    return basis


def residuals_of(trials: pd.DataFrame) -> Callable[[NDArray], NDArray[np.float64]]:
    """Function that takes nuisances and the mean of each topic out of (n_trials, n_units) values.

    What is left is noise: how prompts about one topic differ.
    """
    topics = pd.get_dummies(trials["kind"] + " " + trials["topic"], dtype=float)
    basis = linalg.orth(np.column_stack([nuisance(trials), topics.to_numpy()]))
    return lambda values: values - basis @ (basis.T @ values)


def shuffle_within(groups: NDArray, rng: np.random.Generator) -> NDArray[np.int64]:
    """Positions of trials, exchanged at random within each group, such as a run."""
    order = np.arange(len(groups))
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        order[rows] = rng.permutation(rows)
    return order
