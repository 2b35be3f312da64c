"""What a localizer says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd

from llm2nifti.experiments.results import Result
from llm2nifti.tell import Plot, Section, Table
from llm2nifti.tell.wording import count, number, percent, plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Halves:
    """How alike networks and t maps of two halves of the prompts are, one value a split."""

    dice: list[float]
    r: list[float]

    def told(self, name: str) -> str:
        """Mean over splits, with the smallest and the largest."""
        values = getattr(self, name)
        ends = f"{number(min(values))} to {number(max(values))}"
        return f"{number(float(np.mean(values)))} ({ends})"


@dataclass(frozen=True)
class Localized:
    """The network of one localizer."""

    contrast: str
    n_on: int  #: prompts of the task's conditions
    n_off: int  #: and of those that they are compared with
    n_units: int
    halves: Halves
    shuffled: Halves  #: of shuffled labels
    untrained: Halves | None = None  #: of the untrained copy
    #: layer, site, n_units, n_active, share of every site of a layer
    profile: list[dict[str, int | float | str]] = field(default_factory=list)


@dataclass(frozen=True, repr=False)
class LocalizeResult(Result):
    """Networks of localizers, and how well other prompts find them again.

    Which units are kept changes when the units of a site are rotated, as in all maps.
    """

    file: ClassVar[str] = "localizer.json"
    rank: ClassVar[int] = 6

    tasks: dict[str, Localized]
    share: float
    rectified: bool
    n_splits: int

    def tables(self) -> dict[str, pd.DataFrame]:
        """``halves``: one row a task, labelling and split; ``profile``: where the units are."""
        rows = []
        for task, one in self.tasks.items():
            kinds = {"true": one.halves, "shuffled": one.shuffled, "untrained": one.untrained}
            for kind, halves in kinds.items():
                for i in range(len(halves.dice) if halves else 0):
                    values = {"dice": halves.dice[i], "r": halves.r[i]} if halves else {}
                    rows.append({"task": task, "labels": kind, "split": i, **values})
        profiles = [pd.DataFrame(one.profile).assign(task=t) for t, one in self.tasks.items()]
        return {"halves": pd.DataFrame(rows), "profile": pd.concat(profiles, ignore_index=True)}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Share of each layer's units that the first task's network keeps."""
        from llm2nifti import plotting

        one = next(iter(self.tasks.values()))
        return plotting.plot_layer_profile(pd.DataFrame(one.profile), ax=ax)

    def sections(self) -> list[Section]:
        """A row a task."""
        rows = []
        for task, one in self.tasks.items():
            row = {"Task": task, "Contrast": one.contrast}
            row |= {"Prompts": f"{count(one.n_on)} + {count(one.n_off)}"}
            row |= {"Units": count(one.n_units), "Dice of halves": one.halves.told("dice")}
            row |= {"Shuffled labels": one.shuffled.told("dice")}
            if one.untrained:
                row["Untrained copy"] = one.untrained.told("dice")
            rows.append({**row, "r of halves": one.halves.told("r")})
        kind = "absolute activations" if self.rectified else "activations"
        what = (
            f"The network of a localizer is the {percent(self.share, 1)} of all units with the "
            f"largest t of its contrast, of {kind}. Each of {plural(self.n_splits, 'split')} "
            "deals the prompts to two halves (minimal pairs together), and compares the networks "
            f"that they find; two random networks have a Dice of {number(self.share)} on average."
        )
        first = next(iter(self.tasks))
        plot = Plot(
            "localizer",
            self.plot,
            f"Share of the units of every layer, by site, in the network of {first}.",
            f"Where the network of {first} is: share of each layer's units, by site.",
        )
        table = Table.of("Networks of localizers", rows, ("Task", "Contrast"))
        notes = ["Mean over splits (smallest to largest); these are no confidence intervals."]
        return [Section("localizer", "Localizers", [what], [plot], [table], notes)]
