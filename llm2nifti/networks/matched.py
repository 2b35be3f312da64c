"""Which units are a fair control for a network? Random ones, alike in all but the contrast."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llm2nifti.networks.network import Network, ThresholdError

N_BINS = 10


def matched(
    network: Network, activity: NDArray[np.floating], *, seed: int = 0, n_bins: int = N_BINS
) -> Network:
    """Draw random units that match a network in size, layer, site and size of activation.

    Parameters
    ----------
    network : Network
        What to match.
    activity : (n_units,) array
        Mean |activation| of each unit.
    seed : int, default=0
        Seed of the draw.
    n_bins : int, default=10
        Quantiles of `activity`, within each site of a layer, in which the numbers are equal.

    Returns
    -------
    Network
        As many units in each site of each layer and each quantile, none of them in the network.
        Where a quantile has too few others, the units nearest in activity stand in.

    Raises
    ------
    ThresholdError
        If the network holds more than half of a site, so that no control of its size is left.

    Notes
    -----
    Units differ in size by orders of magnitude, and large ones do the most damage when removed, so
    an unmatched control proves nothing.
    """
    rng = np.random.default_rng([seed, 20231110])
    signs = np.zeros(network.brain.n_units, np.int8)
    for site in network.brain.sites:
        inside = network.brain.slice_of(site)
        members = network.units[inside]
        if 2 * members.sum() > len(members):
            raise ThresholdError(
                f"network {network.name!r} holds {members.sum()} of the {len(members)} units of "
                f"{site.key}: no matched control is left; choose a smaller share"
            )
        signs[inside][_draw(members, np.asarray(activity[inside]), n_bins, rng)] = 1
    return Network(f"matched with {network.name}", network.brain, signs, f"random, seed {seed}")


def _draw(
    members: NDArray[np.bool_], activity: NDArray, n_bins: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Positions of the control units of one site of one layer."""
    ranks = np.argsort(np.argsort(activity, kind="stable"), kind="stable")
    bins = ranks * n_bins // len(ranks)
    is_free = ~members
    chosen: list[int] = []
    for b in range(n_bins):
        n_wanted = int((members & (bins == b)).sum())
        inside = np.flatnonzero(is_free & (bins == b))
        picked = rng.permutation(inside)[:n_wanted]
        is_free[picked] = False
        if len(picked) < n_wanted:  # those nearest in rank stand in
            others = np.flatnonzero(is_free)
            centre = ranks[bins == b].mean()
            near = others[np.argsort(np.abs(ranks[others] - centre), kind="stable")]
            extra = near[: n_wanted - len(picked)]
            is_free[extra] = False
            picked = np.concatenate([picked, extra])
        chosen += picked.tolist()
    return np.array(chosen, np.int64)
