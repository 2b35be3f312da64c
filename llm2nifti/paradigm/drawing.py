"""Which prompts does a run show? Draws from a stock of which nothing is shown twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llm2nifti import stimuli
from llm2nifti.media import MEDIA, medium_of
from llm2nifti.paradigm.conditions import (
    Order,
    OutOfStimuliError,
    ParadigmError,
    Task,
    choose,
    conditions_of,
    roles,
)
from llm2nifti.paradigm.matching import Candidates, Rows, match, reachable
from llm2nifti.paradigm.ordering import (
    Sequenced,
    alternating,
    in_random_order,
    mixed,
    rotating,
    shuffled,
)
from llm2nifti.stimuli.measures import MEASURES, with_lengths

MAX_OFF_RATIO = 1.5  # unequal variances bias the t test when the control is much larger
MIN_OFF_RATIO = 0.7  # fewer controls than that are not worth their match
_SCARCE = 2 / 3  # of the controls: where more are shown, what is left no longer matches
_LAST = 0.02  # what a topic's unused concepts are worth, beside squared standard deviations
_FOREIGN = 10_000  # trials that a topic of another run counts as, when topics are spread


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
        self.off_ratio = MAX_OFF_RATIO  # most control trials a task trial

    def spare_controls(self, n_designs: int, n_blocks: int, trials_per_block: int) -> None:
        """Show fewer controls, where as many as usual would leave too few to choose from."""
        if not n_designs or trials_per_block < 2:
            return
        n_shown = _SCARCE * len(self.rows(stimuli.CONTROL)) / n_designs
        ratio = n_shown / (n_blocks * trials_per_block)
        if n_shown < n_off_trials(n_blocks, trials_per_block) and ratio >= MIN_OFF_RATIO:
            self.off_ratio = min(1.0, ratio)

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

    def own(self, task: Task) -> dict[str, Rows]:
        """Rows of each of the task's own conditions; empty where it has the common control."""
        rows = self.rows(task.name)
        return {k: rows[v] for k, v in conditions_of(self.table.iloc[rows], task).items()}

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
    stock: Stock, task: Task, seed: int, n_blocks: int, trials_per_block: int, *, run: int = 0
) -> pd.DataFrame:
    """Draw the trials of one run from what is unused; what they show is marked as used.

    Parameters
    ----------
    stock, task : Stock, Task
        What there is, and the task to show.
    seed : int
        Seed of the choice and order of trials.
    n_blocks, trials_per_block : int
        On-blocks, and the trials of one.
    run : int
        Number of the run, if topics were dealt to runs.
    """
    tasks = [name for name in stock.rows_of if name != stimuli.CONTROL]
    if task.name not in tasks:
        raise ParadigmError(f"no task {task.name!r} in the stimuli; there are {', '.join(tasks)}")
    rng = np.random.default_rng([seed, *task.name.encode()])
    by_condition = stock.own(task)
    if by_condition:
        trials = _draw_own(stock, task, by_condition, rng, (n_blocks, trials_per_block))
    else:
        on, off = _draw_both(stock, task.name, rng, (n_blocks, trials_per_block), run)
        trials = _table(stock, _ordered(task.order, on, off, n_blocks, rng))
    stock.used[stock.concepts[stock.table["stim_id"].isin(trials["stim_id"])]] = True
    return trials


def _draw_own(
    stock: Stock,
    task: Task,
    by_condition: dict[str, Rows],
    rng: np.random.Generator,
    sizes: tuple[int, int],
) -> pd.DataFrame:
    """As many unused prompts of each of the task's own conditions."""
    if task.order == "mixed":
        raise ParadigmError(
            f"task {task.name!r} has conditions of its own; a mixed design needs the common "
            "control: use order blocks or events"
        )
    n_blocks, trials_per_block = sizes
    unused = {k: rows[~stock.used[stock.concepts[rows]]] for k, rows in by_condition.items()}
    n_all = min(map(len, by_condition.values()))
    chosen = choose(stock.table, unused, n_blocks * trials_per_block, rng, (task.name, n_all))
    in_blocks = task.order == "blocks"
    shown = rotating(chosen, n_blocks, rng) if in_blocks else in_random_order(chosen, rng)
    trials = _table(stock, shown)
    names = pd.Series(np.repeat(list(by_condition), list(map(len, chosen))), np.concatenate(chosen))
    trials["trial_type"] = names[shown.rows].to_numpy()
    return trials.assign(role=trials["trial_type"].map(roles(list(by_condition), task)))


def _ordered(
    order: Order, on: Rows, off: Rows, n_blocks: int, rng: np.random.Generator
) -> Sequenced:
    """Task and control trials in the order of a design."""
    if order == "events":
        return in_random_order([on, off], rng)
    return (alternating if order == "blocks" else mixed)(on, off, n_blocks, rng)


def _draw_both(
    stock: Stock, task: str, rng: np.random.Generator, sizes: tuple[int, int], run: int
) -> tuple[Rows, Rows]:
    """Unused prompts of a task, and controls that are like them."""
    n_blocks, trials_per_block = sizes
    n_on = n_blocks * trials_per_block
    control = stock.rows(stimuli.CONTROL, unused=True)
    levels = stock.levels(stock.rows(task))
    control_levels = levels or stock.levels(control)
    n_off = n_off_trials(
        n_blocks, trials_per_block, n_levels=len(control_levels), ratio=stock.off_ratio
    )
    # Every question frame equally often, give or take one; without any, all have the first: no name
    on = _draw_task(stock, task, np.resize(levels or [0], n_on), rng, run)
    control = control[~np.isin(stock.concepts[control], stock.concepts[on])]
    slots = np.resize(control_levels or [0], n_off)
    return on, _draw_control(stock, on, control, slots, rng, measures=stock.measures_of(task))


def n_off_trials(
    n_blocks: int, trials_per_block: int, *, n_levels: int = 0, ratio: float = MAX_OFF_RATIO
) -> int:
    """Control trials of a run: off-blocks as long as on-blocks, within the allowed ratio.

    Where task trials fill every question frame equally often, so do control trials.
    """
    n_on = n_blocks * trials_per_block
    most = int(ratio * n_on)
    n_off = min(most, (n_blocks + 1) * trials_per_block)
    if n_levels and n_on % n_levels == 0:
        n_off = min(-(-n_off // n_levels), most // n_levels) * n_levels
    if n_off <= n_blocks:
        raise ParadigmError(
            f"{n_on} task trials allow {n_off} control trials (at most {ratio} a task "
            f"trial), too few for {n_blocks + 1} off-blocks; use more trials_per_block"
        )
    return n_off


def _draw_task(stock: Stock, task: str, slots: Rows, rng: np.random.Generator, run: int) -> Rows:
    """One unused concept of each slot's question frame, topics as evenly spread as possible.

    Topics of other runs come last.
    """
    pool = shuffled(stock.rows(task, unused=True), rng)
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
            n_all = len(stock.rows(task))
            raise OutOfStimuliError(task, len(slots), len(pool), n_all, detail)
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
    pool = shuffled(pool, rng)
    _, first = np.unique(stock.concepts[pool], return_index=True)
    pool = pool[np.sort(first)]
    target, offered = (stock.pool(rows, measures) for rows in (on, pool))
    n_left = np.bincount(offered.topics)[offered.topics]
    costs = _LAST * (rng.random((len(slots), len(pool))) / 2 - n_left)
    chosen = match(target, slots, offered, costs)
    if chosen is None:
        detail = f"all of different topics, in {len(set(slots.tolist()))} question frames"
        n_all = len(stock.rows(stimuli.CONTROL))
        raise OutOfStimuliError(stimuli.CONTROL, len(slots), len(pool), n_all, detail)
    return pool[chosen]


def _table(stock: Stock, shown: Sequenced) -> pd.DataFrame:
    """Trials in the order shown, with the columns of a `Paradigm`."""
    trials = stock.table.iloc[shown.rows].reset_index(drop=True)
    trials = trials.rename(columns={"task": "trial_type", "frame": "question_frame"})
    trials["block"] = shown.block
    if shown.sustained is not None:
        trials["sustained"] = shown.sustained
    columns = ["trial_type", "block", "stim_id", "topic", "concept", "question_frame", "prompt"]
    more = [name for name in trials if name not in (*columns, *MEDIA, "split")]
    return trials[[*columns, *(medium for medium in MEDIA if medium in trials), *more]]
