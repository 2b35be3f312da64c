"""How well, and how early, do networks tell what a prompt is about? From the dataset alone.

Each run number is held out in turn: networks, baselines, thresholds, probes and word lists for its
trials come from the other runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm2nifti import bids
from llm2nifti.bids import Run, manifest
from llm2nifti.networks import RATE, SHARE, Readout, Thresholds
from llm2nifti.networks import detection as measure
from llm2nifti.networks.detection import N_BOOT, Bootstrap, DetectionError
from llm2nifti.networks.network import at_sites
from llm2nifti.networks.readout import thresholds_of
from llm2nifti.progress import stage
from llm2nifti.study.comparisons import Areas, Trials
from llm2nifti.study.readouts import Evidence, gather, n_moments, project
from llm2nifti.study.sessions import made_from
from llm2nifti.study.summary import versions

DETECTION = "detection.json"
N_SHUFFLES = 20


def detect(
    root: Path,
    *,
    subject: str | None = None,
    session: str | None = None,
    share: float = SHARE,
    rate: float = RATE,
    n_boot: int = N_BOOT,
    quiet: bool = False,
) -> dict[str, Any]:
    """Evaluate networks as detectors of their tasks, and write ``detection.json``.

    Parameters
    ----------
    root : Path
        Root of the dataset.
    subject, session : str, optional
        See `llm2nifti.bids.read`.
    share : float, default=0.01
        Share of the attn and mlp units that make a network.
    rate : float, default=0.05
        False-positive rate of the thresholds.
    n_boot : int, default=1000
        Bootstrap draws of the intervals.
    quiet : bool, default=False
        Show no progress bars.

    Returns
    -------
    dict
        Content of the file in the session's `llm2nifti.bids.analysis_folder`: AUC of each task
        against control prompts and against the other tasks, after 1, 2, ... tokens, of networks, of
        a linear probe, of a bag of words, of the untrained copy and of shuffled labels; what
        thresholds let pass; which network is named. Of an untrained copy that keeps one volume a
        trial (``untrained.n_tokens`` is then 1), there is the AUC after all tokens alone.

    Raises
    ------
    DetectionError
        If there are fewer than 2 runs of each task, or trials differ in length.

    Notes
    -----
    What was measured of the same runs, with the same options and versions, is not measured again;
    see `forget`.
    """
    if n_boot < 1:
        raise DetectionError(f"n_boot is {n_boot}; it must be at least 1, better 1000")
    recording = bids.session(root, subject=subject, session=session)
    path = recording.folder / DETECTION
    options = {"share": share, "rate": rate, "n_boot": n_boot}
    source = {
        "runs": made_from(recording.root, (recording.subject, recording.session)),
        **options,
        "versions": versions(),
    }
    if path.exists():
        kept = bids.read_json(path)
        if source["runs"] and kept.get("made_from") == source:
            return kept
    content = {"made_from": source}
    content |= evaluate(recording, share=share, rate=rate, n_boot=n_boot, quiet=quiet)
    copy = recording.untrained
    if copy:
        same = evaluate(copy, share=share, rate=rate, n_boot=n_boot, n_shuffles=0, quiet=quiet)
        copied = {"n_tokens": same["n_tokens"], "auc": same["auc"]}
        content["untrained"] = {"subject": copy.subject, **copied}
    bids.write_json(path, Path(root), content)
    return content


def forget(root: Path | str, *, subject: str | None = None, session: str | None = None) -> None:
    """Have the next `detect` measure again what did not change since it was measured.

    See `detect` for `root`, `subject` and `session`.
    """
    run = bids.session(root, subject=subject, session=session)[0]
    folder = bids.analysis_folder(root, run.subject, run.session)
    manifest.remove(Path(root), [folder / DETECTION])


def evaluate(
    runs: Sequence[Run],
    *,
    share: float = SHARE,
    rate: float = RATE,
    n_boot: int = N_BOOT,
    n_shuffles: int = N_SHUFFLES,
    quiet: bool = False,
) -> dict[str, Any]:
    """Evaluate the networks of some runs; see `detect`, which also reads and writes.

    Parameters
    ----------
    runs : sequence of Run
        At least 2 runs of each of at least 2 tasks of one model.
    share, rate, n_boot, quiet
        See `detect`.
    n_shuffles : int, default=20
        Sets of networks from shuffled labels; 0 leaves them out.

    Returns
    -------
    dict
    """
    evidence = gather(runs, share=share, n_shuffles=n_shuffles, quiet=quiet)
    if len(evidence.numbers) < 2 or len(evidence.tasks) < 2:
        raise DetectionError(
            f"detection needs at least 2 runs of at least 2 tasks; there are "
            f"{len(evidence.numbers)} of {len(evidence.tasks)}. Scan more (llm2nifti scan)"
        )
    trials = Trials(runs, evidence)
    held_out, inner, shuffled, grams = _scores(runs, evidence, trials, n_shuffles, quiet)
    draws = Bootstrap(trials.kind, trials.fold, n=n_boot)
    with stage("probes", total=2 * len(trials.tasks), unit="probe", quiet=quiet) as bar:
        probes = trials.areas(draws, _probe(trials, grams, bar))
    methods = {
        "network": trials.areas(draws, lambda task, _off: held_out[:, :, task]),
        "probe": probes,
        "words": trials.areas(draws, _words(trials)),
    }
    content: dict[str, Any] = {
        "tasks": list(evidence.tasks),
        "sites": list(evidence.rule.sites),
        "share": share,
        "n_network_units": int(evidence.networks(evidence.numbers)[0].n_units),
        "n_units": len(_units(evidence)),
        "n_runs": len(evidence.numbers),
        "n_tokens": held_out.shape[1],
        "frames": runs[0].frames,
        "n_task_prompts": int((trials.kind == evidence.tasks[0]).sum()),
        "n_control_prompts": int(trials.is_control.sum()),
        "n_boot": n_boot,
        "mean_of": trials.counted,
        "auc": {name: trials.summary(areas) for name, areas in methods.items()},
        "difference": _differences(trials, methods),
        "roc": trials.curves(held_out),
    }
    limits = _thresholds(evidence, trials, inner, rate)
    content["thresholds"] = {
        "rate": rate,
        # Of two runs one is left to make networks and thresholds: they see the same prompts.
        "other_runs": len(evidence.numbers) > 2,
        **_passing(trials, held_out, limits),
    }
    if n_shuffles:
        content["shuffled"] = _null(trials, shuffled)
    return content


def _units(evidence: Evidence) -> NDArray[np.int64]:
    """Units among which the networks were chosen: what the probe gets, too."""
    return np.flatnonzero(at_sites(evidence.brain, evidence.rule.sites))


def _scores(
    runs: Sequence[Run], evidence: Evidence, trials: Trials, n_shuffles: int, quiet: bool
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
        quiet=quiet,
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
                out[test, t] = measure.probe(gram, on, off, ~test)[test]
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
            out[test, 0] = measure.words(trials.prompts, on, off, ~test)[test]
        return out

    return scores


def _differences(trials: Trials, methods: dict[str, Areas]) -> dict[str, Any]:
    """Network minus each alternative, mean over tasks, after all tokens, on the same draws."""
    out: dict[str, Any] = {}
    for comparison in ("control", "others"):
        of_networks = trials.mean(methods["network"], comparison)[-1]
        out[comparison] = {
            name: measure.estimate(of_networks - trials.mean(areas, comparison)[-1])
            for name, areas in methods.items()
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


def _passing(trials: Trials, scores: NDArray, limits: dict[int, Thresholds]) -> dict[str, Any]:
    """What thresholds let pass among held-out prompts, and which network they name."""
    above = np.empty(scores.shape, bool)
    named = np.empty(scores.shape[:2], object)
    for trial, fold in enumerate(trials.fold):
        for t, means in enumerate(scores[trial]):
            above[trial, t] = means > limits[int(fold)].at(t + 1)
            named[trial, t] = limits[int(fold)].top(means, t + 1) or ""
    control = trials.is_control
    right = {
        task: (named[trials.kind == task] == task).mean(axis=0).tolist() for task in trials.tasks
    }
    silent = {
        task: (named[trials.kind == task] == "").mean(axis=0).tolist() for task in trials.tasks
    }
    return {
        "false_alarms": {
            task: above[control][:, :, i].mean(axis=0).tolist()
            for i, task in enumerate(trials.tasks)
        },
        "hits": {
            task: above[trials.kind == task][:, :, i].mean(axis=0).tolist()
            for i, task in enumerate(trials.tasks)
        },
        "ever_false_alarm": float(above[control].any(axis=(1, 2)).mean()),
        "control_named": (named[control] != "").mean(axis=0).tolist(),
        "named_right": right,
        "not_named": silent,
    }


def _null(trials: Trials, shuffled: list[NDArray]) -> dict[str, Any]:
    """AUC against control of networks from shuffled labels: mean over tasks, one a shuffle."""
    values = np.empty((len(shuffled), shuffled[0].shape[1]))
    whole = Bootstrap(trials.kind, trials.fold, n=0)
    counted = [(i, trials.kind == t) for i, t in enumerate(trials.tasks) if t in trials.counted]
    for s, t in np.ndindex(values.shape):
        values[s, t] = np.mean(
            [whole.areas(shuffled[s][:, t, i], on, trials.is_control)[0] for i, on in counted]
        )
    low, high = np.percentile(values, [2.5, 97.5], axis=0)
    mean = values.mean(axis=0)
    return {
        "n": len(shuffled),
        "mean": mean.tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "largest": values.max(axis=0).tolist(),
    }
