"""What detection says: AUC of networks beside a probe, a bag of words, and their nulls."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from llm2nifti.experiments.results import Interval, Result
from llm2nifti.tell import Plot, Section, Table
from llm2nifti.tell.wording import count, interval, listing, number, percent, with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMES = {"network": "network", "probe": "linear probe", "words": "bag of words"}
_AGAINST = {"control": "control prompts", "others": "prompts of the other tasks"}
_TITLES = {"control": "Against control prompts", "others": "Against the other tasks"}


@dataclass(frozen=True)
class Source:
    """What a result was made from."""

    runs: str | None  #: their digest
    share: float  #: this, rate and n_boot: of the plan
    rate: float
    n_boot: int
    versions: dict[str, str]  #: of what the analysis depends on


@dataclass(frozen=True)
class Series:
    """AUC of one method in one comparison, after 1, 2, ... tokens."""

    tasks: dict[str, list[Interval]]
    mean: list[Interval]  #: over tasks


@dataclass(frozen=True)
class Roc:
    """ROC curves of the networks against control prompts: hit rates by task."""

    false_positive_rate: list[float]  #: at which they are given
    first: dict[str, list[float]]  #: after the first token
    all: dict[str, list[float]]


@dataclass(frozen=True)
class Passing:
    """What thresholds let pass among held-out prompts, after 1, 2, ... tokens."""

    rate: float  #: share of control prompts that each threshold lets pass
    other_runs: bool  #: whether thresholds come from runs that made no network
    #: Share of control prompts, and of a task's, above its network's threshold
    false_alarms: dict[str, list[float]]
    hits: dict[str, list[float]]
    #: Share of a task's prompts for which its own network, or none, is named
    named_right: dict[str, list[float]]
    not_named: dict[str, list[float]]
    #: Share of control prompts on which any network is above: at any token, by tokens
    ever_false_alarm: float
    control_named: list[float]


@dataclass(frozen=True)
class ShuffledNetworks:
    """AUC of networks from `n` shuffles of labels, mean over tasks, after 1, 2, ... tokens."""

    n: int
    mean: list[float]
    low: list[float]
    high: list[float]
    largest: list[float]


@dataclass(frozen=True)
class CopyResult:
    """The same of the untrained copy, with one token where it keeps one volume a prompt."""

    subject: str
    n_tokens: int
    auc: dict[str, dict[str, Series]]


@dataclass(frozen=True, repr=False)
class DetectionResult(Result):
    """Networks as detectors of their tasks; they change when the units of a site are rotated."""

    file: ClassVar[str] = "detection.json"
    rank: ClassVar[int] = 10

    tasks: list[str]
    sites: list[str]  #: where the networks are
    share: float  #: of the units there, in a network
    n_network_units: int
    n_units: int
    n_runs: int
    n_tokens: int
    frames: str  #: what one volume is
    n_task_prompts: int
    n_control_prompts: int
    n_boot: int
    mean_of: list[str]  #: tasks over which means are taken
    auc: dict[str, dict[str, Series]]  #: by method and comparison
    #: network minus each other, after all, by comparison
    difference: dict[str, dict[str, Interval]]
    roc: Roc
    thresholds: Passing
    shuffled: ShuffledNetworks | None = None
    untrained: CopyResult | None = None
    made_from: Source | None = None  #: what tells whether something changed

    def tables(self) -> dict[str, pd.DataFrame]:
        """``auc``: a row a model, method, comparison, task, number of tokens; ``thresholds``."""
        groups = {"trained": self.auc}
        groups |= {"untrained": self.untrained.auc} if self.untrained else {}
        rows = [
            (model, method, comparison, task, n, e.value, e.low, e.high)
            for model, auc in groups.items()
            for method, series in auc.items()
            for comparison, of in series.items()
            for task, estimates in {**of.tasks, "mean": of.mean}.items()
            for n, e in enumerate(estimates, start=1)
        ]
        columns = ["model", "method", "against", "task", "n_tokens", "auc", "low", "high"]
        rates = pd.DataFrame(
            {
                name: {task: rate[-1] for task, rate in getattr(self.thresholds, name).items()}
                for name in ("hits", "false_alarms", "named_right")
            }
        )
        thresholds = rates.rename_axis("task").reset_index()
        return {"auc": pd.DataFrame(rows, columns=columns), "thresholds": thresholds}

    def plot(self, ax: Axes | None = None) -> Axes:
        """AUC against control prompts by tokens."""
        return self._draw("control", ax)

    def sections(self) -> list[Section]:
        """Do the networks know what a prompt is about?"""
        when = f"by the one volume ({self.frames}) that was kept of each"
        if self.n_tokens > 1:
            when = f"after each of the {self.n_tokens} tokens that the model generates"
        at = self.thresholds
        which = "other runs pass, scored by networks of yet other runs."
        if not at.other_runs:
            which = (
                "the other run pass; it also made the networks, so false alarms are more frequent "
                "than that."
            )
        what = (
            "The score of a network is the mean of its units beyond control prompts, in SDs. "
            f"Networks ({count(self.n_network_units)} of {count(self.n_units)} units of "
            f"{listing(self.sites)} each) are made from all runs but one, and tell the prompts of "
            f"the remaining one apart, {when}. A linear probe (logistic regression on all of these "
            "units) and a bag of words of the prompt learn each comparison from the same runs. "
            f"{self.n_task_prompts} prompts a task, {self.n_control_prompts} control prompts. "
            f"Means are over {listing(self.mean_of)}."
        )
        note = (
            f"Intervals: bootstrap over prompts, {count(self.n_boot)} draws; networks and probes "
            f"are not made anew. Thresholds let {percent(at.rate, 0)} of control prompts of "
            f"{which} Hits and false alarms: held-out prompts of the task, and control prompts, on "
            "which its network is above threshold after all tokens. Named right: of the networks "
            "above threshold, the task's own is furthest."
        )
        title = "Do the networks know what a prompt is about?"
        told = [what, *self._sentences()]
        return [Section("detection", title, told, self._plots(), self._tables(), [note])]

    @property
    def _is_reduced(self) -> bool:
        """Whether the untrained copy keeps one volume a trial, where the model has tokens."""
        return self.untrained is not None and self.untrained.n_tokens < self.n_tokens

    def _curves(self, comparison: str) -> dict[str, list[Interval]]:
        """Mean AUC of each method over tasks, after 1, 2, ... tokens."""
        curves = {title: self.auc[name][comparison].mean for name, title in _NAMES.items()}
        if self.untrained:
            for name in ("network", "probe"):
                of_copy = self.untrained.auc[name][comparison].mean
                curves[f"{_NAMES[name]}, untrained"] = of_copy
        return curves

    def _draw(self, comparison: str, ax: Axes | None = None) -> Axes:
        """Draw the AUC by tokens."""
        from llm2nifti import plotting

        curves: dict[str, Any] = {
            n: [vars(e) for e in c] for n, c in self._curves(comparison).items()
        }
        last = [name for name in curves if self._is_reduced and name.endswith("untrained")]
        null = vars(self.shuffled) if comparison == "control" and self.shuffled else None
        title = _TITLES[comparison]
        return plotting.plot_auc(curves, null=null, at_end=last, ax=ax, title=title)

    def _plots(self) -> list[Plot]:
        """AUC by tokens, against control and against other tasks, and the ROC curves."""
        note = ""
        if self._is_reduced:
            note = "; the untrained copy keeps one volume a prompt, so it has one value, after all"
        plots = []
        for comparison, title in _TITLES.items():
            ends = {name: c[-1].value for name, c in self._curves(comparison).items()}
            told = ", ".join(f"{name} {number(value)}" for name, value in ends.items())
            alt = f"AUC by the number of tokens seen, {title.lower()}; after all: {told}."
            caption = (
                f"{title}: AUC on held-out prompts, mean over tasks, by the number of tokens that "
                "the model has generated, with 95 % bootstrap intervals; the bag of words reads "
                f"the prompt alone{note}."
            )
            plots.append(Plot(f"auc_{comparison}", partial(self._draw, comparison), alt, caption))
        alt = "ROC curves of the network of each task against control prompts, after all tokens."
        caption = (
            "Hits against false positives of each task's network on held-out task and control "
            "prompts, after all tokens; the dashed line is guessing."
        )
        return [*plots, Plot("roc", self._draw_roc, alt, caption)]

    def _draw_roc(self) -> Axes:
        """Draw the ROC curves."""
        from llm2nifti import plotting

        return plotting.plot_roc(self.roc.false_positive_rate, self.roc.all)

    def _tables(self) -> list[Table]:
        """AUC of networks and their alternatives, and what thresholds do."""
        areas, passing, at = [], [], self.thresholds
        for task in self.tasks:
            row = {"Task": task}
            for comparison, name in product(_AGAINST, _NAMES):
                of_task = self.auc[name][comparison].tasks[task]
                told = with_interval(of_task[-1].value, of_task[-1])
                row[f"{name.capitalize()}, {comparison}"] = told
                if (name, comparison) == ("network", "control"):
                    row["Its first token"] = number(of_task[0].value)
            areas.append(row)
            passing.append(
                {
                    "Task": task,
                    "Hits": percent(at.hits[task][-1], 0),
                    "False alarms": percent(at.false_alarms[task][-1]),
                    "Named right": percent(at.named_right[task][-1], 0),
                }
            )
        return [
            Table.of("AUC after all tokens, with 95 % intervals", areas),
            Table.of("What thresholds let pass", passing),
        ]

    def _sentences(self) -> list[str]:
        """What the numbers say, whichever way."""
        out = []
        for comparison, words in _AGAINST.items():
            last, parts = self.auc["network"][comparison].mean[-1], []
            for name, title in (("probe", "a linear probe"), ("words", "a bag of words")):
                other = self.auc[name][comparison].mean[-1].value
                difference = self.difference[comparison][name]
                parts.append(
                    f"{title} {number(other)} (networks minus it "
                    f"{with_interval(difference.value, difference)}, {_verdict(difference)})"
                )
            out.append(
                f"Telling a task's prompts from {words}, networks reach an AUC of "
                f"{with_interval(last.value, last)} on average, {' and '.join(parts)}."
            )
        if self.untrained:
            copy = self.untrained.auc["network"]["control"].mean[-1]
            when = ", after all tokens: it keeps one volume a prompt" if self._is_reduced else ""
            out.append(
                f"Networks of the untrained copy reach {with_interval(copy.value, copy)} against "
                f"control prompts{when}."
            )
        if self.shuffled:
            null = self.shuffled
            out.append(
                f"Networks of shuffled labels reach {number(null.mean[-1])} "
                f"{interval([null.low[-1], null.high[-1]])} ({null.n} shuffles)."
            )
        at = self.thresholds
        out.append(
            f"At a rate of {percent(at.rate, 0)} for each network, some network is above its "
            f"threshold after all tokens in {percent(at.control_named[-1])} of held-out control "
            f"prompts, and at some token in {percent(at.ever_false_alarm)}."
        )
        return out


def _verdict(difference: Interval) -> str:
    """What the interval of a difference says."""
    if (difference.low or 0) > 0:
        return "networks do better"
    return "networks do worse" if (difference.high or 0) < 0 else "not told apart"
