"""Which prompts did all models see, and what are the products of their responses?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llm2nifti import glm
from llm2nifti.bids import Session
from llm2nifti.experiments.errors import ExperimentError
from llm2nifti.networks import representation as rep
from llm2nifti.parcels import Parcel, parcels_in, read, residuals_of, trials_of

MOST_CONDITIONS = 24  # of an RDM
_KEY = ["task", "run", "trial_type", "stim_id", "prompt", "copy"]


@dataclass(frozen=True, eq=False)
class SharedPrompts:
    """Prompts that all sessions saw in the same run, in the order of the first session."""

    trials: pd.DataFrame  #: (n,) see `llm2nifti.parcels.trials_of`
    rows: dict[str, NDArray[np.int64]]  #: their places among the trials of each session

    @cached_property
    def groups(self) -> NDArray:
        """(n,) name of each prompt's run."""
        return (self.trials["task"] + " " + self.trials["run"].astype(str)).to_numpy(str)

    @property
    def kinds(self) -> NDArray:
        """(n,) condition of each prompt."""
        return self.trials["kind"].to_numpy(str)

    def contrast(self, task: str, wanted: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(n,) weights of the prompts in a task's effect, the mean over the runs of `wanted`."""
        runs = wanted & (self.trials["task"] == task).to_numpy()
        out = np.zeros(len(self.trials))
        numbers = self.trials["run"].to_numpy()
        for number in np.unique(numbers[runs]):
            rows = np.flatnonzero(runs & (numbers == number))
            trials = self.trials.iloc[rows]
            design = glm.design_matrix(trials)
            vector = glm.contrast_vector(design, glm.task_contrast(trials))
            out[rows] = vector @ np.linalg.pinv(design.to_numpy())
        return out / len(np.unique(numbers[runs]))


def _keys(session: Session) -> pd.DataFrame:
    """Trials of a session with what tells them apart."""
    table = trials_of(session)
    if "stim_id" not in table:
        table["stim_id"] = ""
    names = _KEY[:-1]
    return table.assign(copy=table.groupby(names).cumcount(), row=np.arange(len(table)))


def common_prompts(sessions: Sequence[Session], *, most: int, seed: int) -> SharedPrompts:
    """Find the prompts that all sessions saw; of too many, as large a share of every condition.

    ExperimentError if there are none.
    """
    tables = [_keys(session) for session in sessions]
    shared = tables[0]
    for table in tables[1:]:
        shared = shared.merge(table[_KEY], on=_KEY)
    if shared.empty:
        names = f"{sessions[0].name} and {sessions[1].name}"
        raise ExperimentError(
            f"no prompt was shown to all sessions, {names} among them, in the same run; scan them "
            "with one study file, which gives them one design"
        )
    if len(shared) > most:
        share = most / len(shared)
        groups = shared.groupby(["task", "run", "trial_type"], sort=False)
        shared = groups.sample(frac=share, random_state=seed).sort_values("row")
    rows = {}
    for session, table in zip(sessions, tables, strict=True):
        rows[session.name] = shared[_KEY].merge(table, on=_KEY)["row"].to_numpy()
    return SharedPrompts(shared.drop(columns=["copy", "row"]).reset_index(drop=True), rows)


@dataclass(frozen=True, eq=False)
class Responses:
    """What the shared prompts evoke in one model, as products of prompts with each other."""

    parcels: list[Parcel]
    grams: NDArray[np.float32]  #: (n_parcels, n, n), on disk
    #: (m, m) of all parcels together, each scaled to count alike; the last row and column are of
    #: the pattern, where there is one
    whole: NDArray[np.float64]
    rdms: list[NDArray[np.float64]] = field(default_factory=list)  #: (n_pairs,) of each parcel


def topics_of(prompts: SharedPrompts) -> tuple[NDArray[np.int64], NDArray, NDArray]:
    """Rows of prompts whose topic is in every run, their topics, and numbers of runs."""
    trials = prompts.trials
    topics = (trials["kind"] + " " + trials["topic"]).to_numpy(str)
    folds = trials["run"].to_numpy()
    named = (trials["topic"] != "").to_numpy()
    names = rep.repeated(topics[named], folds[named], most=MOST_CONDITIONS)
    if len(names) < 3 or len(np.unique(folds)) < 2:
        names = []
    rows = np.flatnonzero(np.isin(topics, names))
    return rows, topics[rows], folds[rows]


def responses(
    session: Session,
    prompts: SharedPrompts,
    folder: Path,
    *,
    sites: Sequence[str] = (),
    pattern: NDArray[np.float64] | None = None,
    verbose: int = 1,
) -> Responses:
    """Read a session once, parcel by parcel.

    Parameters
    ----------
    session, prompts
        Whose responses to which prompts.
    folder : Path
        Temporary folder for the products of each parcel.
    sites : sequence of str
        Only parcels of these sites.
    pattern : (n_units,) array, optional
        A pattern over units whose products with the prompts are wanted, too.
    verbose : int, default=1
        0 shows no progress.
    """
    parcels, rows = parcels_in(session, sites), prompts.rows[session.name]
    n = len(rows)
    path = folder / f"{session.name}.grams"
    grams = np.memmap(path, np.float32, "w+", shape=(len(parcels), n, n))
    whole = np.zeros((n + (pattern is not None),) * 2)
    residual, rdms = residuals_of(prompts.trials), []
    used, topics, folds = topics_of(prompts)
    for i, (parcel, values) in enumerate(read(session.runs, parcels, verbose=verbose)):
        centred = values[rows].astype(float)
        centred -= centred.mean(axis=0)
        grams[i] = centred @ centred.T
        noise = residual(centred)
        size = np.sqrt((noise**2).mean())
        if pattern is not None:  # one SD of the parcel is one
            centred = np.vstack([centred, size * pattern[parcel.units]])
        if not size > 0:
            rdms.append(np.zeros(len(set(topics)) * (len(set(topics)) - 1) // 2))
            continue
        gram = centred @ centred.T
        whole += gram / np.trace(gram[:n, :n])
        if len(used):
            white = rep.whitened_products(centred[:n], noise)
            rdms.append(rep.crossnobis(white[np.ix_(used, used)], topics, folds))
    return Responses(parcels, grams, whole, rdms if len(used) else [])
