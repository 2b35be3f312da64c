"""What do the benchmarks share? The design, the clock, the statistics and the machine.

Two ways are timed in turn, in pairs, so that a slow spell of the machine hits both; what is
reported is the median of the pairs' ratio with its exact interval.
"""

from __future__ import annotations

import gc
import os
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import transformers
from scipy.stats import quantile_test

from llm2nifti import paradigm, stimuli
from llm2nifti.defaults import N_BLOCKS

TASK = "pathology"
N_OF_TASK = 64  # prompts of one task and its control; more come from further tasks
N_PAIRS = 20
TOLERANCE = 1e-4  # relative L2 error of one site in one frame, float32


def draw_design(n_trials, n_frames):
    """Paradigm of exactly `n_trials`, none twice, spread evenly over the blocks of a run a task.

    There are 64 for each of five tasks; exit if more are asked for.
    """
    others = [task for task in stimuli.TASKS if task not in (TASK, stimuli.WORDLESS)]
    tasks = [TASK, *others][: -(-n_trials // N_OF_TASK)]
    per_block = max(2, -(-min(n_trials, N_OF_TASK) // (2 * N_BLOCKS)))
    how, used = {"trials_per_block": per_block, "n_frames": n_frames}, set()
    runs = [paradigm.blocks(task, used=used, **how) for task in tasks]
    whole = replace(runs[0], trials=pd.concat([run.trials for run in runs], ignore_index=True))
    if whole.n_trials < n_trials:
        sys.exit(f"{n_trials} prompts are asked for, and there are {whole.n_trials}")
    rows = np.linspace(0, whole.n_trials - 1, n_trials).round().astype(int)
    return take_trials(whole, rows)


def take_trials(design, rows):
    """Paradigm of some trials of another, in this order; a trial may come again."""
    return replace(design, trials=design.trials.iloc[rows].reset_index(drop=True))


def by_trial(recording):
    """(n_trials, n_frames, n_units) values, in whichever shape the recording keeps them."""
    if hasattr(recording, "by_trial"):
        return recording.by_trial()
    return recording.values


def tokens_of(recording):
    """Token ids of every trial."""
    n_frames = recording.paradigm.n_frames
    return recording.tokens["token_id"].to_numpy().reshape(-1, n_frames).tolist()


def worst_error(recording, values, sites):
    """Largest relative L2 error of one site in one frame, against {module: array}; may exit."""
    ours, worst = by_trial(recording), 0.0
    for site in sites:
        part = ours[:, :, recording.brain.slice_of(site)]
        theirs = np.asarray(values[site.module]).reshape(part.shape)
        errors = np.linalg.norm(part - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1)
        worst = max(worst, float(errors.max()))
    if not worst <= TOLERANCE:  # also if it is not a number
        sys.exit(f"the recorders disagree: relative L2 error {worst:.1e} > {TOLERANCE:.0e}")
    return worst


def seconds_a_frame(run, pair):
    """Wall time of one run over its frames; what it returns is freed after the clock stops."""
    gc.collect()
    start = time.perf_counter()
    n_frames, _result = run(pair)
    return (time.perf_counter() - start) / n_frames


def race(label, first, second, n_pairs, *, before=lambda: None):
    """Seconds a frame, (n_pairs, 2), of two ways in turn; every other pair in reverse order.

    What `before` does comes before every run and is not timed.
    """
    seconds = np.empty((n_pairs, 2))
    for pair in range(n_pairs):
        runs = [(0, first), (1, second)]
        for column, run in runs if pair % 2 == 0 else reversed(runs):
            before()
            seconds[pair, column] = seconds_a_frame(run, pair)
        a, b = 1 / seconds[pair]
        print(f"({label}) pair {pair + 1}/{n_pairs}: {a:.1f}, {b:.1f} /s", file=sys.stderr)
    return seconds


def median_interval(ratios):
    """Median and its exact 95 % interval from order statistics; nan with fewer than 6 pairs."""
    interval = quantile_test(ratios, p=0.5).confidence_interval(0.95)
    return float(np.median(ratios)), float(interval.low), float(interval.high)


def judge(low, high, target, at_least):
    """Whether an interval excludes a target."""
    if np.isnan([low, high]).any():
        return "too few pairs"
    if at_least:
        reached, excluded = low >= target, high < target
    else:
        reached, excluded = high <= target, low > target
    if excluded:
        return "not met"
    return "met by the whole interval" if reached else "met: not excluded"


def describe_ratio(ratios, digits=3):
    """Median of the pairs' ratio with its interval, as text."""
    middle, low, high = median_interval(ratios)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def describe_machine(load):
    """Line that names the machine and the libraries."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return (
        f"Machine: {name}, {os.cpu_count()} cores, torch {torch.__version__} with "
        f"{torch.get_num_threads()} threads, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}; load average before the run {load:.2f}."
    )


def check_positive(parser, arguments):
    """Leave with a clear line if a number is below 1."""
    for name, value in vars(arguments).items():
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
