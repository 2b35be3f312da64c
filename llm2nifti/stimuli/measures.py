"""What may differ between prompts beside their task? Length, word frequency and surprisal.

Matching of control prompts to task prompts goes by these columns, see `llm2nifti.paradigm`.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
from numpy.typing import NDArray

MEASURES = {
    "characters": "characters of the prompt",
    "words": "words of the prompt",
    "tokens": "tokens of the prompt, by the model that measured it",
    "frequency": "mean Zipf frequency of the words of the concept (wordfreq, English; 0: unknown)",
    "surprisal": "mean surprisal of a token of the prompt in nats, by the model that measured it",
}
TOLERANCE = 0.1  # largest |d| between task and control that matching aims at
_SMALL = frozenset(("a", "an", "and", "at", "for", "from", "in", "of", "on", "the", "to", "with"))


def with_lengths(table: pd.DataFrame) -> pd.DataFrame:
    """Table with the columns ``characters`` and ``words`` of its prompts."""
    prompts = table["prompt"].astype(str)
    return table.assign(characters=prompts.str.len(), words=prompts.str.split().str.len())


def frequency(concept: str) -> float:
    """Mean Zipf frequency of a concept's words, small words apart; needs the package wordfreq.

    The scale is that of van Heuven et al. (2014, Quarterly Journal of Experimental Psychology
    67:1176): the decadic logarithm of occurrences in a billion words. Speer's ``wordfreq`` gives 0
    to what it does not know.

    Examples
    --------
    >>> frequency("the frequency of words")  # doctest: +SKIP
    4.99
    """
    import wordfreq  # large, and not needed where tables have the column

    names = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?|\d+", concept.lower())
    names = [name for name in names if name not in _SMALL] or names
    return float(np.mean([wordfreq.zipf_frequency(name, "en") for name in names] or [0.0]))


def difference(task: NDArray, control: NDArray) -> NDArray[np.float64]:
    """Cohen's d of measures: difference of the means in units of the pooled standard deviation.

    Parameters
    ----------
    task, control : (n_task, ...) array, (n_control, ...) array
        Measures of the prompts of both conditions.

    Returns
    -------
    (...) array
        0 where neither varies and both agree, infinite where they do not vary and differ.

    Examples
    --------
    >>> difference(np.array([1.0, 3.0]), np.array([0.0, 2.0])).round(3)
    np.float64(0.707)
    """
    gap = task.mean(axis=0) - control.mean(axis=0)
    squares = sum(((part - part.mean(axis=0)) ** 2).sum(axis=0) for part in (task, control))
    spread = np.sqrt(squares / max(len(task) + len(control) - 2, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gap == 0, 0.0, gap / spread)[()]
