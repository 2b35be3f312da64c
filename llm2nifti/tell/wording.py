"""How is a number written? The same way in every sentence, table and caption of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

NONE = "–"  # stands where there is no number
_SPACE = "\N{NO-BREAK SPACE}"
_CONTROLS = {
    "fdr": "false discovery rate",
    "bonferroni": "family-wise error rate (Bonferroni)",
    "fpr": "uncorrected p",
}


def number(value: float | None, digits: int = 2) -> str:
    """Fixed digits with a true minus sign, and no negative zero.

    Examples
    --------
    >>> number(-0.004), number(-0.25)
    ('0.00', '−0.25')
    """
    if value is None or math.isnan(value):
        return NONE
    text = f"{abs(value):,.{digits}f}"
    is_zero = not text.strip("0.")
    return text if value >= 0 or is_zero else f"\N{MINUS SIGN}{text}"


def count(value: float) -> str:
    """Whole number with thousands apart."""
    return f"{value:,.0f}"


def percent(value: float | None, digits: int = 1) -> str:
    """Share of 1 in percent.

    Examples
    --------
    >>> percent(0.1234).replace("\N{NO-BREAK SPACE}", " ")
    '12.3 %'
    """
    if value is None or math.isnan(value):
        return NONE
    return f"{number(100 * value, digits)}{_SPACE}%"


def p_value(value: float) -> str:
    """P value with its relation sign."""
    relation = f"<{_SPACE}0.001" if value < 0.001 else f"={_SPACE}{value:.3f}"
    return f"p{_SPACE}{relation}"


class Limits(Protocol):
    """An interval; `llm2nifti.networks.similarity.Estimate` is one."""

    @property
    def low(self) -> float | None: ...  # noqa: D102
    @property
    def high(self) -> float | None: ...  # noqa: D102


def interval(ends: Limits | Sequence[float] | None, digits: int = 2) -> str:
    """Limits of an interval in brackets; empty where there is none."""
    if ends is None:
        return ""
    low, high = ends if isinstance(ends, Sequence) else (ends.low, ends.high)
    if low is None or math.isnan(low):
        return ""
    return f"[{number(low, digits)},{_SPACE}{number(high, digits)}]"


def with_interval(
    value: float | None, ends: Limits | Sequence[float] | None, digits: int = 2
) -> str:
    """Figure with its interval where there is one.

    Examples
    --------
    >>> with_interval(0.5, [0.25, 0.75]).replace("\N{NO-BREAK SPACE}", " ")
    '0.50 [0.25, 0.75]'
    """
    return f"{number(value, digits)} {interval(ends, digits)}".strip()


def plural(n: int, noun: str) -> str:
    """Number and noun.

    Examples
    --------
    >>> plural(1, "run"), plural(2, "run")
    ('1 run', '2 runs')
    """
    return f"{count(n)} {noun}" if n == 1 else f"{count(n)} {noun}s"


def listing(words: Sequence[str]) -> str:
    """Words as an enumeration.

    Examples
    --------
    >>> listing(["attn", "resid", "mlp"])
    'attn, resid and mlp'
    """
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def height_control(how: str) -> str:
    """How a network was thresholded, with nilearn's short names spelled out.

    Examples
    --------
    >>> height_control("fdr 0.05, two-sided")
    'false discovery rate 0.05, two-sided'
    """
    name, _, rest = how.partition(" ")
    return f"{_CONTROLS.get(name, name)} {rest}".strip()


def volume(design: Mapping[str, Any]) -> str:
    """Say what one analysed volume is."""
    frames = design.get("frames", "token")
    if design.get("mode") != "read":
        mean = f"the mean of its {plural(design['n_frames'], 'frame')}"
        return f"One volume is one prompt: {mean}, where a frame is one generated token."
    if frames == "last":
        return "One volume is one prompt: the last token of what was read."
    what = {"token": "tokens", "word": "words"}.get(frames, "tokens")
    return f"One volume is one prompt: the mean over the {what} of what was read."


def extremes(values: np.ndarray) -> str:
    """Range of the diagonal and of the rest of a matrix, in words."""
    off = ~np.eye(len(values), dtype=bool)
    parts = []
    for name, cells in (("diagonal", np.diag(values)), ("other cells", values[off])):
        finite = cells[np.isfinite(cells)]
        if len(finite):
            parts.append(f"{name} from {number(finite.min())} to {number(finite.max())}")
    return ", ".join(parts)
