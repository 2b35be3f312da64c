"""Which units are a task's network? Every rule that answers it, in one place."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
from nilearn.glm import threshold_stats_img
from numpy.typing import NDArray

from llm2nifti import geometry
from llm2nifti.geometry import ModelBrain
from llm2nifti.glm import CONTROL, RunLike, StatMaps, nuisance
from llm2nifti.networks.network import Network, ThresholdError, at_sites, largest

HeightControl = Literal["fdr", "bonferroni", "fpr", "permutation", "top", "bottom"]
N_PERM = 1000


@dataclass(frozen=True)
class Rule:
    """Which units of a contrast are a network; ThresholdError where a value makes no sense.

    Attributes
    ----------
    height_control : {"fdr", "bonferroni", "fpr", "permutation", "top", "bottom"}
        The first three are nilearn's `threshold_stats_img`, on z because it assumes z;
        ``permutation`` is max-T, see `select`; ``top`` and ``bottom`` keep the units with the
        largest or smallest t, because z saturates.
    alpha : float
        Level of ``fdr``, ``bonferroni`` and ``permutation`` (family-wise) and ``fpr``
        (uncorrected).
    share : float
        Share of the units at `sites` that ``top`` and ``bottom`` keep.
    two_sided : bool
        Also keep units that respond less.
    sites : tuple of str
        Names of the sites where the units are, such as ``attn``; empty for all. A threshold that
        corrects for the number of units corrects for all of them.
    """

    height_control: HeightControl = "fdr"
    alpha: float = 0.05
    share: float = 0.01
    two_sided: bool = True
    sites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the values."""
        known = get_args(HeightControl)
        if self.height_control not in known:
            raise ThresholdError(
                f"height_control is {self.height_control!r}; use {', '.join(known[:-1])} or "
                f"{known[-1]}"
            )
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
    is_tested = rule.height_control == "permutation"
    keep = _permuted(maps, rule, runs) if is_tested else _thresholded(maps, rule)
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


def _thresholded(maps: StatMaps, rule: Rule) -> NDArray[np.bool_]:
    """Units that pass nilearn's threshold."""
    with warnings.catch_warnings(action="ignore"):  # "no voxel survives" is a result
        img, _ = threshold_stats_img(
            maps.z_img,
            mask_img=maps.mask_img,
            alpha=rule.alpha,
            height_control=rule.height_control,
            two_sided=rule.two_sided,
        )
    return geometry.from_img(maps.brain, img) != 0


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
        (events["trial_type"] != CONTROL).to_numpy(),
        np.column_stack([of_run, nuisance(events).to_numpy()]),
        rule,
    )


def permutation(
    values: NDArray,
    is_task: NDArray[np.bool_],
    confounds: NDArray,
    rule: Rule,
    *,
    n_perm: int = N_PERM,
) -> NDArray[np.bool_]:
    """(n_units,) whether units pass nilearn's `permuted_ols`.

    Parameters
    ----------
    values, is_task : (n_trials, n_units) array, (n_trials,) bool array
        Prompt-level activations, and the condition of each trial.
    confounds : (n_trials, n_confounds) array
        Nuisance columns, without a constant.
    rule, n_perm
        Level and sides, and permutations; the smallest p is ``1 / (n_perm + 1)``.
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
