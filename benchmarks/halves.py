"""How alike are the maps of two halves of a dataset, which share no topic of a task?

    llm2nifti run ds
    python benchmarks/halves.py ds

Runs of a task have topics of their own: whole runs take turns, and the topics of an odd last run
are dealt to both halves, as are its controls.
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd

from llm2nifti import bids, glm, networks

SHARES = (0.01, 0.05)


def half(runs: bids.Session, which: int) -> np.ndarray:
    """(n_units,) t of one half."""
    contrasts = []
    for i, run in enumerate(runs):
        contrast, values, events = f"{run.task} - {glm.CONTROL}", run.values(), run.events
        if len(runs) % 2 and i == len(runs) - 1:
            keep = part(events, which)
            values, events = values[keep], events[keep].reset_index(drop=True)
        elif i % 2 != which:
            continue
        contrasts.append(glm.run_contrast(values, events, contrast))
    return glm.t_map(contrasts)


def part(events: pd.DataFrame, which: int) -> np.ndarray:
    """(n_trials,) trials of a run that belong to one half."""
    is_on = (events["trial_type"] != glm.CONTROL).to_numpy()
    topics = sorted(set(events["topic"][is_on]))[which::2]
    keep = is_on & events["topic"].isin(topics).to_numpy()
    keep[np.flatnonzero(~is_on)[which::2]] = True
    return keep


def main(folder: str) -> None:
    """Print a Markdown table."""
    session = bids.session(folder)
    print("| task | r | " + " | ".join(f"Dice of the top {s:.0%}" for s in SHARES) + " |")
    print("|---|--:|" + "--:|" * len(SHARES))
    rows = []
    for task in session.tasks:
        first, second = (half(session.of(task), which) for which in (0, 1))
        row = [float(np.corrcoef(first, second)[0, 1])]
        for share in SHARES:
            tops = networks.top_masks({(task, 1): first, (task, 2): second}, share)
            row.append(float(networks.dice(tops[task, 1][None], tops[task, 2][None])[0, 0]))
        rows.append(row)
        print(f"| {task} | " + " | ".join(f"{value:.2f}" for value in row) + " |")
    print("| mean | " + " | ".join(f"{value:.2f}" for value in np.mean(rows, axis=0)) + " |")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
