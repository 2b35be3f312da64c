"""What do units do when nothing special is shown? Values of the control trials of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llm2nifti.geometry import ModelBrain
from llm2nifti.interventions.editing import InterventionError
from llm2nifti.networks import Controls
from llm2nifti.stimuli import CONTROL


class ControlRun(Protocol):
    """What `control_trials` needs of a run; `llm2nifti.bids.Run` has it."""

    @property
    def events(self) -> pd.DataFrame: ...  # noqa: D102
    @property
    def brain(self) -> ModelBrain: ...  # noqa: D102
    def values(self) -> NDArray[np.float32]: ...  # noqa: D102


def control_trials(runs: ControlRun | Sequence[ControlRun]) -> Controls:
    """Collect the control trials of some runs of one model.

    Parameters
    ----------
    runs : Run or sequence of Run
        From `llm2nifti.bids.read`, or a whole `llm2nifti.bids.session`.

    Returns
    -------
    llm2nifti.networks.Controls

    Raises
    ------
    InterventionError
        If there are no runs, or no control trials, or the runs are of different spaces.

    Examples
    --------
    >>> controls = control_trials(bids.session("ds"))  # doctest: +SKIP
    """
    given: list[ControlRun] = list(runs) if isinstance(runs, Sequence) else [runs]
    spaces = sorted({run.brain.space for run in given})
    if len(spaces) != 1:
        raise InterventionError(f"control trials need runs of one space, got {spaces or 'no runs'}")
    rows = [run.values()[(run.events["trial_type"] == CONTROL).to_numpy()] for run in given]
    trials = np.concatenate(rows)
    if not len(trials):
        raise InterventionError("the runs have no control trials")
    return Controls.of(given[0].brain, np.asarray(trials, np.float32))
