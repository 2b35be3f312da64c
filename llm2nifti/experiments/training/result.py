"""What training says: does it matter which modules are trained?"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import pandas as pd

from llm2nifti import bids
from llm2nifti.experiments.results import Result, plain
from llm2nifti.plans import Json
from llm2nifti.tell import Section, Table
from llm2nifti.tell.wording import NONE, count, plural, with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FIGURES = ("other tasks", "control", "task more than other tasks")


@dataclass(frozen=True)
class Change:
    """Change of a loss in nats for each token of the concept; negative is better."""

    value: float
    interval: list[float]  #: by bootstrap over prompts and seeds
    seeds: list[float]  #: of single trainings


@dataclass(frozen=True)
class Trained:
    """One condition: which modules were trained, and what it changed."""

    n_modules: int
    n_weights: int
    rate: float  #: the best of those that were tried
    change: dict[str, Change]  #: by task, and of ``other tasks`` and ``task more than other tasks``
    rates: dict[str, float | None] = field(default_factory=dict)  #: loss on held-out development
    epochs: list[list[float]] = field(default_factory=list)  #: training losses of every seed
    modules: list[list[str]] | None = None  #: random ones of every seed


@dataclass(frozen=True)
class TaskTraining:
    """Everything that was trained on one task's text."""

    task: str
    base: dict[str, float]  #: mean loss of the untouched model, by task
    n_held_out: dict[str, int]  #: prompts, by task
    conditions: dict[str, Trained]  #: ``network``, ``random`` and ``all``
    differences: dict[str, dict[str, Change]]  #: network minus the others, by figure
    network: Json = field(default_factory=dict)
    plan: Json = field(default_factory=dict)
    model: Json = field(default_factory=dict)  #: what the sidecars say of it
    targets: list[Json] = field(default_factory=list)  #: modules by network mass
    n_training: int = 0  #: prompts
    n_modules: int = 0  #: that could be trained
    made_from: str = ""  #: digest of everything that decides it


@dataclass(frozen=True, repr=False)
class TrainingResult(Result):
    """Trainings by task."""

    file: ClassVar[str] = "training.json"
    rank: ClassVar[int] = 30

    tasks: dict[str, TaskTraining]

    @classmethod
    def of(cls, content: Json, path: Path | None = None) -> Self:
        """Result of the content of the file, which is by task."""
        return super().of({"tasks": content}, path)

    def content(self) -> Json:
        """The result as JSON has it, by task."""
        return plain(self.tasks)

    def keep(self, session: bids.Session) -> None:
        """Write the result beside those of other tasks."""
        kept = TrainingResult.read(session)
        both = TrainingResult({**(kept.tasks if kept else {}), **self.tasks})
        bids.write_json(session.folder / self.file, session.root, both.content())

    def tables(self) -> dict[str, pd.DataFrame]:
        """``changes``: one row a task, condition and figure; differences are conditions, too."""
        rows = []
        for task, numbers in self.tasks.items():
            changes = {name: trained.change for name, trained in numbers.conditions.items()}
            for condition, figures in {**changes, **numbers.differences}.items():
                rows += [(task, condition, n, c.value, *c.interval) for n, c in figures.items()]
        columns = ["task", "condition", "figure", "value", "low", "high"]
        return {"changes": pd.DataFrame(rows, columns=columns)}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Change of the loss of the first task's text, by condition."""
        from llm2nifti import plotting

        task, numbers = next(iter(self.tasks.items()))
        changes = {name: trained.change[task] for name, trained in numbers.conditions.items()}
        values = {name: change.value for name, change in changes.items()}
        ends = {name: (c.interval[0], c.interval[1]) for name, c in changes.items()}
        return plotting.plot_bars(values, ends, ax=ax, ylabel="Change of the loss (nats)")

    def sections(self) -> list[Section]:
        """Does it matter where a model is trained?"""
        paragraphs = [
            "The modules that hold most of a task's network, random modules of the same kinds with "
            "as many weights, and all modules were fine-tuned with LoRA on text of the task. Below "
            "is the change of the loss on held-out prompts, in nats for each token of the concept, "
            "with 95 % intervals (bootstrap over prompts and seeds); below 0 is better.",
            "Network minus random says whether the network's modules matter: an interval that "
            "includes 0 does not show it.",
        ]
        title = "Does it matter where a model is trained?"
        tables = [_table(numbers) for numbers in self.tasks.values()]
        return [Section("training", title, paragraphs, tables=tables)]


def _table(numbers: TaskTraining) -> Table:
    """Changes of one task's experiment."""
    rows = []
    for name, trained in numbers.conditions.items():
        told = {"Weights": count(trained.n_weights), "Rate": f"{trained.rate:g}"}
        rows.append({"Trained": name, **told, **_cells(trained.change, numbers.task)})
    for name, figures in numbers.differences.items():
        blank = {"Weights": NONE, "Rate": NONE}
        rows.append({"Trained": name, **blank, **_cells(figures, numbers.task)})
    n_seeds = len(next(iter(numbers.conditions.values())).change[numbers.task].seeds)
    return Table.of(f"Change of the loss, {numbers.task}, {plural(n_seeds, 'seed')}", rows)


def _cells(figures: dict[str, Change], task: str) -> dict[str, str]:
    """Figures of one row."""
    told = {name: with_interval(each.value, each.interval) for name, each in figures.items()}
    return {name.capitalize(): told.get(name, NONE) for name in (task, *_FIGURES)}
