"""Decode tasks from control and from each other, a parcel at a time, in runs held out."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from llm2nifti import glm
from llm2nifti.bids import Session
from llm2nifti.evidence import n_moments
from llm2nifti.experiments.decoding.plan import DecodePlan
from llm2nifti.experiments.decoding.result import Comparison, DecodingResult, Timing
from llm2nifti.experiments.journal import made_from
from llm2nifti.glm.fitting import one_thread
from llm2nifti.networks.decoding import decode, over_time
from llm2nifti.networks.detection import Bootstrap, estimate
from llm2nifti.parcels import Parcel, ParcelError, each, parcels_in, shuffle_within, trials_of
from llm2nifti.stimuli import WORDLESS

N_DEPTHS = 8  # layers whose tokens are decoded, evenly spread
N_SHUFFLES = 20  # permutations over tokens: their products are 64 times as many

Answer = tuple[NDArray, NDArray, dict[str, float]]


class Question:
    """Which trials are told from which, with the true labels and their permutations."""

    def __init__(self, session: Session, plan: DecodePlan, on: str, off: str) -> None:
        trials = trials_of(session)
        kind, task = trials["kind"].to_numpy(str), trials["task"].to_numpy(str)
        is_control = (kind == glm.CONTROL) & (task == on)  # of the task's own runs
        self.rows = np.flatnonzero(
            (kind == on) | (is_control if off == glm.CONTROL else kind == off)
        )
        self.run = trials["run"].to_numpy()[self.rows]
        truth, rng = kind[self.rows] == on, np.random.default_rng(plan.seed)
        shuffled = [truth[shuffle_within(self.run, rng)] for _ in range(plan.n_null)]
        self.labels = np.stack([truth, *shuffled], axis=1)
        self.draws = Bootstrap(truth.astype(int), self.run, n=plan.n_boot, seed=plan.seed)

    def answer(self, gram: NDArray) -> Answer:
        """AUC and balanced accuracy of all labellings, and the interval of the true one's AUC."""
        part = gram[np.ix_(self.rows, self.rows)]
        auc, accuracy, scores = decode(part, self.labels, self.run)
        is_on = self.labels[:, 0]
        return auc, accuracy, estimate(self.draws.areas(scores, is_on, ~is_on))

    def over_time(self, values: NDArray) -> NDArray[np.float64]:
        """AUC by the frame of training and of testing, from (n_trials, n_frames, n_units)."""
        rows = values[self.rows].astype(np.float32)
        rows -= rows.mean(axis=0)
        n_trials, n_frames, n_units = rows.shape
        flat = rows.swapaxes(0, 1).reshape(-1, n_units)
        grams = (flat @ flat.T).reshape(n_frames, n_trials, n_frames, n_trials)
        return over_time(grams, self.labels, self.run)


@one_thread()
def measure(session: Session, plan: DecodePlan, *, verbose: int = 1) -> DecodingResult:
    """Decode every task from control, and from every other task, from each parcel alone.

    ParcelError if there is one run only, or no frames that could be compared where these are asked.
    """
    session = session.only(plan.task)
    session.check_repeated()
    source = made_from(session, plan)
    if not plan.redo and (kept := DecodingResult.kept(session, source)):
        return kept
    parcels = parcels_in(session, plan.site)
    comparisons = _comparisons(session, plan, parcels, verbose=verbose)
    copy = session.untrained if plan.untrained else None
    bare = replace(plan, n_null=1, n_boot=1)
    of_copy = _comparisons(copy, bare, parcels, verbose=verbose) if copy else {}
    has_frames = plan.frames and n_moments(session) > 1
    words = [task for task in session.tasks if task != WORDLESS]
    return DecodingResult(
        parcels=[parcel.name for parcel in parcels],
        layers=[parcel.layer for parcel in parcels],
        sites=[parcel.site for parcel in parcels],
        tasks=list(session.tasks),
        mean_of=words or list(session.tasks),
        n_null=plan.n_null,
        n_runs=len(session.folds),
        comparisons=comparisons,
        untrained={name: told.auc for name, told in of_copy.items()} if copy else None,
        times=_times(session, plan, parcels, verbose=verbose) if has_frames else {},
        made_from=source,
    )


def _comparisons(
    session: Session, plan: DecodePlan, parcels: list[Parcel], *, verbose: int
) -> dict[str, Comparison]:
    """Every task against control and against the others, by parcel."""
    pairs = [(task, glm.CONTROL) for task in session.tasks] + list(combinations(session.tasks, 2))
    questions = {f"{on} - {off}": Question(session, plan, on, off) for on, off in pairs}

    def answers(_: Parcel, values: NDArray) -> dict[str, Answer]:
        centred = values - values.mean(axis=0)
        gram = centred @ centred.T
        return {name: asked.answer(gram) for name, asked in questions.items()}

    told = each(answers, session, parcels, verbose=verbose)
    return {name: _comparison([one[name] for one in told]) for name in questions}


def _comparison(rows: list[Answer]) -> Comparison:
    """Results of all parcels with p values corrected over these by the largest under the null."""
    auc = np.stack([auc for auc, _, _ in rows])
    accuracy = np.stack([accuracy for _, accuracy, _ in rows])
    largest = auc[:, 1:].max(axis=0)
    exceed = (largest >= auc[:, :1] - 1e-12).sum(axis=1)
    return Comparison(
        auc=auc[:, 0].round(6).tolist(),
        low=[ends["low"] for _, _, ends in rows],
        high=[ends["high"] for _, _, ends in rows],
        accuracy=accuracy[:, 0].round(6).tolist(),
        p=((1 + exceed) / auc.shape[1]).tolist(),
        limit=float(np.percentile(largest, 95)),
        null_mean=float(auc[:, 1:].mean()),
    )


def _times(
    session: Session, plan: DecodePlan, parcels: list[Parcel], *, verbose: int
) -> dict[str, Timing]:
    """Train at one token, test at another: mean over tasks and layers, by site."""
    counts = {int(n) for run in session for n in run.volume_counts}
    if len(counts) > 1:
        raise ParcelError(f"trials have {min(counts)} to {max(counts)} frames; use --no-frames")
    layers = np.unique([parcel.layer for parcel in parcels])
    places = np.linspace(0, len(layers) - 1, min(N_DEPTHS, len(layers))).round().astype(int)
    chosen = layers[places]
    kept = [parcel for parcel in parcels if parcel.layer in chosen]
    fewer = replace(plan, n_null=N_SHUFFLES, n_boot=1)
    words = [task for task in session.tasks if task != WORDLESS] or list(session.tasks)
    asked = [Question(session, fewer, task, glm.CONTROL) for task in words]

    def answers(_: Parcel, values: NDArray) -> list[NDArray]:
        return [question.over_time(values) for question in asked]

    told = each(answers, session, kept, frames=True, verbose=verbose)
    times = {}
    for site in dict.fromkeys(parcel.site for parcel in kept):
        of_site = sorted({parcel.layer for parcel in kept if parcel.site == site})
        rows = zip(kept, told, strict=True)
        mean = np.mean([area for parcel, areas in rows if parcel.site == site for area in areas], 0)
        limit = float(np.percentile(mean[:, :, 1:].max(axis=(0, 1)), 95))
        times[site] = Timing(mean[:, :, 0].round(6).tolist(), limit, of_site)
    return times
