"""Which set of units is it? Networks by a rule, from any mask image, and random ones that match."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import nibabel as nib
import numpy as np
import pandas as pd
from nilearn.glm import threshold_stats_img
from numpy.typing import NDArray

from llm2nifti import geometry
from llm2nifti.geometry import ModelBrain
from llm2nifti.glm import RunLike, StatMaps, is_on, nuisance

HeightControl = Literal["fdr", "bonferroni", "fpr", "permutation", "top", "bottom"]
N_PERM = 1000
N_BINS = 10  # of a site's activities, in which a network and its control are equal in number


class ThresholdError(ValueError):
    """A map cannot be thresholded this way."""


@dataclass(frozen=True, eq=False)
class Network:
    """A set of units."""

    name: str  #: name, how: what it is the network of, and how it was found
    brain: ModelBrain  #: geometry
    #: (n_units,) int8 array; 1 for units that are higher, -1 for lower, 0 for units outside the
    #: network
    signs: NDArray[np.int8]
    how: str = "mask image"
    #: (n_units,) float array, optional; how much each unit counts, 0 to 1, where the network came
    #: from a map that says so
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
            f"{text}\n  by site: {by_site}\n  higher {n_up}, lower {n - n_up}; "
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


@dataclass(frozen=True)
class Rule:
    """Which units of a contrast are a network; ThresholdError where a value makes no sense."""

    #: the first three are nilearn's `threshold_stats_img`, on z because it assumes z;
    #: ``permutation`` is max-T, see `select`; ``top`` and ``bottom`` keep the units with the
    #: largest or smallest t, because z saturates
    height_control: HeightControl = "fdr"
    #: level of ``fdr``, ``bonferroni`` and ``permutation`` (family-wise) and ``fpr`` (uncorrected)
    alpha: float = 0.05
    share: float = 0.01  #: share of the units at `sites` that ``top`` and ``bottom`` keep
    two_sided: bool = True  #: also keep units that are lower than in the control
    #: names of the sites where the units are, such as ``attn``; empty for all. A threshold that
    #: corrects for the number of units corrects for all of them.
    sites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the values."""
        *known, last = get_args(HeightControl)
        if self.height_control not in (*known, last):
            words = f"{', '.join(known)} or {last}"
            raise ThresholdError(f"height_control is {self.height_control!r}; use {words}")
        if not 0 < self.alpha < 1:
            raise ThresholdError(f"alpha is {self.alpha}; it must lie between 0 and 1")
        if not 0 < self.share <= 1:
            raise ThresholdError(f"share is {self.share}; it must lie between 0 and 1")

    @property
    def is_ranked(self) -> bool:
        """Whether a share of the units is kept, however small their t."""
        return self.height_control in ("top", "bottom")

    @property
    def label(self) -> str:
        """Letters and digits that tell the rule from others, for file names; empty for `Rule()`."""
        if str(self) == str(Rule()):  # a share that nothing is made of tells nothing apart
            return ""
        level = f"{self.share if self.is_ranked else self.alpha:g}".replace(".", "p")
        side = "" if self.two_sided else "onesided"
        return re.sub(r"[\W_]", "", f"{self.height_control}{level}{side}{''.join(self.sites)}")

    def __str__(self) -> str:
        """The rule in words."""
        at = f" of {', '.join(self.sites)}" if self.sites else ""
        side = "two-sided" if self.two_sided else "one-sided"
        if self.is_ranked:
            return f"{self.height_control} {100 * self.share:g}%{at} by t, {side}"
        draws = f", {N_PERM} draws" if self.height_control == "permutation" else ""
        return f"{self.height_control} {self.alpha:g}{at}, {side}{draws}"


def select(
    maps: StatMaps,
    rule: Rule | None = None,
    *,
    runs: Sequence[RunLike] = (),
    name: str | None = None,
) -> Network:
    """Keep the units of a contrast that a rule asks for.

    Parameters
    ----------
    maps : StatMaps
        From ``llm2nifti.glm.fit(...).contrast(...)``.
    rule : Rule, optional
        By default `Rule()`: false discovery rate .05, two-sided, everywhere.
    runs : sequence of Run, optional
        Runs of the contrast, whose trials a permutation exchanges.
    name : str, optional
        What to call the network; by default as the contrast.

    Raises
    ------
    ThresholdError
        If a site was not recorded, or a permutation has no trials to exchange.

    Notes
    -----
    Permutation: Freedman and Lane's scheme with the maximum statistic, as implemented in nilearn's
    `permuted_ols`. It permutes all trials alike and knows no runs, so run and question-frame
    columns go in as confounds.

    Examples
    --------
    >>> networks.select(stats, networks.Rule("fdr", alpha=0.05))  # doctest: +SKIP
    """
    rule, name = rule or Rule(), name or maps.name
    if rule.is_ranked:
        return ranked(name, maps.brain, maps.t(), rule)
    if rule.height_control == "permutation":
        keep = _permuted(maps, rule, runs)
    else:
        with warnings.catch_warnings(action="ignore"):  # "no voxel survives" is a result
            img, _ = threshold_stats_img(
                maps.z_img,
                mask_img=maps.mask_img,
                alpha=rule.alpha,
                height_control=rule.height_control,
                two_sided=rule.two_sided,
            )
        keep = geometry.from_img(maps.brain, img) != 0
    keep &= at_sites(maps.brain, rule.sites)
    return Network(name, maps.brain, (np.sign(maps.t()) * keep).astype(np.int8), str(rule))


def ranked(name: str, brain: ModelBrain, t: NDArray[np.floating], rule: Rule) -> Network:
    """Keep the units with the largest or smallest values, of t or of anything like it.

    Parameters
    ----------
    name, brain : str, ModelBrain
        What to call the network, and its geometry.
    t : (n_units,) array
        What is ranked.
    rule : Rule
        With the height control ``top`` or ``bottom``.
    """
    inside, is_bottom = at_sites(brain, rule.sites), rule.height_control == "bottom"
    scores = (np.abs(t) if rule.two_sided else t)[inside]
    keep = np.zeros(len(t), bool)
    keep[inside] = largest(-scores if is_bottom else scores, rule.share)
    signs = np.where(t < 0, -1, 1 if is_bottom else t > 0)
    return Network(name, brain, (signs * keep).astype(np.int8), str(rule))


def _permuted(maps: StatMaps, rule: Rule, runs: Sequence[RunLike]) -> NDArray[np.bool_]:
    """Units whose t exceeds the largest t under permutation."""
    if maps.note:
        raise ThresholdError("permutation tests prompts, not tokens: use frames='trial'")
    if not runs:
        raise ThresholdError("permutation needs the trials: runs=...")
    events = pd.concat([run.events for run in runs], ignore_index=True)
    # Trials of different runs may differ in their mean, which permutation does not know.
    of_run = np.repeat(np.eye(len(runs))[:, 1:], [len(run.events) for run in runs], axis=0)
    return permutation(
        np.concatenate([run.values() for run in runs]),
        is_on(events),
        np.column_stack([of_run, nuisance(events).to_numpy()]),
        rule,
    )


def permutation(
    values: NDArray, is_task: NDArray, confounds: NDArray, rule: Rule, n_perm: int = N_PERM
) -> NDArray[np.bool_]:
    """(n_units,) whether units of (n_trials, n_units) activations pass nilearn's `permuted_ols`.

    Parameters
    ----------
    values, is_task, confounds, rule, n_perm
        Activations; the condition of each trial; (n_trials, n_confounds) nuisance columns without a
        constant; level and sides; and permutations: the smallest p is ``1 / (n_perm + 1)``.
    """
    from nilearn.mass_univariate import permuted_ols

    if n_perm + 1 < 1 / rule.alpha:
        least = f"{1 / rule.alpha:.0f}"
        raise ThresholdError(f"n_perm is {n_perm}; alpha {rule.alpha:g} needs at least {least}")
    varies = np.ptp(values, axis=0) > 0
    result = permuted_ols(
        np.asarray(is_task, float)[:, None],
        np.asarray(values, float)[:, varies],
        confounding_vars=confounds if confounds.size else None,
        n_perm=n_perm,
        two_sided_test=rule.two_sided,
        random_state=0,
        output_type="dict",
        verbose=0,
    )
    keep = np.zeros(values.shape[1], bool)
    keep[varies] = result["logp_max_t"][0] >= -np.log10(rule.alpha) - 1e-9  # p = alpha passes
    return keep


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
