"""The section on training: does it matter which modules are trained?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm2nifti.tell import Section, Table
from llm2nifti.tell.wording import NONE, count, number, plural

_FIGURES = ("other tasks", "control", "task more than other tasks")


def training_section(content: Mapping[str, Any]) -> Section:
    """What ``training.json`` says, by task."""
    return Section(
        "training",
        "Does it matter where a model is trained?",
        [
            "The modules that hold most of a task's network, random modules of the same kinds with "
            "as many weights, and all modules were fine-tuned with LoRA on text of the task. Below "
            "is the change of the loss on held-out prompts, in nats for each token of the concept, "
            "with 95 % intervals (bootstrap over prompts and seeds); below 0 is better.",
            "Network minus random says whether the network's modules matter: an interval that "
            "includes 0 does not show it.",
        ],
        tables=[_table(numbers) for numbers in content.values()],
    )


def _table(numbers: Mapping[str, Any]) -> Table:
    """Changes of one task's experiment."""
    shown = [numbers["task"], *_FIGURES]
    rows = [
        _row(name, condition["change"], shown)
        | {"weights": count(condition["n_weights"]), "rate": f"{condition['rate']:g}"}
        for name, condition in numbers["conditions"].items()
    ]
    rows += [_row(name, figures, shown) for name, figures in numbers["differences"].items()]
    n_seeds = len(next(iter(numbers["conditions"].values()))["change"][shown[0]]["seeds"])
    columns = [
        ("name", "Trained", False),
        ("weights", "Weights", True),
        ("rate", "Rate", True),
        *((name, name.capitalize(), True) for name in shown),
    ]
    return Table(f"Change of the loss, {numbers['task']}, {plural(n_seeds, 'seed')}", columns, rows)


def _row(name: str, figures: Mapping[str, Any], shown: list[str]) -> dict[str, Any]:
    """One line of the table."""
    cells = {key: _cell(figures[key]) if key in figures else NONE for key in shown}
    return {"name": name, "weights": NONE, "rate": NONE, **cells}


def _cell(estimate: Mapping[str, Any]) -> str:
    """Value with its interval."""
    low, high = estimate["interval"]
    return f"{number(estimate['value'])} [{number(low)}, {number(high)}]"
