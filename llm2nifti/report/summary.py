"""What does ``summary.json`` say? The results of one session's analysis, told together."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from llm2nifti import bids
from llm2nifti.bids import Session
from llm2nifti.experiments.identification.result import IdentificationResult
from llm2nifti.experiments.maps.result import MapsResult, TaskMaps
from llm2nifti.experiments.nulls.result import NullResult
from llm2nifti.experiments.repeatability.result import RepeatabilityResult
from llm2nifti.experiments.results import Result
from llm2nifti.plans import Json
from llm2nifti.tell import Plot, Section, Table
from llm2nifti.tell.wording import NONE, count, height_control, listing, number, percent, plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NEEDED = ("design", "model", "null", "tasks", "versions")


class ReportError(ValueError):
    """A dataset has not been analysed, or not completely."""


@dataclass(frozen=True)
class UntrainedSummary:
    """The same figures for the untrained copy: a baseline of input similarity, not a null.

    Its `tasks` have ``share_below_05``; `model` is what the sidecars say.
    """

    subject: str
    tasks: dict[str, dict[str, float]] = field(default_factory=dict)
    model: Json = field(default_factory=dict)
    similarity: RepeatabilityResult | None = None
    identification: IdentificationResult | None = None


@dataclass(frozen=True, repr=False)
class SessionSummary(Result):
    """Numbers of one session's analysis."""

    #: model, design: what the sidecars say of the model, and sizes and settings of the experiment
    model: Json
    design: Json
    versions: dict[str, str]  #: of what the numbers depend on
    tasks: dict[str, TaskMaps]  #: maps and networks
    null: NullResult  #: rates where nothing is there
    #: similarity, identification: comparisons between runs, where there are enough
    similarity: RepeatabilityResult | None = None
    identification: IdentificationResult | None = None
    untrained: UntrainedSummary | None = None  #: the untrained copy
    #: options, made_from, reported: what tells whether something changed
    options: Json | None = None
    made_from: str | None = None
    reported: str | None = None

    @property
    def maps(self) -> MapsResult:
        """Maps and networks."""
        return MapsResult(self.tasks)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Tables of all parts, by part and name."""
        parts: dict[str, Result | None] = {"maps": self.maps, "null": self.null}
        parts |= {"repeatability": self.similarity, "identification": self.identification}
        told = {name: part.tables() for name, part in parts.items() if part}
        return {f"{name}.{key}": table for name in told for key, table in told[name].items()}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Repeatability where there is one, else the profile of the first task."""
        return (self.similarity or self.maps).plot(ax)

    def sections(self, session: Session | None = None) -> list[Section]:
        """The result in short; with the `session` also everything else that a page shows."""
        if session is None:
            return [self.short()]
        null = [*self.null.sections(), self._pseudo_section(), self._checks()]
        return [
            self.short(),
            *self.maps.sections(session),
            self._repeatability_section(),
            self._identification_section(),
            Section("null", "Is it real?", parts=null),
        ]

    def short(self) -> Section:
        """The result in short."""
        rules = list(dict.fromkeys(maps.threshold for maps in self.tasks.values()))
        trials, rows = self.identification and self.identification.trials, []
        for task, maps in self.tasks.items():
            row = {"Task": task, "Active units": maps.active}
            if len(rules) > 1:
                row["Active by"] = height_control(maps.threshold)
            row["p < .05"] = percent(maps.share_below_05)
            row["Repeatability r"] = self.similarity.told(task) if self.similarity else NONE
            row["Prompts named right"] = percent(trials.right(task), 0) if trials else NONE
            rows.append(row)
        rule = f", by the {height_control(rules[0])}" if len(rules) == 1 else ""
        note = (
            f"Active: all runs together{rule}. p < .05: two-sided, uncorrected; 5 % is expected "
            "where nothing is there. Repeatability: correlation of t maps of different runs, with "
            "its 95 % interval. Prompts named right: share of held-out prompts of the task that "
            "are named as it by their activations."
        )
        table = Table.of("Result of each task", rows, ("Task", "Active by"))
        return Section("result", "The result in short", (), (), [table], [note, *self._sentences()])

    def _sentences(self) -> list[str]:
        """The figures that belong to the whole experiment."""
        out, similarity, named = [], self.similarity, self.identification
        if similarity:
            text = similarity.distinctness()
            text += f" Maps of shuffled labels: {number(similarity.shuffled_same_task_r.mean)}"
            copy = self.untrained and self.untrained.similarity
            if copy and copy.same_minus_cross is not None:
                text += f"; the difference in the untrained copy: {number(copy.same_minus_cross)}"
            out.append(text + ".")
        if named:
            trials, prompts = named.trials, named.prompts
            alone = prompts and f" and {percent(prompts.accuracy)} from their characters alone"
            out.append(
                f"Of {count(trials.n_items)} held-out task prompts, {percent(trials.accuracy)} are "
                f"named right from their activations{alone or ''}; guessing gives "
                f"{percent(trials.chance)}. Of whole runs, {percent(named.runs.accuracy)}."
            )
        null, pseudo = self.null.relabelled, self.null.pseudo_tasks
        if null.below_05 is None:
            reason = null.not_possible or "no rates in the summary"
            return [*out, f"Rates where nothing is there: not possible ({reason})."]
        text = (
            f"Where nothing is there to find, {percent(null.below_05)} of the units have p < .05 "
            f"({count(null.n_relabellings)} relabellings of control prompts)"
        )
        if pseudo.below_05 is not None:
            text += (
                f"; whole control topics in the place of a task give {percent(pseudo.below_05)} in "
                "a run"
            )
        return [*out, text + "."]

    def _sizes(self) -> str:
        """Runs and on-blocks of the design."""
        n_runs, n_blocks = self.design["n_runs"], self.design["n_blocks"]
        return f"{plural(n_runs, 'run')} of {plural(n_blocks, 'on-block')}"

    def _repeatability_section(self) -> Section:
        """Comparison of maps, or why there is none."""
        if self.similarity:
            copy = self.untrained.similarity if self.untrained else None
            beside = replace(self.similarity, untrained=copy)
            reads = self.design.get("mode") == "read"
            return beside.sections(reads=reads, shown=self.maps.shown)[0]
        why = (
            "Repeatability needs at least 2 runs of each task with at least 2 on-blocks each; this "
            f"dataset has {self._sizes()}."
        )
        return Section("repeatability", "Repeatable and distinct?", [why])

    def _identification_section(self) -> Section:
        """Identification, or why there is none."""
        if self.identification:
            copy = self.untrained.identification if self.untrained else None
            return replace(self.identification, untrained=copy).sections()[0]
        why = (
            "Identification needs at least 2 tasks with at least 2 runs of at least 2 on-blocks "
            f"each; this dataset has {plural(len(self.tasks), 'task')} "
            f"({listing(list(self.tasks))}) with {self._sizes()}."
        )
        return Section("identification", "Which task is this?", [why])

    def _pseudo_section(self) -> Section:
        """Tasks beside pseudo-tasks, by the mean over single runs: a pseudo-task is a run."""
        pseudo, shares, rows = self.null.pseudo_tasks, {}, []
        null = np.array(pseudo.rates_below_05 or [])
        for task, maps in self.tasks.items():
            single = maps.share_below_05_per_run
            share = shares[task] = float(np.mean(single))
            row = {"Units with p < .05": task}
            row |= {f"Run {i}": percent(value) for i, value in enumerate(single, start=1)}
            row["Mean"] = percent(share)
            below = float((null < share).mean()) if len(null) else None
            row["Pseudo-tasks below the mean"] = percent(below, 0)
            rows.append(row)
        table = Table.of("Share of units with p below .05 in each run", rows)
        if not len(null):
            reason = pseudo.not_possible or "no rates in the summary"
            text = f"Pseudo-tasks were not possible: {reason}."
            return Section("", "Tasks and pseudo-tasks", [text], tables=[table])
        shown = {task: share for task, share in shares.items() if task in set(self.maps.shown)}
        figures = ", ".join(f"{task} {percent(share)}" for task, share in shown.items())

        def draw() -> Axes:
            from llm2nifti import plotting

            return plotting.plot_shares(shown, null)

        plot = Plot(
            "pseudo_tasks",
            draw,
            f"Share of units with p < .05 in a run: {figures}; pseudo-tasks "
            f"{percent(null.min())} to {percent(null.max())}.",
            "Share of units with p < .05 in a run of each task (mean over runs) above the shares "
            "of pseudo-tasks, one point each: only what exceeds them can be specific to a task.",
        )
        return Section("", "Tasks and pseudo-tasks", plots=[plot], tables=[table])

    def _checks(self) -> Section:
        """Checks of each task's model."""
        copies = self.untrained.tasks if self.untrained else {}
        rows = [
            {
                "Task": task,
                "Degrees of freedom": count(maps.df),
                "Largest |t|": number(maps.max_t, 1),
                "Welch disagrees": percent(maps.welch_disagreement),
                "Constant units": count(maps.n_constant),
                "Untrained copy, p < .05": percent(copies.get(task, {}).get("share_below_05")),
            }
            for task, maps in self.tasks.items()
        ]
        note = (
            "Welch disagrees: share of units where Welch's test, which allows unequal variances, "
            "decides otherwise at p < .05. Constant units never change within a run; they have no "
            "t value and are left out. Untrained copy: share of its units with p < .05. As far as "
            "random weights reach the share of the trained model, that share is due to the inputs "
            "and not to what the model has learned."
        )
        table = Table.of("Checks of each task's model", rows)
        return Section("", "Checks of the model", tables=[table], notes=[note])


def read_session_summary(session: Session) -> SessionSummary:
    """Summary of a session's analysis; ReportError if it is missing or lacks a part."""
    content = complete(session.folder, session.root, needed=_NEEDED)
    return SessionSummary.of(content, session.folder / bids.SUMMARY.name)


def complete(folder: Path, root: Path, *, needed: tuple[str, ...]) -> Json:
    """Content of a folder's summary; ReportError if it is missing or lacks a part."""
    path, advice = folder / bids.SUMMARY.name, f"run: llm2nifti run {root}"
    if not path.exists():
        raise ReportError(f"{path} is missing, so there is nothing to report; {advice}")
    summary = bids.read_json(path)
    missing = [key for key in needed if not summary.get(key)]
    if missing:
        raise ReportError(f"{path} has no {missing[0]!r}; {advice}")
    return summary
