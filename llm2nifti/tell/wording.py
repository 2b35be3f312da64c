"""How is a number written? The same way in every sentence, table and caption of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

NONE = "–"  # stands where there is no number
_SPACE = "\N{NO-BREAK SPACE}"
_CONTROLS = {
    "fdr": "false discovery rate",
    "bonferroni": "family-wise error rate (Bonferroni)",
    "fpr": "uncorrected p",
}


def number(value: float | None, digits: int = 2) -> str:
    """Fixed digits with a true minus sign, and no negative zero."""
    if value is None or math.isnan(value):
        return NONE
    return f"{value:z,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def count(value: float) -> str:
    """Whole number with thousands apart."""
    return f"{value:,.0f}"


def percent(value: float | None, digits: int = 1) -> str:
    """Share of 1 in percent."""
    if value is None or math.isnan(value):
        return NONE
    return f"{number(100 * value, digits)}{_SPACE}%"


def p_value(value: float) -> str:
    """P value with its relation sign."""
    relation = f"<{_SPACE}0.001" if value < 0.001 else f"={_SPACE}{value:.3f}"
    return f"p{_SPACE}{relation}"


def interval(ends: Any, digits: int = 2) -> str:
    """Limits in brackets, of two numbers or of what has `low` and `high`; empty where none are."""
    if ends is None:
        return ""
    low, high = ends if isinstance(ends, Sequence) else (ends.low, ends.high)
    if low is None or math.isnan(low):
        return ""
    return f"[{number(low, digits)},{_SPACE}{number(high, digits)}]"


def with_interval(value: float | None, ends: Any, digits: int = 2) -> str:
    """Figure with its `interval` where there is one."""
    return f"{number(value, digits)} {interval(ends, digits)}".strip()


def plural(n: int, noun: str) -> str:
    """Number and noun."""
    return f"{count(n)} {noun}{'' if n == 1 else 's'}"


def listing(words: Sequence[str]) -> str:
    """Words as an enumeration."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def height_control(how: str) -> str:
    """How a network was thresholded, with nilearn's short names spelled out."""
    name, _, rest = how.partition(" ")
    return f"{_CONTROLS.get(name, name)} {rest}".strip()


def volume(design: Mapping[str, Any]) -> str:
    """Say what one analysed volume is."""
    frames, n_frames = design.get("frames"), plural(design["n_frames"], "frame")
    if design.get("mode") != "read":
        what = f"the mean of its {n_frames}, where a frame is one generated token"
    elif frames == "last":
        what = "the last token of what was read"
    else:
        what = f"the mean over the {'words' if frames == 'word' else 'tokens'} of what was read"
    return f"One volume is one prompt: {what}."


def extremes(values: np.ndarray) -> str:
    """Range of the diagonal and of the rest of a matrix, in words."""
    off = ~np.eye(len(values), dtype=bool)
    parts = []
    for name, cells in (("diagonal", np.diag(values)), ("other cells", values[off])):
        finite = cells[np.isfinite(cells)]
        if len(finite):
            parts.append(f"{name} from {number(finite.min())} to {number(finite.max())}")
    return ", ".join(parts)
