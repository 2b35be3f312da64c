"""What is shown when? Block designs: off, on, off, ..., on, off.

An on-block holds prompts of one task, an off-block control prompts from different topics. Question
frames are balanced between the two conditions in every run, and no prompt or concept is shown
twice in one experiment: shared controls alone would make the maps of two tasks alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from llm2nifti import stimuli
from llm2nifti.defaults import N_BLOCKS, N_FRAMES, N_RUNS, TRIALS_PER_BLOCK
from llm2nifti.media import MEDIA

T_R = 1.0  # seconds a frame, by convention
MAX_OFF_RATIO = 1.5  # unequal variances bias the t test when the control is much larger
_IMPOSSIBLE = 1e6

Rows = NDArray[np.intp]  # numbers of a table's rows, or of what they hold


class ParadigmError(ValueError):
    """A design cannot be made from these sizes and stimuli."""


@dataclass(frozen=True, eq=False)
class Paradigm:
    """One run: which prompt is shown when.

    Trials have one row each in the order shown: ``trial_type, block, stim_id, topic, concept,
    question_frame, prompt``, and ``image`` or ``audio`` where files are shown.
    """

    task: str  #: name of the on-condition
    run: int  #: number of the run, from 1
    n_frames: int  #: frames a trial: generated tokens
    trials: pd.DataFrame
    t_r: float = T_R  #: seconds a frame
    frame_counts: tuple[int, ...] | None = None  #: of each trial, where what is read differs

    @property
    def counts(self) -> NDArray[np.int64]:
        """(n_trials,) frames of each trial."""
        counts = self.n_frames if self.frame_counts is None else self.frame_counts
        return np.full(self.n_trials, counts, np.int64)

    @property
    def events(self) -> pd.DataFrame:
        """Trials with ``onset`` and ``duration`` in seconds, as nilearn and BIDS want them."""
        events = self.trials.copy()
        durations = self.counts * self.t_r
        events.insert(0, "onset", np.cumsum(durations) - durations)
        events.insert(1, "duration", durations)
        return events

    @property
    def n_trials(self) -> int:
        """Trials of both conditions."""
        return len(self.trials)

    def __repr__(self) -> str:
        """Say task, run and sizes."""
        n_on = int((self.trials["trial_type"] != stimuli.CONTROL).sum())
        return (
            f"Paradigm: task {self.task}, run {self.run}, {n_on} task and {self.n_trials - n_on} "
            f"control trials of {self.n_frames} frames in {self.trials['block'].nunique()} blocks"
        )


def blocks(
    task: str,
    *,
    n_blocks: int = N_BLOCKS,
    trials_per_block: int = TRIALS_PER_BLOCK,
    n_frames: int = N_FRAMES,
    seed: int = 0,
    table: pd.DataFrame | None = None,
    used: set[str] | None = None,
) -> Paradigm:
    """Design one run; ParadigmError if a size or the task is wrong, or the stimuli run out.

    Parameters
    ----------
    task : str
        A task of the stimulus set.
    n_blocks : int, default=4
        On-blocks; an off-block comes before each and after the last.
    trials_per_block : int, default=6
        Trials of an on-block.
    n_frames : int
        Frames a trial.
    seed : int, default=0
        Seed of the choice and order of trials.
    table : DataFrame, optional
        Stimuli; by default the evaluation split of the bundled sets.
    used : set of str, optional
        Concepts that may not be shown again; those of this run are added to it.

    Examples
    --------
    >>> blocks("pathology", n_blocks=2, trials_per_block=4)
    Paradigm: task pathology, run 1, 8 task and 8 control trials of 8 frames in 5 blocks
    """
    sizes = {"n_blocks": n_blocks, "trials_per_block": trials_per_block, "n_frames": n_frames}
    design = _draw(_Stock(table, used or ()), task, seed, sizes)
    if used is not None:
        used.update(design.trials["concept"].str.casefold())
    return design


def experiment(
    tasks: Sequence[str] = stimuli.TASKS,
    *,
    n_runs: int = N_RUNS,
    n_blocks: int = N_BLOCKS,
    trials_per_block: int = TRIALS_PER_BLOCK,
    n_frames: int = N_FRAMES,
    seed: int = 0,
    table: pd.DataFrame | None = None,
) -> list[Paradigm]:
    """Design all runs of an experiment, so that no two of them share a prompt or a concept.

    They come run by run, all tasks within a run. ParadigmError says how many stimuli are needed if
    they run out.

    Parameters
    ----------
    tasks : sequence of str
        Tasks; each gets `n_runs` runs.
    n_runs, n_blocks, trials_per_block, n_frames, seed, table
        See `blocks`.
    """
    if seed < 0:
        raise ParadigmError(f"seed is {seed}; it must be 0 or more")
    if n_runs < 1:
        raise ParadigmError(f"n_runs is {n_runs}; it must be at least 1")
    for i, task in enumerate(tasks):
        if task in tasks[:i]:
            raise ParadigmError(f"task {task!r} is given twice; name each task once")
    stock = _Stock(table)
    sizes = {"n_blocks": n_blocks, "trials_per_block": trials_per_block, "n_frames": n_frames}
    designs = []
    for run, task in product(range(1, n_runs + 1), tasks):
        try:
            design = _draw(stock, task, seed * 1000 + run, sizes)
        except _OutOfStimuliError as error:
            n_sharing = len(tasks) if error.pool == stimuli.CONTROL else 1
            raise ParadigmError(
                f"{error} in run {run} of {n_runs}: the whole experiment ({len(tasks)} tasks) "
                f"needs {error.n_needed * n_runs * n_sharing} of them, the set has "
                f"{len(stock.rows(error.pool))}. Use fewer runs, blocks or trials, or more stimuli"
            ) from None
        designs.append(replace(design, run=run))
    return designs


class _OutOfStimuliError(ParadigmError):
    """A pool of stimuli is too small for a run."""

    def __init__(self, pool: str, n_needed: int, n_left: int, detail: str) -> None:
        super().__init__(f"{pool!r} has {n_left} unused prompts, a run needs {n_needed} ({detail})")
        self.pool = pool
        self.n_needed = n_needed


class _Stock:
    """Stimuli as numbers, made once for all runs of an experiment, and which of them are used.

    Concepts (upper and lower case alike), topics and question frames of all rows are numbered in
    the order of their names. Concepts that are marked in `used` may not be shown again.
    """

    def __init__(self, table: pd.DataFrame | None, used: Iterable[str] = ()) -> None:
        table = stimuli.load() if table is None else table
        self.table = table.reset_index(drop=True)
        self.rows_of: dict[str, Rows] = self.table.groupby("task", sort=False).indices
        columns = table["concept"].str.casefold(), table["topic"], table["frame"]
        numbered = [pd.factorize(column, sort=True) for column in columns]
        self.concepts, self.topics, self.frames = (numbers for numbers, _ in numbered)
        self.frame_names: list[str] = list(numbered[2][1])
        self.used: NDArray[np.bool_] = numbered[0][1].isin(list(used))

    def rows(self, task: str, *, unused: bool = False) -> Rows:
        """Rows of a task, all or those whose concept may still be shown."""
        rows = self.rows_of.get(task, np.empty(0, np.intp))
        return rows[~self.used[self.concepts[rows]]] if unused else rows

    def levels(self, rows: Rows) -> list[int]:
        """Question frames of these rows; none where they have none."""
        return [i for i in np.unique(self.frames[rows]).tolist() if self.frame_names[i]]


def _draw(stock: _Stock, task: str, seed: int, sizes: dict[str, int]) -> Paradigm:
    """Design one run from what is unused, and mark what it shows as used."""
    for name, value in sizes.items():
        if value < 1:
            raise ParadigmError(f"{name} is {value}; it must be at least 1")
    tasks = [name for name in stock.rows_of if name != stimuli.CONTROL]
    if task not in tasks:
        raise ParadigmError(f"no task {task!r} in the stimuli; there are {', '.join(tasks)}")
    rng = np.random.default_rng([seed, *task.encode()])
    control = stock.rows(stimuli.CONTROL, unused=True)
    levels = stock.levels(stock.rows(task))
    control_levels = levels or stock.levels(control)
    n_blocks, n_on = sizes["n_blocks"], sizes["n_blocks"] * sizes["trials_per_block"]
    n_off = _n_off(n_on, n_blocks, sizes["trials_per_block"], len(control_levels))
    # Every question frame equally often, give or take one; without any, all have the first: no name
    on = _draw_task(stock, task, np.resize(levels or [0], n_on), rng)
    control = control[~np.isin(stock.concepts[control], stock.concepts[on])]
    off = _draw_control(stock, control, np.resize(control_levels or [0], n_off), rng)
    trials = _interleave(stock, on, off, n_blocks, rng)
    stock.used[stock.concepts[np.r_[on, off]]] = True
    return Paradigm(task, 1, sizes["n_frames"], trials)


def rest(n_trials: int, *, run: int = 1, n_frames: int = N_FRAMES) -> Paradigm:
    """Design a rest run: as many trials with an empty prompt, from which a model goes on freely.

    They differ in the seed of the sampling alone, of which the identifier is part.

    Examples
    --------
    >>> rest(20)
    Paradigm: task rest, run 1, 20 task and 0 control trials of 8 frames in 1 blocks
    """
    names = [f"{stimuli.REST}-{run}-{i:04d}" for i in range(n_trials)]
    trials = pd.DataFrame({"trial_type": stimuli.REST, "block": 1, "stim_id": names})
    empty = dict.fromkeys(("topic", "concept", "question_frame", "prompt"), "")
    return Paradigm(stimuli.REST, run, n_frames, trials.assign(**empty))


def _shuffled(rows: Rows, rng: np.random.Generator) -> Rows:
    """Rows in random order, drawn as `DataFrame.sample` draws it: designs made before stay."""
    return rows[rng.choice(len(rows), len(rows), replace=False)]


def _n_off(n_on: int, n_blocks: int, trials_per_block: int, n_levels: int) -> int:
    """Control trials of a run: off-blocks as long as on-blocks, within the allowed ratio.

    Where task trials fill every question frame equally often, so do control trials.
    """
    most = int(MAX_OFF_RATIO * n_on)
    n_off = min(most, (n_blocks + 1) * trials_per_block)
    if n_levels and n_on % n_levels == 0:
        n_off = min(-(-n_off // n_levels), most // n_levels) * n_levels
    if n_off <= n_blocks:
        raise ParadigmError(
            f"{n_on} task trials allow {n_off} control trials (at most {MAX_OFF_RATIO} a task "
            f"trial), too few for {n_blocks + 1} off-blocks; use more trials_per_block"
        )
    return n_off


def _draw_task(stock: _Stock, task: str, slots: Rows, rng: np.random.Generator) -> Rows:
    """One unused concept of each slot's question frame, topics as evenly spread as possible."""
    pool = _shuffled(stock.rows(task, unused=True), rng)
    frames, topics, concepts = (of[pool] for of in (stock.frames, stock.topics, stock.concepts))
    is_left = np.ones(len(pool), bool)
    n_shown = np.zeros(len(stock.topics), int)  # of each topic
    taken = []
    for frame in slots:
        fits = np.flatnonzero(is_left & (frames == frame))
        if not len(fits):
            name = stock.frame_names[frame]
            n_same = int((slots == frame).sum())
            detail = f"{n_same} in question frame {name!r}" if name else "any"
            raise _OutOfStimuliError(task, len(slots), len(pool), detail)
        best = fits[n_shown[topics[fits]].argmin()]
        taken.append(pool[best])
        is_left &= concepts != concepts[best]
        n_shown[topics[best]] += 1
    return np.array(taken)


def _draw_control(stock: _Stock, pool: Rows, slots: Rows, rng: np.random.Generator) -> Rows:
    """One unused concept a slot, all from different topics.

    An assignment problem of slots to topics; topics with many unused concepts go first, so that
    they last.
    """
    pool = _shuffled(pool, rng)
    _, first = np.unique(stock.concepts[pool], return_index=True)
    pool = pool[np.sort(first)]
    topics, topic = np.unique(stock.topics[pool], return_inverse=True)
    rows = np.full((len(topics), len(stock.frame_names)), -1)
    rows[topic, stock.frames[pool]] = pool  # of several, the last
    rows = rows[:, slots].T
    cost = np.full((len(slots), max(len(topics), len(slots))), _IMPOSSIBLE)
    fits = rows >= 0
    n_left = np.broadcast_to(np.bincount(topic), fits.shape)[fits]
    cost[:, : len(topics)][fits] = rng.random(len(n_left)) / 2 - n_left
    chosen_slots, chosen_topics = linear_sum_assignment(cost)
    if (cost[chosen_slots, chosen_topics] >= _IMPOSSIBLE).any():
        detail = f"all of different topics, in {len(set(slots.tolist()))} question frames"
        raise _OutOfStimuliError(stimuli.CONTROL, len(slots), len(pool), detail)
    return rows[chosen_slots, chosen_topics]


def _interleave(
    stock: _Stock, on: Rows, off: Rows, n_blocks: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Shuffle the trials of each condition and cut them into blocks off, on, off, ..."""
    on, off = _shuffled(on, rng), _shuffled(off, rng)
    parts: list[Rows] = [np.empty(0, np.intp)] * (2 * n_blocks + 1)
    parts[1::2], parts[::2] = np.array_split(on, n_blocks), np.array_split(off, n_blocks + 1)
    trials = stock.table.iloc[np.concatenate(parts)].reset_index(drop=True)
    trials = trials.rename(columns={"task": "trial_type", "frame": "question_frame"})
    trials["block"] = np.repeat(np.arange(1, len(parts) + 1), [len(part) for part in parts])
    columns = ["trial_type", "block", "stim_id", "topic", "concept", "question_frame", "prompt"]
    return trials[[*columns, *(medium for medium in MEDIA if medium in trials)]]
