"""Which networks does a dataset have, made from which of its runs; how do its trials score?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm2nifti import glm, networks
from llm2nifti.bids import Run
from llm2nifti.geometry import ModelBrain
from llm2nifti.glm.slabs import plain_files, read_slab
from llm2nifti.networks import SHARE, Controls, Network, Readout, Rule, Thresholds
from llm2nifti.networks.detection import DetectionError
from llm2nifti.networks.readout import thresholds_of
from llm2nifti.progress import track

# What the blocks add to the stream: every unit once, where it arises. The stream itself carries
# the same values through all later layers, and would count them again in each.
SITES = ("attn", "mlp")
SLAB_UNITS = 1024  # read together from all runs: 33 MB of a default dataset
Slab = tuple[NDArray[np.int64], NDArray[np.float32]]  # (n_some,) units, their means


@dataclass(frozen=True, eq=False)
class Evidence:
    """What single runs say; sums over runs make networks and their scales."""

    tasks: tuple[str, ...]  #: each with the same runs
    numbers: tuple[int, ...]  #: of the runs: the folds
    brain: ModelBrain
    #: nilearn's contrast of a task against control in one run
    contrasts: dict[tuple[str, int], Any] = field(repr=False)
    #: (3, n_units): number, sum and sum of squares of the control trials of all runs of one number
    moments: dict[int, NDArray[np.float64]] = field(repr=False)
    #: (n_shuffles, n_units) t maps of shuffled labels
    shuffled: dict[tuple[str, int], NDArray[np.float32]] = field(repr=False)
    rule: Rule  #: which units make a network

    def others(self, *held: int) -> list[int]:
        """Numbers of the runs without some."""
        return [n for n in self.numbers if n not in held]

    def controls(self, numbers: Sequence[int]) -> Controls:
        """Mean and SD of the control trials of some runs."""
        n, total, squares = np.sum([self.moments[number] for number in numbers], axis=0)
        variance = np.maximum(squares - total**2 / n, 0) / np.maximum(n - 1, 1)
        # What is left of a constant by rounding is no scale.
        variance[variance < 1e-12 * np.maximum(squares / n, 1e-300)] = 0
        return Controls(self.brain, total / n, np.sqrt(variance))

    def networks(self, numbers: Sequence[int], shuffle: int | None = None) -> list[Network]:
        """Network of each task from some runs, or from their labels in one of the shuffles."""
        drawn = []
        for task in self.tasks:
            if shuffle is None:
                t = glm.t_map([self.contrasts[task, n] for n in numbers])
            else:
                t = np.sum([self.shuffled[task, n][shuffle] for n in numbers], axis=0)
            drawn.append(networks.ranked(task, self.brain, t, self.rule))
        return drawn

    def readout(self, numbers: Sequence[int], shuffle: int | None = None) -> Readout:
        """Functionals that score these networks."""
        return networks.read_out(self.networks(numbers, shuffle), self.controls(numbers))


def gather(
    runs: Sequence[Run], *, share: float = SHARE, n_shuffles: int = 0, verbose: int = 1
) -> Evidence:
    """Fit every run of one model on its own, one at a time in memory.

    A share of the units at `SITES`, or of all units where these were not recorded, makes a network.
    DetectionError if the tasks do not have the same runs, or trials different numbers of frames.
    """
    brain = runs[0].brain
    _check(runs)
    contrasts, shuffled = {}, {}
    moments: dict[int, Any] = {}
    for run in track(runs, "maps", unit="run", verbose=verbose):
        values, key = run.values(), (run.task, run.run)
        contrasts[key] = glm.run_contrast(values, run.events, glm.task_contrast(run.events))
        if n_shuffles:
            maps = glm.t_of_labels(values, [glm.shuffled(run, n=n_shuffles, seed=run.run)])
            shuffled[key] = maps.astype(np.float32)
        rows = values[~glm.is_on(run.events)].astype(np.float64)
        sums = (np.full(brain.n_units, len(rows)), rows.sum(axis=0), (rows**2).sum(axis=0))
        moments[run.run] = moments.get(run.run, 0) + np.stack(sums)
    recorded = {site.name for site in brain.sites}
    rule = Rule("top", share=share, sites=tuple(name for name in SITES if name in recorded))
    tasks = tuple(dict.fromkeys(run.task for run in runs))
    return Evidence(tasks, tuple(sorted(moments)), brain, contrasts, moments, shuffled, rule)


def _check(runs: Sequence[Run]) -> None:
    """Raise DetectionError unless runs and trials are alike in number."""
    numbers: dict[str, list[int]] = {}
    for run in runs:
        numbers.setdefault(run.task, []).append(run.run)
    if len({tuple(sorted(of_task)) for of_task in numbers.values()}) > 1:
        told = ", ".join(f"{task}: {of_task}" for task, of_task in numbers.items())
        raise DetectionError(f"every task needs the same runs; there are {told}. Finish the scan")
    counts = {int(n) for run in runs for n in run.volume_counts}
    if len(counts) > 1 and n_moments(runs) > 1:
        raise DetectionError(
            f"trials have {min(counts)} to {max(counts)} frames; scores over time need equally "
            "many: record with mode='generate', or frames='trial'"
        )


def n_moments(runs: Sequence[Run]) -> int:
    """Moments of a trial that can be scored: its frames, or 1 where some run keeps one volume."""
    return min(int(run.volume_counts.max()) for run in runs)


def running(runs: Sequence[Run], units: NDArray[np.int64], *, verbose: int = 1) -> Iterator[Slab]:
    """Read frames of all runs, some units at a time; memory stays flat however many there are.

    Yields some of the units, and float32 means over the first 1, 2, ... frames of all trials of all
    runs, (n_trials, n_frames, n_some). Trials have equally many frames; where some runs have one
    volume a trial, there is only the mean over all frames.
    """
    brain = runs[0].brain
    voxels = np.ravel_multi_index(tuple(brain.voxels.T.astype(np.int64)), brain.shape, order="F")
    ordered = units[np.argsort(voxels[units])]
    parts = np.array_split(ordered, max(1, -(-len(ordered) // SLAB_UNITS)))
    n_frames = n_moments(runs)
    imgs = [run.img if n_frames == 1 else run.frames_img for run in runs]
    divisor = np.arange(1, n_frames + 1)[:, None]
    with plain_files(imgs) as paths:
        for part in track(parts, "frames", unit="slab", verbose=verbose):
            means = []
            for path in paths:
                values = read_slab(path, voxels[part]).reshape(-1, n_frames, len(part))
                means.append((values.cumsum(axis=1) / divisor).astype(np.float32))
            yield part, np.concatenate(means)


def project(slabs: Iterable[Slab], readouts: Sequence[Readout]) -> list[NDArray[np.float64]]:
    """Score all trials of what `running` reads.

    Gives for each readout the (n_trials, n_frames, n_networks) mean scores over the first 1, 2, ...
    frames. Its units have to be among those that are read.
    """
    weights = np.concatenate([r.weights for r in readouts], axis=1).astype(np.float32)
    offsets = np.concatenate([r.offsets for r in readouts])
    total = np.zeros(1)
    for part, means in slabs:
        total = total + means @ weights[part]
    ends = np.cumsum([len(r.names) for r in readouts])[:-1]
    return np.split(total + offsets, ends, axis=2)


def calibrated(
    evidence: Evidence, runs: Sequence[Run], *, rate: float, verbose: int = 1
) -> Thresholds:
    """Thresholds that a share of control trials exceeds, each scored by networks of the other runs.

    Of a single run there are no others: its own networks score it, and the rate of false alarms
    for new prompts is higher than asked for.
    """
    numbers = evidence.numbers
    readouts = [evidence.readout(evidence.others(n) or numbers) for n in numbers]
    units = np.flatnonzero(np.any([r.weights.any(axis=1) for r in readouts], axis=0))
    scores = project(running(runs, units, verbose=verbose), readouts)
    fold = np.concatenate([np.full(len(run.events), run.run) for run in runs])
    control = np.concatenate([~glm.is_on(run.events) for run in runs])
    means = np.concatenate([s[control & (fold == n)] for n, s in zip(numbers, scores, strict=True)])
    return thresholds_of(evidence.tasks, means, rate=rate)
