"""What is shown when? Blocks of a task and its control, trials in random order, localizers.

An on-block holds prompts of one task, an off-block control prompts from different topics. Question
frames are balanced between the two conditions in every run, and no prompt or concept is shown
twice in one experiment: shared controls alone would make the maps of two tasks alike. A task may
have conditions of its own instead, see `localizer` and `factorial`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llm2nifti import stimuli
from llm2nifti.defaults import N_BLOCKS, N_FRAMES, N_RUNS, TRIALS_PER_BLOCK
from llm2nifti.paradigm.conditions import (
    Order,
    OutOfStimuliError,
    ParadigmError,
    Task,
    conditions_of,
)
from llm2nifti.paradigm.drawing import Stock, draw

__all__ = [
    "T_R",
    "Order",
    "Paradigm",
    "ParadigmError",
    "Task",
    "blocks",
    "conditions_of",
    "event_related",
    "experiment",
    "factorial",
    "localizer",
    "mixed",
    "rest",
]

T_R = 1.0  # seconds a frame, by convention


@dataclass(frozen=True, eq=False)
class Paradigm:
    """One run: which prompt is shown when.

    Trials have one row each in the order shown: ``trial_type, block, stim_id, topic, concept,
    question_frame, prompt``, then ``image`` or ``audio`` where files are shown, measures of the
    prompts, and further columns of the stimuli. Where a task has conditions of its own, ``role``
    says which are the ``task`` and which its ``control``; in mixed designs, ``sustained`` is 1
    within blocks that hold the task.
    """

    task: str  #: name of the on-condition
    run: int  #: number of the run, from 1
    n_frames: int  #: frames a trial: generated tokens
    trials: pd.DataFrame
    t_r: float = T_R  #: seconds a frame
    frame_counts: tuple[int, ...] | None = None  #: of each trial, where what is read differs
    order: Order = "blocks"  #: of the trials

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
        sides = self.trials["role" if "role" in self.trials else "trial_type"]
        n_on = int((sides != stimuli.CONTROL).sum())
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
    _check_sizes(sizes)
    trials = draw(Stock(table, used or ()), Task(task), seed, n_blocks, trials_per_block)
    if used is not None:
        used.update(trials["concept"].str.casefold())
    return Paradigm(task, 1, n_frames, trials)


def event_related(
    task: str,
    *,
    n_trials: int = N_BLOCKS * TRIALS_PER_BLOCK,
    n_frames: int = N_FRAMES,
    seed: int = 0,
    table: pd.DataFrame | None = None,
) -> Paradigm:
    """Design one run without blocks: trials of the task and of its control in random order.

    Parameters
    ----------
    task, n_frames, seed, table
        See `blocks`.
    n_trials : int, default=24
        Trials of the task, or of each of its own conditions.

    Examples
    --------
    >>> event_related("pathology", n_trials=8)
    Paradigm: task pathology, run 1, 8 task and 8 control trials of 8 frames in 10 blocks
    """
    asked = Task(task, order="events")
    return _one_run(asked, (1, n_trials), n_frames=n_frames, seed=seed, table=table)


def mixed(
    task: str,
    *,
    n_blocks: int = N_BLOCKS,
    trials_per_block: int = TRIALS_PER_BLOCK,
    n_frames: int = N_FRAMES,
    seed: int = 0,
    table: pd.DataFrame | None = None,
) -> Paradigm:
    """Design one run in which blocks of controls alone take turns with blocks of both conditions.

    Column ``sustained`` tells the blocks apart: as a covariate, it is what lasts through a block.
    There should be nothing, because a model reads every prompt afresh.

    Parameters
    ----------
    task, n_blocks, trials_per_block, n_frames, seed, table
        See `blocks`; `trials_per_block` are those of the task.

    Examples
    --------
    >>> mixed("pathology", n_blocks=2, trials_per_block=4)
    Paradigm: task pathology, run 1, 8 task and 8 control trials of 8 frames in 5 blocks
    """
    asked, sizes = Task(task, order="mixed"), (n_blocks, trials_per_block)
    return _one_run(asked, sizes, n_frames=n_frames, seed=seed, table=table)


def localizer(
    task: str,
    conditions: Sequence[str] = (),
    *,
    n_blocks: int = N_BLOCKS,
    trials_per_block: int = TRIALS_PER_BLOCK,
    n_frames: int = N_FRAMES,
    seed: int = 0,
    table: pd.DataFrame | None = None,
) -> Paradigm:
    """Design one run that compares conditions of a task, such as sentences and nonwords.

    Where the stimuli have a column ``pair``, both members of a minimal pair are shown, and
    `llm2nifti.glm.fit` tests their differences.

    Parameters
    ----------
    task : str
        A task whose stimuli have a column ``condition``.
    conditions : sequence of str
        Those to show, that of interest first; the others are its control. By default what the
        bundled localizers compare, and all of other tables.
    n_blocks, trials_per_block, n_frames, seed, table
        See `blocks`; blocks are those of each condition.

    Examples
    --------
    >>> table = stimuli.load(tasks=["language"])
    >>> localizer("language", n_blocks=2, trials_per_block=4, table=table)
    Paradigm: task language, run 1, 8 task and 8 control trials of 8 frames in 4 blocks
    """
    asked, sizes = Task(task, conditions=tuple(conditions)), (n_blocks, trials_per_block)
    return _one_run(asked, sizes, n_frames=n_frames, seed=seed, table=table)


def factorial(
    task: str,
    factors: Sequence[str],
    *,
    n_blocks: int = N_BLOCKS,
    trials_per_block: int = TRIALS_PER_BLOCK,
    n_frames: int = N_FRAMES,
    seed: int = 0,
    table: pd.DataFrame,
) -> Paradigm:
    """Design one run of all combinations of factors, such as animacy and tense.

    The name of a factor with two levels is a contrast: that of its main effect. ``animacy:tense``
    is the interaction.

    Parameters
    ----------
    task : str
        A task of the table.
    factors : sequence of str
        Columns of the table. Conditions with the first level of the first one are the task, the
        others its control.
    n_blocks, trials_per_block, n_frames, seed, table
        See `blocks`; blocks are those of each combination.
    """
    asked, sizes = Task(task, factors=tuple(factors)), (n_blocks, trials_per_block)
    return _one_run(asked, sizes, n_frames=n_frames, seed=seed, table=table)


def _one_run(
    task: Task, sizes: tuple[int, int], *, n_frames: int, seed: int, table: pd.DataFrame | None
) -> Paradigm:
    """Design the only run of an experiment."""
    shape = dict(zip(("n_blocks", "trials_per_block"), sizes, strict=True))
    (run,) = experiment([task], n_runs=1, n_frames=n_frames, seed=seed, table=table, **shape)
    return run


def experiment(
    tasks: Sequence[str | Task] = stimuli.TASKS,
    *,
    n_runs: int = N_RUNS,
    n_blocks: int = N_BLOCKS,
    trials_per_block: int = TRIALS_PER_BLOCK,
    n_frames: int = N_FRAMES,
    seed: int = 0,
    table: pd.DataFrame | None = None,
) -> list[Paradigm]:
    """Design all runs of an experiment, so that no two of them share a prompt or a concept.

    Runs of a task have topics of their own, as far as these suffice: what repeats from one run to
    another is then the task's and not a topic's. Designs come run by run, all tasks within a run.
    ParadigmError says how many stimuli are needed if they run out.

    Parameters
    ----------
    tasks : sequence of str or Task
        Tasks, of which each gets `n_runs` runs; a `Task` says how these are designed.
    n_runs, n_blocks, trials_per_block, n_frames, seed, table
        See `blocks`.
    """
    if seed < 0:
        raise ParadigmError(f"seed is {seed}; it must be 0 or more")
    if n_runs < 1:
        raise ParadigmError(f"n_runs is {n_runs}; it must be at least 1")
    asked = {}
    for task in tasks:
        one = Task(task) if isinstance(task, str) else task
        if one.name in asked:
            raise ParadigmError(f"task {one.name!r} is given twice; name each task once")
        asked[one.name] = one
    _check_sizes({"n_blocks": n_blocks, "trials_per_block": trials_per_block, "n_frames": n_frames})
    stock = Stock(table)
    against_control = [name for name, task in asked.items() if not stock.own(task)]
    stock.deal_topics(against_control, n_runs, seed)
    stock.spare_controls(n_runs * len(against_control), n_blocks, trials_per_block)
    # The others last: they take nothing from the control.
    order = sorted(asked, key=[*stock.hardest_first(against_control), *asked].index)
    designs = {}
    for run, name in product(range(1, n_runs + 1), order):
        try:
            trials = draw(
                stock, asked[name], seed * 1000 + run, n_blocks, trials_per_block, run=run
            )
        except OutOfStimuliError as error:
            n_sharing = len(against_control) if error.pool == stimuli.CONTROL else 1
            raise ParadigmError(
                f"{error} in run {run} of {n_runs}: the whole experiment ({len(asked)} tasks) "
                f"needs {error.n_needed * n_runs * n_sharing} of them, the set has {error.n_all}. "
                "Use fewer runs, blocks or trials, or more stimuli"
            ) from None
        designs[run, name] = Paradigm(name, run, n_frames, trials, order=asked[name].order)
    return [designs[key] for key in product(range(1, n_runs + 1), asked)]


def _check_sizes(sizes: dict[str, int]) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ParadigmError(f"{name} is {value}; it must be at least 1")


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
