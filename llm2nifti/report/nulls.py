"""What the null experiments say: rates where nothing is there, and what any topic activates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm2nifti.tell import Section, Table
from llm2nifti.tell.wording import NONE, count, number, percent, plural

_RANGES = {"below_05": (0.04, 0.06), "below_001": (0.0005, 0.002)}  # see `glm.relabelled`
_COLUMNS = [
    ("what", "Null experiment", False),
    ("n", "Repetitions", True),
    ("below_05", "p < .05", True),
    ("below_001", "p < .001", True),
    ("any_fdr", "Any FDR discovery", True),
]


def null_section(null: Mapping[str, Any]) -> Section:
    """What the test finds where nothing is there."""
    tokens = null["token_level"]
    rate = ""
    if "below_05" in tokens:
        rate = (
            f"Such a test finds p < .05 in {percent(tokens['below_05'])} of the units of the first "
            f"run's control prompts ({plural(tokens['n_relabellings'], 'relabelling')}; 5 % would "
            "be nominal). "
        )
    return Section(
        "rates",
        "What the test finds where nothing is there",
        [],
        tables=[Table("Null experiments", _COLUMNS, _rows(null))],
        notes=[
            "Relabelled controls: control prompts are labelled task and control at random, so that "
            f"there is nothing to find. {_calibration(null)}",
            "Pseudo-tasks: whole topics of the control prompts take the place of a task. They show "
            "what any coherent topic activates.",
            "Tokens: the tokens of one prompt are not independent observations, because a prompt "
            "can shift a unit for all of its tokens, and prewhitening with AR(1) does not model "
            f"that. {rate}Prompts are also what was sampled: another experiment would ask other "
            "questions, not draw other tokens. The unit of inference is therefore the prompt.",
        ],
    )


def _rows(null: Mapping[str, Any]) -> list[dict[str, str]]:
    """What a calibrated test gives, then one row a null experiment that was possible."""
    titles = {
        "relabelled": "Control prompts relabelled at random",
        "pseudo_tasks": "Whole control topics as pseudo-tasks",
        "token_level": "Control tokens relabelled by prompt, AR(1)",
    }
    ranges = {
        name: f"{number(100 * low, digits)}–{percent(high, digits)}"
        for (name, (low, high)), digits in zip(_RANGES.items(), (0, 2), strict=True)
    }
    expected = {"what": "Expected where nothing is there", "n": NONE}
    rows = [{**expected, **ranges, "any_fdr": f"about {percent(0.05, 0)}"}]
    for key, title in titles.items():
        rates = null.get(key, {"not_possible": ""})
        if "not_possible" in rates:
            continue
        spread = percent(rates["below_05_sd"])
        rows.append(
            {
                "what": title,
                "n": count(rates["n_relabellings"]),
                "below_05": f"{percent(rates['below_05'])} (SD {spread})",
                "below_001": percent(rates["below_001"], 2),
                "any_fdr": percent(rates["any_fdr"], 0),
            }
        )
    return rows


def _calibration(null: Mapping[str, Any]) -> str:
    """Whether relabelled controls give the rates that a calibrated test gives."""
    rates = null["relabelled"]
    if "below_05" not in rates:
        return f"Not possible here: {rates.get('not_possible', 'no rates in the summary')}."
    inside = {name: low <= rates[name] <= high for name, (low, high) in _RANGES.items()}
    words = {True: "inside", False: "outside"}
    text = (
        f"The rate at p < .05 is {words[inside['below_05']]} its expected range and the rate at "
        f"p < .001 is {words[inside['below_001']]}"
    )
    if all(inside.values()):
        return f"{text}, as it is for a calibrated test."
    return (
        f"{text}. Rates of single relabellings vary (SD "
        f"{percent(rates['below_05_sd'])}), so {plural(rates['n_relabellings'], 'relabelling')} "
        "may be too few to tell; if more of them agree, p values here are not calibrated."
    )
