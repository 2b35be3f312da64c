"""What is said of a design: differences between task and control, and topics of runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import pandas as pd

from llm2nifti.experiments.results import Result
from llm2nifti.stimuli.measures import MEASURES, TOLERANCE
from llm2nifti.tell import Plot, Section, Table
from llm2nifti.tell.wording import NONE, count, listing, number, percent, plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class RunQuality:
    """One run."""

    task: str
    run: int
    n_task: int  #: prompts of the task
    n_control: int  #: and of the control
    n_topics: int  #: topics of the task's prompts
    n_shared_topics: int  #: those that other runs of the task show, too
    d: dict[str, float] = field(default_factory=dict)  #: Cohen's d, task minus control, by measure


@dataclass(frozen=True)
class Active:
    """Units of one task that pass a false discovery rate of .05, as shares of all units."""

    covariates: tuple[str, ...]  #: measures that are taken out
    share: float  #: without covariates
    share_given: float  #: with them


@dataclass(frozen=True, repr=False)
class QualityResult(Result):
    """How well the controls of every run match its task prompts, and whether runs share topics."""

    file: ClassVar[str] = "quality.json"
    rank: ClassVar[int] = 5

    runs: list[RunQuality]
    active: dict[str, Active] = field(default_factory=dict)  #: by task

    @property
    def largest(self) -> dict[str, dict[str, float]]:
        """Largest size of d among each task's runs, by measure."""
        out: dict[str, dict[str, float]] = {}
        for run in self.runs:
            task = out.setdefault(run.task, {})
            for name, d in run.d.items():
                task[name] = max(task.get(name, 0.0), abs(d))
        return out

    def tables(self) -> dict[str, pd.DataFrame]:
        """``differences``: one row a run and measure; ``topics``: one row a run.

        ``active``: one row a task.
        """
        d = [(r.task, r.run, name, value) for r in self.runs for name, value in r.d.items()]
        columns = ["task", "run", "n_task", "n_control", "n_topics", "n_shared_topics"]
        return {
            "differences": pd.DataFrame(d, columns=["task", "run", "measure", "d"]),
            "active": pd.DataFrame(
                [{"task": task, **vars(active)} for task, active in self.active.items()]
            ),
            "topics": pd.DataFrame([{name: vars(r)[name] for name in columns} for r in self.runs]),
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Differences of all runs, one point a run, by task and measure."""
        from llm2nifti import plotting

        return plotting.plot_differences(self.tables()["differences"], TOLERANCE, ax=ax)

    def sections(self) -> list[Section]:
        """Task and control beside each other."""
        what = (
            "Prompts that differ in length, in the frequency of their words or in how surprising "
            "they are activate units by that alone. Differences are Cohen's d, task minus control; "
            f"controls are drawn so that each is at most {number(TOLERANCE, 1)} in every run, as "
            f"far as the stimuli allow. {self._verdict()} {self._topics()}"
        )
        names = self._measures()
        rows = []
        for task, d in self.largest.items():
            row = {"Task": task, **{name: number(d[name]) if name in d else NONE for name in names}}
            if active := self.active.get(task):
                row["Active"] = percent(active.share)
                row["Active given these"] = percent(active.share_given)
            rows.append(row)
        table = Table.of("Largest difference of a run in size", rows)
        meanings = "; ".join(f"{name}: {MEASURES[name]}" for name in names)
        plots = []
        if names:
            plots = [
                Plot(
                    "quality_differences",
                    self.plot,
                    f"Differences between task and control prompts in {listing(names)}.",
                    "Cohen's d of every run, one point each, in each measure; the band is the "
                    "tolerance of the matching.",
                )
            ]
        if self.session is not None:
            plots.append(self._design())
        title = "Are the controls like the tasks?"
        notes = [f"{meanings[:1].upper()}{meanings[1:]}."] if names else []
        if self.active:
            notes.append(
                "Active: units that pass a false discovery rate of 5 %, all runs; given these: "
                "with the task's measures as covariates (`llm2nifti glm --covariate`). A measure "
                "that tells task and control apart takes the response with it."
            )
        return [Section("quality", title, [what], plots, [table], notes)]

    def _design(self) -> Plot:
        """Design matrix of the first run."""
        run = self.session.first

        def draw() -> Axes:
            from nilearn.plotting import plot_design_matrix

            from llm2nifti import glm
            from llm2nifti.plotting.charts import new_axes

            active = self.active.get(run.task)
            design = glm.design_matrix(run.events, covariates=active.covariates if active else ())
            return plot_design_matrix(design, axes=new_axes(6.2, 4.5))

        return Plot(
            "design_matrix",
            draw,
            f"Design matrix of task {run.task}, run {run.run}: one row a prompt.",
            f"The design of the first run of {run.task}, one row a prompt in the order shown: "
            "conditions, question frames, and the measures that can be taken out.",
        )

    def _measures(self) -> list[str]:
        """Measures of at least one run."""
        return [name for name in MEASURES if any(name in run.d for run in self.runs)]

    def _verdict(self) -> str:
        """Which tasks are matched, and which are not in what."""
        far = {
            task: [name for name, size in d.items() if size > TOLERANCE]
            for task, d in self.largest.items()
        }
        if not self._measures():
            return "These stimuli have no such measure."
        if not any(far.values()):
            return "All runs are within that."
        told = [f"{task} in {listing(names)}" for task, names in far.items() if names]
        return f"Not within that: {listing(told)}."

    def _topics(self) -> str:
        """Whether runs of a task share topics."""
        shared = [run for run in self.runs if run.n_shared_topics]
        sizes = sorted({run.n_topics for run in self.runs})
        each = count(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        text = f"A run's task prompts are of {each} topics"
        if not shared:
            return f"{text}, and no two runs of a task have one in common."
        return f"{text}; {plural(len(shared), 'run')} of {len(self.runs)} share topics with others."
