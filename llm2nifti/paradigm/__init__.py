"""What is shown when? Block designs: off, on, off, ..., on, off.

An on-block holds prompts of one task, an off-block control prompts from different topics. Question
frames are balanced between the two conditions in every run, and no prompt or concept is shown
twice in one experiment: shared controls alone would make the maps of two tasks alike.
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
from llm2nifti.paradigm.drawing import OutOfStimuliError, ParadigmError, Stock, draw

__all__ = ["T_R", "Paradigm", "ParadigmError", "blocks", "experiment", "rest"]

T_R = 1.0  # seconds a frame, by convention


@dataclass(frozen=True, eq=False)
class Paradigm:
    """One run: which prompt is shown when.

    Trials have one row each in the order shown: ``trial_type, block, stim_id, topic, concept,
    question_frame, prompt``, then ``image`` or ``audio`` where files are shown, measures of the
    prompts, and further columns of the stimuli.
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
    _check_sizes(sizes)
    trials = draw(Stock(table, used or ()), task, seed, n_blocks, trials_per_block)
    if used is not None:
        used.update(trials["concept"].str.casefold())
    return Paradigm(task, 1, n_frames, trials)


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

    Runs of a task have topics of their own, as far as these suffice: what repeats from one run to
    another is then the task's and not a topic's. Designs come run by run, all tasks within a run.
    ParadigmError says how many stimuli are needed if they run out.

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
    _check_sizes({"n_blocks": n_blocks, "trials_per_block": trials_per_block, "n_frames": n_frames})
    stock = Stock(table)
    stock.deal_topics(tasks, n_runs, seed)
    designs = {}
    for run, task in product(range(1, n_runs + 1), stock.hardest_first(tasks)):
        try:
            trials = draw(stock, task, seed * 1000 + run, n_blocks, trials_per_block, run=run)
        except OutOfStimuliError as error:
            n_sharing = len(tasks) if error.pool == stimuli.CONTROL else 1
            raise ParadigmError(
                f"{error} in run {run} of {n_runs}: the whole experiment ({len(tasks)} tasks) "
                f"needs {error.n_needed * n_runs * n_sharing} of them, the set has "
                f"{len(stock.rows(error.pool))}. Use fewer runs, blocks or trials, or more stimuli"
            ) from None
        designs[run, task] = Paradigm(task, run, n_frames, trials)
    return [designs[key] for key in product(range(1, n_runs + 1), tasks)]


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
