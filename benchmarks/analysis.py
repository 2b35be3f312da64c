"""How fast is the analysis of a dataset, stage by stage, against the code that it replaced?

Random activations with the events of the default experiment stand in for a dataset, so no model is
needed. Run from the repository root on a quiet machine:

    python benchmarks/analysis.py >> docs/benchmarks.md

Each stage is run in pairs with the way in which version 0.1.0 did it, which is kept here: one
labelling of the trials at a time by nilearn's `permuted_ols`, a new fit for every block that the
jackknife leaves out, a singular value decomposition of all controls to whiten, and AR(1) in every
unit. Both have to find the same; of the token level, rates of a sample.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from dataclasses import dataclass

import numpy as np
from nilearn.glm.contrasts import compute_contrast
from nilearn.glm.first_level import run_glm
from nilearn.mass_univariate import permuted_ols
from timing import check_positive, describe_machine, describe_ratio, median_interval

from llm2nifti import geometry, glm, networks, paradigm
from llm2nifti.geometry import Site
from llm2nifti.glm import relabelling
from llm2nifti.networks.identification import SHRINKAGE, match

N_UNITS = 52_992
TOLERANCE = 1e-5


@dataclass(frozen=True, eq=False)
class Run:
    """What the analysis needs of a run."""

    task: str
    run: int
    events: object
    brain: object
    frames: str
    tokens: np.ndarray  # (n_trials, n_frames, n_units)

    @property
    def volume_counts(self):
        """(n_trials,) frames of each trial."""
        return np.full(len(self.events), self.tokens.shape[1])

    def values(self):
        """(n_trials, n_units) means over frames."""
        return self.tokens.mean(axis=1)

    def frame_values(self):
        """(n_volumes, n_units) values of all frames."""
        return self.tokens.reshape(-1, self.tokens.shape[2])


def make_runs(n_units, n_runs):
    """Runs of the default experiment: noise, a shift of every prompt, an effect of every task."""
    rng = np.random.default_rng(0)
    brain = geometry.layout([Site("mlp", 1, "mlp", n_units)])
    runs, effects = [], {}
    for design in paradigm.experiment(n_runs=n_runs):
        events = design.trials
        effect = effects.setdefault(design.task, rng.normal(size=n_units, scale=0.5))
        prompts = rng.normal(size=(len(events), 1, n_units))
        prompts += np.outer(events["trial_type"] == design.task, effect)[:, None]
        tokens = rng.normal(size=(len(events), 2, n_units)) + prompts
        runs.append(Run(design.task, design.run, events, brain, "token", tokens.astype(np.float32)))
    return runs


def one_at_a_time(values, labels, confounds):
    """(n_labellings, n_units) t by nilearn's permuted_ols."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = permuted_ols(
            np.asarray(labels.T, float),
            np.asarray(values, float),
            confounding_vars=confounds if confounds.size else None,
            n_perm=0,
            output_type="dict",
            verbose=0,
        )
    return result["t"]


def labels_before(values, labels):
    """What `glm.t_of_labels` gives."""
    rows = [slice(None) if one.kept is None else one.kept for one in labels]
    return np.concatenate(
        [
            one_at_a_time(values[row], one.is_on, one.confounds)
            for row, one in zip(rows, labels, strict=True)
        ]
    )


def blocks_before(run):
    """A new fit for every block that is left out."""
    contrast = f"{run.task} - {glm.CONTROL}"
    masks = glm.delete_masks(run.events)
    values = run.values()
    fits = [glm.run_contrast(values[keep], run.events[keep], contrast) for keep in masks]
    return np.stack([glm.t_map([fit]) for fit in fits])


def match_before(training, held_out, patterns):
    """Whitened rows, by singular value decomposition."""
    shown = np.concatenate([t.values[~t.is_task] for t in training]).astype(np.float64)
    frames = np.concatenate([t.frames[~t.is_task] for t in training])
    means = {f: shown[frames == f].mean(axis=0) for f in np.unique(frames)}
    overall = shown.mean(axis=0)
    residuals = shown - np.stack([means[f] for f in frames])
    scale = residuals.std(axis=0)
    _, singular, directions = np.linalg.svd(residuals / scale, full_matrices=False)
    variance = (1 - SHRINKAGE) * singular**2 / len(residuals) + SHRINKAGE
    gains = 1 / np.sqrt(variance) - 1 / np.sqrt(SHRINKAGE)

    def white(rows):
        rows = rows / scale
        rows = rows / np.sqrt(SHRINKAGE) + ((rows @ directions.T) * gains) @ directions
        return rows - rows.mean(axis=1, keepdims=True)

    deviations = np.concatenate(
        [
            t.values[t.is_task] - np.stack([means.get(f, overall) for f in t.frames[t.is_task]])
            for t in held_out
        ]
    )
    patterns = white(patterns)  # of variance 1: what is left is a trial's correlation times its SD
    return white(deviations) @ (patterns / patterns.std(axis=1, keepdims=True)).T / len(scale)


def tokens_before(run):
    """(5, n_units) t of relabelled tokens, in every unit."""
    is_control = (run.events["trial_type"] == glm.CONTROL).to_numpy()
    values = run.frame_values()[np.repeat(is_control, run.volume_counts)]
    confounds = glm.nuisance(run.events[is_control]).to_numpy()
    rng = np.random.default_rng(0)
    base = np.arange(is_control.sum()) < round(is_control.sum() / 2.5)
    shares = []
    for _ in range(5):
        X = np.column_stack([rng.permutation(base), confounds, np.ones(len(base))])
        X = np.repeat(X, run.volume_counts[is_control], axis=0).astype(float)
        fit = run_glm(values, X, noise_model="ar1")
        t = np.ravel(compute_contrast(*fit, np.eye(X.shape[1])[0], stat_type="t").stat())
        shares.append(relabelling.rates_of(t, len(X) - X.shape[1])[0])
    return np.array(shares)


def trial_set(run):
    """Trials of a run for identification."""
    is_task = (run.events["trial_type"] != glm.CONTROL).to_numpy()
    frames = run.events["question_frame"].to_numpy(str)
    return networks.TrialSet(run.task, run.run, run.values(), is_task, frames, [])


def pseudo_labels(runs, n):
    """Labels of pseudo-tasks in the pooled controls, as `glm.pseudo_tasks` draws them."""
    rng = np.random.default_rng(0)
    n_trials = sum((run.events["trial_type"] == glm.CONTROL).sum() for run in runs)
    labels = []
    for _ in range(n):
        rows = rng.permutation(n_trials)[:56]
        labels.append(glm.Labels((np.arange(56) < 24)[None], np.empty((56, 0)), rows))
    return labels


def stages(runs, n):
    """Each stage as (title, the way it was, the way it is, how far results may differ)."""
    shuffles = [glm.shuffled(runs[0], n=20)]
    values = runs[0].values()
    pooled = np.concatenate([r.values()[r.events["trial_type"] == glm.CONTROL] for r in runs])
    pseudo = pseudo_labels(runs, n)
    sets = [trial_set(run) for run in runs]
    held, rest = [s for s in sets if s.run == 1], [s for s in sets if s.run != 1]
    effects = glm.contrasts_of([run for run in runs if run.run != 1])
    tasks = list(dict.fromkeys(run.task for run in runs))
    patterns = np.stack(
        [sum(np.ravel(c.effect) for (t, _), c in effects.items() if t == task) for task in tasks]
    )
    return [
        (
            f"{n} pseudo-tasks",
            lambda: labels_before(pooled, pseudo),
            lambda: glm.t_of_labels(pooled, pseudo),
            TOLERANCE,
        ),
        (
            "20 shuffles of a run",
            lambda: labels_before(values, shuffles),
            lambda: glm.t_of_labels(values, shuffles),
            TOLERANCE,
        ),
        (
            "jackknife maps of a run",
            lambda: blocks_before(runs[0]),
            lambda: glm.t_of_labels(values, glm.without(runs[0].events)),
            TOLERANCE,
        ),
        (
            "names of one held-out run number",
            lambda: match_before(rest, held, patterns),
            lambda: match(rest, held, patterns),
            TOLERANCE,
        ),
        (
            "token-level null of a run",
            lambda: tokens_before(runs[0]),
            lambda: glm.token_level(runs[0]).below_05,
            0.02,
        ),
    ]


def race(before, after, n_pairs):
    """(n_pairs, 2) seconds of both in turn; every other pair in reverse order."""
    seconds = np.empty((n_pairs, 2))
    for pair in range(n_pairs):
        ways = [(0, before), (1, after)]
        for column, way in ways if pair % 2 == 0 else reversed(ways):
            start = time.perf_counter()
            way()
            seconds[pair, column] = time.perf_counter() - start
    return seconds


def main():
    """Check that both ways agree, time them, print a Markdown section."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=6, help="pairs of each stage (%(default)s)")
    parser.add_argument("--units", type=int, default=N_UNITS, help="units (%(default)s)")
    parser.add_argument(
        "--runs", type=int, default=3, help="runs of a task, 2 or more (%(default)s)"
    )
    parser.add_argument("--pseudo-tasks", type=int, default=200, help="how many (%(default)s)")
    arguments = parser.parse_args()
    check_positive(parser, arguments)
    load = os.getloadavg()[0]
    runs = make_runs(arguments.units, arguments.runs)
    print("## Analysis\n")
    print(
        f"Random activations of {len(runs)} runs of the default experiment, {arguments.units:,} "
        "units. Before: the way of version 0.1.0, kept in the benchmark; both find the same.\n"
    )
    print("| stage | pairs | before, s | now, s | before / now (95 % interval) |")
    print("|---|--:|--:|--:|--:|")
    for title, before, after, tolerance in stages(runs, arguments.pseudo_tasks):
        difference = np.abs(np.asarray(before()) - np.asarray(after())).max()
        if not difference <= tolerance:
            sys.exit(f"{title}: the two ways differ by {difference:.1e} > {tolerance:g}")
        seconds = race(before, after, arguments.pairs)
        ratios = seconds[:, 0] / seconds[:, 1]
        middle = [median_interval(column)[0] for column in seconds.T]
        print(
            f"| {title} | {arguments.pairs} | {middle[0]:.2f} | {middle[1]:.2f} "
            f"| {describe_ratio(ratios, 1)} |"
        )
    print(f"\n{describe_machine(load)}")


if __name__ == "__main__":
    main()
