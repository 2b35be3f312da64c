"""Evaluate networks as detectors of their tasks, from the dataset alone.

Each run number is held out in turn: networks, controls, thresholds, probes and word lists for its
trials come from the other runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm2nifti.bids import Run, Session
from llm2nifti.evidence import Evidence, gather, n_moments, project
from llm2nifti.experiments.detection.plan import DetectPlan
from llm2nifti.experiments.detection.result import (
    CopyResult,
    DetectionResult,
    Passing,
    ShuffledNetworks,
    Source,
)
from llm2nifti.experiments.detection.trials import Areas, Trials
from llm2nifti.experiments.provenance import digest_of_runs, versions
from llm2nifti.experiments.results import Interval
from llm2nifti.networks import Readout, Thresholds, detection
from llm2nifti.networks.detection import Bootstrap, DetectionError
from llm2nifti.networks.network import at_sites
from llm2nifti.networks.readout import thresholds_of
from llm2nifti.plans import Json
from llm2nifti.progress import stage

N_SHUFFLES = 20


def measure(session: Session, plan: DetectPlan, *, verbose: int = 1) -> DetectionResult:
    """Evaluate networks as detectors of their tasks.

    Parameters
    ----------
    session : Session
        At least 2 runs of each of at least 2 tasks of one model.
    plan : DetectPlan
        Sizes of networks and thresholds.
    verbose : int, default=1
        0 shows no progress.

    Returns
    -------
    DetectionResult
        What was measured of the same runs, with the same plan and versions, is not measured again.
        Of an untrained copy that keeps one volume a trial, there is the AUC after all tokens alone.

    Raises
    ------
    DetectionError
        If there are fewer than 2 runs of each task, or trials differ in length.
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
    held_out, inner, shuffled, grams = _scores(runs, evidence, trials, n_shuffles, verbose)
    draws = Bootstrap(trials.kind, trials.fold, n=plan.n_boot)
    with stage("probes", total=2 * len(trials.tasks), unit="probe", verbose=verbose) as bar:
        probes = trials.areas(draws, _probe(trials, grams, bar))
    methods = {
        "network": trials.areas(draws, lambda task, _off: held_out[:, :, task]),
        "probe": probes,
        "words": trials.areas(draws, _words(trials)),
    }
    limits = _thresholds(evidence, trials, inner, plan.threshold)
    return {
        "tasks": list(evidence.tasks),
        "sites": list(evidence.rule.sites),
        "share": plan.share,
        "n_network_units": int(evidence.networks(evidence.numbers)[0].n_units),
        "n_units": len(_units(evidence)),
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
        "thresholds": _passing(trials, held_out, limits, plan.threshold),
        "shuffled": _null(trials, shuffled) if n_shuffles else None,
    }


def _units(evidence: Evidence) -> NDArray[np.int64]:
    """Units among which the networks were chosen: what the probe gets, too."""
    return np.flatnonzero(at_sites(evidence.brain, evidence.rule.sites))


def _scores(
    runs: Sequence[Run], evidence: Evidence, trials: Trials, n_shuffles: int, verbose: int
) -> tuple[NDArray, dict[tuple[int, int], NDArray], list[NDArray], NDArray]:
    """Everything that needs the frames, in one pass over them.

    Held-out scores (n_trials, n_tokens, n_tasks); those of networks that two runs were kept from,
    by (outer, inner) run; those of shuffled labels; and products of activations for the probe.
    """
    numbers = evidence.numbers
    jobs: dict[tuple[Any, ...], Readout] = {}
    for held in numbers:
        rest = [n for n in numbers if n != held]
        jobs["held", held] = evidence.readout(rest)
        for inner in rest:
            jobs["inner", held, inner] = evidence.readout([n for n in rest if n != inner] or rest)
        for shuffle in range(n_shuffles):
            jobs["shuffled", shuffle, held] = evidence.shuffled_readout(rest, shuffle)
    n_frames = n_moments(runs)
    grams = np.zeros((len(numbers), n_frames, len(trials.fold), len(trials.fold)), np.float32)
    train = [trials.fold != held for held in numbers]
    scores = project(
        runs,
        list(jobs.values()),
        verbose=verbose,
        also=lambda means: _add_products(grams, means, train),
        units=_units(evidence),
    )
    by_job = dict(zip(jobs, scores, strict=True))
    inner_scores = {(k[1], k[2]): s for k, s in by_job.items() if k[0] == "inner"}
    nulls = [_joined(trials, by_job, "shuffled", s) for s in range(n_shuffles)]
    return _joined(trials, by_job, "held"), inner_scores, nulls, grams


def _joined(trials: Trials, scores: dict[tuple[Any, ...], NDArray], *key: Any) -> NDArray:
    """Scores of every trial by the networks that its run was kept from."""
    folds = np.unique(trials.fold)
    out = np.empty_like(scores[*key, folds[0]])
    for held in folds:
        out[trials.fold == held] = scores[*key, held][trials.fold == held]
    return out


def _add_products(grams: NDArray, means: NDArray, train: Sequence[NDArray[np.bool_]]) -> None:
    """Add the products of some units, standardised as the training trials say, to the grams."""
    for by_token, rows in zip(grams, train, strict=True):
        for t, gram in enumerate(by_token):
            values = means[:, t]
            sd = values[rows].std(axis=0)
            scaled = (values - values[rows].mean(axis=0)) / np.where(sd > 0, sd, 1)
            scaled[:, sd == 0] = 0
            np.add(gram, scaled @ scaled.T, out=gram)


def _probe(trials: Trials, grams: NDArray, bar: Any) -> Any:
    """Scores of probes that learn each comparison itself from the other runs."""
    folds, n_tokens = np.unique(trials.fold), grams.shape[1]

    def scores(task: int, off: NDArray[np.bool_]) -> NDArray[np.float64]:
        on = trials.kind == trials.tasks[task]
        out = np.zeros((len(on), n_tokens))
        for by_token, held in zip(grams, folds, strict=True):
            test = trials.fold == held
            for t, gram in enumerate(by_token):
                out[test, t] = detection.probe(gram, on, off, ~test)[test]
        bar.update()
        return out

    return scores


def _words(trials: Trials) -> Any:
    """Scores of a bag of words of the prompt, which are there before the first token."""

    def scores(task: int, off: NDArray[np.bool_]) -> NDArray[np.float64]:
        on = trials.kind == trials.tasks[task]
        out = np.zeros((len(on), 1))
        for held in np.unique(trials.fold):
            test = trials.fold == held
            out[test, 0] = detection.words(trials.prompts, on, off, ~test)[test]
        return out

    return scores


def _differences(trials: Trials, methods: dict[str, Areas]) -> dict[str, dict[str, Interval]]:
    """Network minus each alternative, mean over tasks, after all tokens, on the same draws."""
    out = {}
    for comparison in ("control", "others"):
        ends = {name: trials.mean(areas, comparison)[-1] for name, areas in methods.items()}
        out[comparison] = {
            name: Interval(**detection.estimate(ends["network"] - end))
            for name, end in ends.items()
            if name != "network"
        }
    return out


def _thresholds(
    evidence: Evidence, trials: Trials, inner: dict[tuple[int, int], NDArray], rate: float
) -> dict[int, Thresholds]:
    """Thresholds for each held-out run, from control trials of the others."""
    out = {}
    for held in evidence.numbers:
        rest = [n for n in evidence.numbers if n != held]
        parts = [inner[held, n][trials.is_control & (trials.fold == n)] for n in rest]
        out[int(held)] = thresholds_of(evidence.tasks, np.concatenate(parts), rate=rate)
    return out


def _passing(
    trials: Trials, scores: NDArray, limits: dict[int, Thresholds], rate: float
) -> Passing:
    """What thresholds let pass among held-out prompts, and which network they name."""
    above = np.empty(scores.shape, bool)
    named = np.empty(scores.shape[:2], object)
    for trial, fold in enumerate(trials.fold):
        for t, means in enumerate(scores[trial]):
            above[trial, t] = means > limits[int(fold)].at(t + 1)
            named[trial, t] = limits[int(fold)].top(means, t + 1) or ""
    control, places = trials.is_control, {task: i for i, task in enumerate(trials.tasks)}
    of_task = {task: trials.kind == task for task in trials.tasks}
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


def _null(trials: Trials, shuffled: list[NDArray]) -> ShuffledNetworks:
    """AUC against control of networks from shuffled labels: mean over tasks, one a shuffle."""
    values = np.empty((len(shuffled), shuffled[0].shape[1]))
    whole = Bootstrap(trials.kind, trials.fold, n=0)
    counted = [(i, trials.kind == t) for i, t in enumerate(trials.tasks) if t in trials.counted]
    for s, t in np.ndindex(values.shape):
        values[s, t] = np.mean(
            [whole.areas(shuffled[s][:, t, i], on, trials.is_control)[0] for i, on in counted]
        )
    low, high = np.percentile(values, [2.5, 97.5], axis=0)
    series = (values.mean(axis=0), low, high, values.max(axis=0))
    return ShuffledNetworks(len(shuffled), *(each.tolist() for each in series))
