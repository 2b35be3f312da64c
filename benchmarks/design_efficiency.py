"""How do repeatability and identification grow with trials and with frames a trial?

Uses the development split only. Run from the repository root:

    python benchmarks/design_efficiency.py > docs/design-efficiency-table.md

Two runs of 48 task and 64 control trials a task are recorded with 16 frames; smaller designs are
drawn from them, several times, with question frames as in the whole. Takes about 8 minutes.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from llm2nifti import glm, models, networks, paradigm, scanner, stimuli

N_FRAMES = (1, 2, 4, 8, 16)
N_TASK = (6, 12, 24, 48)
N_DRAWS = 2  # smaller designs drawn from the whole; the whole itself is one draw
PER_RUN = 48


def record(model, design):
    """Trial means over the first frames: {n_frames: (n_trials, n_units)}, and seconds taken."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        recording = scanner.scan(model, design, folder=Path(folder), on_trials=lambda _n: None)
        seconds = time.perf_counter() - start
        return {n: recording.by_trial()[:, :n].mean(axis=1) for n in N_FRAMES}, seconds


def draw(events, n_task, rng):
    """Rows of a smaller design: task and control in the same proportion, frame by frame."""
    keep = []
    for kind, n in (("on", n_task), ("control", n_task * 4 // 3)):
        rows = np.flatnonzero((events["trial_type"] == "control") == (kind == "control"))
        frames = events["question_frame"].to_numpy()[rows]
        order = rng.permutation(len(rows))
        rank = pd.Series(frames[order]).groupby(frames[order]).cumcount().to_numpy()
        keep += list(rows[order][np.argsort(rank, kind="stable")[:n]])
    return np.sort(keep)


def evaluate(values, designs, n_task, n_frames, rng):
    """Same-task r, cross-task r and trials named right, for one draw."""
    contrasts, trials = {}, []
    for key, design in designs.items():
        rows = draw(design.trials, n_task, rng)
        events = design.trials.iloc[rows].reset_index(drop=True)
        y = values[key][n_frames][rows]
        contrasts[key] = glm.run_contrast(y, events, f"{key[0]} - control")
        is_task = (events["trial_type"] != "control").to_numpy()
        frames = events["question_frame"].to_numpy(str)
        trials.append(networks.TrialSet(*key, y, is_task, frames, events["prompt"].to_list()))
    maps = {key: glm.t_map([contrast]) for key, contrast in contrasts.items()}
    same, cross = networks.same_and_cross(networks.matrix(maps))
    effects = {key: np.ravel(contrast.effect) for key, contrast in contrasts.items()}
    templates = {r: {t: effects[t, 3 - r] for t in networks.tasks_of(maps)} for r in (1, 2)}
    named = networks.name_trials(trials, templates)
    real = named.truth != named.tasks.index("randomstrings")
    accuracy = (named.truth == named.named)[real].mean()
    top = networks.matrix(networks.top_masks(maps), networks.dice)
    return same, cross, networks.same_and_cross(top)[0], accuracy


def seconds_a_trial(model, table):
    """Median seconds a trial at each number of frames, in turn."""
    times = {n: [] for n in N_FRAMES}
    for seed in range(3):
        for n in N_FRAMES:
            design = paradigm.blocks("pathology", n_frames=n, seed=seed, table=table)
            start = time.perf_counter()
            scanner.scan(model, design, on_trials=lambda _n: None)
            times[n].append((time.perf_counter() - start) / design.n_trials)
    return {n: float(np.median(t)) for n, t in times.items()}


def main():
    """Record, sweep, print a Markdown table."""
    model = models.load()
    table = stimuli.load(split="development")
    runs = paradigm.experiment(
        n_runs=2, n_blocks=4, trials_per_block=PER_RUN // 4, n_frames=max(N_FRAMES), table=table
    )
    designs = {(d.task, d.run): d for d in runs}
    values = {}
    for key, design in designs.items():
        values[key], seconds = record(model, design)
        print(f"{key}: {seconds:.0f} s", file=sys.stderr)
    rng = np.random.default_rng(0)
    cost = seconds_a_trial(model, table)
    print(
        "| task trials a run | frames a trial | s a trial | same-task r | cross-task r "
        "| Dice of the top 5 % | trials named right |"
    )
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for n_task in N_TASK:
        for n_frames in N_FRAMES:
            n_draws = N_DRAWS if n_task < PER_RUN else 1
            draws = [evaluate(values, designs, n_task, n_frames, rng) for _ in range(n_draws)]
            same, cross, top, accuracy = np.mean(draws, axis=0)
            print(
                f"| {n_task} | {n_frames} | {cost[n_frames]:.3f} | {same:.3f} | {cross:.3f} "
                f"| {top:.3f} | {accuracy:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
