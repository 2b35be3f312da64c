"""Compare parcels by what prompts evoke in them: debiased CKA, and RDMs of repeated topics."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llm2nifti import bids, glm
from llm2nifti.bids import Session
from llm2nifti.experiments.connectivity.plan import ConnectivityPlan
from llm2nifti.experiments.connectivity.result import (
    ConnectivityResult,
    Contrast,
    Graph,
    State,
    upper,
)
from llm2nifti.experiments.connectivity.units import of_units
from llm2nifti.experiments.journal import made_from
from llm2nifti.experiments.results import Interval
from llm2nifti.glm.fitting import one_thread
from llm2nifti.networks import representation as rep
from llm2nifti.parcels import (
    Parcel,
    centre_of,
    each,
    parcels_in,
    residuals_of,
    shuffle_within,
    threaded,
    trials_of,
    without_nuisance,
)
from llm2nifti.progress import track

N_SHUFFLES = 5  # of prompts between parcels: each gives a null value of every pair of parcels
N_NETWORKS = 20  # null networks
MOST_CONDITIONS = 24  # of an RDM


@dataclass(frozen=True, eq=False)
class Products:
    """Products of a state's prompts with each other, one matrix a parcel."""

    trials: pd.DataFrame  #: (n,) control, or those of a task with its control
    rows: NDArray[np.int64]  #: (n,) their places among all trials
    repeats: NDArray[np.int64]  #: places of trials whose topic is in every run
    grams: NDArray[np.float32]  #: (n_parcels, n, n), filled a parcel at a time
    rdms: list[NDArray[np.float64]] = field(default_factory=list)  #: (n_pairs,) a parcel

    def cka(self, wanted: NDArray[np.bool_]) -> NDArray[np.floating]:
        """(n_parcels, n_parcels) similarity by some of the trials."""
        return rep.debiased_cka(self.independent(wanted))

    def difference(self, wanted: NDArray[np.bool_]) -> NDArray[np.floating]:
        """(n_pairs,) similarity by some of the trials minus that by the others."""
        return upper(self.cka(wanted) - self.cka(~wanted))

    def independent(
        self, wanted: NDArray[np.bool_], order: NDArray[np.int64] | None = None
    ) -> NDArray[np.floating]:
        """(n_parcels, m, m) products of trials without nuisances; with an order, trials move."""
        basis: NDArray[Any] = without_nuisance(self.trials[wanted]).astype(np.float32)
        rows = np.flatnonzero(wanted)
        moved = basis if order is None else (basis @ basis.T)[:, order].T @ basis
        return moved.T @ self.grams[:, rows[:, None], rows] @ moved


@one_thread()
def measure(session: Session, plan: ConnectivityPlan, *, verbose: int = 1) -> ConnectivityResult:
    """Measure similarity of parcels at rest (control prompts), in each task, and the difference.

    Parcels at rest and in tasks are compared by the prompts of all runs together; how repeatable
    that is comes from each run apart. ParcelError if there are too few prompts.
    """
    session = session.only(plan.task)
    session.check_repeated()
    source = made_from(session, plan)
    if not plan.redo and (kept := ConnectivityResult.kept(session, source)):
        return kept
    for package in ("bct", "rsatoolbox"):  # before what takes long
        rep.required(package)
    products = _products(session, plan, with_rdms=True, verbose=verbose)
    copy = session.untrained if plan.untrained else None
    of_copy = _products(copy, plan, with_rdms=False, verbose=verbose) if copy else {}
    states, contrasts = {}, {}
    for name, state in track(products.items(), "similarity", unit="state", verbose=verbose):
        states[name] = _state(state, name, plan.seed, of_copy.get(name))
        if name != glm.CONTROL:
            contrasts[name] = _contrast(state, plan)
    rest = np.array(states[glm.CONTROL].cka)
    parcels = parcels_in(session, plan.site)
    result = ConnectivityResult(
        parcels=[parcel.name for parcel in parcels],
        layers=[parcel.layer for parcel in parcels],
        sites=[parcel.site for parcel in parcels],
        centres=[centre_of(session.brain, parcel) for parcel in parcels],
        states=states,
        contrasts=contrasts,
        graph=Graph(**rep.communities(rest, n_null=N_NETWORKS, seed=plan.seed, verbose=verbose)),
        made_from=source,
        units=of_units(session, plan),
        untrained=copy.subject if copy else None,
    )
    _write(session, result)
    return result


def _products(
    session: Session, plan: ConnectivityPlan, *, with_rdms: bool, verbose: int
) -> dict[str, Products]:
    """Products of prompts by state, in one pass over the parcels."""
    trials, parcels = trials_of(session), parcels_in(session, plan.site)
    topics, folds = trials["topic"].to_numpy(str), trials["run"].to_numpy()
    states = {}
    for name in (glm.CONTROL, *session.tasks):
        is_on = (trials["kind"] == name).to_numpy()
        rows = np.flatnonzero(is_on if name == glm.CONTROL else trials["task"] == name)
        names = rep.repeated(topics[is_on], folds[is_on], most=MOST_CONDITIONS)
        repeats = np.flatnonzero(is_on & np.isin(topics, names if len(names) > 2 else []))
        grams = np.empty((len(parcels), len(rows), len(rows)), np.float32)
        states[name] = Products(trials.iloc[rows].reset_index(drop=True), rows, repeats, grams)
    residual = residuals_of(trials)
    places = {parcel.name: i for i, parcel in enumerate(parcels)}

    def fill(parcel: Parcel, values: NDArray) -> dict[str, NDArray[np.float64]]:
        """Fill in a parcel's products; its RDM by state."""
        centred = values - values.mean(axis=0)
        gram = centred @ centred.T
        for state in states.values():
            state.grams[places[parcel.name]] = gram[np.ix_(state.rows, state.rows)]
        if not with_rdms:
            return {}
        white = rep.whitened_products(centred, residual(centred))
        used = {name: state.repeats for name, state in states.items() if len(state.repeats)}
        return {
            name: rep.crossnobis(white[np.ix_(rows, rows)], topics[rows], folds[rows])
            for name, rows in used.items()
        }

    for rdms in each(fill, session, parcels, verbose=verbose):
        for name, rdm in rdms.items():
            states[name].rdms.append(rdm)
    return states


def _state(state: Products, name: str, seed: int, copy: Products | None) -> State:
    """Similarity of all parcels, how repeatable it is, and what shuffled prompts give."""
    is_on = (state.trials["kind"] == name).to_numpy()
    cka, rng = state.cka(is_on), np.random.default_rng(seed)
    groups = (state.trials["task"] + state.trials["run"].astype(str))[is_on].to_numpy()
    still, null = state.independent(is_on), []
    for _ in range(N_SHUFFLES):
        moved = state.independent(is_on, shuffle_within(groups, rng))
        null.append(upper(rep.debiased_cka(still, moved)))
    rdm = rep.rdm_similarity(np.stack(state.rdms)) if state.rdms else None
    same = copy.cka(is_on) if copy else None
    return State(
        n_prompts=int(is_on.sum()),
        cka=cka.round(6).tolist(),
        mean=float(upper(cka).mean()),
        null_95=float(np.percentile(null, 95)),
        null_max=float(np.max(null)),
        share_above=float((upper(cka) > np.max(null)).mean()),
        repeatability=_repeatability(state, is_on),
        rdm=None if rdm is None else rdm.round(6).tolist(),
        rdm_agreement=None if rdm is None else _r(cka, rdm),
        untrained_mean=None if same is None else float(upper(same).mean()),
        untrained_r=None if same is None else _r(cka, same),
        untrained_repeatability=_repeatability(copy, is_on) if copy else None,
    )


def _r(a: NDArray, b: NDArray) -> float:
    """Correlation of two matrices over pairs of parcels."""
    return float(np.corrcoef(upper(a), upper(b))[0, 1])


def _repeatability(state: Products, is_on: NDArray[np.bool_]) -> Interval:
    """Correlation of similarities from different runs: mean and range over pairs of runs."""
    numbers = state.trials["run"].to_numpy()
    by_run = [state.cka(is_on & (numbers == n)) for n in np.unique(numbers)]
    r = [_r(a, b) for a, b in combinations(by_run, 2)]
    return Interval(float(np.mean(r)), min(r), max(r))


def _contrast(state: Products, plan: ConnectivityPlan) -> Contrast:
    """Similarity in the task minus that among its control, beside relabelled prompts."""
    rng, is_on = np.random.default_rng(plan.seed), state.trials["is_task"].to_numpy()
    runs = state.trials["run"].to_numpy()
    labels = [is_on, *(is_on[shuffle_within(runs, rng)] for _ in range(plan.n_null))]
    differences = np.stack(threaded(state.difference, labels))
    sizes = np.sqrt((differences**2).mean(axis=1))
    largest = float(np.percentile(np.abs(differences[1:]).max(axis=1), 95))
    return Contrast(
        size=float(sizes[0]),
        null_size=Interval(float(sizes[1:].mean()), *np.percentile(sizes[1:], [2.5, 97.5])),
        p=float((1 + (sizes[1:] >= sizes[0]).sum()) / len(sizes)),
        mean=float(differences[0].mean()),
        null_mean=Interval(0.0, *np.percentile(differences[1:].mean(axis=1), [2.5, 97.5])),
        limit=largest,
        n_beyond=int((np.abs(differences[0]) > largest).sum()),
        n_pairs=differences.shape[1],
    )


def _write(session: Session, result: ConnectivityResult) -> None:
    """Write every matrix as a relationship matrix, as BIDS proposes them (BEP 17)."""
    paths = session.first.paths
    atlas = paths.anat("dseg.tsv").relative_to(session.root / bids.DERIVATIVES).as_posix()
    for name, state in result.states.items():
        for measure_name, matrix in (("cka", state.cka), ("crossnobis", state.rdm)):
            if matrix is None:
                continue
            stem = f"{paths.who}_task-{name}_space-{paths.space}_stat-{measure_name}_relmat"
            path = paths.trial_bold.parent / f"{stem}.tsv"
            sidecar = {
                "RelationshipMeasure": MEASURES[measure_name],
                "Weighted": True,
                "Directed": False,
                "ValidDiagonal": True,
                "StorageFormat": "Full",
                "NonNegative": False,
                "NodeFiles": [f"bids::{atlas}"],
                "Nodes": result.parcels,
            }
            table = pd.DataFrame(matrix, columns=result.parcels)
            bids.write_tsv(path, session.root, table, sidecar)


MEASURES = {
    "cka": "debiased linear centred kernel alignment of what prompts evoke",
    "crossnobis": "whitened correlation of crossnobis dissimilarities of topics",
}
