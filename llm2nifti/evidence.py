"""Which networks does a dataset have, made from which of its runs; how do its trials score?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm2nifti import glm, networks
from llm2nifti.bids import Run
from llm2nifti.geometry import ModelBrain
from llm2nifti.glm.slabs import plain_files, read_slab
from llm2nifti.networks import SHARE, Controls, Network, Readout, Rule
from llm2nifti.networks.detection import DetectionError
from llm2nifti.networks.readout import thresholds_of
from llm2nifti.progress import track

# What the blocks add to the stream: every unit once, where it arises. The stream itself carries
# the same values through all later layers, and would count them again in each.
SITES = ("attn", "mlp")
SLAB_UNITS = 1024  # read together from all runs: 33 MB of a default dataset


@dataclass(frozen=True, eq=False)
class Evidence:
    """What single runs say; sums over runs make networks and their scales.

    Attributes
    ----------
    tasks : tuple of str
        Tasks, each with the same runs.
    numbers : tuple of int
        Numbers of the runs: the folds.
    brain : ModelBrain
        Geometry.
    contrasts : dict of (str, int) to nilearn Contrast
        Task against control in one run.
    moments : dict of int to (3, n_units) array
        Number, sum and sum of squares of the control trials of all runs of one number.
    shuffled : dict of (str, int) to (n_shuffles, n_units) array
        t maps of shuffled labels.
    rule : Rule
        Which units make a network.
    """

    tasks: tuple[str, ...]
    numbers: tuple[int, ...]
    brain: ModelBrain
    contrasts: dict[tuple[str, int], Any] = field(repr=False)
    moments: dict[int, NDArray[np.float64]] = field(repr=False)
    shuffled: dict[tuple[str, int], NDArray[np.float32]] = field(repr=False)
    rule: Rule

    def controls(self, numbers: Sequence[int]) -> Controls:
        """Mean and SD of the control trials of some runs."""
        n, total, squares = np.sum([self.moments[number] for number in numbers], axis=0)
        variance = np.maximum(squares - total**2 / n, 0) / np.maximum(n - 1, 1)
        # What is left of a constant by rounding is no scale.
        variance[variance < 1e-12 * np.maximum(squares / n, 1e-300)] = 0
        return Controls(self.brain, total / n, np.sqrt(variance))

    def networks(self, numbers: Sequence[int]) -> list[Network]:
        """Network of each task from some runs: the units with the largest absolute t."""
        return [
            networks.ranked(task, self.brain, self._t(task, numbers), self.rule)
            for task in self.tasks
        ]

    def readout(self, numbers: Sequence[int]) -> Readout:
        """Functionals that score these networks."""
        return networks.read_out(self.networks(numbers), self.controls(numbers))

    def shuffled_readout(self, numbers: Sequence[int], shuffle: int) -> Readout:
        """The same where the runs' labels were shuffled."""
        drawn = [
            networks.ranked(
                task,
                self.brain,
                np.sum([self.shuffled[task, n][shuffle] for n in numbers], axis=0),
                self.rule,
            )
            for task in self.tasks
        ]
        return networks.read_out(drawn, self.controls(numbers))

    def _t(self, task: str, numbers: Sequence[int]) -> NDArray[np.float64]:
        """(n_units,) t of a task in some runs."""
        return glm.t_map([self.contrasts[task, n] for n in numbers])


def gather(
    runs: Sequence[Run],
    *,
    share: float = SHARE,
    sites: Sequence[str] = (),
    n_shuffles: int = 0,
    verbose: int = 1,
) -> Evidence:
    """Fit every run on its own, one at a time in memory.

    Parameters
    ----------
    runs : sequence of Run
        Runs of one model.
    share : float, default=0.01
        Share of the units that make a network.
    sites : sequence of str, optional
        Where its units are; by default attn and mlp, or everything where there are none.
    n_shuffles : int, default=0
        Maps of shuffled labels a run.
    verbose : int, default=1
        0 shows no progress.

    Returns
    -------
    Evidence

    Raises
    ------
    DetectionError
        If the tasks do not have the same runs, or trials have different numbers of frames.
    """
    brain = runs[0].brain
    _check(runs)
    contrasts, shuffled = {}, {}
    moments: dict[int, Any] = {}
    for run in track(runs, "maps", unit="run", verbose=verbose):
        values, key = run.values(), (run.task, run.run)
        contrasts[key] = glm.run_contrast(values, run.events, f"{run.task} - {glm.CONTROL}")
        if n_shuffles:
            maps = glm.t_of_labels(values, [glm.shuffled(run, n=n_shuffles, seed=run.run)])
            shuffled[key] = maps.astype(np.float32)
        rows = values[(run.events["trial_type"] == glm.CONTROL).to_numpy()].astype(np.float64)
        sums = (np.full(brain.n_units, len(rows)), rows.sum(axis=0), (rows**2).sum(axis=0))
        moments[run.run] = moments.get(run.run, 0) + np.stack(sums)
    recorded = {site.name for site in brain.sites}
    where = tuple(sites) or tuple(name for name in SITES if name in recorded)
    tasks = tuple(dict.fromkeys(run.task for run in runs))
    numbers = tuple(sorted(moments))
    rule = Rule("top", share=share, sites=where)
    return Evidence(tasks, numbers, brain, contrasts, moments, shuffled, rule)


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


def running(
    runs: Sequence[Run], units: NDArray[np.int64], *, verbose: int = 1
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Read frames of all runs, some units at a time; memory stays flat however many there are.

    Parameters
    ----------
    runs : sequence of Run
        Runs whose trials have equally many frames; where some have one volume a trial, the means
        of trials are read of all.
    units : (n,) int array
        Which units.
    verbose : int, default=1
        0 shows no progress.

    Yields
    ------
    units : (n_some,) int array
        Which units these are.
    means : (n_trials, n_frames, n_some) float32 array
        Means over the first 1, 2, ... frames of all trials of all runs, or over all frames.
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


def project(
    runs: Sequence[Run],
    readouts: Sequence[Readout],
    *,
    verbose: int = 1,
    also: Callable[[NDArray[np.float32]], None] | None = None,
    units: NDArray[np.int64] | None = None,
) -> list[NDArray[np.float64]]:
    """Score all trials of some runs.

    Parameters
    ----------
    runs : sequence of Run
        What to score, in this order.
    readouts : sequence of Readout
        How.
    verbose : int, default=1
        0 shows no progress.
    also : callable, optional
        Gets what `running` yields, for something else that needs one pass over all frames.
    units : (n,) int array, optional
        Units to read; by default those that some readout uses.

    Returns
    -------
    list of (n_trials, n_frames, n_networks) array
        For each readout, the mean score over the first 1, 2, ... frames.
    """
    weights = np.concatenate([r.weights for r in readouts], axis=1).astype(np.float32)
    offsets = np.concatenate([r.offsets for r in readouts])
    if units is None:
        units = np.flatnonzero((weights != 0).any(axis=1))
    n_trials = sum(len(run.events) for run in runs)
    total = np.zeros((n_trials, n_moments(runs), weights.shape[1]))
    for part, means in running(runs, units, verbose=verbose):
        total += means @ weights[part]
        if also is not None:
            also(means)
    ends = np.cumsum([len(r.names) for r in readouts])[:-1]
    return np.split(total + offsets, ends, axis=2)


def calibrated(
    evidence: Evidence, runs: Sequence[Run], *, rate: float, verbose: int = 1
) -> networks.Thresholds:
    """Thresholds from control trials, each scored by networks of the other runs.

    Of a single run there are no others: its own networks score it, and the rate of false alarms
    for new prompts is higher than asked for.

    Parameters
    ----------
    evidence : Evidence
        From `gather`.
    runs : sequence of Run
        The same runs.
    rate : float
        Share of control trials above the threshold.
    verbose : int, default=1
        0 shows no progress.

    Returns
    -------
    Thresholds
    """
    numbers = evidence.numbers
    others = {n: [m for m in numbers if m != n] or list(numbers) for n in numbers}
    scores = project(runs, [evidence.readout(others[n]) for n in numbers], verbose=verbose)
    fold = np.concatenate([np.full(len(run.events), run.run) for run in runs])
    control = np.concatenate([(run.events["trial_type"] == glm.CONTROL) for run in runs])
    means = np.concatenate([s[control & (fold == n)] for n, s in zip(numbers, scores, strict=True)])
    return thresholds_of(evidence.tasks, means, rate=rate)
