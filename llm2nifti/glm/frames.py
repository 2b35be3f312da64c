"""When does a unit respond? A map for every generated token: the finite impulse response."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from llm2nifti import geometry
from llm2nifti.glm.designs import DesignError
from llm2nifti.glm.fitting import RunLike, check_tokens


def n_frames_of(runs: Sequence[RunLike]) -> int:
    """Frames of a trial; DesignError unless all trials of all runs have as many, at least two."""
    for run in runs:
        check_tokens(run)
    counts = sorted({int(n) for run in runs for n in run.volume_counts})
    if len(counts) != 1 or counts[0] < 2:
        raise DesignError(
            f"trials have {counts[0]} to {counts[-1]} frames; a response over frames needs equally "
            "many, at least 2: record with mode='generate' and frames='token'"
        )
    return counts[0]


def values_by_frame(run: RunLike) -> Iterator[NDArray[np.float32]]:
    """(n_trials, n_units) values of the first frame of every trial, of the second, and so on.

    A model of each frame on its own has the effects of nilearn's FIR model (``hrf_model="fir"``,
    one delay a frame), whose regressors of different delays never overlap here, and residuals of
    prompts: tokens of one prompt are not independent, and in one model they would count as such
    (Glover, 1999, NeuroImage 9:416; Kay et al., 2008, Human Brain Mapping 29:142).
    """
    n = n_frames_of([run])
    for frame in range(n):
        yield geometry.from_img(run.brain, run.frames_img.slicer[..., frame::n])
