"""What is shown when? Block designs: off, on, off, ..., on, off.

An on-block holds prompts of one task, an off-block control prompts from different topics. Question
frames are balanced between the two conditions in every run, and no prompt or concept is shown
twice in one experiment: shared controls alone would make the maps of two tasks alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

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


class ParadigmError(ValueError):
    """A design cannot be made from these sizes and stimuli."""


@dataclass(frozen=True, eq=False)
class Paradigm:
    """One run: which prompt is shown when.

    Attributes
    ----------
    task : str
        Name of the on-condition.
    run : int
        Number of the run, from 1.
    n_frames : int
        Frames a trial: generated tokens.
    trials : DataFrame
        One row a trial in the order shown: ``trial_type, block, stim_id, topic, concept,
        question_frame, prompt``, and ``image`` or ``audio`` where files are shown.
    t_r : float
        Seconds a frame.
    frame_counts : tuple of int or None
        Frames of each trial where they differ: tokens or words of a stimulus that is read.
    """

    task: str
    run: int
    n_frames: int
    trials: pd.DataFrame
    t_r: float = T_R
    frame_counts: tuple[int, ...] | None = None

    @property
    def counts(self) -> NDArray[np.int64]:
        """(n_trials,) frames of each trial."""
        if self.frame_counts is not None:
            return np.array(self.frame_counts, np.int64)
        return np.full(self.n_trials, self.n_frames, np.int64)

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
    """Design one run of one task.

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

    Returns
    -------
    Paradigm

    Raises
    ------
    ParadigmError
        If a size is not positive, the task is unknown, or the stimuli run out.

    Examples
    --------
    >>> blocks("pathology", n_blocks=2, trials_per_block=4)
    Paradigm: task pathology, run 1, 8 task and 8 control trials of 8 frames in 5 blocks
    """
    sizes = {"n_blocks": n_blocks, "trials_per_block": trials_per_block, "n_frames": n_frames}
    for name, value in sizes.items():
        if value < 1:
            raise ParadigmError(f"{name} is {value}; it must be at least 1")
    table = (stimuli.load() if table is None else table).reset_index(drop=True)
    used = set() if used is None else used
    pools = {
        kind: table[(table["task"] == kind) & ~table["concept"].str.casefold().isin(used)]
        for kind in (task, stimuli.CONTROL)
    }
    _check_task(task, table)
    rng = np.random.default_rng([seed, *task.encode()])
    levels = sorted(set(table.loc[table["task"] == task, "frame"]) - {""})
    control_levels = levels or sorted(set(pools[stimuli.CONTROL]["frame"]) - {""})
    n_on = n_blocks * trials_per_block
    n_off = _n_off(n_on, n_blocks, trials_per_block, len(control_levels))
    on = _draw_task(pools[task], _frame_slots(n_on, levels), rng, task)
    control = pools[stimuli.CONTROL]
    control = control[~control["concept"].str.casefold().isin(on["concept"].str.casefold())]
    off = _draw_control(control, _frame_slots(n_off, control_levels), rng)
    used.update(on["concept"].str.casefold(), off["concept"].str.casefold())
    return Paradigm(task, 1, n_frames, _interleave(on, off, n_blocks, rng))


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

    Parameters
    ----------
    tasks : sequence of str
        Tasks; each gets `n_runs` runs.
    n_runs, n_blocks, trials_per_block, n_frames, seed, table
        See `blocks`.

    Returns
    -------
    list of Paradigm
        Run by run, all tasks within a run.

    Raises
    ------
    ParadigmError
        If the stimuli run out: the message says how many are needed.
    """
    if seed < 0:
        raise ParadigmError(f"seed is {seed}; it must be 0 or more")
    if n_runs < 1:
        raise ParadigmError(f"n_runs is {n_runs}; it must be at least 1")
    twice = [task for i, task in enumerate(tasks) if task in tasks[:i]]
    if twice:
        raise ParadigmError(f"task {twice[0]!r} is given twice; name each task once")
    table = stimuli.load() if table is None else table
    used: set[str] = set()
    designs = []
    for run in range(1, n_runs + 1):
        for task in tasks:
            try:
                design = blocks(
                    task,
                    n_blocks=n_blocks,
                    trials_per_block=trials_per_block,
                    n_frames=n_frames,
                    seed=seed * 1000 + run,
                    table=table,
                    used=used,
                )
            except _OutOfStimuliError as error:
                raise ParadigmError(
                    f"{error} in run {run} of {n_runs}: the whole experiment ({len(tasks)} tasks) "
                    f"needs {error.n_needed * n_runs * error.n_sharing(len(tasks))} of them, the "
                    f"set has {(table['task'] == error.pool).sum()}. Use fewer runs, blocks or "
                    "trials, or more stimuli"
                ) from None
            designs.append(replace(design, run=run))
    return designs


class _OutOfStimuliError(ParadigmError):
    """A pool of stimuli is too small for a run."""

    def __init__(self, pool: str, n_needed: int, n_left: int, detail: str) -> None:
        super().__init__(f"{pool!r} has {n_left} unused prompts, a run needs {n_needed} ({detail})")
        self.pool = pool
        self.n_needed = n_needed

    def n_sharing(self, n_tasks: int) -> int:
        """Number of tasks that draw from the same pool."""
        return n_tasks if self.pool == stimuli.CONTROL else 1


def _check_task(task: str, table: pd.DataFrame) -> None:
    """Raise unless the task is in the table and is not the control."""
    tasks = [name for name in table["task"].unique() if name != stimuli.CONTROL]
    if task not in tasks:
        raise ParadigmError(f"no task {task!r} in the stimuli; there are {', '.join(tasks)}")


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


def _frame_slots(n_trials: int, levels: Sequence[str]) -> list[str]:
    """Question frame of each trial: every level equally often, give or take one."""
    if not levels:
        return [""] * n_trials
    return [levels[i % len(levels)] for i in range(n_trials)]


def _draw_task(
    pool: pd.DataFrame, slots: Iterable[str], rng: np.random.Generator, task: str
) -> pd.DataFrame:
    """One unused concept a slot, its topics as evenly spread as possible."""
    slots = list(slots)
    pool = pool.sample(frac=1, random_state=rng)
    taken: list[int] = []
    concepts: set[str] = set()
    n_topic: dict[str, int] = {}
    for frame in slots:
        fits = (pool["frame"] == frame) & ~pool["concept"].str.casefold().isin(concepts)
        if not fits.any():
            detail = f"{slots.count(frame)} in question frame {frame!r}" if frame else "any"
            raise _OutOfStimuliError(task, len(slots), len(pool), detail)
        rows = pool[fits]
        best = rows["topic"].map(n_topic).fillna(0).idxmin()
        taken.append(best)
        concepts.add(str(pool.at[best, "concept"]).casefold())
        n_topic[pool.at[best, "topic"]] = n_topic.get(pool.at[best, "topic"], 0) + 1
    return pool.loc[taken]


def _draw_control(
    pool: pd.DataFrame, slots: Iterable[str], rng: np.random.Generator
) -> pd.DataFrame:
    """One unused concept a slot, all from different topics.

    An assignment problem of slots to topics; topics with many unused concepts go first, so that
    they last.
    """
    slots = list(slots)
    pool = pool.sample(frac=1, random_state=rng)
    pool = pool[~pool["concept"].str.casefold().duplicated()]
    topics = sorted(pool["topic"].unique())
    left = pool.groupby("topic").size()
    cost = np.full((len(slots), max(len(topics), len(slots))), _IMPOSSIBLE)
    rows = {(r.topic, r.frame): r.Index for r in pool.itertuples()}
    for i, frame in enumerate(slots):
        for j, topic in enumerate(topics):
            if (topic, frame) in rows:
                cost[i, j] = -left[topic] + rng.random() / 2
    chosen_slots, chosen_topics = linear_sum_assignment(cost)
    if (cost[chosen_slots, chosen_topics] >= _IMPOSSIBLE).any():
        detail = f"all of different topics, in {len(set(slots))} question frames"
        raise _OutOfStimuliError(stimuli.CONTROL, len(slots), len(pool), detail)
    taken = [rows[topics[j], slots[i]] for i, j in zip(chosen_slots, chosen_topics, strict=True)]
    return pool.loc[taken]


def _interleave(
    on: pd.DataFrame, off: pd.DataFrame, n_blocks: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Shuffle the trials of each condition and cut them into blocks off, on, off, ..."""
    on, off = (rows.sample(frac=1, random_state=rng) for rows in (on, off))
    parts = []
    for block in range(2 * n_blocks + 1):
        rows, n_parts = (on, n_blocks) if block % 2 else (off, n_blocks + 1)
        index = np.array_split(np.arange(len(rows)), n_parts)[block // 2]
        parts.append(rows.iloc[index].assign(block=block + 1))
    trials = pd.concat(parts, ignore_index=True)
    trials = trials.rename(columns={"task": "trial_type", "frame": "question_frame"})
    columns = ["trial_type", "block", "stim_id", "topic", "concept", "question_frame", "prompt"]
    return trials[[*columns, *(medium for medium in MEDIA if medium in trials)]]
