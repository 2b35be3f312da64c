"""How do repeatability and naming depend on prompts, frames, sites, and on reading or generating?

Uses the development split only. Run from the repository root:

    python benchmarks/design_efficiency.py > docs/design-efficiency-table.md

Two runs of 48 task and 64 control trials a task are recorded once while the model generates 8
tokens and twice while it only reads, at all sites that are compared. Smaller designs are drawn from
these, several times, with question frames as in the whole. Takes about 15 minutes on two cores.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from llm2nifti import glm, models, networks, paradigm, scanner, stimuli
from llm2nifti.networks.naming import name_by_training, naming_curve

N_FRAMES = (1, 2, 4, 8)
N_TASK = (12, 24, 48)
N_DRAWS = 3  # smaller designs drawn from the whole; the whole itself is one draw
PER_RUN = 48
SITES = {
    "attn, mlp, resid (default)": ("attn", "mlp", "resid"),
    "resid": ("resid",),
    "attn, mlp": ("attn", "mlp"),
    "heads, mlp_hidden": ("heads", "mlp_hidden"),
    "all five": ("attn", "mlp", "resid", "heads", "mlp_hidden"),
}
DEFAULT = next(iter(SITES))
READ = {"read, mean of the prompt": "trial", "read, last token": "last"}
GENERATE = "generate, {} frames"
HEADINGS = (
    "same-task r",
    "cross-task r",
    "Dice of the top 1 %",
    "single prompts named right",
    "3 prompts named right",
)


def record(model, design):
    """Trial values by way of recording, (n_trials, n_units) each, and the model brain."""
    out = {}
    sites = ",".join(SITES["all five"])
    with tempfile.TemporaryDirectory() as folder:
        settings = scanner.Settings(sites=sites)
        how = {"settings": settings, "on_trials": lambda _n: None}
        recording = scanner.scan(model, design, folder=Path(folder), **how)
        for n in N_FRAMES:
            out[GENERATE.format(n)] = recording.by_trial()[:, :n].mean(axis=1)
    for name, frames in READ.items():
        settings = scanner.Settings(sites=sites, mode="read", frames=frames)
        how = {"settings": settings, "on_trials": lambda _n: None}
        out[name] = np.array(scanner.scan(model, design, **how).values)
    return out, recording.brain


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


def units_at(brain, sites: Sequence[str]) -> np.ndarray:
    """(n_units,) whether a unit is at one of some sites."""
    return np.concatenate([np.full(site.n_units, site.name in sites) for site in brain.sites])


def evaluate(values, designs, n_task, rng):
    """The five figures, for one draw; `values` by task and run."""
    contrasts, trials = {}, []
    for key, design in designs.items():
        rows = draw(design.trials, n_task, rng)
        events = design.trials.iloc[rows].reset_index(drop=True)
        y = values[key][rows]
        contrasts[key] = glm.run_contrast(y, events, f"{key[0]} - control")
        is_task = (events["trial_type"] != "control").to_numpy()
        texts = [events[name].to_numpy(str) for name in ("question_frame", "prompt", "topic")]
        frames, prompts, topics = texts
        trials.append(networks.TrialSet(*key, y, is_task, frames, prompts.tolist(), topics))
    maps = {key: glm.t_map([contrast]) for key, contrast in contrasts.items()}
    same, cross = networks.same_and_cross(networks.matrix(maps))
    top = networks.matrix(networks.top_masks(maps, 0.01), networks.dice)
    by_fold = [t for fold in (1, 2) for t in trials if t.run == fold]
    topics = np.concatenate([t.task_topics for t in by_fold])
    curve = naming_curve(name_by_training(trials), topics, sizes=(1, 3), n_boot=0)
    return same, cross, networks.same_and_cross(top)[0], curve[0].accuracy, curve[1].accuracy


def table(title, rows):
    """Print a Markdown table."""
    print(f"| {title} | " + " | ".join(HEADINGS) + " |")
    print("|---" + "|--:" * len(HEADINGS) + "|")
    for name, figures in rows:
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in figures) + " |", flush=True)
    print()


def main():
    """Record, sweep, print Markdown tables."""
    model = models.load()
    stock = stimuli.load(split="development")
    runs = paradigm.experiment(
        n_runs=2, n_blocks=4, trials_per_block=PER_RUN // 4, n_frames=max(N_FRAMES), table=stock
    )
    designs = {(d.task, d.run): d for d in runs}
    recorded = {}
    for key, design in designs.items():
        start = time.perf_counter()
        recorded[key], brain = record(model, design)
        print(f"{key}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    rng = np.random.default_rng(0)

    def figures(way, sites, n_task=24):
        units = units_at(brain, SITES[sites])
        values = {key: of_run[way][:, units] for key, of_run in recorded.items()}
        n_draws = N_DRAWS if n_task < PER_RUN else 1
        draws = [evaluate(values, designs, n_task, rng) for _ in range(n_draws)]
        return np.mean(draws, axis=0)

    ways = [GENERATE.format(n) for n in N_FRAMES] + list(READ)
    usual = GENERATE.format(8)
    table("task prompts a run", ((n, figures(usual, DEFAULT, n)) for n in N_TASK))
    table("how it is recorded", ((way, figures(way, DEFAULT)) for way in ways))
    table("sites", ((sites, figures(usual, sites)) for sites in SITES))


if __name__ == "__main__":
    main()
