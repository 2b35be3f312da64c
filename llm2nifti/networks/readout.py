"""How active is a network right now? Scores of activations, and thresholds from control trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm2nifti.geometry import ModelBrain
from llm2nifti.networks.network import Network

RATE = 0.05  # of control trials that a threshold lets pass
SHARE = 0.01  # of the units of the chosen sites that make a task's network


class ReadoutError(ValueError):
    """Networks cannot be scored, or thresholds cannot be set."""


@dataclass(frozen=True, eq=False)
class Controls:
    """What units do in control trials."""

    brain: ModelBrain  #: brain, mean, sd: geometry, and what units do over trials
    mean: NDArray[np.floating]
    sd: NDArray[np.floating]
    #: (n_trials, n_units) float32 array, optional; mean of each trial over its frames, where trials
    #: were kept
    trials: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, brain: ModelBrain, trials: NDArray[np.float32]) -> Controls:
        """Keep trials with their mean and SD; a single one has an SD of 0."""
        sd = trials.std(axis=0, ddof=min(1, len(trials) - 1))
        return cls(brain, trials.mean(axis=0), sd, trials)

    @property
    def activity(self) -> NDArray[np.float32]:
        """(n_units,) mean |activation|: how large a unit is."""
        if self.trials is None:
            raise ReadoutError("these control trials were not kept; use control_trials(runs)")
        return np.abs(self.trials).mean(axis=0)


@dataclass(frozen=True, eq=False)
class Readout:
    """Scores of some networks as linear functionals of the activations."""

    brain: ModelBrain  #: brain, names: geometry, and names of the networks
    names: tuple[str, ...]
    #: weights, offsets: (n_units, n_networks) and (n_networks,) array; what a unit adds to each
    #: score, and the scores of activations that are all 0
    weights: NDArray[np.float64]
    offsets: NDArray[np.float64]

    def scores(self, values: NDArray) -> NDArray[np.float64]:
        """(..., n_networks) scores of (..., n_units) activations."""
        return values @ self.weights + self.offsets


def read_out(networks: Network | Sequence[Network], controls: Controls) -> Readout:
    """Make the functionals that score networks.

    The score of a network is the mean over its units of ``sign * weight * (x - mean) / sd``, with
    mean and sd of control trials: how many SDs its units are beyond control, each in the direction
    of the task. Units that do not vary in control trials have no scale and are left out.

    Parameters
    ----------
    networks : Network or sequence of Network
        Of one space, with different names.
    controls : Controls
        Mean and SD of every unit in control trials.

    Raises
    ------
    ReadoutError
        If names repeat, spaces differ, or a network has no unit that varies in control trials.
    """
    chosen = [networks] if isinstance(networks, Network) else list(networks)
    names = tuple(network.name for network in chosen)
    if not names:
        raise ReadoutError("no network is given; give at least one")
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise ReadoutError(f"two networks are called {twice[0]!r}; give each its own name")
    sd = np.nan_to_num(np.asarray(controls.sd, float))
    weights = np.empty((len(sd), len(chosen)))
    for column, network in zip(weights.T, chosen, strict=True):
        if network.brain.space != controls.brain.space:
            raise ReadoutError(
                f"network {network.name!r} is in space {network.brain.space}, the control trials "
                f"are in {controls.brain.space}; use a dataset of the same model and sites"
            )
        used = network.units & (sd > 0)
        if not used.any():
            raise ReadoutError(
                f"network {network.name!r} has no unit that varies in control trials "
                f"({network.n_units} units); use another network, or at least 2 control trials"
            )
        column[:] = network.signs * network.strengths / np.where(sd > 0, sd, np.inf) / used.sum()
    offsets = -np.asarray(controls.mean, float) @ weights
    return Readout(controls.brain, names, weights, offsets)


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Where the score of a network is no longer that of a control trial."""

    #: names, rate: of the networks, and the share of control trials above each one's threshold
    names: tuple[str, ...]
    rate: float
    #: values, spread: (n_tokens, n_networks) array; threshold of the mean over the first 1, 2, ...
    #: tokens, and SD of these means over control trials: in its units networks are compared.
    values: NDArray[np.float64]
    spread: NDArray[np.float64]

    def at(self, n_seen: int) -> NDArray[np.float64]:
        """(n_networks,) thresholds after so many tokens; beyond the last known, the last."""
        return self.values[min(n_seen, len(self.values)) - 1]

    def top(self, means: NDArray, n_seen: int) -> str | None:
        """Name of the network furthest above its threshold in SDs; None where none is above."""
        spread = self.spread[min(n_seen, len(self.values)) - 1]
        margins = (means - self.at(n_seen)) / np.where(spread > 0, spread, 1)
        margins = np.nan_to_num(margins, nan=-np.inf)
        best = int(margins.argmax())
        return self.names[best] if margins[best] > 0 else None


def running_means(scores: NDArray) -> NDArray[np.float64]:
    """Mean over the first 1, 2, ... tokens of (..., n_tokens, n_networks) scores, same shape.

    Tokens that are NaN (after the end of a sequence) count for nothing.

    >>> running_means(np.array([[1.0], [3.0], [np.nan]]))[:, 0].tolist()
    [1.0, 2.0, 2.0]
    """
    known = ~np.isnan(scores)
    totals = np.cumsum(np.where(known, scores, 0), axis=-2, dtype=np.float64)
    return totals / np.maximum(np.cumsum(known, axis=-2), 1)


def calibrate(names: Sequence[str], scores: NDArray, *, rate: float = RATE) -> Thresholds:
    """Set thresholds that a given share of control trials exceeds.

    Parameters
    ----------
    names, scores : names of the networks, (n_trials, n_tokens, n_networks) array
        Scores of control trials, best of ones that did not make the networks.
    rate : float, default=0.05
        False-positive rate of each network at each number of tokens. ReadoutError if it is not
        between 0 and 1, or there are too few trials for it.
    """
    return thresholds_of(names, running_means(scores), rate=rate)


def thresholds_of(names: Sequence[str], means: NDArray, *, rate: float = RATE) -> Thresholds:
    """Set thresholds as `calibrate` does, from scores that are running means already."""
    if not 0 < rate < 1:
        raise ReadoutError(f"the threshold's rate is {rate}; it must lie between 0 and 1")
    if len(means) * rate < 1:
        raise ReadoutError(
            f"{len(means)} control trials cannot show a rate of {rate:g}; use a rate of at least "
            f"{1 / max(len(means), 1):.2g}, or more runs"
        )
    values = np.quantile(means, 1 - rate, axis=0, method="higher")
    return Thresholds(tuple(names), rate, values, means.std(axis=0))
