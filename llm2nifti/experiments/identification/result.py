"""What identification says: accuracies beside guessing, the prompts alone, the untrained copy."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import factorial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from llm2nifti.experiments.results import Result
from llm2nifti.networks.naming import Accuracy
from llm2nifti.tell import Plot, Section, Table
from llm2nifti.tell.wording import NONE, count, extremes, number, p_value, percent, plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_N_PERMUTATIONS = 10_000  # of `networks.Identification.p_value`
_KINDS = {"trials": "Held-out prompts", "runs": "Held-out runs"}
_ENDINGS = {"": "", "_without_randomstrings": ", no randomstrings"}


@dataclass(frozen=True)
class Naming:
    """Names given to held-out items."""

    accuracy: float  #: share of items named right
    n_items: int
    chance: float  #: accuracy of guessing
    p: float  #: of a permutation test in which whole runs exchange their labels
    tasks: list[str]  #: what could be said
    confusion: list[list[float]]  #: share of each task's items (rows) by the name they got

    def right(self, task: str) -> float | None:
        """Share of a task's items named right."""
        shares = dict(zip(self.tasks, np.diag(self.confusion).tolist(), strict=True))
        return shares.get(task)

    @property
    def told(self) -> str:
        """Accuracy with its p value."""
        return f"{percent(self.accuracy)}, {p_value(self.p)}"


@dataclass(frozen=True, repr=False)
class IdentificationResult(Result):
    """Held-out runs and prompts named by maps of the other runs, also among the other tasks alone.

    Names change when the units of a site are rotated: units are scaled one by one, and a covariance
    that trials are whitened by is shrunk to its diagonal.
    """

    runs: Naming  #: by activations
    trials: Naming
    prompts: Naming | None = None  #: by their characters alone
    words: Naming | None = None  #: by their words alone
    runs_without_randomstrings: Naming | None = None
    trials_without_randomstrings: Naming | None = None
    prompts_without_randomstrings: Naming | None = None
    words_without_randomstrings: Naming | None = None
    #: accuracy of naming groups of prompts, by ``trials``, ``prompts`` or ``words``
    curve: dict[str, list[Accuracy]] = field(default_factory=dict)
    curve_without_randomstrings: dict[str, list[Accuracy]] = field(default_factory=dict)
    method: str = "template"  #: how prompts are named by activations
    untrained: IdentificationResult | None = None  #: the same of the untrained copy

    def tables(self) -> dict[str, pd.DataFrame]:
        """``accuracy``: one row a kind of items; ``confusion``: prompts by task and name.

        ``curve``: one row a size of groups of prompts.
        """
        sources = ("runs", "trials", "prompts", "words")
        kinds = [f"{kind}{end}" for end in _ENDINGS for kind in sources]
        known = [(kind, getattr(self, kind)) for kind in kinds if getattr(self, kind)]
        rows = [(k, n.accuracy, n.chance, n.p, n.n_items, len(n.tasks)) for k, n in known]
        names = self.trials.tasks
        table = pd.DataFrame(self.trials.confusion, index=names, columns=names)
        columns = ["named", "accuracy", "chance", "p", "n_items", "n_tasks"]
        return {
            "accuracy": pd.DataFrame(rows, columns=columns),
            "curve": pd.DataFrame(self._curve_rows()),
            "confusion": table.rename_axis("task").melt(
                var_name="named", value_name="share", ignore_index=False
            ),
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Confusion matrix of held-out prompts."""
        from llm2nifti import plotting

        ax = plotting.plot_matrix(
            np.array(self.trials.confusion),
            self.trials.tasks,
            ax=ax,
            title="Held-out prompts",
            colorbar_label="Share",
            vmax=1,
        )
        ax.set_xlabel("Named as", fontsize=9)
        ax.set_ylabel("Shown", fontsize=9)
        return ax

    def sections(self) -> list[Section]:
        """Which task is this?"""
        trials = self.trials
        plot = Plot(
            "confusion",
            self.plot,
            f"Confusion matrix of {count(trials.n_items)} held-out prompts, as shares of a row: "
            f"{extremes(np.array(trials.confusion))}.",
            "Each row holds the held-out prompts of one task, by the task that they were named as: "
            f"the diagonal is right, {number(trials.chance)} is expected by guessing.",
        )
        how = {
            "ridge": "by a ridge classifier of their prompts",
            "template": "by the effect of a task that its activations correlate with best",
        }[self.method]
        what = (
            "Each run is held out in turn, with its topics where runs have topics of their own. "
            f"The other runs alone then name every held-out task prompt, {how}, and every held-out "
            "run, by the map that its own correlates with best. No prompt of the held-out run is "
            "used for training or for the baseline. Groups of prompts of one task and run are "
            "named by the mean of their scores."
        )
        p = (
            "p: permutation test in which whole runs exchange their task labels, because prompts "
            f"of one run are not independent of each other. {self._smallest_p()}"
        )
        characters = (
            "Prompts' characters: the same question answered from n-grams of 1 to 4 characters of "
            "the prompt, with no model. Where this does as well as the activations, naming the "
            "task shows that the inputs differ and no more."
        )
        if not self.untrained:
            characters += " No untrained copy was scanned, so that column is empty."
        title = "Which task is this?"
        notes = [p.strip(), characters]
        tables = [self._table(), *self._curve_tables()]
        return [Section("identification", title, [what], [plot], tables, notes)]

    def _curve_rows(self) -> list[dict[str, object]]:
        """Accuracy of groups of prompts, by what they are named from."""
        sources = [(self, ""), (self.untrained, "untrained ")]
        return [
            {"named": f"{kind}{end}", "from": f"{copy}{kind}", **vars(point)}
            for end in _ENDINGS
            for result, copy in sources
            if result is not None
            for kind, points in getattr(result, f"curve{end}").items()
            if not copy or kind == "trials"
            for point in points
        ]

    def _curve_tables(self) -> list[Table]:
        """One table of groups of prompts for each set of tasks."""
        out = []
        for end, without in _ENDINGS.items():
            curves: dict[str, list[Accuracy]] = getattr(self, f"curve{end}")
            if not curves:
                continue
            others = {"Prompts' characters": curves.get("prompts"), "Words": curves.get("words")}
            copy = getattr(self.untrained, f"curve{end}", {})
            others["Untrained copy"] = copy.get("trials")
            rows = []
            for i, point in enumerate(curves["trials"]):
                row = {"Prompts together": count(point.n_prompts), "Activations": _told(point)}
                row |= {name: _told(c[i]) if c else NONE for name, c in others.items()}
                rows.append(row)
            out.append(Table.of(f"Accuracy of naming groups of prompts{without}", rows))
        return out

    def _table(self) -> Table:
        """Accuracy of naming trials and runs, beside the prompts and the untrained copy."""
        rows = []
        for ending, without in _ENDINGS.items():
            for kind, what in _KINDS.items():
                named: Naming | None = getattr(self, kind + ending)
                if named is None:
                    continue
                characters = getattr(self, f"prompts{ending}") if kind == "trials" else None
                copy = getattr(self.untrained, kind + ending, None)
                rows.append(
                    {
                        "Named": what + without,
                        "Tasks": count(len(named.tasks)),
                        "Items": count(named.n_items),
                        "Guessing": percent(named.chance),
                        "Activations": named.told,
                        "Prompts' characters": characters.told if characters else NONE,
                        "Untrained copy": copy.told if copy else NONE,
                    }
                )
        return Table.of("Accuracy of identification", rows)

    def _smallest_p(self) -> str:
        """Say how small p can get, where few runs limit it."""
        n_tasks = len(self.trials.tasks)
        n_runs = self.runs.n_items // n_tasks
        n_ways = factorial(n_tasks) ** n_runs
        if n_ways > _N_PERMUTATIONS:
            return ""
        return (
            f"{plural(n_tasks, 'task')} and {plural(n_runs, 'run')} allow {count(n_ways)} "
            f"arrangements of the labels, so p cannot be below about {1 / n_ways:.2g} here."
        )


def _told(point: Accuracy) -> str:
    """Accuracy with its interval, where there is one."""
    if point.low is None or point.high is None:
        return number(point.accuracy, 3)
    return f"{number(point.accuracy, 3)} [{number(point.low, 3)}, {number(point.high, 3)}]"
