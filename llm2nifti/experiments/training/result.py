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
    """Change of a loss in nats for each token of the concept; negative is better.

    Attributes
    ----------
    value, interval : float, list of float
        Mean, with its bootstrap interval over prompts and seeds.
    seeds : list of float
        Of single trainings.
    """

    value: float
    interval: list[float]
    seeds: list[float]

    @property
    def told(self) -> str:
        """Value with its interval."""
        return with_interval(self.value, self.interval)


@dataclass(frozen=True)
class Trained:
    """One condition: which modules were trained, and what it changed.

    Attributes
    ----------
    n_modules, n_weights : int
        How much was trained.
    rate : float
        Learning rate, the best of those that were tried.
    rates : dict of str to float
        Their losses on held-out development prompts.
    change : dict of str to Change
        By task, and of ``other tasks`` and ``task more than other tasks``.
    epochs : list of list of float
        Training losses of every seed.
    modules : list of list of str or None
        Random modules of every seed.
    """

    n_modules: int
    n_weights: int
    rate: float
    change: dict[str, Change]
    rates: dict[str, float | None] = field(default_factory=dict)
    epochs: list[list[float]] = field(default_factory=list)
    modules: list[list[str]] | None = None


@dataclass(frozen=True)
class TaskTraining:
    """Everything that was trained on one task's text.

    Attributes
    ----------
    task : str
        Its label.
    base : dict of str to float
        Mean loss of the untouched model, by task.
    n_held_out : dict of str to int
        Held-out prompts, by task.
    conditions : dict of str to Trained
        ``network``, ``random`` and ``all``.
    differences : dict
        Network minus the others: `Change` by figure.
    network, plan, model : dict
        What the network is, what was asked for, and what the sidecars say of the model.
    targets : list of dict
        Modules by network mass.
    n_training, n_modules : int
        Prompts to train on, and modules that could be trained.
    made_from : str
        Digest of everything that decides it.
    """

    task: str
    base: dict[str, float]
    n_held_out: dict[str, int]
    conditions: dict[str, Trained]
    differences: dict[str, dict[str, Change]]
    network: Json = field(default_factory=dict)
    plan: Json = field(default_factory=dict)
    model: Json = field(default_factory=dict)
    targets: list[Json] = field(default_factory=list)
    n_training: int = 0
    n_modules: int = 0
    made_from: str = ""


@dataclass(frozen=True, repr=False)
class TrainingResult(Result):
    """Trainings by task.

    Attributes
    ----------
    tasks : dict of str to TaskTraining
        By label.
    """

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
    shown = [numbers.task, *_FIGURES]
    rows = []
    for name, trained in numbers.conditions.items():
        told = {"Weights": count(trained.n_weights), "Rate": f"{trained.rate:g}"}
        rows.append({"Trained": name, **told, **_cells(trained.change, shown)})
    for name, figures in numbers.differences.items():
        blank = {"Weights": NONE, "Rate": NONE}
        rows.append({"Trained": name, **blank, **_cells(figures, shown)})
    n_seeds = len(next(iter(numbers.conditions.values())).change[numbers.task].seeds)
    caption = f"Change of the loss, {numbers.task}, {plural(n_seeds, 'seed')}"
    return Table.of(caption, rows)


def _cells(figures: dict[str, Change], shown: list[str]) -> dict[str, str]:
    """Figures of one row."""
    return {n.capitalize(): figures[n].told if n in figures else NONE for n in shown}
