"""What pruning says: what a network's removal cost, beside removing as much otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from llm2nifti.experiments.results import Result
from llm2nifti.plans import Json
from llm2nifti.tell import Section, Table
from llm2nifti.tell.wording import count, number, percent, with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Removed:
    """Units of one site."""

    n_removed: int
    n_units: int


@dataclass(frozen=True)
class Beyond:
    """By how many nats a token the network's removal costs more than another one."""

    value: float
    interval: list[float]


@dataclass(frozen=True)
class TaskLosses:
    """Perplexities of one task's held-out text, by what was removed."""

    n_prompts: int
    before: float
    network: float
    magnitude: float  #: without the units with the smallest weights
    delta: float  #: nats a token that the network's removal costs, with an interval
    interval: list[float]
    random: list[float] = field(default_factory=list)
    matched: list[float] = field(default_factory=list)  #: random units that are as active
    beyond: dict[str, Beyond] = field(default_factory=dict)  #: against each other way


@dataclass(frozen=True)
class SpeedChange:
    """Speed of one act in tokens a second, and its ratio after / before."""

    before: float
    after: float
    ratio: float
    interval: list[float]
    n_pairs: int  #: of measurements


@dataclass(frozen=True, repr=False)
class PruningResult(Result):
    """A pruned model and what it lost; kept as ``prune.json`` in its folder."""

    how: str  #: the rule by which units went
    sites: dict[str, Removed]
    parameters: list[int]  #: before and after, as the bytes in memory
    bytes_in_memory: list[int]
    bytes: int  #: of the weights on disk
    network: str = ""
    space: str = ""
    n_removed: int = 0
    #: Between the outputs of the pruned model and of the model under a zero lesion
    largest_relative_difference_from_zero_lesion: float | None = None
    notes: list[str] = field(default_factory=list)
    evaluation: dict[str, TaskLosses] = field(default_factory=dict)  #: by task
    evaluation_notes: list[str] = field(default_factory=list)
    speed: dict[str, SpeedChange] = field(default_factory=dict)  #: of ``prefill`` and ``generate``
    plan: Json = field(default_factory=dict)
    folder: str = ""
    settings: dict[str, list[int | None]] = field(default_factory=dict)  #: sizes before and after
    llm2nifti: str = ""  #: the version that pruned
    made_from: str = ""  #: digest of everything that decides it

    def tables(self) -> dict[str, pd.DataFrame]:
        """``perplexity``: one row a task and way of removing."""
        rows = []
        for task, losses in self.evaluation.items():
            for name in ("before", "network", "magnitude", "random", "matched"):
                values = np.atleast_1d(getattr(losses, name)).tolist()
                rows += [(task, name, i, value) for i, value in enumerate(values)]
        columns = ["task", "removed", "draw", "perplexity"]
        return {"perplexity": pd.DataFrame(rows, columns=columns)}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Nats lost a token with the network, by task."""
        from llm2nifti import plotting

        values = {task: losses.delta for task, losses in self.evaluation.items()}
        ends = {task: (v.interval[0], v.interval[1]) for task, v in self.evaluation.items()}
        return plotting.plot_bars(values, ends, ax=ax, ylabel="Nats lost a token")

    def sections(self) -> list[Section]:
        """What does a model lose with a network?"""
        sites = ", ".join(
            f"{site} {count(n.n_removed)} of {count(n.n_units)}" for site, n in self.sites.items()
        )
        (before, after), memory = self.parameters, self.bytes_in_memory
        n_before, n_after = (number(n / 1e6, 1) for n in memory)
        notes = [
            f"Parameters {count(before)} to {count(after)} ({percent(after / before)}), weights "
            f"{n_before} to {n_after} MB, on disk {number(self.bytes / 1e6, 1)} MB."
        ]
        notes += [
            f"{name.capitalize()}: {count(s.before)} to {count(s.after)} tokens/s, "
            f"{with_interval(s.ratio, s.interval, 3)} times over {count(s.n_pairs)} pairs."
            for name, s in self.speed.items()
        ]
        if self.folder:
            notes.append(f"Written: `{self.folder}`.")
        told = [f"Removed: {sites} ({self.how}).", *self.notes, *self.evaluation_notes]
        tables = [self._losses()] if self.evaluation else []
        title = "What does a model lose with a network?"
        return [Section("pruning", title, told, tables=tables, notes=notes)]

    def _losses(self) -> Table:
        """Perplexities of each task's held-out text."""
        rows = []
        has_matched = any(losses.matched for losses in self.evaluation.values())
        for task, losses in self.evaluation.items():
            row = {
                "Text of": task,
                "Before": number(losses.before),
                "Network": number(losses.network),
                "Nats lost a token": with_interval(losses.delta, losses.interval, 3),
                "Smallest weights": number(losses.magnitude),
                "Random": _spread(losses.random),
            }
            rows.append(row | ({"As active": _spread(losses.matched)} if has_matched else {}))
        return Table.of("Perplexity of held-out text, by what was removed", rows)


def _spread(values: Sequence[float]) -> str:
    """Mean and range."""
    if not values:
        return "n/a"
    return f"{number(float(np.mean(values)))} ({number(min(values))} to {number(max(values))})"
