"""What ``prune.json`` says: what pruning a network cost, beside pruning as much otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llm2nifti.tell import Section, Table
from llm2nifti.tell.wording import count, number, percent


def pruning_section(content: Mapping[str, Any]) -> Section:
    """What was removed, what that did to held-out text, and what became smaller or faster."""
    sites = ", ".join(
        f"{site} {count(n['n_removed'])} of {count(n['n_units'])}"
        for site, n in content["sites"].items()
    )
    before, after = content["parameters"]
    n_before, n_after = (number(n / 1e6, 1) for n in content["bytes_in_memory"])
    sizes = (
        f"Parameters {count(before)} to {count(after)} ({percent(after / before)}), weights "
        f"{n_before} to {n_after} MB, on disk {number(content['bytes'] / 1e6, 1)} MB."
    )
    tables = [_losses(content["evaluation"])] if content["evaluation"] else []
    speeds = [_speed(name, speed) for name, speed in content.get("speed", {}).items()]
    return Section(
        "pruning",
        "What does a model lose with a network?",
        [f"Removed: {sites} ({content['how']}).", *content["notes"], *content["evaluation_notes"]],
        tables=tables,
        notes=[sizes, *speeds],
    )


def _losses(evaluation: Mapping[str, Any]) -> Table:
    """Perplexities of each task's held-out text."""
    rows = []
    for task, numbers in evaluation.items():
        low, high = (number(end, 3) for end in numbers["interval"])
        row = {"task": task, "lost": f"{number(numbers['delta'], 3)} [{low}, {high}]"}
        row |= {name: number(numbers[name]) for name in ("before", "network", "magnitude")}
        row |= {kind: _spread(numbers[kind]) for kind in ("random", "matched") if kind in numbers}
        rows.append(row)
    columns = [
        ("task", "Text of", False),
        ("before", "Before", True),
        ("network", "Network", True),
        ("lost", "Nats lost a token", True),
        ("magnitude", "Smallest weights", True),
        ("random", "Random", True),
        ("matched", "As active", True),
    ]
    columns = [column for column in columns if all(column[0] in row for row in rows)]
    return Table("Perplexity of held-out text, by what was removed", columns, rows)


def _spread(values: Sequence[float]) -> str:
    """Mean and range."""
    if not values:
        return "n/a"
    return f"{number(float(np.mean(values)))} ({number(min(values))} to {number(max(values))})"


def _speed(name: str, speed: Mapping[str, Any]) -> str:
    """Speed before and after."""
    low, high = (number(end, 3) for end in speed["interval"])
    return (
        f"{name.capitalize()}: {count(speed['before'])} to {count(speed['after'])} tokens/s, "
        f"{number(speed['ratio'], 3)} times [{low}, {high}] over {count(speed['n_pairs'])} pairs."
    )
