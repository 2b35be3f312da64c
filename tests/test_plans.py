"""Plans: one place for every default, bound and word of help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
from msgspec import Meta

from llm2nifti.plans import (
    Count,
    Design,
    ModelChoice,
    Names,
    Plan,
    PlanError,
    ScanPlan,
    Settings,
    Share,
    checked,
    how,
    words,
)


@dataclass(frozen=True, kw_only=True)
class Example(Plan):
    n: Count = 3
    share: tuple[Share, ...] = (0.5,)
    task: Names = ()
    mode: Literal["zero", "mean"] = "zero"
    out: Path | None = None
    strength: float = 1.0
    speed: int = how(1)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"n": 0}, "n is 0; it must be a whole number of at least 1"),
        ({"n": "3"}, "n is '3'; it must be a whole number"),
        ({"n": True}, "n is True"),
        ({"n": 2.5}, "n is 2.5"),
        ({"share": (0.5, 2.0)}, "it must be a list, each a number above 0 and at most 1"),
        ({"mode": "mad"}, "mode is 'mad'; it must be zero or mean"),
        ({"strength": float("nan")}, "strength is nan; it must be a number"),
        ({"strength": float("inf")}, "strength is inf"),
        ({"out": " "}, "out is ' ': the value is empty; was a variable not set?"),
        ({"task": ("a", "")}, "the value is empty"),
    ],
)
def test_values_that_make_no_sense_are_named_with_what_is_allowed(wrong, problem):
    with pytest.raises(PlanError) as info:
        Example(**wrong)
    assert problem in str(info.value)
    assert info.value.field == next(iter(wrong))


def test_values_are_kept_as_their_type_says():
    plan = Example(n=np.int64(4), share=[0.25], task="a, b", out="x", strength=2)
    assert plan == Example(n=4, share=(0.25,), task=("a", "b"), out=Path("x"), strength=2.0)
    assert (type(plan.n), type(plan.strength), type(plan.share)) == (int, float, tuple)


def test_what_says_only_how_to_get_there_is_not_part_of_what_is_asked():
    assert Example(speed=9).asked == Example().asked
    assert "speed" not in Example().asked
    assert Example(out="x").asked["out"] == "x"


def test_names_that_no_field_has_are_refused_with_the_closest_one():
    with pytest.raises(PlanError, match=r"shar is not known; did you mean share\? allowed are n, "):
        Example.of({"shar": 1})


def test_text_is_read_as_numbers_only_where_it_was_typed():
    assert checked("n", "3", Count, is_text=True) == 3
    with pytest.raises(PlanError, match=r"n is '3\.5'"):
        checked("n", "3.5", Count, is_text=True)


@pytest.mark.parametrize(("text", "number"), [(".1", 0.1), ("1.", 1.0), ("1e-3", 0.001)])
def test_numbers_are_read_as_they_are_typed(text, number):
    assert checked("share", text, Share, is_text=True) == number
    assert checked("share", [text, ".5"], tuple[Share, ...], is_text=True) == (number, 0.5)
    assert checked("name", text, str, is_text=True) == text


def test_words_name_both_ends_and_choices_in_their_order():
    assert words(Annotated[float, Meta(ge=0, lt=2)]) == "a number of at least 0 and below 2"
    assert words(Literal["b", "a"] | None) == "b or a"
    assert words(str | None) == "text"
    assert words(bool) == "true or false"
    assert words(dict) == "a table"


def test_frames_have_to_fit_the_mode():
    with pytest.raises(PlanError, match="in mode generate use auto, token or trial"):
        Settings(mode="generate", frames="word")
    assert Settings(mode="read", frames="word").frames == "word"


def test_a_scan_plan_is_made_of_three_and_can_be_compared_and_hashed():
    plan = ScanPlan(ModelChoice("a"), Design(("pathology",)), Settings(seed=1))
    assert plan == ScanPlan(ModelChoice("a"), Design(["pathology"]), Settings(seed=1))
    assert len({plan, ScanPlan()}) == 2
