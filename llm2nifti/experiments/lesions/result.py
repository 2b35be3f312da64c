"""What interventions say: what each network's lesion, or push, does to each task's text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from llm2nifti.experiments.lesions.effects import Copy, Measured, Sizes
from llm2nifti.experiments.results import Result
from llm2nifti.networks.dissociation import DoubleDissociation, Effect
from llm2nifti.plans import Json
from llm2nifti.tell import Plot, Section, Table
from llm2nifti.tell.wording import listing, number, percent, plural, with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HOW = {
    "mean": "held at their mean over control prompts",
    "zero": "set to 0",
    "resample": "given their values in random control prompts",
}


@dataclass(frozen=True, repr=False)
class InterventionResult(Result):
    """Effects of interventions on held-out text.

    They change when the units of a site are rotated, because networks are sets of units.

    Attributes
    ----------
    conditions : list of Measured
        The first is told; others give doses.
    sizes : Sizes
        How much was measured.
    held_out : bool
        Whether networks were made without the runs that they were judged on.
    model : dict
        What the sidecars say of the model.
    untrained : Copy or None
        The same of the untrained copy.
    """

    stem: ClassVar[str] = "lesions"

    conditions: list[Measured]
    sizes: Sizes
    held_out: bool = True
    model: Json = field(default_factory=dict)
    untrained: Copy | None = None

    @property
    def first(self) -> Measured:
        """The condition that is told."""
        return self.conditions[0]

    def tables(self) -> dict[str, pd.DataFrame]:
        """``effects``: one row a model, condition, network and task; ``pairs`` of tasks."""
        groups = {"trained": self.conditions}
        groups |= {"untrained": self.untrained.conditions} if self.untrained else {}
        rows, pairs = [], []
        for group, conditions in groups.items():
            for m in conditions:
                how: dict[str, Any] = {"model": group, "mode": m.mode, "share": m.share}
                how |= {"sites": ",".join(m.sites), "strength": m.strength}
                for network, by_task in m.effects.items():
                    rows += [how | _row(network, task, e) for task, e in by_task.items()]
                pairs += [how | _pair_row(pair) for pair in m.double_dissociations or []]
        return {"effects": pd.DataFrame(rows), "pairs": pd.DataFrame(pairs)}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Matrix of effects beyond matched random units."""
        return _draw_matrix(self.first, "", ax=ax)

    def _matrices(self) -> list[Plot]:
        """Matrix of the model, and of its untrained copy."""
        plots = [_matrix_plot(self.first, self.stem, "the")]
        if self.untrained:
            copy = self.untrained.conditions[0]
            plots.append(_matrix_plot(copy, f"{self.stem}_untrained", "the untrained"))
        return plots


@dataclass(frozen=True, repr=False)
class LesionResult(InterventionResult):
    """What lesions of the tasks' networks do; see `InterventionResult`."""

    file: ClassVar[str] = "lesion.json"
    rank: ClassVar[int] = 20
    title: ClassVar[str] = "What happens without a network?"

    def sections(self) -> list[Section]:
        """What happens without a network?"""
        paragraphs, plots = [self._what(), self._reading()], self._matrices()
        tables = [_matrix_table(self.first), _effects_table(self.first)]
        if self.first.selectivity:
            paragraphs.append(_selectivity_sentence(self.first, "The model"))
            if self.untrained:
                copy = self.untrained.conditions[0]
                paragraphs.append(_selectivity_sentence(copy, "The untrained copy"))
            tables.append(_pairs_table(self.first.double_dissociations or []))
        plots += _dose_plots(self.conditions, self.stem)
        return [Section(self.stem, self.title, paragraphs, plots, tables)]

    def _what(self) -> str:
        """What was lesioned, and how the effect was measured."""
        first, which = self.first, "The units of each mask"
        if first.share is not None:
            which = f"The {percent(first.share)} of the units of "
            which += f"{listing(first.sites)} with the largest |t| for a task"
        made = "Masks were given, so whether they have seen these texts is not known"
        if self.held_out:
            made = (
                "The network is made from all runs but one, and its effect is measured on prompts "
                "and answers of the run that was left out"
            )
        when = ", but for the chat template" if first.spare_template else ""
        return (
            f"{which} are {_HOW[first.mode]} while the model reads{when}. {made}: the change of "
            "their log probability, in nats a token. Beside every network, "
            f"{plural(self.sizes.n_random, 'random set')} of units matched in number, layer, site "
            "and decile of mean |activation| are lesioned."
        )

    def _reading(self) -> str:
        """How to read the matrix."""
        copy = " The second matrix is the untrained copy." if self.untrained else ""
        return (
            "Below 0, a lesion hurts more than that of matched random units does. A star marks "
            "cells whose 95 % interval (bootstrap over texts and random sets) excludes 0. If "
            f"networks were specific, the diagonal would be lowest in every column.{copy} Bottom "
            "units are as many that respond least. Two tasks cross over if each one's text is hurt "
            "more by its own lesion than by the other's, which is shown if both intervals lie "
            "below 0."
        )


@dataclass(frozen=True, repr=False)
class MaskResult(LesionResult):
    """What lesions of given masks do; see `InterventionResult`."""

    file: ClassVar[str] = "lesion_masks.json"
    rank: ClassVar[int] = 21
    stem: ClassVar[str] = "masks"
    title: ClassVar[str] = "What happens without the units of a mask?"


@dataclass(frozen=True, repr=False)
class SteerResult(InterventionResult):
    """What pushes along the tasks' effects do; see `InterventionResult`."""

    file: ClassVar[str] = "steer.json"
    rank: ClassVar[int] = 22
    stem: ClassVar[str] = "steering"

    def sections(self) -> list[Section]:
        """What happens when a task's effect is added?"""
        first, s = self.first, self.first.selectivity
        units = f"{percent(first.share)} of the units of {listing(first.sites)}"
        paragraphs = [
            f"The difference between a task and control is added {number(first.strength, 1)} times "
            f"to the {units} with the largest |t| for the task, while the model reads text of a "
            "run that made neither. Beside it, the same values are added to random units of the "
            "same sites and layers.",
            "Above 0, steering makes text more likely than that does. If steering were specific, "
            "the diagonal would be highest in every column.",
        ]
        if s:
            paragraphs.append(
                "Own task minus other tasks, after taking out how easily each task is moved: "
                f"{with_interval(s.value, s.interval, 3)} nats a token; random units "
                f"{_range(s.random, 3)}."
            )
        title, tables = "What happens when a task's effect is added?", [_matrix_table(first)]
        tables.append(_effects_table(first))
        return [Section(self.stem, title, paragraphs, self._matrices(), tables)]


@dataclass(frozen=True)
class SteeredAnswer:
    """One answer.

    Attributes
    ----------
    prompt : str
        What was asked.
    strength : float
        How often the effect was added.
    response : str
        What the model said.
    """

    prompt: str
    strength: float
    response: str


@dataclass(frozen=True, repr=False)
class Answers(Result):
    """Answers with and without steering.

    Attributes
    ----------
    answers : list of SteeredAnswer
        By prompt and strength.
    """

    answers: list[SteeredAnswer]

    def tables(self) -> dict[str, pd.DataFrame]:
        """``answers``: one row an answer."""
        return {"answers": pd.DataFrame([vars(a) for a in self.answers])}

    def sections(self) -> list[Section]:
        """Answers, as they are and steered."""
        told = [f"{a.prompt} At strength {a.strength:g}: {a.response}" for a in self.answers]
        return [Section("answers", "Answers along a task's effect", told)]


def _row(network: str, task: str, e: Effect) -> Json:
    """Cells of one effect."""
    return {
        "network": network,
        "task": task,
        "delta": e.delta,
        "low": e.interval[0],
        "high": e.interval[1],
        "excess": e.excess,
        "excess_low": e.excess_interval[0],
        "excess_high": e.excess_interval[1],
        "bottom": e.bottom,
        "n_texts": e.n_texts,
    }


def _pair_row(pair: DoubleDissociation) -> Json:
    """Cells of one pair of tasks."""
    sides = {"first": pair.first, "second": pair.second}
    values = {name: side.value for name, side in sides.items()}
    values |= {
        f"{n}_{end}": s.interval[i]
        for n, s in sides.items()
        for i, end in ((0, "low"), (1, "high"))
    }
    judged = {"crosses": pair.crosses, "holds": pair.holds, "random_crosses": pair.random_crosses}
    return {"a": pair.pair[0], "b": pair.pair[1], **values, **judged}


def _draw_matrix(m: Measured, title: str, ax: Axes | None = None) -> Axes:
    """Draw the effects beyond the random units."""
    from llm2nifti import plotting

    names, tasks = list(m.effects), m.tasks
    cells = [[m.effects[n][t] for t in tasks] for n in names]
    return plotting.plot_lesions(
        np.array([[e.excess for e in row] for row in cells]),
        names,
        tasks,
        clear=np.array([[e.is_clear for e in row] for row in cells]),
        ax=ax,
        title=title,
        row_label="Network of" if m.mode != "steer" else "Steered by",
    )


def _matrix_plot(m: Measured, stem: str, who: str) -> Plot:
    """Matrix of effects beyond the random units."""
    values = [e.excess for by_task in m.effects.values() for e in by_task.values()]
    return Plot(
        stem,
        partial(_draw_matrix, m, "Untrained copy" if "untrained" in stem else ""),
        f"Effects of {plural(len(m.effects), 'network')} on text of "
        f"{plural(len(m.tasks), 'condition')} in {who} model, from {number(min(values), 3)} to "
        f"{number(max(values), 3)} nats a token beyond matched random units.",
        "Each row is an intervention, each column the text it is measured on; numbers are nats a "
        "token beyond matched random units.",
    )


def _matrix_table(m: Measured) -> Table:
    """The numbers of the matrix."""
    rows = [
        {"Network": name}
        | {f"Text of {t}": number(e.excess, 3) + "*" * e.is_clear for t, e in by_task.items()}
        for name, by_task in m.effects.items()
    ]
    return Table.of("Beyond matched random units (nats a token; * excludes 0)", rows)


def _effects_table(m: Measured) -> Table:
    """Effect of each network on its own task, or of a mask on everything."""
    rows = [
        {
            "Network": name,
            "Text of": task,
            "Change": with_interval(by_task[task].delta, by_task[task].interval),
            "Random sets": _range(by_task[task].random),
            "Bottom units": "n/a" if by_task[task].bottom is None else number(by_task[task].bottom),
            "Beyond random": with_interval(by_task[task].excess, by_task[task].excess_interval),
        }
        for name, by_task in m.effects.items()
        for task in ([name] if name in by_task else by_task)
    ]
    return Table.of("Change of log probability (nats a token)", rows, ("Network", "Text of"))


def _range(values: Sequence[float], digits: int = 2) -> str:
    """Smallest and largest."""
    return f"{number(min(values), digits)} to {number(max(values), digits)}"


def _pairs_table(pairs: Sequence[DoubleDissociation]) -> Table:
    """Double dissociations."""
    rows = [
        {
            "Tasks A – B": " – ".join(pair.pair),
            "Text of A": with_interval(pair.first.value, pair.first.interval),
            "Text of B": with_interval(pair.second.value, pair.second.interval),
            "Cross over": "yes" if pair.crosses else "no",
            "Random": percent(pair.random_crosses),
            "Shown": "yes" if pair.holds else "no",
        }
        for pair in pairs
    ]
    return Table.of("Double dissociations: its own lesion minus the other's", rows)


def _selectivity_sentence(m: Measured, who: str) -> str:
    """Own task against other tasks, with its null."""
    s, pairs = m.selectivity, m.double_dissociations or []
    if s is None:
        return ""
    return (
        f"{who}: lesions change their own task's text by {with_interval(s.value, s.interval, 3)} "
        "nats a token more than other tasks' text, after taking out how fragile each task is; "
        f"matched random units by {_range(s.random, 3)}. {sum(pair.holds for pair in pairs)} of "
        f"{plural(len(pairs), 'pair')} of tasks show a double dissociation."
    )


def _dose_plots(conditions: Sequence[Measured], stem: str) -> list[Plot]:
    """Effect by share of units, where more than one share was lesioned."""
    first = conditions[0]
    how = ("sites", "mode", "spare_template")
    same = [c for c in conditions if all(getattr(c, n) == getattr(first, n) for n in how)]
    if len(same) < 2 or first.share is None:
        return []
    doses: dict[str, dict[float, tuple[float, float, float]]] = {}
    for m in same:
        for name, values in _dose(m).items():
            mean, error = float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5)
            doses.setdefault(name, {})[m.share or 0] = (mean, mean - error, mean + error)

    def draw() -> Axes:
        from llm2nifti import plotting

        return plotting.plot_doses(doses)

    return [
        Plot(
            f"{stem.removesuffix('s')}_doses",
            draw,
            f"Change of log probability for {plural(len(same), 'share')} of lesioned units.",
            "Change of the text of a task, mean over tasks with the standard error over them, when "
            "its own network, other networks, matched random units or the least responsive units "
            "are lesioned.",
        )
    ]


def _dose(m: Measured) -> dict[str, list[float]]:
    """Effects of one condition by kind of lesion, one a task."""
    effects = m.effects
    tasks = [task for task in effects if task in effects[task]]
    others = {t: [effects[n][t].delta for n in effects if n != t] for t in tasks}
    return {
        "own network": [effects[t][t].delta for t in tasks],
        "other networks": [float(np.mean(others[t])) for t in tasks],
        "matched random": [float(np.mean(effects[t][t].random)) for t in tasks],
        "least responsive": [effects[t][t].bottom or 0.0 for t in tasks],
    }
