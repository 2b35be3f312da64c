"""What do units do when nothing special is shown? Values of the control trials of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llm2nifti.geometry import ModelBrain
from llm2nifti.interventions.editing import InterventionError
from llm2nifti.stimuli import CONTROL


class RunLike(Protocol):
    """What `control_trials` needs of a run; `llm2nifti.bids.Run` has it."""

    @property
    def events(self) -> pd.DataFrame: ...  # noqa: D102
    @property
    def brain(self) -> ModelBrain: ...  # noqa: D102
    def values(self) -> NDArray[np.float32]: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class Controls:
    """Activations of control trials.

    Attributes
    ----------
    brain : ModelBrain
        Geometry.
    trials : (n_trials, n_units) float32 array
        Mean of each trial over its frames.
    """

    brain: ModelBrain
    trials: NDArray[np.float32]

    @property
    def mean(self) -> NDArray[np.float32]:
        """(n_units,) mean over trials."""
        return self.trials.mean(axis=0)

    @property
    def activity(self) -> NDArray[np.float32]:
        """(n_units,) mean |activation|: how large a unit is."""
        return np.abs(self.trials).mean(axis=0)

    @property
    def sd(self) -> NDArray[np.float32]:
        """(n_units,) standard deviation over trials."""
        return self.trials.std(axis=0, ddof=1)


def control_trials(runs: RunLike | Sequence[RunLike]) -> Controls:
    """Collect the control trials of some runs of one model.

    Parameters
    ----------
    runs : Run or sequence of Run
        From `llm2nifti.bids.read`, or a whole `llm2nifti.bids.session`.

    Returns
    -------
    Controls

    Raises
    ------
    InterventionError
        If there are no runs, or no control trials, or the runs are of different spaces.

    Examples
    --------
    >>> controls = control_trials(bids.session("ds"))  # doctest: +SKIP
    """
    some: list[RunLike] = list(runs) if isinstance(runs, Sequence) else [runs]
    spaces = sorted({run.brain.space for run in some})
    if len(spaces) != 1:
        raise InterventionError(f"control trials need runs of one space, got {spaces or 'no runs'}")
    rows = [run.values()[(run.events["trial_type"] == CONTROL).to_numpy()] for run in some]
    trials = np.concatenate(rows)
    if not len(trials):
        raise InterventionError("the runs have no control trials")
    return Controls(some[0].brain, np.asarray(trials, np.float32))
