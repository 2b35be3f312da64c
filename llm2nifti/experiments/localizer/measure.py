"""Select a localizer's network, write it, and compare networks of halves of the prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llm2nifti import bids, glm, networks
from llm2nifti.bids import Session
from llm2nifti.experiments.errors import ExperimentError
from llm2nifti.experiments.localizer.plan import LocalizePlan
from llm2nifti.experiments.localizer.result import Halves, Localized, LocalizeResult
from llm2nifti.glm.conditions import ROLE, pairs_of
from llm2nifti.glm.relabelling import shuffle
from llm2nifti.networks import Network
from llm2nifti.networks.network import largest
from llm2nifti.progress import track

Relabel = Callable[[pd.DataFrame, np.random.Generator], NDArray[np.bool_]]


def measure(session: Session, plan: LocalizePlan, *, verbose: int = 1) -> LocalizeResult:
    """Localize the network of every task that has conditions of its own."""
    known = [task for task in session.tasks if ROLE in session.of(task).first.events]
    if not (known or plan.task):
        raise ExperimentError("no task has conditions of its own; scan one with localize")
    session = session.only(plan.task or known)
    for task in session.tasks:
        if task not in known:
            raise ExperimentError(
                f"task {task!r} has no conditions of its own to compare; see llm2nifti glm, or "
                "scan one of language, arithmetic, beliefs, physics"
            )
    out = {}
    for task in track(session.tasks, "localizer", unit="task", verbose=verbose):
        runs, copy = session.of(task), session.untrained
        contrast = glm.task_contrast(runs.first.events)
        maps = glm.fit(runs, rectify=plan.rectify, verbose=0).contrast(contrast)
        network = networks.select(maps, networks.Rule("top", share=plan.share, two_sided=False))
        _write(runs, maps, network, plan)
        is_on = np.concatenate([glm.is_on(run.events) for run in runs])
        out[task] = Localized(
            contrast=contrast,
            n_on=int(is_on.sum()),
            n_off=int((~is_on).sum()),
            n_units=network.n_units,
            profile=network.profile().to_dict(orient="records"),
            halves=_halves(runs, plan, _as_they_are),
            shuffled=_halves(runs, plan, shuffle),
            untrained=_halves(copy.of(task), plan, _as_they_are) if copy else None,
        )
    return LocalizeResult(out, plan.share, plan.rectify, plan.n_splits)


def _write(runs: Session, maps: glm.StatMaps, network: Network, plan: LocalizePlan) -> None:
    """Write the t map, the effects and the network of a localizer."""
    first, kind = runs.first, "OfAbsoluteValues" if plan.rectify else ""
    label = bids.label(f"{first.task}Localizer{kind}")
    for name, img in (("t", maps.t_img), ("effect", maps.effect_img)):
        sidecar = {"Contrast": maps.name, "Statistic": name, "DegreesOfFreedom": maps.df}
        sidecar |= {"Rectified": plan.rectify, "Note": "n/a"}
        bids.write_img(first.paths.stat_map(name, contrast=label), runs.root, img, sidecar)
    sidecar = {
        "Type": "ROI",
        "Sources": [f"bids::{first.paths.trial_bold.relative_to(runs.root / bids.DERIVATIVES)}"],
        "Description": f"Units that {first.task} localizes, {maps.name}: {network.how}.",
        "SpatialReference": first.sidecar["SpatialReference"],
    }
    path = first.paths.network(desc="localizer" + kind.lower())
    bids.write_img(path, runs.root, network.mask_img(), sidecar)


def _as_they_are(events: pd.DataFrame, _: np.random.Generator) -> NDArray[np.bool_]:
    """(n_trials,) which are of the task."""
    return glm.is_on(events)


def _halves(runs: Session, plan: LocalizePlan, relabel: Relabel) -> Halves:
    """How alike networks of two halves of every run's prompts are, over random halves."""
    rng = np.random.default_rng(plan.seed)
    values = [np.abs(run.values()) if plan.rectify else run.values() for run in runs]
    dice, r = [], []
    for _ in range(plan.n_splits):
        halves: list[list[glm.Labels]] = []
        for run in runs:
            is_on, first = relabel(run.events, rng), _half(run.events, rng)
            kept = (np.flatnonzero(first), np.flatnonzero(~first))
            halves.append([_labels(run.events, is_on, rows) for rows in kept])
        a, b = (_t(values, [both[side] for both in halves]) for side in (0, 1))
        tops = [largest(t, plan.share) for t in (a, b)]
        dice.append(float(networks.dice(*tops)))
        r.append(float(networks.correlation(a, b)))
    return Halves(dice, r)


def _labels(events: pd.DataFrame, is_on: NDArray[np.bool_], rows: NDArray) -> glm.Labels:
    """Labels of some trials, with what is not asked about."""
    confounds = glm.nuisance(events.iloc[rows]).to_numpy()
    return glm.Labels(is_on[rows][None], confounds, rows)


def _half(events: pd.DataFrame, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(n_trials,) whether a trial is in the first half: half of each condition, pairs together."""
    groups = pairs_of(events)
    if not groups.any():
        groups = np.arange(len(events)).astype(str)
    first = np.zeros(len(events), bool)
    conditions = events["trial_type"].to_numpy(str) if len(set(groups)) == len(events) else None
    for condition in [None] if conditions is None else np.unique(conditions):
        inside = np.ones(len(events), bool) if condition is None else conditions == condition
        names = np.unique(groups[inside])
        chosen = rng.permutation(names)[: len(names) // 2]
        first |= inside & np.isin(groups, chosen)
    return first


def _t(values: Sequence[NDArray], labels: Sequence[glm.Labels]) -> NDArray[np.float64]:
    """(n_units,) t of one half: the mean over runs, which are alike in size."""
    maps = [glm.t_of_labels(each, [one])[0] for each, one in zip(values, labels, strict=True)]
    return np.mean(maps, axis=0)
