"""Which set of units is it? Networks, also from any mask image, and random ones that match them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llm2nifti import geometry
from llm2nifti.geometry import ModelBrain

N_BINS = 10  # of a site's activities, in which a network and its control are equal in number


class ThresholdError(ValueError):
    """A map cannot be thresholded this way."""


@dataclass(frozen=True, eq=False)
class Network:
    """A set of units.

    Attributes
    ----------
    name, how : str
        What it is the network of, and how it was found.
    brain : ModelBrain
        Geometry.
    signs : (n_units,) int8 array
        1 for units that respond more, -1 for less, 0 for units outside the network.
    weights : (n_units,) float array, optional
        How much each unit counts, 0 to 1, where the network came from a map that says so.
    """

    name: str
    brain: ModelBrain
    signs: NDArray[np.int8]
    how: str = "mask image"
    weights: NDArray[np.float64] | None = None

    @property
    def units(self) -> NDArray[np.bool_]:
        """(n_units,) whether each unit belongs to the network."""
        return self.signs != 0

    @property
    def n_units(self) -> int:
        """Units in the network."""
        return int(self.units.sum())

    @property
    def strengths(self) -> NDArray[np.float64]:
        """(n_units,) how much each unit counts: its weight, or 1; 0 outside the network."""
        return self.units.astype(float) if self.weights is None else self.weights * self.units

    def at(self, *sites: str) -> Network:
        """Keep the units at sites of these names, such as ``attn``; see `at_sites`."""
        return replace(self, signs=np.where(at_sites(self.brain, sites), self.signs, 0))

    def mask_img(self) -> nib.Nifti1Image:
        """Binary NIfTI image of the network."""
        return geometry.to_img(self.brain, self.units)

    def profile(self) -> pd.DataFrame:
        """A row a recorded site of a layer: ``layer, site, n_units, n_active, share``."""
        rows = []
        for site in self.brain.sites:
            active = int(self.units[self.brain.slice_of(site)].sum())
            rows.append((site.layer, site.name, site.n_units, active, active / site.n_units))
        return pd.DataFrame(rows, columns=["layer", "site", "n_units", "n_active", "share"])

    def __repr__(self) -> str:
        """Size, then units by site, by direction, and where they are densest."""
        n, total = self.n_units, self.brain.n_units
        text = f"Network {self.name!r}: {n} of {total} units ({n / total:.1%}), {self.how}"
        if not n:
            return text
        profile = self.profile()
        sites = profile.groupby("site", sort=False)["n_active"].sum()
        by_site = ", ".join(f"{site} {count}" for site, count in sites.items())
        best = profile.sort_values("share", ascending=False).iloc[0]
        n_up = int((self.signs > 0).sum())
        return (
            f"{text}\n  by site: {by_site}\n  more active {n_up}, less active {n - n_up}; "
            f"densest: layer {best['layer']} {best['site']} ({best['share']:.0%})"
        )


def at_sites(brain: ModelBrain, sites: Sequence[str]) -> NDArray[np.bool_]:
    """(n_units,) whether each unit is at a site of these names; everywhere if none is given.

    Raises ThresholdError if a site was not recorded.
    """
    recorded = list(dict.fromkeys(site.name for site in brain.sites))
    unknown = [name for name in sites if name not in recorded]
    if unknown:
        raise ThresholdError(
            f"there is no site {unknown[0]!r}; the dataset was scanned with {', '.join(recorded)}"
        )
    is_inside = [not sites or site.name in sites for site in brain.sites]
    return np.repeat(is_inside, np.diff(brain.offsets))


def from_mask(brain: ModelBrain, img: nib.Nifti1Image, *, name: str = "mask") -> Network:
    """Make a network of any image in the model's space; non-zero voxels belong to it.

    Parameters
    ----------
    brain, img : ModelBrain, Nifti1Image
        A binary mask, also one drawn by hand; an atlas of whole numbers; or a map, such as a
        thresholded t map, whose magnitudes weight the units (the largest counts 1).
    name : str, default="mask"
        What to call the network.

    Raises
    ------
    llm2nifti.geometry.SpaceError
        If the image has another shape or affine.
    ThresholdError
        If the image has several volumes, or no voxel of the model is non-zero.
    """
    values = np.nan_to_num(np.asarray(geometry.from_img(brain, img), float))
    if values.ndim != 1:
        raise ThresholdError(f"mask {name!r} has {len(values)} volumes; give a 3D image")
    if not values.any():
        raise ThresholdError(f"mask {name!r} marks no unit of space {brain.space}")
    sizes = np.abs(values)
    is_map = bool((values % 1).any()) and len(np.unique(sizes[sizes > 0])) > 1
    weights = sizes / sizes.max() if is_map else None
    return Network(name, brain, np.sign(values).astype(np.int8), "mask image", weights)


def matched(network: Network, activity: NDArray[np.floating], *, seed: int = 0) -> Network:
    """Draw random units that match a network in size, layer, site and size of activation.

    A fair control: units differ in size by orders of magnitude, and large ones do the most damage
    when removed, so an unmatched control proves nothing.

    Parameters
    ----------
    network : Network
        What to match.
    activity, seed : (n_units,) array, int
        Mean |activation| of each unit, and seed of the draw.

    Returns
    -------
    Network
        As many units in each site of each layer and each tenth of its activities, none of them in
        the network. Where a tenth has too few others, the units nearest in activity stand in.

    Raises
    ------
    ThresholdError
        If the network holds more than half of a site, so that no control of its size is left.
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
        signs[inside][_draw(members, np.asarray(activity[inside]), rng)] = 1
    return Network(f"matched with {network.name}", network.brain, signs, f"random, seed {seed}")


def _draw(
    members: NDArray[np.bool_], activity: NDArray, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Positions of the control units of one site of one layer."""
    ranks = np.argsort(np.argsort(activity, kind="stable"), kind="stable")
    bins = ranks * N_BINS // len(ranks)
    is_free, draws = ~members, []
    for inside in (bins == b for b in range(N_BINS)):
        n_wanted = int((members & inside).sum())
        picked = rng.permutation(np.flatnonzero(is_free & inside))[:n_wanted]
        if len(picked) < n_wanted:  # those nearest in rank stand in
            others = np.flatnonzero(is_free & ~inside)
            distance = np.abs(ranks[others] - ranks[inside].mean())
            near = others[np.argsort(distance, kind="stable")]
            picked = np.concatenate([picked, near[: n_wanted - len(picked)]])
        is_free[picked] = False
        draws.append(picked)
    return np.concatenate(draws)


def largest(scores: NDArray, share: float) -> NDArray[np.bool_]:
    """Mark the given share of the scores, at least one, that are largest; ties by position."""
    k = max(1, round(share * len(scores)))
    order = np.where(np.isnan(scores), np.inf, -scores)
    last = np.partition(order, k - 1)[k - 1]
    keep = order < last
    keep[np.flatnonzero(order == last)[: k - keep.sum()]] = True
    return keep
