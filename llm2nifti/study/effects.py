"""Intervene with every network and gather what that does; what is done is kept, and resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm2nifti.networks import Network, dissociation
from llm2nifti.progress import track
from llm2nifti.study.bench import Bench
from llm2nifti.study.conditions import LESIONS, Condition, kinds
from llm2nifti.study.evaluations import Evaluations, hash_texts


def sweep(
    bench: Bench,
    conditions: Sequence[Condition],
    evaluations: Evaluations,
    *,
    quiet: bool = False,
) -> None:
    """Do every evaluation that is not there yet.

    Parameters
    ----------
    bench : Bench
        The model.
    conditions : sequence of Condition
        How to lesion.
    evaluations : Evaluations
        Where the changes go.
    quiet : bool, default=False
        Show no progress bar.
    """
    for condition in conditions:
        bench.check(condition)
    todo = list(_plan(bench, conditions))
    label = f"{_verb(conditions[0])} sub-{bench.session.subject}"
    for condition, fold, name, kind in track(todo, label, unit="text set", quiet=quiet):
        key = key_of(bench, condition, fold, name, kind)
        if key not in evaluations:
            evaluations.add(key, bench.change(condition, name, fold, kind))


def is_measured(bench: Bench, condition: Condition, evaluations: Evaluations) -> bool:
    """Whether every evaluation of a condition is there."""
    return all(
        key_of(bench, how, fold, name, kind) in evaluations
        for how, fold, name, kind in _plan(bench, [condition])
    )


def _verb(condition: Condition) -> str:
    """What is done."""
    return "steer" if condition.mode == "steer" else "lesion"


def _plan(
    bench: Bench, conditions: Sequence[Condition]
) -> Iterator[tuple[Condition, int, str, str]]:
    """Evaluations of one model: fold by fold, because control trials are kept of one fold."""
    for condition in conditions:
        for fold in bench.folds:
            for name in bench.names:
                for kind in kinds(condition, bench.sizes):
                    yield condition, fold, name, kind


def key_of(bench: Bench, condition: Condition, fold: int, name: str, kind: str) -> str:
    """Name of one evaluation; two masks of one name have two.

    Parameters
    ----------
    bench : Bench
        The model.
    condition, fold, name, kind
        See `llm2nifti.study.bench.Bench.network`.
    """
    how = [getattr(condition, field) for field in ("sites", "mode", "share", "strength")]
    spared = ["spare template"] * condition.spare_template
    given = [_digest(bench.given[name])] if name in bench.given else []
    return json.dumps([bench.session.subject, *how, *spared, *given, fold, name, kind])


def results(bench: Bench, condition: Condition, evaluations: Evaluations) -> dict[str, Any]:
    """Effects of one condition in one model.

    Returns
    -------
    dict
        ``effects[network][task]`` (see `llm2nifti.networks.dissociation.effect`) and, where there
        are networks of 2 or more tasks, ``selectivity`` and ``double_dissociations``.
    """
    changes = [_changes(bench, condition, name, evaluations) for name in bench.names]
    seed = bench.sizes.seed
    out: dict[str, Any] = {
        **asdict(condition),
        "sites": list(condition.sites),
        "effects": {
            c.network: {task: dissociation.effect(c, task, seed=seed) for task in c.lesion}
            for c in changes
        },
    }
    if not bench.given and len(changes) > 1:
        out["selectivity"] = dissociation.selectivity(changes, seed=seed)
        if condition.mode in LESIONS:
            out["double_dissociations"] = dissociation.double_dissociations(changes, seed=seed)
    return out


def _changes(
    bench: Bench, condition: Condition, name: str, evaluations: Evaluations
) -> dissociation.Changes:
    """Changes of one network's lesions, the texts of all folds together."""

    def of(kind: str) -> dict[str, NDArray[np.float64]]:
        folds: list[Mapping[str, Sequence[float]]] = [
            evaluations[key_of(bench, condition, fold, name, kind)] for fold in bench.folds
        ]
        return {task: np.concatenate([f[task] for f in folds]) for task in folds[0]}

    random = [of(f"random{i}") for i in range(bench.sizes.n_random)]
    stacked = {task: np.stack([r[task] for r in random]) for task in random[0]}
    bottom = of("bottom") if "bottom" in kinds(condition, bench.sizes) else {}
    return dissociation.Changes(name, of("lesion"), stacked, bottom)


def evaluations_of(folder: Path, bench: Bench, kind: str, *, overwrite: bool) -> Evaluations:
    """Evaluations of one model that are kept beside the results, or a new file for them.

    Parameters
    ----------
    folder : Path
        Where the results are.
    bench : Bench
        The model.
    kind : str
        Stem of the results' file, such as ``lesion``.
    overwrite : bool
        Start anew.

    Raises
    ------
    StudyError
        If they were made with other settings.
    """
    settings = {
        "sizes": asdict(bench.sizes),
        "weights": bench.session.model["WeightsHash"],
        "runs": [[run.task, run.run] for run in bench.session],
        "texts": hash_texts(bench.session),
        "space": bench.brain.space,
    }
    path = folder / f"sub-{bench.session.subject}_{kind}_evaluations.jsonl"
    return Evaluations(path, settings, overwrite=overwrite)


def _digest(network: Network) -> str:
    """What tells a network from another of the same name."""
    return hashlib.sha256(network.signs.tobytes()).hexdigest()
