"""Evaluate networks as detectors of their tasks, from the dataset alone.

Each run number is held out in turn: networks, controls, thresholds, probes and word lists for its
trials come from the other runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llm2nifti import glm
from llm2nifti.bids import Run, Session
from llm2nifti.evidence import Evidence, Slab, gather, n_moments, project, running
from llm2nifti.experiments.detection.plan import DetectPlan
from llm2nifti.experiments.detection.result import (
    CopyResult,
    DetectionResult,
    Passing,
    Roc,
    Series,
    ShuffledNetworks,
    Source,
)
from llm2nifti.experiments.journal import digest_of_runs, versions
from llm2nifti.experiments.results import Interval
from llm2nifti.networks import Readout, Thresholds, detection
from llm2nifti.networks.detection import Bootstrap, DetectionError
from llm2nifti.networks.network import at_sites
from llm2nifti.networks.readout import thresholds_of
from llm2nifti.plans import Json
from llm2nifti.progress import stage
from llm2nifti.stimuli import WORDLESS

N_SHUFFLES = 20
COMPARISONS = ("control", "others")  # what a task is told from: control, or the other tasks
Areas = dict[str, dict[str, list[NDArray[np.float64]]]]  # comparison, task: one a number of tokens
# (n_trials, n_tokens) scores of a task's number, from which trials are on and off
Scores = Callable[[int, NDArray[np.bool_], NDArray[np.bool_]], NDArray[np.float64]]


def measure(session: Session, plan: DetectPlan, *, verbose: int = 1) -> DetectionResult:
    """Evaluate networks as detectors of their tasks.

    What was measured of the same runs, with the same plan and versions, is not measured again. Of
    an untrained copy that keeps one volume a trial, there is the AUC after all tokens alone.
    DetectionError if there are fewer than 2 runs of each of 2 tasks, or trials differ in length.
    """
    source = Source(digest_of_runs(session), plan.share, plan.threshold, plan.n_boot, versions())
    kept = None if plan.redo else DetectionResult.read(session)
    if kept is not None and source.runs and kept.made_from == source:
        return kept
    copy, of_copy = session.untrained, None
    content = evaluate(session, plan, verbose=verbose)
    if copy:
        same = evaluate(copy, plan, n_shuffles=0, verbose=verbose)
        of_copy = CopyResult(copy.subject, same["n_tokens"], same["auc"])
    return DetectionResult(**content, made_from=source, untrained=of_copy)


def evaluate(
    runs: Sequence[Run], plan: DetectPlan, *, n_shuffles: int = N_SHUFFLES, verbose: int = 1
) -> Json:
    """Fields of a result; without networks from shuffled labels if `n_shuffles` is 0."""
    evidence = gather(runs, share=plan.share, n_shuffles=n_shuffles, verbose=verbose)
    if len(evidence.numbers) < 2 or len(evidence.tasks) < 2:
        raise DetectionError(
            f"detection needs at least 2 runs of at least 2 tasks; there are "
            f"{len(evidence.numbers)} of {len(evidence.tasks)}. Scan more (llm2nifti scan)"
        )
    trials = Trials(runs, evidence)
    # What the networks were chosen among is what the probe gets, too.
    units = np.flatnonzero(at_sites(evidence.brain, evidence.rule.sites))
    scores, grams = _scores(runs, trials, units, n_shuffles, verbose)
    held_out = trials.held_out(lambda held: scores["held", held])
    draws = Bootstrap(trials.kind, trials.fold, n=plan.n_boot)

    def probe(held: int, *classes: NDArray) -> NDArray:
        by_token = [detection.probe(gram, *classes) for gram in grams[held]]
        return np.stack(by_token, axis=1)

    def words(_held: int, *classes: NDArray) -> NDArray:  # are there before the first token
        return detection.words(trials.prompts, *classes)[:, None]

    with stage("probes", total=2 * len(trials.tasks), unit="probe", verbose=verbose) as bar:
        probes = trials.areas(draws, trials.learned(probe, bar.update))
    methods = {
        "network": trials.areas(draws, lambda task, _on, _off: held_out[:, :, task]),
        "probe": probes,
        "words": trials.areas(draws, trials.learned(words)),
    }
    return {
        "tasks": list(evidence.tasks),
        "sites": list(evidence.rule.sites),
        "share": plan.share,
        "n_network_units": int(evidence.networks(evidence.numbers)[0].n_units),
        "n_units": len(units),
        "n_runs": len(evidence.numbers),
        "n_tokens": held_out.shape[1],
        "frames": runs[0].frames,
        "n_task_prompts": int((trials.kind == evidence.tasks[0]).sum()),
        "n_control_prompts": int(trials.is_control.sum()),
        "n_boot": plan.n_boot,
        "mean_of": trials.counted,
        "auc": {name: trials.summary(areas) for name, areas in methods.items()},
        "difference": _differences(trials, methods),
        "roc": trials.curves(held_out),
        "thresholds": _passing(trials, scores, held_out, plan.threshold),
        "shuffled": _null(trials, scores, n_shuffles) if n_shuffles else None,
    }


class Trials:
    """All trials of some runs in order, and how methods are compared on them."""

    def __init__(self, runs: Sequence[Run], evidence: Evidence) -> None:
        events = pd.concat([run.events.assign(fold=run.run) for run in runs], ignore_index=True)
        kinds = [glm.kinds(run.task, run.events) for run in runs]
        self.evidence, self.tasks = evidence, evidence.tasks
        self.kind = np.concatenate(kinds)
        self.fold = events["fold"].to_numpy()
        self.prompts = events["prompt"].to_list()
        self.is_control = self.kind == glm.CONTROL
        named = [task for task in self.tasks if task != WORDLESS]
        self.counted = named if len(named) > 1 else list(self.tasks)

    def held_out(self, of_others: Callable[[int], NDArray]) -> NDArray:
        """Scores of every trial, those that the other runs give: ``of_others(run)``."""
        by_fold = [of_others(held) for held in self.evidence.numbers]
        folds = np.searchsorted(self.evidence.numbers, self.fold)
        return np.stack(by_fold)[folds, np.arange(len(folds))]

    def learned(
        self, learn: Callable[..., NDArray], after: Callable[[], object] = lambda: None
    ) -> Scores:
        """Scores of what learns each comparison itself: ``learn(run, on, off, train)``."""

        def scores(_task: int, on: NDArray[np.bool_], off: NDArray[np.bool_]) -> NDArray:
            out = self.held_out(lambda held: learn(held, on, off, self.fold != held))
            after()
            return out

        return scores

    def areas(self, draws: Bootstrap, scores: Scores) -> Areas:
        """AUC of scores and its draws."""
        out: Areas = {comparison: {} for comparison in COMPARISONS}
        for comparison, by_task in out.items():
            for i, task in enumerate(self.tasks):
                on, off = self.kind == task, self.is_control
                if comparison == "others":
                    off = ~on & ~self.is_control
                by_task[task] = [draws.areas(each, on, off) for each in scores(i, on, off).T]
        return out

    def mean(self, areas: Areas, comparison: str) -> list[NDArray[np.float64]]:
        """Mean over tasks, a number of tokens; random strings are easy and do not count."""
        columns = [areas[comparison][task] for task in self.counted]
        return [np.mean(column, axis=0) for column in zip(*columns, strict=True)]

    def summary(self, areas: Areas) -> dict[str, Series]:
        """Estimates with intervals, by comparison."""
        return {
            comparison: Series(
                tasks={task: _estimates(series) for task, series in by_task.items()},
                mean=_estimates(self.mean(areas, comparison)),
            )
            for comparison, by_task in areas.items()
        }

    def curves(self, scores: NDArray) -> Roc:
        """ROC curves against control after the first token and after all."""
        hits: list[dict[str, list[float]]] = [{}, {}]
        for i, task in enumerate(self.tasks):
            is_on = self.kind == task
            rows = self.is_control | is_on
            for by_task, token in zip(hits, (0, -1), strict=True):
                curve = detection.roc(scores[rows, token, i], is_on[rows], self.fold[rows])
                by_task[task] = curve.tolist()
        return Roc(detection.GRID.tolist(), *hits)


def _estimates(series: Sequence[NDArray]) -> list[Interval]:
    """Value and interval of areas and their draws."""
    return [Interval(**detection.estimate(areas)) for areas in series]


def _scores(
    runs: Sequence[Run], trials: Trials, units: NDArray[np.int64], n_shuffles: int, verbose: int
) -> tuple[dict[tuple[Any, ...], NDArray], dict[int, NDArray]]:
    """Everything that needs the frames, in one pass over them.

    Scores (n_trials, n_tokens, n_tasks) by networks that a run was kept from, ``"held", run``; that
    two were kept from, ``"inner", outer, inner``; or of shuffled labels, ``"shuffled", shuffle,
    run``. Products of activations for the probe, (n_tokens, n_trials, n_trials) by run.
    """
    evidence = trials.evidence
    jobs: dict[tuple[Any, ...], Readout] = {}
    for held in evidence.numbers:
        rest = evidence.others(held)
        jobs["held", held] = evidence.readout(rest)
        for inner in rest:
            jobs["inner", held, inner] = evidence.readout(evidence.others(held, inner) or rest)
        for shuffle in range(n_shuffles):
            jobs["shuffled", shuffle, held] = evidence.readout(rest, shuffle)
    size = (n_moments(runs), len(trials.fold), len(trials.fold))
    grams = {held: np.zeros(size, np.float32) for held in evidence.numbers}

    def slabs() -> Iterator[Slab]:
        """Add the products of part of the units, standardised as the training trials say."""
        for part, means in running(runs, units, verbose=verbose):
            for held, by_token in grams.items():
                rows = trials.fold != held
                for t, gram in enumerate(by_token):
                    values = means[:, t]
                    sd = values[rows].std(axis=0)
                    scaled = (values - values[rows].mean(axis=0)) / np.where(sd > 0, sd, 1)
                    scaled[:, sd == 0] = 0
                    np.add(gram, scaled @ scaled.T, out=gram)
            yield part, means

    scores = project(slabs(), list(jobs.values()))
    return dict(zip(jobs, scores, strict=True)), grams


def _differences(trials: Trials, methods: dict[str, Areas]) -> dict[str, dict[str, Interval]]:
    """Network minus each alternative, mean over tasks, after all tokens, on the same draws."""
    out = {}
    for comparison in COMPARISONS:
        ends = {name: trials.mean(areas, comparison)[-1] for name, areas in methods.items()}
        network = ends.pop("network")
        estimates = _estimates([network - end for end in ends.values()])
        out[comparison] = dict(zip(ends, estimates, strict=True))
    return out


def _passing(
    trials: Trials, scores: dict[tuple[Any, ...], NDArray], held_out: NDArray, rate: float
) -> Passing:
    """What thresholds let pass among held-out prompts, and which network they name.

    Thresholds for a run come from control trials of the others, by networks of yet others.
    """
    evidence, control = trials.evidence, trials.is_control
    limits: dict[int, Thresholds] = {}
    for held in evidence.numbers:
        parts = [
            scores["inner", held, n][control & (trials.fold == n)] for n in evidence.others(held)
        ]
        limits[held] = thresholds_of(evidence.tasks, np.concatenate(parts), rate=rate)
    above = np.empty(held_out.shape, bool)
    named = np.empty(held_out.shape[:2], object)
    for trial, t in np.ndindex(named.shape):
        means, limit = held_out[trial, t], limits[trials.fold[trial]]
        above[trial, t] = means > limit.at(t + 1)
        named[trial, t] = limit.top(means, t + 1) or ""
    of_task = {task: trials.kind == task for task in trials.tasks}
    places = {task: i for i, task in enumerate(trials.tasks)}
    return Passing(
        rate=rate,
        # Of two runs one is left to make networks and thresholds: they see the same prompts.
        other_runs=len(limits) > 2,
        false_alarms={t: above[control][:, :, i].mean(axis=0).tolist() for t, i in places.items()},
        hits={t: above[of_task[t]][:, :, i].mean(axis=0).tolist() for t, i in places.items()},
        ever_false_alarm=float(above[control].any(axis=(1, 2)).mean()),
        control_named=(named[control] != "").mean(axis=0).tolist(),
        named_right={t: (named[rows] == t).mean(axis=0).tolist() for t, rows in of_task.items()},
        not_named={t: (named[rows] == "").mean(axis=0).tolist() for t, rows in of_task.items()},
    )


def _null(
    trials: Trials, scores: dict[tuple[Any, ...], NDArray], n_shuffles: int
) -> ShuffledNetworks:
    """AUC against control of networks from shuffled labels: mean over tasks, one a shuffle."""
    whole = Bootstrap(trials.kind, trials.fold, n=0)
    counted = [(i, trials.kind == t) for i, t in enumerate(trials.tasks) if t in trials.counted]
    values = []
    for shuffle in range(n_shuffles):
        shuffled = trials.held_out(lambda held, s=shuffle: scores["shuffled", s, held])  # type: ignore[misc]
        values.append(
            [
                np.mean(
                    [whole.areas(of_token[:, i], on, trials.is_control)[0] for i, on in counted]
                )
                for of_token in shuffled.swapaxes(0, 1)
            ]
        )
    low, high = np.percentile(values, [2.5, 97.5], axis=0)
    series = (np.mean(values, axis=0), low, high, np.max(values, axis=0))
    return ShuffledNetworks(n_shuffles, *(each.tolist() for each in series))
