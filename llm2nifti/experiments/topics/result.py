"""What tests over topics say, beside tests over prompts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import pandas as pd

from llm2nifti.experiments.rates import Rates
from llm2nifti.experiments.results import Result
from llm2nifti.tell import Plot, Section, Table
from llm2nifti.tell.wording import count, percent, plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class TopicTask:
    """One task; shares are of all units."""

    n_topics: int
    n_prompts: int
    share_below_05: float  #: two-sided p below .05, uncorrected, over topics
    n_active: int  #: units that pass the false discovery rate over topics
    share_active: float
    share_active_prompts: float  #: the same over prompts
    n_active_max: int | None = None  #: units that pass the family-wise test by sign flips


@dataclass(frozen=True, repr=False)
class TopicsResult(Result):
    """Tests over topics: what they find holds for topics that were not shown.

    The numbers of units change when the units of a site are rotated, as those of all maps do.
    """

    file: ClassVar[str] = "topics.json"
    rank: ClassVar[int] = 8

    tasks: dict[str, TopicTask]
    null: Rates  #: pseudo-tasks of unrelated topics
    skipped: dict[str, str] = field(default_factory=dict)  #: tasks without a test, and why
    alpha: float = 0.05

    def tables(self) -> dict[str, pd.DataFrame]:
        """``tasks``: one row a task; ``pseudo_tasks``: one row a pseudo-task."""
        table = pd.DataFrame.from_dict(
            {task: vars(numbers) for task, numbers in self.tasks.items()}, orient="index"
        )
        return {
            "tasks": table.rename_axis("task").reset_index(),
            "pseudo_tasks": pd.DataFrame({"below_05": self.null.rates_below_05 or []}),
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Shares of units with p < .05 over topics, beside those of pseudo-tasks."""
        from llm2nifti import plotting

        shares = {task: numbers.share_below_05 for task, numbers in self.tasks.items()}
        return plotting.plot_shares(shares, self.null.rates_below_05 or [], ax=ax)

    def sections(self) -> list[Section]:
        """Prompts and topics beside each other."""
        what = (
            "A test of prompts speaks of the topics that were shown: prompts of one topic are "
            "alike. Here each topic gives one map, minus that of control topics that no other "
            "topic is compared with, and nilearn's second level tests the maps: what passes holds "
            f"for other topics of the task, too. {self._calibration()}"
        )
        rows = []
        for task, numbers in self.tasks.items():
            row = {"Task": task, "Topics": count(numbers.n_topics)}
            row |= {"Prompts": count(numbers.n_prompts)}
            row |= {"Active over prompts": percent(numbers.share_active_prompts)}
            row |= {"Active over topics": percent(numbers.share_active)}
            if numbers.n_active_max is not None:
                row["By max-T, units"] = count(numbers.n_active_max)
            rows.append({**row, "p < .05 over topics": percent(numbers.share_below_05)})
        table = Table.of("Units that respond, over prompts and over topics", rows)
        notes = [f"Active: false discovery rate {percent(self.alpha, 0)}, two-sided, all runs."]
        notes += [f"{task} was not tested: {why}." for task, why in self.skipped.items()]
        plots = []
        if self.tasks and self.null.rates_below_05:
            shares = ", ".join(f"{t} {percent(n.share_below_05)}" for t, n in self.tasks.items())
            plots = [
                Plot(
                    "topics",
                    self.plot,
                    f"Units with p < .05 over topics: {shares}.",
                    "Share of units with p < .05 over topics, above the shares of pseudo-tasks of "
                    "unrelated topics, one point each.",
                )
            ]
        return [Section("topics", "Does it hold for other topics?", [what], plots, [table], notes)]

    def _calibration(self) -> str:
        """What pseudo-tasks give."""
        if self.null.below_05 is None or self.null.any_fdr is None:
            return f"Pseudo-tasks: {self.null.not_possible or 'none'}."
        return (
            f"Of {plural(self.null.n_relabellings, 'pseudo-task')} of unrelated topics, "
            f"{percent(self.null.below_05)} of units pass p < .05 (nominal 5 %), and "
            f"{percent(self.null.any_fdr, 0)} have a unit that passes the false discovery rate."
        )
