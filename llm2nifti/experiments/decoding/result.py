"""What decoding says: where and when tasks are told from control, and from each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd

from llm2nifti import plotting
from llm2nifti.experiments.results import Result
from llm2nifti.plans import Json
from llm2nifti.tell import Plot, Section, Table
from llm2nifti.tell.wording import count, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Comparison:
    """One kind of prompts told from another; lists have one value a parcel."""

    auc: list[float]  #: mean over held-out runs
    low: list[float]  #: low, high: 95 % interval over prompts
    high: list[float]
    accuracy: list[float]  #: balanced
    p: list[float]  #: corrected over parcels: the largest AUC of any parcel, labels permuted
    limit: float  #: 95th percentile of that largest AUC
    null_mean: float  #: mean AUC of permuted labels


@dataclass(frozen=True)
class Timing:
    """Training at one token, testing at another."""

    auc: list[list[float]]  #: by token of training and token of testing
    limit: float  #: 95th percentile of the largest cell, labels permuted
    layers: list[int]  #: that were averaged, beside the tasks with words


@dataclass(frozen=True, repr=False)
class DecodingResult(Result):
    """Where and when tasks can be decoded.

    No number changes when the units of a parcel are rotated or their signs are flipped.
    """

    file: ClassVar[str] = "decoding.json"
    rank: ClassVar[int] = 42

    parcels: list[str]  #: names, in depth order
    layers: list[int]
    sites: list[str]
    tasks: list[str]
    mean_of: list[str]  #: tasks of the means
    n_null: int
    n_runs: int
    comparisons: dict[str, Comparison]  #: by ``task - control`` and ``task - other task``
    times: dict[str, Timing]  #: by site
    made_from: Json
    untrained: dict[str, list[float]] | None = None  #: AUC of the copy

    def names(self, *, of_control: bool) -> list[str]:
        """Comparisons with control, or of two tasks, that means are of."""
        pairs = {name: name.split(" - ") for name in self.comparisons}
        return [
            name
            for name, (on, off) in pairs.items()
            if on in self.mean_of and (off == "control" if of_control else off in self.mean_of)
        ]

    def tables(self) -> dict[str, pd.DataFrame]:
        """``parcels``: one row a comparison and parcel."""
        place = {"parcel": self.parcels, "layer": self.layers, "site": self.sites}
        rows = []
        for name, told in self.comparisons.items():
            table = pd.DataFrame({"comparison": name, **place})
            for column in ("auc", "low", "high", "accuracy", "p"):
                table[column] = getattr(told, column)
            if self.untrained:
                table["untrained_auc"] = self.untrained[name]
            rows.append(table)
        return {"parcels": pd.concat(rows, ignore_index=True)}

    def plot(self, ax: Axes | None = None, *, of_control: bool = True) -> Axes:
        """Mean AUC by depth, a line a site; dotted is the untrained copy."""
        names = self.names(of_control=of_control)
        limit = max(self.comparisons[name].limit for name in names)
        auc = np.mean([self.comparisons[name].auc for name in names], axis=0)
        table = pd.DataFrame({"layer": self.layers, "site": self.sites, "value": auc})
        if self.untrained:
            table["baseline"] = np.mean([self.untrained[name] for name in names], axis=0)
        return plotting.plot_depth(table, ax=ax, ylabel="AUC", limit=limit, chance=0.5)

    def plot_time(self, site: str, ax: Axes | None = None) -> Axes:
        """AUC by token of training (rows) and of testing (columns)."""
        timing = self.times[site]
        tokens = [str(i + 1) for i in range(len(timing.auc))]
        axes = plotting.plot_matrix(
            timing.auc, tokens, ax=ax, title=f"{site}", colorbar_label="AUC", vmax=1
        )
        axes.set(xlabel="Tested at token", ylabel="Trained at token")
        return axes

    def sections(self) -> list[Section]:
        """Where, and when, can a task be decoded?"""
        paragraphs = [
            f"A ridge classifier for each of {count(len(self.parcels))} parcels, trained on all "
            f"runs but one ({self.n_runs} in turn). The null is {count(self.n_null)} permutations "
            "of the labels within runs; p values are corrected over parcels by the largest AUC of "
            "any of them. Question frames are balanced and stay in as noise.",
        ]
        plots = []
        for of_control, what in (
            (True, "each task from control"),
            (False, "tasks from each other"),
        ):
            if self.names(of_control=of_control):
                plots.append(self._profile(of_control, what))
        plots += [
            Plot(
                f"decoding_time_{site}",
                lambda site=site: self.plot_time(site),  # type: ignore[misc]
                f"Matrix of AUC by token for site {site}.",
                f"Rows: token of training, columns: of testing, mean over tasks and layers "
                f"{', '.join(map(str, timing.layers))}; permuted labels stay below "
                f"{number(timing.limit)} in all cells.",
                is_small=True,
            )
            for site, timing in self.times.items()
        ]
        title = "Where, and when, is a task decodable?"
        return [Section("decoding", title, paragraphs, plots, [self._told()])]

    def _profile(self, of_control: bool, what: str) -> Plot:
        """Figure of a profile over depth."""
        return Plot(
            f"decoding_{'control' if of_control else 'tasks'}",
            lambda: self.plot(of_control=of_control),
            f"AUC of telling {what} by layer, a line a site.",
            f"Telling {what}; dashed: 95th percentile of the largest parcel with permuted labels; "
            "dotted: the untrained copy.",
        )

    def _told(self) -> Table:
        """The best parcel of each comparison, and how many are beyond chance."""
        rows = []
        for name, told in self.comparisons.items():
            best = int(np.argmax(told.auc))
            row = {
                "Comparison": name,
                "Best parcel": self.parcels[best],
                "AUC": f"{number(told.auc[best])} [{number(told.low[best])}, "
                f"{number(told.high[best])}]",
                "Balanced accuracy": number(told.accuracy[best]),
                "Permuted: 95th of largest": number(told.limit),
                "Parcels at p < .05": f"{sum(p < 0.05 for p in told.p)} of {len(told.p)}",
                "Median AUC": number(float(np.median(told.auc))),
            }
            if self.untrained:
                row["Untrained: best"] = number(max(self.untrained[name]))
            rows.append(row)
        words = ("Comparison", "Best parcel")
        return Table.of(
            "Decoding from single parcels; the best is chosen after the fact", rows, words
        )
