"""Which columns does a design have, and what does a contrast of them mean?

A design has one column a condition, question frames as centred nuisance, and no constant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from nilearn.glm.contrasts import expression_to_contrast_vector
from numpy.typing import NDArray

from llm2nifti.glm.conditions import CONTROL, pairs_of
from llm2nifti.stimuli.measures import with_lengths

NUISANCE = ("question_frame_", "pair_")
_BY = "_by_"  # between a condition and what modulates it


class DesignError(ValueError):
    """A design matrix or contrast cannot be made."""


def design_matrix(
    events: pd.DataFrame,
    *,
    n_frames: int | NDArray[np.int64] = 1,
    covariates: Sequence[str] = (),
    modulators: Sequence[str] = (),
) -> pd.DataFrame:
    """Make the design of a run.

    Parameters
    ----------
    events : DataFrame
        One row a trial: ``trial_type`` and, optionally, ``question_frame`` and ``pair``.
    n_frames : int or (n_trials,) array, default=1
        Rows a trial: 1 for the prompt-level run, frames a trial for the token-level run.
    covariates : sequence of str
        Numeric columns of the events that become columns of the design, centred: what they explain
        is taken out of the conditions. ``characters`` and ``words`` are counted if need be.
    modulators : sequence of str
        Numeric columns of the events that modulate the response to every condition but the
        control: ``pathology_by_surprisal`` is the slope within pathology, of centred surprisal.

    Returns
    -------
    (n_volumes, n_columns) DataFrame
        One 0/1 column a condition, which together take the place of a constant, then the question
        frames but the last, centred over the trials that have one, minimal pairs likewise (with
        two conditions this is the paired t test), covariates and modulated conditions. There is no
        drift term: trials are independent passes through the model.

    Raises
    ------
    DesignError
        If there is no ``trial_type``, or a covariate is missing, not numeric, or not known of every
        trial.

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
    columns = {name: (types == name).astype(float) for name in names.tolist()}
    columns |= dict(nuisance(events).items())
    for name in covariates:
        if name in columns:
            raise DesignError(f"covariate {name!r} is called as a condition; rename the column")
        columns[name] = _numbers(events, name, np.ones(len(events), bool))
    for name in modulators:
        for condition in (condition for condition in names.tolist() if condition != CONTROL):
            columns[f"{condition}{_BY}{name}"] = _numbers(events, name, types == condition)
    X = pd.DataFrame(columns, dtype=float)
    return pd.DataFrame(np.repeat(X.to_numpy(), n_frames, axis=0), columns=list(columns))


def _numbers(events: pd.DataFrame, name: str, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n_trials,) values of a column, centred over these rows; 0 in the others."""
    table = with_lengths(events) if name not in events and "prompt" in events else events
    known = [c for c in table if pd.api.types.is_numeric_dtype(table[c])]
    known = [c for c in known if c not in ("onset", "duration", "block")]
    if name not in known:
        raise DesignError(
            f"the events have no numbers called {name!r}; there are {', '.join(known) or 'none'}"
        )
    values = table[name].to_numpy(float)
    n_missing = int((~np.isfinite(values[rows])).sum())
    if n_missing:
        raise DesignError(
            f"{n_missing} of {int(rows.sum())} trials have no {name!r}; take another column, or "
            "leave the task out"
        )
    return np.where(rows, values - values[rows].mean(), 0.0)


def nuisance(events: pd.DataFrame) -> pd.DataFrame:
    """Centred columns of question frames and of minimal pairs.

    There are none where all trials share a frame or have none, and none of pairs unless every trial
    is of a pair, and conditions share pairs.
    """
    frames = np.full(len(events), "")
    if "question_frame" in events:
        frames = events["question_frame"].to_numpy(str)
    names = (frames, pairs_of(events))
    return pd.concat([_centred(*part) for part in zip(names, NUISANCE, strict=True)], axis=1)


def _centred(names: NDArray[np.str_], prefix: str) -> pd.DataFrame:
    """One column a name but the last, centred over the trials that have one."""
    is_named = names != ""
    levels = np.unique(names[is_named])[:-1]
    columns = (names[:, None] == levels).astype(float)
    if len(levels):
        columns[is_named] -= columns[is_named].mean(axis=0)
    return pd.DataFrame(columns, columns=[prefix + level for level in levels])


def contrast_vector(design: pd.DataFrame, definition: str) -> NDArray[np.float64]:
    """Weights of a contrast such as ``"pathology - control"``.

    A condition alone is taken minus the control. Raises DesignError if a name is not a column, the
    design does not determine the contrast, or it would test a mean against 0.
    """
    vector = _against_control(design, _weights(list(design), definition), definition)
    return _checked(design, vector, definition)


def contrast_vectors(
    designs: Sequence[pd.DataFrame], definition: str
) -> list[dict[int, NDArray[np.float64]]]:
    """Weights of a contrast in each of several designs, such as those of all tasks.

    Designs that have the same of the contrast's columns are a group, of which the mean is taken;
    groups add up. Designs that have none of them are left out.
    """
    columns = list(dict.fromkeys(name for design in designs for name in design))
    weights = dict(zip(columns, _weights(columns, definition), strict=True))
    groups: dict[tuple[str, ...], dict[int, NDArray[np.float64]]] = {}
    for number, design in enumerate(designs):
        asked = tuple(name for name in design if weights[name])
        if set(asked) - {CONTROL} or (asked and len(designs) == 1):
            vector = np.array([weights[name] for name in design])
            vector = _against_control(design, vector, definition)
            groups.setdefault(asked, {})[number] = _checked(design, vector, definition)
    if not groups:
        raise DesignError(f"contrast {definition!r} has no weight on any condition but the control")
    return list(groups.values())


def with_names(definition: str, named: Mapping[str, str], designs: Iterable[pd.DataFrame]) -> str:
    """Contrast in which names of contrasts are spelled out, unless a column is called so."""
    columns = {name for design in designs for name in design}
    spelled = {name: f"({text})" for name, text in named.items() if name not in columns}
    return re.sub(r"\w+(?::\w+)*", lambda word: spelled.get(word[0], word[0]), definition)


def _weights(columns: list[str], definition: str) -> NDArray[np.float64]:
    """Weights of columns as an expression has them."""
    # nilearn evaluates the expression as code: give it names that any label can stand for.
    safe = {name: f"column_{i}" for i, name in enumerate(columns)}
    expression = re.sub(r"\w+", lambda word: safe.get(word[0], word[0]), definition)
    try:
        vector = np.array(expression_to_contrast_vector(expression, list(safe.values())), float)
    except Exception as error:  # nilearn passes pandas' own errors through
        conditions = [name for name in columns if not name.startswith(NUISANCE)]
        raise DesignError(
            f"contrast {definition!r} cannot be read; the conditions are {', '.join(conditions)}. "
            f"Write for example '{conditions[-1]} - {conditions[0]}'"
        ) from error
    if not np.any(vector):
        raise DesignError(f"contrast {definition!r} has no weight on any column")
    return vector


def _against_control(
    design: pd.DataFrame, vector: NDArray[np.float64], definition: str
) -> NDArray[np.float64]:
    """Weights whose conditions add up to 0: what they lack is taken from the control."""
    is_condition = (design.isin([0, 1]).all() & (design.to_numpy().sum(axis=0) > 0)).to_numpy()
    excess = vector[is_condition].sum()
    if np.isclose(excess, 0):
        return vector
    if CONTROL not in design or vector[list(design).index(CONTROL)]:
        conditions = np.array(list(design))[is_condition]
        raise DesignError(
            f"contrast {definition!r} would test a mean against 0, which every unit differs from; "
            f"write a difference, such as '{conditions[-1]} - {conditions[0]}'"
        )
    out = vector.copy()
    out[list(design).index(CONTROL)] = -excess
    return out


def _checked(
    design: pd.DataFrame, vector: NDArray[np.float64], definition: str
) -> NDArray[np.float64]:
    """The weights, if the design determines the contrast."""
    X = design.to_numpy()
    if not np.allclose(vector @ np.linalg.pinv(X) @ X, vector, atol=1e-8):
        raise DesignError(
            f"contrast {definition!r} cannot be estimated: its columns are mixed up with others "
            f"({', '.join(design)}); is a question frame shown in one condition only?"
        )
    if len(X) <= np.linalg.matrix_rank(X):
        raise DesignError(f"{len(X)} volumes are too few for {X.shape[1]} columns; record more")
    return vector
