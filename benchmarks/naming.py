"""Which way of naming prompts is best? Chosen by nested folds on the development split.

    llm2nifti run dsdev --split development --no-untrained
    python benchmarks/naming.py dsdev

Each run is held out in turn, with its topics. Inside the others, each of these is held out in turn,
and the way that names most prompts there names those of the run that was held out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression, RidgeClassifier

from llm2nifti import bids, glm, networks
from llm2nifti.experiments.identification.measure import trial_set
from llm2nifti.networks.naming import coordinates

Trials = Sequence[networks.TrialSet]
PENALTIES = (0.001, 0.01, 0.1, 1.0)


def ridge(penalty: float) -> Callable[[Trials, Trials], np.ndarray]:
    """Names by scikit-learn's ridge classifier."""
    return lambda training, held: learned(RidgeClassifier(alpha=penalty), training, held)


def logistic(penalty: float) -> Callable[[Trials, Trials], np.ndarray]:
    """Names by scikit-learn's logistic regression."""
    model = LogisticRegression(C=1 / penalty, max_iter=2000)
    return lambda training, held: learned(model, training, held)


def learned(model: Any, training: Trials, held: Trials) -> np.ndarray:
    """Names that a classifier of training prompts gives to those that are held out."""
    inside, outside = coordinates(training, held)
    model.fit(inside, truth(training))
    return model.predict(outside)


def templates(training: Trials, held: Trials) -> np.ndarray:
    """Names by the tasks' whitened effects."""
    tasks = sorted({t.task for t in training})
    effects = {
        task: sum(
            np.ravel(glm.run_contrast(t.values, events(t), f"{task} - control").effect)
            for t in training
            if t.task == task
        )
        for task in tasks
    }
    named = networks.name_trials([*training, *held], {held[0].run: effects})
    return np.array(named.tasks)[named.named]


def events(t: networks.TrialSet) -> pd.DataFrame:
    """Events of a run, as the design needs them."""
    kinds = np.where(t.is_task, t.task, "control")
    return pd.DataFrame({"trial_type": kinds, "question_frame": t.frames})


def truth(trials: Trials) -> np.ndarray:
    """(n,) task of every task prompt."""
    return np.array([t.task for t in trials for _ in range(int(t.is_task.sum()))])


WAYS = {
    "templates": templates,
    **{f"ridge, penalty {p:g}": ridge(p) for p in PENALTIES},
    **{f"logistic, penalty {p:g}": logistic(p) for p in PENALTIES},
}


def accuracy(way: str, training: Trials, held: Trials) -> float:
    """Share of held-out prompts that are named right."""
    return float((WAYS[way](training, held) == truth(held)).mean())


def main(folder: str) -> None:
    """Print Markdown tables."""
    trials = [trial_set(run) for run in bids.session(folder)]
    numbers = sorted({t.run for t in trials})
    chosen, outer = {}, {}
    for held in numbers:
        inside = [t for t in trials if t.run != held]
        outside = [t for t in trials if t.run == held]
        inner = {
            way: np.mean(
                [
                    accuracy(
                        way,
                        [t for t in inside if t.run != fold],
                        [t for t in inside if t.run == fold],
                    )
                    for fold in numbers
                    if fold != held
                ]
            )
            for way in WAYS
        }
        chosen[held] = max(inner, key=inner.get)
        outer[held] = {way: accuracy(way, inside, outside) for way in WAYS}
        print(f"run {held}: {chosen[held]}", file=sys.stderr)
    print("| way | " + " | ".join(f"run {n}" for n in numbers) + " | mean |")
    print("|---" + "|--:" * (len(numbers) + 1) + "|")
    for way in WAYS:
        row = [outer[n][way] for n in numbers]
        print(f"| {way} | " + " | ".join(f"{x:.3f}" for x in [*row, np.mean(row)]) + " |")
    nested = [outer[n][chosen[n]] for n in numbers]
    cells = [f"{x:.3f} ({chosen[n]})" for n, x in zip(numbers, nested, strict=True)]
    print("| chosen by the inner folds | " + " | ".join([*cells, f"{np.mean(nested):.3f}"]) + " |")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
