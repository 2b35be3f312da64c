"""What the null experiments say: rates where nothing is there, and what any topic activates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from llm2nifti.experiments.rates import Rates
from llm2nifti.experiments.results import Result
from llm2nifti.tell import Section, Table
from llm2nifti.tell.wording import NONE, count, number, percent, plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RANGES = {"below_05": (0.04, 0.06), "below_001": (0.0005, 0.002)}  # see `glm.relabelled`
_TITLES = {
    "relabelled": "Control prompts relabelled at random",
    "pseudo_tasks": "Whole control topics as pseudo-tasks",
    "pseudo_tasks_pooled": "The same, as large as all runs of a task",
    "token_level": "Control tokens relabelled by prompt, AR(1)",
}


@dataclass(frozen=True, repr=False)
class NullResult(Result):
    """Rates of the null experiments."""

    relabelled: Rates  #: control prompts labelled at random: nothing is there to find
    pseudo_tasks: Rates  #: whole control topics in the place of a task
    token_level: Rates  #: the test of tokens as if they were independent
    pseudo_tasks_pooled: Rates | None = None  #: pseudo-tasks as large as all runs of a task

    def tables(self) -> dict[str, pd.DataFrame]:
        """``rates``: one row an experiment; ``pseudo_tasks``: one row a pseudo-task."""
        rates = pd.DataFrame.from_dict(self.content(), orient="index")
        return {
            "rates": rates.drop(columns="rates_below_05", errors="ignore"),
            "pseudo_tasks": pd.DataFrame({"below_05": self.pseudo_tasks.rates_below_05 or []}),
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Shares of units of single pseudo-tasks."""
        from llm2nifti import plotting

        return plotting.plot_shares({}, self.pseudo_tasks.rates_below_05 or [], ax=ax)

    def sections(self) -> list[Section]:
        """What the test finds where nothing is there."""
        tokens, rate = self.token_level, ""
        if tokens.below_05 is not None:
            rate = (
                f"Such a test finds p < .05 in {percent(tokens.below_05)} of the units of the "
                f"first run's control prompts ({plural(tokens.n_relabellings, 'relabelling')}; "
                "5 % would be nominal). "
            )
        notes = [
            "Relabelled controls: control prompts are labelled task and control at random, so that "
            f"there is nothing to find. {self._calibration()}",
            "Pseudo-tasks: whole topics of the control prompts take the place of a task. They show "
            "what any coherent topic activates.",
            "Tokens: the tokens of one prompt are not independent observations, because a prompt "
            "can shift a unit for all of its tokens, and prewhitening with AR(1) does not model "
            f"that. {rate}Prompts are also what was sampled: another experiment would ask other "
            "questions, not draw other tokens. The unit of inference is therefore the prompt.",
        ]
        title = "What the test finds where nothing is there"
        return [Section("rates", title, tables=[self._table()], notes=notes)]

    def _table(self) -> Table:
        """What a calibrated test gives, then one row a null experiment that was possible."""
        ranges = [
            f"{number(100 * low, digits)}–{percent(high, digits)}"
            for (low, high), digits in zip(_RANGES.values(), (0, 2), strict=True)
        ]
        headings = ["Null experiment", "Repetitions", "p < .05", "p < .001", "Any FDR discovery"]
        rows = [["Expected where nothing is there", NONE, *ranges, f"about {percent(0.05, 0)}"]]
        for name, title in _TITLES.items():
            rates: Rates | None = getattr(self, name)
            if rates and rates.below_05 is not None:
                below = f"{percent(rates.below_05)} (SD {percent(rates.below_05_sd)})"
                further = [percent(rates.below_001, 2), percent(rates.any_fdr, 0)]
                rows.append([title, count(rates.n_relabellings), below, *further])
        return Table("Null experiments", pd.DataFrame(rows, columns=headings))

    def _calibration(self) -> str:
        """Whether relabelled controls give the rates that a calibrated test gives."""
        rates = self.relabelled
        if rates.below_05 is None or rates.below_001 is None:
            return f"Not possible here: {rates.not_possible or 'no rates in the summary'}."
        inside = [low <= vars(rates)[name] <= high for name, (low, high) in _RANGES.items()]
        words = ["inside" if is_inside else "outside" for is_inside in inside]
        text = (
            f"The rate at p < .05 is {words[0]} its expected range and the rate "
            f"at p < .001 is {words[1]}"
        )
        if all(inside):
            return f"{text}, as it is for a calibrated test."
        return (
            f"{text}. Rates of single relabellings vary (SD {percent(rates.below_05_sd)}), so "
            f"{plural(rates.n_relabellings, 'relabelling')} may be too few to tell; if more of "
            "them agree, p values here are not calibrated."
        )
