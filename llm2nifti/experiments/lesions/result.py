"""What interventions say: what each network's lesion, or push, does to each task's text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from llm2nifti.experiments.results import Result
from llm2nifti.networks.dissociation import DoubleDissociation, Effect, Selectivity
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


@dataclass(frozen=True)
class Sizes:
    """How much was measured."""

    n_random: int  #: matched random networks for every network
    n_prompts: int  #: of each task and run
    seed: int = 0  #: of the random networks


@dataclass(frozen=True)
class Measured:
    """What one condition does; see `llm2nifti.experiments.lesions.measure.Condition`."""

    sites: tuple[str, ...]
    mode: str
    effects: dict[str, dict[str, Effect]]  #: by network and task
    share: float | None = None
    strength: float = 1.0
    spare_template: bool = False
    selectivity: Selectivity | None = None  #: where networks of several tasks were lesioned
    double_dissociations: list[DoubleDissociation] | None = None  #: of every pair of them

    @property
    def tasks(self) -> list[str]:
        """Whose text was read, control among them."""
        return list(next(iter(self.effects.values())))


@dataclass(frozen=True)
class Copy:
    """The same conditions of the untrained copy."""

    conditions: list[Measured]


@dataclass(frozen=True, repr=False)
class InterventionResult(Result):
    """Effects of interventions on held-out text.

    They change when the units of a site are rotated, because networks are sets of units.
    """

    stem: ClassVar[str] = "lesions"

    conditions: list[Measured]  #: the first is told; others give doses
    sizes: Sizes
    held_out: bool = True  #: whether networks were made without the runs that they were judged on
    model: Json = field(default_factory=dict)  #: what the sidecars say of it
    untrained: Copy | None = None

    @property
    def first(self) -> Measured:
        """The condition that is told."""
        return self.conditions[0]

    @property
    def copy(self) -> Measured | None:
        """The same of the untrained copy."""
        return self.untrained.conditions[0] if self.untrained else None

    def tables(self) -> dict[str, pd.DataFrame]:
        """``effects``: one row a model, condition, network and task; ``pairs`` of tasks."""
        groups = {"trained": self.conditions}
        groups |= {"untrained": self.untrained.conditions} if self.untrained else {}
        rows, pairs = [], []
        for group, m in [(group, m) for group, of_group in groups.items() for m in of_group]:
            how: dict[str, Any] = {"model": group, "mode": m.mode, "share": m.share}
            how |= {"sites": ",".join(m.sites), "strength": m.strength}
            for network, by_task in m.effects.items():
                for task, e in by_task.items():
                    rows.append(how | {"network": network, "task": task} | _effect_cells(e))
            pairs += [how | _pair_cells(pair) for pair in m.double_dissociations or []]
        return {"effects": pd.DataFrame(rows), "pairs": pd.DataFrame(pairs)}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Matrix of effects beyond matched random units."""
        return _draw_matrix(self.first, ax=ax)

    def _matrices(self) -> list[Plot]:
        """Matrix of the model, and of its untrained copy."""
        plots = [_matrix_plot(self.first, self.stem)]
        if self.copy:
            plots.append(_matrix_plot(self.copy, f"{self.stem}_untrained", "Untrained copy"))
        return plots


@dataclass(frozen=True, repr=False)
class LesionResult(InterventionResult):
    """What lesions of the tasks' networks do; see `InterventionResult`."""

    file: ClassVar[str] = "lesion.json"
    rank: ClassVar[int] = 20
    title: ClassVar[str] = "What happens without a network?"

    def sections(self) -> list[Section]:
        """What happens without a network?"""
        first = self.first
        paragraphs, plots = [self._what(), self._reading()], self._matrices()
        tables = [_matrix_table(first), _effects_table(first)]
        if first.selectivity:
            paragraphs.append(_selectivity_sentence("model", first))
            if self.copy:
                paragraphs.append(_selectivity_sentence("untrained copy", self.copy))
            tables.append(_pairs_table(first.double_dissociations or []))
        return [Section(self.stem, self.title, paragraphs, plots + self._doses(), tables)]

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

    def _doses(self) -> list[Plot]:
        """Effect by share of units, where more than one share was lesioned."""
        first, how = self.first, ("sites", "mode", "spare_template")
        same = [c for c in self.conditions if all(getattr(c, n) == getattr(first, n) for n in how)]
        if len(same) < 2 or first.share is None:
            return []
        doses: dict[str, dict[float, tuple[float, float, float]]] = {}
        for m in same:
            for name, values in _dose(m).items():
                error = float(np.std(values, ddof=1) / len(values) ** 0.5)
                mean = float(np.mean(values))
                doses.setdefault(name, {})[m.share or 0] = (mean, mean - error, mean + error)

        def draw() -> Axes:
            from llm2nifti import plotting

            return plotting.plot_doses(doses)

        told = f"Change of log probability for {plural(len(same), 'share')} of lesioned units."
        caption = (
            "Change of the text of a task, mean over tasks with the standard error over them, when "
            "its own network, other networks, matched random units or the least responsive units "
            "are lesioned."
        )
        return [Plot(f"{self.stem.removesuffix('s')}_doses", draw, told, caption)]


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
        title = "What happens when a task's effect is added?"
        tables = [_matrix_table(first), _effects_table(first)]
        return [Section(self.stem, title, paragraphs, self._matrices(), tables)]


@dataclass(frozen=True)
class SteeredAnswer:
    """What the model said when the effect was added so often."""

    prompt: str
    strength: float
    response: str


@dataclass(frozen=True, repr=False)
class Answers(Result):
    """Answers with and without steering, by prompt and strength."""

    answers: list[SteeredAnswer]

    def tables(self) -> dict[str, pd.DataFrame]:
        """``answers``: one row an answer."""
        return {"answers": pd.DataFrame([vars(a) for a in self.answers])}

    def sections(self) -> list[Section]:
        """Answers, as they are and steered."""
        told = [f"{a.prompt} At strength {a.strength:g}: {a.response}" for a in self.answers]
        return [Section("answers", "Answers along a task's effect", told)]


def _effect_cells(e: Effect) -> Json:
    """Cells of one effect."""
    (low, high), (excess_low, excess_high) = e.interval, e.excess_interval
    cells = {"delta": e.delta, "low": low, "high": high}
    cells |= {"excess": e.excess, "excess_low": excess_low, "excess_high": excess_high}
    return cells | {"bottom": e.bottom, "n_texts": e.n_texts}


def _pair_cells(pair: DoubleDissociation) -> Json:
    """Cells of one pair of tasks."""
    sides = {"first": pair.first, "second": pair.second}
    cells: Json = dict(zip("ab", pair.pair, strict=True))
    cells |= {name: side.value for name, side in sides.items()}
    for name, side in sides.items():
        cells[f"{name}_low"], cells[f"{name}_high"] = side.interval
    judged = {"crosses": pair.crosses, "holds": pair.holds, "random_crosses": pair.random_crosses}
    return cells | judged


def _draw_matrix(m: Measured, title: str = "", ax: Axes | None = None) -> Axes:
    """Draw the effects beyond the random units."""
    from llm2nifti import plotting

    by_network = [list(by_task.values()) for by_task in m.effects.values()]
    return plotting.plot_lesions(
        [[e.excess for e in row] for row in by_network],
        list(m.effects),
        m.tasks,
        clear=[[e.is_clear for e in row] for row in by_network],
        ax=ax,
        title=title,
        row_label="Network of" if m.mode != "steer" else "Steered by",
    )


def _matrix_plot(m: Measured, stem: str, title: str = "") -> Plot:
    """Matrix of effects beyond the random units."""
    values = [e.excess for by_task in m.effects.values() for e in by_task.values()]
    who = "the untrained" if title else "the"
    return Plot(
        stem,
        partial(_draw_matrix, m, title),
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


def _selectivity_sentence(who: str, m: Measured) -> str:
    """Own task against other tasks, with its null."""
    s, pairs = m.selectivity, m.double_dissociations or []
    if s is None:
        return ""
    return (
        f"The {who}: lesions change their own task's text by "
        f"{with_interval(s.value, s.interval, 3)} nats a token more than other tasks' text, after "
        f"taking out how fragile each task is; matched random units by {_range(s.random, 3)}. "
        f"{sum(pair.holds for pair in pairs)} of {plural(len(pairs), 'pair')} of tasks show a "
        "double dissociation."
    )


def _dose(m: Measured) -> dict[str, list[float]]:
    """Effects of one condition by kind of lesion, one a task."""
    effects = m.effects
    tasks = [task for task in effects if task in effects[task]]
    others = [[effects[n][task].delta for n in effects if n != task] for task in tasks]
    return {
        "own network": [effects[t][t].delta for t in tasks],
        "other networks": [float(np.mean(deltas)) for deltas in others],
        "matched random": [float(np.mean(effects[t][t].random)) for t in tasks],
        "least responsive": [effects[t][t].bottom or 0.0 for t in tasks],
    }
