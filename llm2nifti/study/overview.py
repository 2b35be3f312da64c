"""How do the models and sessions of one dataset compare? Their numbers beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm2nifti import bids, geometry, networks
from llm2nifti.study.errors import StudyError
from llm2nifti.study.summary import Who, read_summary, update_summary

Maps = dict[tuple[str, int], NDArray]
WHOLE = 0  # number that stands for all runs of a task together


def compare_sessions(root: Path) -> dict[str, Any]:
    """Collect the numbers of all analysed sessions and compare their maps.

    Parameters
    ----------
    root : Path
        Root of a dataset whose sessions have all been analysed.

    Returns
    -------
    dict
        The content of the dataset's ``summary.json``: ``sessions`` (one entry each),
        ``between_sessions`` (one entry a pair with the same geometry) and ``versions``.

    Raises
    ------
    StudyError
        If a session has not been analysed.
    """
    summaries = {who: read_summary(root, who) for who in bids.analysed(root)}
    for who, summary in summaries.items():
        if "null" not in summary:
            name = "_".join(bids.folder_of(*who).parts)
            raise StudyError(f"{name} has not been analysed; run: llm2nifti run {root}")
    first = next(iter(summaries.values()))
    spaces: dict[str, dict[Who, bids.Session]] = {}
    for subject, label in summaries:
        session = bids.session(root, subject=subject, session=label)
        spaces.setdefault(session.brain.space, {})[subject, label] = session
    parts = {
        "sessions": [_numbers(who, summary) for who, summary in summaries.items()],
        "between_sessions": [row for space in spaces for row in _pairs(space, spaces[space])],
        "versions": first["versions"],
    }
    old = {key: None for key in read_summary(root) if key not in parts}
    return update_summary(root, **old, **parts)


def _numbers(who: Who, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of one session, taken from its own summary."""
    model, settings = summary["model"], summary["design"]["settings"]
    similarity, named = summary.get("similarity", {}), summary.get("identification", {})
    null = summary["null"]
    return {
        "subject": who[0],
        "session": who[1],
        "folder": bids.folder_of(*who).as_posix(),
        "model": model.get("Name", who[0]),
        "architecture": model.get("Architecture", "n/a"),
        "revision": model.get("Revision", "n/a"),
        "dtype": model.get("DType", "n/a"),
        "seed": settings.get("seed", "n/a"),
        "temperature": settings.get("temperature", "n/a"),
        "active": {task: numbers["share_active"] for task, numbers in summary["tasks"].items()},
        "rules": list(dict.fromkeys(n["threshold"] for n in summary["tasks"].values())),
        "same_task_r": similarity.get("same_task_r"),
        "cross_task_r": similarity.get("cross_task_r"),
        "trials_right": named.get("trials", {}).get("accuracy"),
        "chance": named.get("trials", {}).get("chance"),
        "null_below_05": null["relabelled"].get("below_05"),
        "pseudo_below_05": null["pseudo_tasks"].get("below_05"),
    }


def _pairs(space: str, sessions: Mapping[Who, bids.Session]) -> list[dict[str, Any]]:
    """Compare every two sessions that share a geometry."""
    if len(sessions) < 2:
        return []
    maps = {who: _maps(session) for who, session in sessions.items()}
    return [
        {
            "sessions": ["_".join(bids.folder_of(*who).parts) for who in pair],
            "space": space,
            **between(*(maps[who] for who in pair)),
        }
        for pair in combinations(sessions, 2)
    ]


def _maps(session: bids.Session) -> Maps:
    """T maps of a session as they are on disk, by task and run; `WHOLE` for all runs together."""
    out = {}
    for run in session:
        for number, only_run in ((run.run, True), (WHOLE, False)):
            img = bids.read_img(run.paths.stat_map("t", only_run=only_run))
            out[run.task, number] = geometry.from_img(run.brain, img)
    return out


def between(a: Maps, b: Maps) -> dict[str, float | None]:
    """Correlation of the maps of two sessions, averaged over tasks.

    Parameters
    ----------
    a, b : mapping of (task, run) to (n_units,) array
        T maps of each session; run 0 stands for all runs together.

    Returns
    -------
    dict
        ``same_prompts_r``: the same task, all runs together. ``same_task_r`` and ``cross_task_r``:
        the same and different tasks in different runs, which share no prompt; None where there is
        one run or one task.
    """
    tasks = [task for task in networks.tasks_of(a) if task in networks.tasks_of(b)]
    same_prompts = same = cross = float("nan")
    if tasks:
        same_prompts, _ = networks.same_and_cross(_matrix(a, b, tasks, WHOLE, WHOLE))
    matrices = [
        _matrix(a, b, tasks, r, s) for r, s in product(_runs(a, tasks), _runs(b, tasks)) if r != s
    ]
    if matrices:
        same, cross = networks.same_and_cross(np.mean(matrices, axis=0))
    figures = {"same_prompts_r": same_prompts, "same_task_r": same, "cross_task_r": cross}
    return {name: None if np.isnan(value) else value for name, value in figures.items()}


def _runs(maps: Maps, tasks: Sequence[str]) -> list[int]:
    """Runs that every one of the tasks has."""
    sets = [{run for name, run in maps if name == task} - {WHOLE} for task in tasks]
    return sorted(set.intersection(*sets)) if sets else []


def _matrix(a: Maps, b: Maps, tasks: Sequence[str], r: int, s: int) -> NDArray[np.float64]:
    """(n_tasks, n_tasks) similarity of run `r` of one session and run `s` of the other.

    `networks.matrix` compares maps of different runs: here the sessions take their place.
    """
    one = {(task, 1): a[task, r] for task in tasks}
    return networks.matrix({**one, **{(task, 2): b[task, s] for task in tasks}})
