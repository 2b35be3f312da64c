"""Which prompts does a run show? Draws from a stock of which nothing is shown twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llm2nifti import stimuli
from llm2nifti.media import MEDIA, medium_of
from llm2nifti.paradigm.matching import Candidates, Rows, match, reachable
from llm2nifti.stimuli.measures import MEASURES, with_lengths

MAX_OFF_RATIO = 1.5  # unequal variances bias the t test when the control is much larger
_LAST = 0.02  # what a topic's unused concepts are worth, beside squared standard deviations
_FOREIGN = 10_000  # trials that a topic of another run counts as, when topics are spread


class ParadigmError(ValueError):
    """A design cannot be made from these sizes and stimuli."""


class OutOfStimuliError(ParadigmError):
    """A pool of stimuli is too small for a run."""

    def __init__(self, pool: str, n_needed: int, n_left: int, detail: str) -> None:
        super().__init__(f"{pool!r} has {n_left} unused prompts, a run needs {n_needed} ({detail})")
        self.pool = pool
        self.n_needed = n_needed


class Stock:
    """Stimuli as numbers, made once for all runs of an experiment, and which of them are used.

    Concepts (upper and lower case alike), topics and question frames of all rows are numbered in
    the order of their names. Concepts that are marked in `used` may not be shown again.
    """

    def __init__(self, table: pd.DataFrame | None, used: Iterable[str] = ()) -> None:
        table = stimuli.load() if table is None else table
        table = table if medium_of(table) else with_lengths(table)
        self.table = table.reset_index(drop=True)
        self.rows_of: dict[str, Rows] = self.table.groupby("task", sort=False).indices
        columns = table["concept"].str.casefold(), table["topic"], table["frame"]
        numbered = [pd.factorize(column, sort=True) for column in columns]
        self.concepts, self.topics, self.frames = (numbers for numbers, _ in numbered)
        self.frame_names: list[str] = list(numbered[2][1])
        self.used: NDArray[np.bool_] = numbered[0][1].isin(list(used))
        self.run_of_topic = np.zeros(len(numbered[1][1]), int)  # 0: every run may show it

    def deal_topics(self, tasks: Sequence[str], n_runs: int, seed: int) -> None:
        """Give every run topics of its own, so that no two runs of a task share one."""
        for task in tasks:
            topics = np.unique(self.topics[self.rows(task)])
            if task != stimuli.CONTROL and len(topics) >= n_runs > 1:
                rng = np.random.default_rng([seed, *task.encode()])
                self.run_of_topic[rng.permutation(topics)] = np.arange(len(topics)) % n_runs + 1

    def rows(self, task: str, *, unused: bool = False) -> Rows:
        """Rows of a task, all or those whose concept may still be shown."""
        rows = self.rows_of.get(task, np.empty(0, np.intp))
        return rows[~self.used[self.concepts[rows]]] if unused else rows

    def conditions(self, task: str) -> list[str]:
        """Conditions of a task that has its own."""
        if "condition" not in self.table:
            return []
        names = self.table["condition"].iloc[self.rows(task)]
        return list(dict.fromkeys(name for name in names if name))

    def measures_of(self, task: str) -> dict[str, float]:
        """Measures that controls of a task are matched by, and how far all of its prompts are."""
        return reachable(self.table, MEASURES, self.rows(task), self.rows(stimuli.CONTROL))

    def hardest_first(self, tasks: Sequence[str]) -> list[str]:
        """Tasks in the order in which they choose controls: those far from the control first."""
        far = {task: max(map(abs, self.measures_of(task).values()), default=0) for task in tasks}
        return sorted(tasks, key=lambda task: -far[task])

    def pool(self, rows: Rows, names: Iterable[str]) -> Candidates:
        """Question frames, topics and these measures of rows."""
        values = self.table[list(names)].to_numpy(float)[rows]
        return Candidates(self.frames[rows], self.topics[rows], values)

    def levels(self, rows: Rows) -> list[int]:
        """Question frames of these rows; none where they have none."""
        return [i for i in np.unique(self.frames[rows]).tolist() if self.frame_names[i]]


def draw(
    stock: Stock, task: str, seed: int, n_blocks: int, trials_per_block: int, *, run: int = 0
) -> pd.DataFrame:
    """Draw the trials of one run from what is unused; what they show is marked as used.

    Parameters
    ----------
    stock, task : Stock, str
        What there is, and the task to show.
    seed : int
        Seed of the choice and order of trials.
    n_blocks, trials_per_block : int
        On-blocks, and the trials of one.
    run : int
        Number of the run, if topics were dealt to runs.
    """
    tasks = [name for name in stock.rows_of if name != stimuli.CONTROL]
    if task not in tasks:
        raise ParadigmError(f"no task {task!r} in the stimuli; there are {', '.join(tasks)}")
    conditions = stock.conditions(task)
    if len(conditions) > 1:
        raise ParadigmError(
            f"task {task!r} has conditions of its own ({', '.join(conditions)}), which blocks "
            "against the control would mix; put the prompts of one into a table of your own"
        )
    rng = np.random.default_rng([seed, *task.encode()])
    n_on = n_blocks * trials_per_block
    control = stock.rows(stimuli.CONTROL, unused=True)
    levels = stock.levels(stock.rows(task))
    control_levels = levels or stock.levels(control)
    n_off = _n_off(n_on, n_blocks, trials_per_block, len(control_levels))
    # Every question frame equally often, give or take one; without any, all have the first: no name
    on = _draw_task(stock, task, np.resize(levels or [0], n_on), rng, run)
    control = control[~np.isin(stock.concepts[control], stock.concepts[on])]
    slots = np.resize(control_levels or [0], n_off)
    measures = stock.measures_of(task)
    off = _draw_control(stock, on, control, slots, rng, measures=measures)
    stock.used[stock.concepts[np.r_[on, off]]] = True
    return _interleave(stock, on, off, n_blocks, rng)


def _shuffled(rows: Rows, rng: np.random.Generator) -> Rows:
    """Rows in random order."""
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


def _draw_task(stock: Stock, task: str, slots: Rows, rng: np.random.Generator, run: int) -> Rows:
    """One unused concept of each slot's question frame, topics as evenly spread as possible.

    Topics of other runs come last.
    """
    pool = _shuffled(stock.rows(task, unused=True), rng)
    frames, topics, concepts = (of[pool] for of in (stock.frames, stock.topics, stock.concepts))
    is_left = np.ones(len(pool), bool)
    is_foreign = (stock.run_of_topic != 0) & (stock.run_of_topic != run)
    n_shown = np.where(is_foreign, _FOREIGN, 0)  # of each topic
    taken = []
    for frame in slots:
        fits = np.flatnonzero(is_left & (frames == frame))
        if not len(fits):
            name = stock.frame_names[frame]
            n_same = int((slots == frame).sum())
            detail = f"{n_same} in question frame {name!r}" if name else "any"
            raise OutOfStimuliError(task, len(slots), len(pool), detail)
        best = fits[n_shown[topics[fits]].argmin()]
        taken.append(pool[best])
        is_left &= concepts != concepts[best]
        n_shown[topics[best]] += 1
    return np.array(taken)


def _draw_control(
    stock: Stock,
    on: Rows,
    pool: Rows,
    slots: Rows,
    rng: np.random.Generator,
    *,
    measures: Iterable[str],
) -> Rows:
    """One unused concept a slot, all from different topics, matched to the task's prompts.

    Of controls that match equally well, those of topics with many unused concepts go first, so that
    they last.
    """
    pool = _shuffled(pool, rng)
    _, first = np.unique(stock.concepts[pool], return_index=True)
    pool = pool[np.sort(first)]
    target, offered = (stock.pool(rows, measures) for rows in (on, pool))
    n_left = np.bincount(offered.topics)[offered.topics]
    costs = _LAST * (rng.random((len(slots), len(pool))) / 2 - n_left)
    chosen = match(target, slots, offered, costs)
    if chosen is None:
        detail = f"all of different topics, in {len(set(slots.tolist()))} question frames"
        raise OutOfStimuliError(stimuli.CONTROL, len(slots), len(pool), detail)
    return pool[chosen]


def _interleave(
    stock: Stock, on: Rows, off: Rows, n_blocks: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Shuffle the trials of each condition and cut them into blocks off, on, off, ..."""
    on, off = _shuffled(on, rng), _shuffled(off, rng)
    parts: list[Rows] = [np.empty(0, np.intp)] * (2 * n_blocks + 1)
    parts[1::2], parts[::2] = np.array_split(on, n_blocks), np.array_split(off, n_blocks + 1)
    trials = stock.table.iloc[np.concatenate(parts)].reset_index(drop=True)
    trials = trials.rename(columns={"task": "trial_type", "frame": "question_frame"})
    trials["block"] = np.repeat(np.arange(1, len(parts) + 1), [len(part) for part in parts])
    columns = ["trial_type", "block", "stim_id", "topic", "concept", "question_frame", "prompt"]
    more = [name for name in trials if name not in (*columns, *MEDIA, "split")]
    return trials[[*columns, *(medium for medium in MEDIA if medium in trials), *more]]
