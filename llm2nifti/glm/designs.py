"""Which regressors? One column a condition, question frames as centred nuisance, no constant."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
from nilearn.glm.contrasts import expression_to_contrast_vector
from numpy.typing import NDArray

CONTROL = "control"
NUISANCE = "question_frame_"


class DesignError(ValueError):
    """A design matrix or contrast cannot be made."""


def design_matrix(events: pd.DataFrame, *, n_frames: int | NDArray[np.int64] = 1) -> pd.DataFrame:
    """Make the design of a run.

    Parameters
    ----------
    events : DataFrame
        One row a trial: ``trial_type`` and, optionally, ``question_frame``.
    n_frames : int or (n_trials,) array, default=1
        Rows a trial: 1 for the prompt-level run, frames a trial for the token-level run.

    Returns
    -------
    (n_volumes, n_columns) DataFrame
        One 0/1 column a condition, which together take the place of a constant, then the question
        frames but the last, centred over the trials that have one. There is no drift term: trials
        are independent passes through the model.

    Examples
    --------
    >>> design_matrix(pd.DataFrame({"trial_type": ["control", "pathology"]}))
       control  pathology
    0      1.0        0.0
    1      0.0        1.0
    """
    if "trial_type" not in events:
        raise DesignError(f"events have no column trial_type; columns: {', '.join(events)}")
    types = events["trial_type"].to_numpy(str)
    names = np.unique(types)
    extra = nuisance(events)
    X = np.column_stack([(types[:, None] == names).astype(float), extra.to_numpy()])
    return pd.DataFrame(np.repeat(X, n_frames, axis=0), columns=[*names.tolist(), *extra])


def nuisance(events: pd.DataFrame) -> pd.DataFrame:
    """Centred question-frame columns; none where the trials share one frame or have none."""
    frames = np.full(len(events), "")
    if "question_frame" in events:
        frames = events["question_frame"].to_numpy(str)
    framed = frames != ""
    levels = np.unique(frames[framed])[:-1]
    columns = (frames[:, None] == levels).astype(float)
    if len(levels):
        columns[framed] -= columns[framed].mean(axis=0)
    return pd.DataFrame(columns, columns=[NUISANCE + level for level in levels])


def contrast_vector(design: pd.DataFrame, definition: str) -> np.ndarray:
    """Weights of a contrast such as ``"pathology - control"``.

    Raises DesignError if a name is not a column, or the design does not determine the contrast.
    """
    # nilearn evaluates the expression as code: give it names that any label can stand for.
    safe = {name: f"column_{i}" for i, name in enumerate(design)}
    expression = re.sub(r"\w+", lambda word: safe.get(word[0], word[0]), definition)
    try:
        vector = np.array(expression_to_contrast_vector(expression, list(safe.values())), float)
    except Exception as error:  # nilearn passes pandas' own errors through
        conditions = [name for name in design if not name.startswith(NUISANCE)]
        raise DesignError(
            f"contrast {definition!r} cannot be read; the conditions are {', '.join(conditions)}. "
            f"Write for example '{conditions[-1]} - {conditions[0]}'"
        ) from error
    X = design.to_numpy()
    if not np.any(vector):
        raise DesignError(f"contrast {definition!r} has no weight on any column")
    if not np.allclose(vector @ np.linalg.pinv(X) @ X, vector, atol=1e-8):
        raise DesignError(
            f"contrast {definition!r} cannot be estimated: its columns are mixed up with others "
            f"({', '.join(design)}); is a question frame shown in one condition only?"
        )
    if len(X) <= np.linalg.matrix_rank(X):
        raise DesignError(f"{len(X)} volumes are too few for {X.shape[1]} columns; record more")
    return vector
