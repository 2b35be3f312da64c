"""What do many other labels of the same trials give? Shuffles, subsets and blocks left out.

A labelling is a row of one matrix product, so that hundreds of them cost about what one fit does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import linalg

from llm2nifti.glm.designs import CONTROL, DesignError, nuisance
from llm2nifti.glm.fitting import RunLike

_TOGETHER = 2048  # units; their trials fit into the cache of a processor
_NOTHING = 1e-12  # of a unit's sum of squares: what rounding leaves of a constant


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of trials.

    Attributes
    ----------
    is_on : (n_labellings, n_kept) bool array
        Regressors, each tested alone.
    confounds : (n_kept, n_confounds) array
        Nuisance columns; a constant is always included.
    kept : (n_kept,) int array, optional
        Trials that are labelled, by default all.
    """

    is_on: NDArray[np.bool_]
    confounds: NDArray[np.float64]
    kept: NDArray[np.int64] | None = None

    @cached_property
    def basis(self) -> NDArray[np.float64]:
        """(n_kept, rank) orthonormal basis of the constant and the confounds."""
        return linalg.orth(np.column_stack([np.ones(len(self.confounds)), self.confounds]))

    @property
    def df(self) -> int:
        """Residual degrees of freedom."""
        return self.is_on.shape[1] - 1 - self.basis.shape[1]

    @cached_property
    def regressors(self) -> NDArray[np.float64]:
        """(n_labellings, n_kept) labels that are orthogonal to the confounds, of norm 1 or 0."""
        is_on = self.is_on.astype(float)
        rows = is_on - is_on @ self.basis @ self.basis.T
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.where(norms > 1e-8 * np.sqrt(rows.shape[1]), rows / np.maximum(norms, 1e-300), 0)

    def testable(self) -> Labels:
        """Those labellings that can be told from the confounds."""
        return replace(self, is_on=self.is_on[self.regressors.any(axis=1)])

    def check(self) -> None:
        """Raise DesignError unless there are enough trials, and all labellings are testable."""
        if self.df < 1:
            raise DesignError(
                f"{self.is_on.shape[1]} trials are too few for {self.confounds.shape[1]} "
                "question-frame columns; scan more trials_per_block"
            )
        if not self.regressors.any(axis=1).all():
            raise DesignError(
                "the labels are mixed up with question frames: one of these is shown in one "
                "condition only; scan more trials_per_block"
            )


def t_of_labels(values: NDArray, labels: Sequence[Labels]) -> NDArray[np.float64]:
    """T of many labellings of the same trials by ordinary least squares.

    Parameters
    ----------
    values, labels : (n_trials, n_units) array, sequence of Labels
        Activations, and labellings; those of one `Labels` share trials and confounds.

    Returns
    -------
    (n_labellings, n_units) array
        0 for units that are constant in the labelled trials.

    Notes
    -----
    With regressor and data orthogonal to the confounds (Frisch, Waugh and Lovell), the effect of a
    regressor of norm 1 is its product with the data, and what it leaves of their sum of squares is
    the residual one. Values are centred first, so that little is lost in the subtraction.
    """
    for group in labels:
        group.check()
    out = np.empty((sum(len(group.is_on) for group in labels), values.shape[1]))
    for start in range(0, values.shape[1], _TOGETHER):
        part = slice(start, start + _TOGETHER)
        Y = values[:, part].astype(np.float64)
        Y -= Y.mean(axis=0)
        t = [_t(Y if group.kept is None else Y[group.kept], group) for group in labels]
        out[:, part] = np.concatenate(t)
    return out


def _t(Y: NDArray[np.float64], labels: Labels) -> NDArray[np.float64]:
    """(n_labellings, n) t values of units, from their centred (n_kept, n) values."""
    whole = np.einsum("ij,ij->j", Y, Y)
    explained = labels.basis.T @ Y
    effects = labels.regressors @ Y
    rest = whole - np.einsum("ij,ij->j", explained, explained) - effects**2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(rest > _NOTHING * whole, effects * np.sqrt(labels.df / rest), 0)


def shuffled(run: RunLike, *, n: int, seed: int = 0) -> Labels:
    """Trial types of a run, shuffled `n` times; what cannot be tested is drawn again.

    Raises DesignError if question frames leave too few shuffles that can be tested.
    """
    rng = np.random.default_rng([seed, *run.task.encode()])
    is_on = (run.events["trial_type"] != CONTROL).to_numpy()
    draws = np.stack([rng.permutation(is_on) for _ in range(10 * n)])
    labels = Labels(draws, nuisance(run.events).to_numpy()).testable()
    if len(labels.is_on) < n:
        raise DesignError(
            f"task {run.task}, run {run.run}: question frames are mixed up with nearly every "
            "shuffle of the trials; scan more trials_per_block"
        )
    return replace(labels, is_on=labels.is_on[:n])


def without_blocks(events: pd.DataFrame) -> list[Labels]:
    """Trial types of a run with one block left out at a time, for the jackknife.

    Every on-block goes with an equal share of the control trials, so that their ratio stays.
    """
    is_on = (events["trial_type"] != CONTROL).to_numpy()
    return [
        Labels(is_on[keep][None], nuisance(events[keep]).to_numpy(), np.flatnonzero(keep))
        for keep in delete_block_masks(events)
    ]


def delete_block_masks(events: pd.DataFrame) -> list[NDArray[np.bool_]]:
    """Trials to keep when each on-block, with its share of the control, is left out."""
    is_control = (events["trial_type"] == CONTROL).to_numpy()
    on_blocks = list(dict.fromkeys(events.loc[~is_control, "block"]))
    shares = np.array_split(np.flatnonzero(is_control), len(on_blocks))
    masks = []
    for block, share in zip(on_blocks, shares, strict=True):
        keep = ~((events["block"] == block).to_numpy() & ~is_control)
        keep[share] = False
        masks.append(keep)
    return masks
