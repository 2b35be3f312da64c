"""What did lesions or steering do? As text for the terminal."""

from __future__ import annotations

from typing import Any

import pandas as pd


def table(content: dict[str, Any]) -> str:
    """Effects as text: one row a network, one column a task, then what they say together.

    Parameters
    ----------
    content : dict
        Of ``lesion.json`` or ``steer.json``.
    """
    first = content["conditions"][0]
    rows = {
        name: {task: _cell(effect) for task, effect in effects.items()}
        for name, effects in first["effects"].items()
    }
    lines = [
        f"{_title(first)}: change in nats a token beyond matched random units",
        "rows: whose network; columns: whose text; *: the 95 % interval excludes 0",
        pd.DataFrame.from_dict(rows, orient="index").to_string(),
    ]
    untrained = content["untrained"]
    for who, condition in (("", first), ("untrained: ", untrained and untrained["conditions"][0])):
        if condition and "selectivity" in condition:
            lines.append(who + _sentence(condition))
    if not content["held_out"]:
        lines.append("the masks were given: whether they saw these texts is not known")
    return "\n".join(lines)


def _title(condition: dict[str, Any]) -> str:
    """What was done."""
    share = "" if condition["share"] is None else f", {condition['share']:.1%} of the units"
    spared = ", chat template spared" * condition["spare_template"]
    if condition["mode"] == "steer":
        return f"steer ({condition['strength']:g} times the effect{share}{spared})"
    return f"lesion ({condition['mode']}{share}{spared})"


def _cell(effect: dict[str, Any]) -> str:
    """Effect beyond random units, marked where it is clear."""
    low, high = effect["excess_interval"]
    return f"{effect['excess']:+.3f}{'*' if low > 0 or high < 0 else ''}"


def _sentence(condition: dict[str, Any]) -> str:
    """Selectivity and double dissociations in words."""
    s = condition["selectivity"]
    low, high = s["interval"]
    text = (
        f"own task minus other tasks: {s['value']:+.3f} [{low:+.3f}, {high:+.3f}], "
        f"matched random {min(s['random']):+.3f} to {max(s['random']):+.3f}"
    )
    pairs = condition.get("double_dissociations")
    if not pairs:
        return text
    held, crossed = (sum(pair[name] for pair in pairs) for name in ("holds", "crosses"))
    chance = sum(pair["random_crosses"] for pair in pairs) / len(pairs)
    return (
        f"{text}; double dissociations: {held} of {len(pairs)} pairs ({crossed} cross over by "
        f"their means alone, of random sets {chance:.0%})"
    )
