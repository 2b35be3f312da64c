"""What the comparison of maps says: repeatable and distinct, beside its nulls."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from llm2nifti import networks
from llm2nifti.experiments.results import Result
from llm2nifti.networks.similarity import Estimate
from llm2nifti.tell import Plot, Section, Table
from llm2nifti.tell.wording import NONE, count, extremes, number, percent, with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Matrix = list[list[float | None]]
# The two tasks that Nencka et al. (2023) name as the pair with the most overlap.
PAPER_PAIR = ("medicalimaging", "pathology")
MOST_PAIRS = 100  # of tasks, in the table
_MOST_NUMBERS = 12  # tasks whose matrices are also written
_CAPTIONS = {
    "similarity_r": "Mean correlation of t maps from different runs: the diagonal is the "
    "repeatability of a task, the other cells are pairs of different tasks.",
    "similarity_corrected": "The same correlations divided by the geometric mean of both "
    "repeatabilities: 1 means as alike as repetitions of one task are; noise can exceed 1.",
    "similarity_dice": "Overlap of the units with the largest |t|, equally many in each map: the "
    "diagonal is the overlap of runs of the same task.",
}


@dataclass(frozen=True)
class Shuffled:
    """Same-task correlation of maps of shuffled labels, over shuffles."""

    mean: float
    largest: float


@dataclass(frozen=True)
class Pair:
    """Two different tasks, compared between different runs."""

    pair: list[str]  #: their labels
    r: float  #: correlation of their maps
    dice: float  #: overlap of their largest units
    interval: Estimate | None = None  #: of r


@dataclass(frozen=True, repr=False)
class RepeatabilityResult(Result):
    """Maps compared between runs; every matrix is (n_tasks, n_tasks).

    Correlations and overlaps of maps are invariant to the order of units and to flips of their
    signs, not to rotations of a site's units.
    """

    tasks: list[str]  #: labels, in the order of the matrices
    top_share: float  #: share of the units in masks that are compared
    r: Matrix  #: correlation of t maps
    r_corrected: Matrix  #: the same corrected for reliability
    dice: Matrix
    jaccard: Matrix
    dice_chance: float  #: overlap of random masks
    same_task_r: float  #: mean of the diagonal of r
    shuffled_same_task_r: Shuffled  #: its null
    cross_task_r: float | None = None  #: mean of the rest; None for one task
    same_minus_cross: float | None = None
    #: Jackknife intervals by the name of a figure, a task, or "a - b" of two tasks.
    intervals: dict[str, Estimate] | None = None
    intervals_not_possible: str | None = None  #: why there are none
    interval_over: str | None = None  #: what the jackknife leaves out: topic or block
    closest_pair: list[Pair] | None = None  #: all pairs of tasks, most similar maps first
    #: r that runs of each task would have if only the draw of prompts told them apart
    ceilings: dict[str, float] | None = None
    untrained: RepeatabilityResult | None = None  #: of the copy: a baseline of input similarity

    @property
    def limits(self) -> dict[str, Estimate]:
        """Intervals; empty where there are none."""
        return self.intervals or {}

    def told(self, name: str) -> str:
        """A figure, or a task's repeatability, with its interval where there is one."""
        return with_interval(self._value(name), self.limits.get(name))

    def _value(self, name: str) -> Any:
        """A figure, or a task's repeatability."""
        i = self.tasks.index(name) if name in self.tasks else None
        return getattr(self, name) if i is None else self.r[i][i]

    def tables(self) -> dict[str, pd.DataFrame]:
        """``pairs``: one row a pair of tasks, also of a task with itself; ``figures``: means."""
        matrices = {k: getattr(self, k) for k in ("r", "r_corrected", "dice", "jaccard")}
        rows = []
        for i, task in enumerate(self.tasks):
            for j, other in enumerate(self.tasks[: i + 1]):
                e = self.limits.get(task if i == j else pair_name(task, other))
                cells = {name: matrix[i][j] for name, matrix in matrices.items()}
                ends = {"r_low": e and e.low, "r_high": e and e.high}
                ceiling = (self.ceilings or {}).get(task) if i == j else None
                rows.append({"task": task, "other": other, **cells, **ends, "ceiling": ceiling})
        figures = []
        for name in ("same_task_r", "cross_task_r", "same_minus_cross"):
            e = self.limits.get(name)
            ends = {"low": e and e.low, "high": e and e.high}
            figures.append({"figure": name, "value": getattr(self, name), **ends})
        return {"pairs": pd.DataFrame(rows), "figures": pd.DataFrame(figures)}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Matrix of correlations between runs."""
        return self._draw(self.r, "Correlation of t maps", "r", ax)

    def sections(self, *, reads: bool = False, shown: list[str] | None = None) -> list[Section]:
        """Repeatable and distinct? `reads`: the model generated nothing; `shown`: in figures."""
        paragraphs = [
            "If a map belongs to its task, maps of the same task from different runs, which share "
            "no prompt, should be more alike than maps of different tasks. All comparisons are "
            f"between different runs. {self.distinctness()}"
        ]
        parts = [self._baselines(reads=reads)]
        if self.closest_pair:
            parts.append(self._pairs(self.closest_pair))
        plots = self._plots(shown or self.tasks)
        notes = []
        if all(plot.stem != "similarity_corrected" for plot in plots):
            notes = [
                "A correction for reliability is not shown: it needs two tasks with positive "
                "repeatability."
            ]
        tables = self._matrices() if len(self.tasks) <= _MOST_NUMBERS else []
        if self.ceilings:
            tables.insert(0, self._below_ceilings(self.ceilings))
            notes.append(
                "Noise ceiling: the r that maps of two runs would have if only the draw of "
                "prompts told them apart. Below it, they differ in more, such as topics. Above it "
                "they can be by chance, or because controls are matched to the prompts of a run."
            )
        title = "Repeatable and distinct?"
        return [Section("repeatability", title, paragraphs, plots, tables, notes, parts)]

    def distinctness(self) -> str:
        """Whether maps of the same task are more alike than maps of different tasks."""
        text = (
            "Maps of the same task from different runs correlate at "
            f"r = {self.told('same_task_r')} on average"
        )
        if len(self.tasks) < 2:
            return text + "."
        text += (
            f", maps of different tasks at {self.told('cross_task_r')}. The difference is "
            f"{self.told('same_minus_cross')}"
        )
        estimate = self.limits.get("same_minus_cross")
        if not estimate:
            return text + "."
        if estimate.low > 0 or estimate.high < 0:
            return text + "; its interval leaves out 0."
        return text + "; its interval includes 0, so these runs do not tell the two apart."

    def _plots(self, shown: list[str]) -> list[Plot]:
        """Repeatability, then the matrices."""
        share = percent(self.top_share, 0)
        matrices = {
            "similarity_r": (self.r, "Correlation of t maps", "r"),
            "similarity_corrected": (self.r_corrected, "Corrected for reliability", "r, corrected"),
            "similarity_dice": (self.dice, f"Dice, top {share} of units", "Dice"),
        }
        off = ~np.eye(len(self.tasks), dtype=bool)
        if not np.isfinite(np.array(self.r_corrected, float)[off]).any():
            del matrices["similarity_corrected"]
        is_small = set(shown) == set(self.tasks)
        plots = [self._bars(shown)]
        for stem, (values, title, label) in matrices.items():
            alt = f"Matrix, {title}: {extremes(np.array(values, float))}."
            draw = partial(self._draw, values, title, label)
            plots.append(Plot(stem, draw, alt, _CAPTIONS[stem], is_small))
        return plots

    def _below_ceilings(self, ceilings: dict[str, float]) -> Table:
        """Repeatability of each task beside what the noise of prompts allows."""
        rows = [
            {
                "Task": task,
                "Repeatability r": self.told(task),
                "Noise ceiling": number(ceilings.get(task)),
            }
            for task in self.tasks
        ]
        return Table.of("Repeatability beside its noise ceiling", rows)

    def _matrices(self) -> list[Table]:
        """Numbers of the matrices, for those who do not see the figures."""
        matrices = {
            "Correlation of t maps between runs (diagonal: repeatability)": self.r,
            f"Dice of the top {percent(self.top_share, 0)} of units": self.dice,
        }
        tables = []
        for title, matrix in matrices.items():
            rows = [(t, *map(number, row)) for t, row in zip(self.tasks, matrix, strict=True)]
            tables.append(Table(title, pd.DataFrame(rows, columns=["Task", *self.tasks])))
        return tables

    def _draw(self, matrix: Matrix, title: str, label: str, ax: Axes | None = None) -> Axes:
        """Draw a matrix over tasks."""
        from llm2nifti import plotting

        values = np.array(matrix, float)
        top = max(0.2, float(np.nanmax(np.abs(values))))  # noise should not fill the range
        return plotting.plot_matrix(
            values, self.tasks, ax=ax, title=title, colorbar_label=label, vmax=top
        )

    def _bars(self, shown: list[str]) -> Plot:
        """Same-task correlations with their intervals, beside other pairs of maps."""
        keys, others = {t: t for t in self.tasks if t in set(shown)}, "maps of shuffled labels"
        if self.cross_task_r is not None:
            keys["different tasks"] = "cross_task_r"
            others = f"maps of different tasks and {others}"
        values = {name: self._value(key) for name, key in keys.items()}
        ends = {name: self.limits.get(key) for name, key in keys.items()}
        intervals = {name: (e.low, e.high) for name, e in ends.items() if e}
        values["shuffled labels"] = self.shuffled_same_task_r.mean
        figures = ", ".join(f"{name} {number(value)}" for name, value in values.items())

        def draw() -> Axes:
            from llm2nifti import plotting

            label = "Correlation between runs (r)"
            return plotting.plot_bars(values, intervals, ylabel=label)

        return Plot(
            "repeatability",
            draw,
            f"Bars of the correlation of maps between runs: {figures}.",
            "Correlation of each task's maps between runs, with 95 % jackknife intervals; beside "
            f"it, {others}.",
        )

    def _baselines(self, *, reads: bool) -> Section:
        """Repeatability and distinctness beside what shuffling and random weights give."""
        null, copy = self.shuffled_same_task_r, self.untrained
        names = {
            "same_task_r": (
                "Correlation of maps, same task",
                f"{number(null.mean)} (largest {number(null.largest)})",
            ),
            "cross_task_r": ("Correlation of maps, different tasks", NONE),
            "same_minus_cross": ("Same task minus different tasks", "0"),
        }
        rows = [
            (title, self.told(name), chance, number(getattr(copy, name, None)))
            for name, (title, chance) in names.items()
        ]
        dice = networks.same_and_cross(np.array(self.dice, float))
        of_copy = networks.same_and_cross(np.array(copy.dice, float)) if copy else (None, None)
        kinds = {"same task": "same_dice", "different tasks": "cross_dice"}
        for (kind, name), value, other in zip(kinds.items(), dice, of_copy, strict=True):
            title = f"Dice of the top {percent(self.top_share, 0)} of units, {kind}"
            told = with_interval(value, self.limits.get(name))
            rows.append((title, told, f"{number(self.dice_chance)} (random sets)", number(other)))
        rows = rows if len(self.tasks) > 1 else [rows[0], rows[3]]
        headings = ["Mean over tasks and pairs of runs", "This model", "Null", "Untrained copy"]
        table = Table("Similarity of maps beside its nulls", pd.DataFrame(rows, columns=headings))
        note = (
            f"Brackets: 95 % interval of the delete-{self.interval_over or 'block'} jackknife. "
            "Null of the correlations: trial types shuffled within runs before the maps are made. "
            f"{self._untrained(reads=reads)}"
        )
        return Section("", "Beside their nulls", tables=[table], notes=[note])

    def _untrained(self, *, reads: bool) -> str:
        """What the column of the untrained copy means."""
        if not self.untrained:
            return "No untrained copy was scanned, so that column is empty."
        what = "the same prompts" if reads else "the tokens that the trained model generated"
        return (
            f"The untrained copy has the same architecture with random weights and reads {what}. "
            "It shows how much similarity the inputs alone bring about, so its same-task value is "
            "a baseline and not a null of zero. What training adds shows where the two models are "
            "compared in the third row, same task minus different tasks."
        )

    def _pairs(self, pairs: list[Pair]) -> Section:
        """Pairs of different tasks, and where the paper's pair ranks."""
        rows = []
        for rank, pair in enumerate(pairs[:MOST_PAIRS], start=1):
            i, j = (self.tasks.index(task) for task in pair.pair)
            rows.append(
                {
                    "Pair": " – ".join(sorted(pair.pair)),
                    "Rank by r": str(rank),
                    "r": with_interval(pair.r, pair.interval),
                    "r, corrected": number(self.r_corrected[i][j]),
                    "Dice": number(pair.dice),
                }
            )
        table = Table.of("Pairs of tasks by similarity", rows)
        notes = []
        if len(pairs) > MOST_PAIRS:
            notes.append(
                f"The first {MOST_PAIRS} of {count(len(pairs))} pairs; `summary.json` has all."
            )
        answer = paper_pair(pairs)
        if answer:
            notes.append(
                "Nencka et al. (2023) report most overlap between medical imaging and pathology, "
                f"for Galactica-125M. Is that the pair that overlaps most here? {answer}"
            )
        return Section("", "Closest pairs of tasks", tables=[table], notes=notes)


def pair_name(a: str, b: str) -> str:
    """Name of a pair of tasks among the intervals."""
    return " - ".join(sorted((a, b)))


def paper_pair(pairs: list[Pair]) -> str | None:
    """Where the paper's pair ranks among all pairs; None unless both tasks are there."""
    hit = next((pair for pair in pairs if set(pair.pair) == set(PAPER_PAIR)), None)
    if hit is None:
        return None
    name = " and ".join(PAPER_PAIR)
    values = f"r = {number(hit.r)}, Dice {number(hit.dice)}"
    if len(pairs) == 1:
        return f"Here {name} are the only pair ({values}), so this dataset cannot answer it."
    by_r = 1 + sum(pair.r > hit.r for pair in pairs)
    by_dice = 1 + sum(pair.dice > hit.dice for pair in pairs)
    text = (
        f"Here the pair of {name} ranks {by_r} of {len(pairs)} by the correlation of maps and "
        f"{by_dice} of {len(pairs)} by Dice ({values})"
    )
    verdict = {
        2: "it is the most similar pair by both measures",
        1: "it is the most similar pair by one of the two measures",
        0: f"the most similar pair is {' and '.join(sorted(pairs[0].pair))}",
    }
    return f"{text}: {verdict[(by_r == 1) + (by_dice == 1)]}."
