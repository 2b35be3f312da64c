"""What does chance give? Prompts that are exchanged within their run, p values and ranges."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from llm2nifti.experiments.group.prompts import SharedPrompts
from llm2nifti.experiments.results import Interval
from llm2nifti.parcels import shuffle_within, without_nuisance


def p_of(value: float, null: NDArray | list[float]) -> float:
    """P value of a figure that is large, beside what chance gives."""
    return float((1 + np.sum(np.asarray(null) >= value)) / (1 + len(null)))


def range_of(null: NDArray | list[float]) -> Interval:
    """Mean and 95 % range."""
    return Interval(float(np.mean(null)), *map(float, np.percentile(null, [2.5, 97.5])))


@dataclass(frozen=True, eq=False)
class Independent:
    """Prompts without nuisances: rows that are independent of each other."""

    prompts: SharedPrompts
    wanted: NDArray[np.bool_]  #: (n,) which prompts

    def rows(self, order: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """(m, n) weights of the prompts in each row; with an order, prompts are exchanged."""
        used = np.flatnonzero(self.wanted)
        out = np.zeros((self._basis.shape[1], len(self.wanted)))
        out[:, used if order is None else used[order]] = self._basis.T
        return out

    @cached_property
    def _basis(self) -> NDArray[np.float64]:
        """(n_used, m) orthonormal basis."""
        return without_nuisance(self.prompts.trials[self.wanted])

    def shuffled(self, rng: np.random.Generator, *, kinds: bool = False) -> NDArray[np.float64]:
        """Rows of prompts exchanged within their run, or within run and condition."""
        groups = self.prompts.groups[self.wanted]
        if kinds:
            groups = np.char.add(np.char.add(groups, " "), self.prompts.kinds[self.wanted])
        return self.rows(shuffle_within(groups, rng))
