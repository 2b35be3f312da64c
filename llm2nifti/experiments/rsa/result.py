"""What representational similarity says: which property explains which depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd

from llm2nifti import plotting
from llm2nifti.experiments.results import Result
from llm2nifti.plans import Json
from llm2nifti.tell import Plot, Section, Table
from llm2nifti.tell.wording import count, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Explained:
    """What one property explains of the RDMs over prompts; lists have one value a parcel."""

    unique: list[float]  #: share of variance beyond all other properties, mean over held-out runs
    low: list[float]  #: low, high: smallest and largest of the held-out runs
    high: list[float]
    alone: list[float]  #: share without the other properties
    p: list[float]  #: corrected over parcels: the largest of any parcel, prompts exchanged
    limit: float  #: 95th percentile of that largest share


@dataclass(frozen=True)
class Matched:
    """How one property matches the crossnobis RDMs over topics; one value a parcel."""

    r: list[float]
    low: list[float]  #: low, high: 95 % interval over topics
    high: list[float]


@dataclass(frozen=True, repr=False)
class RsaResult(Result):
    """Which property of prompts explains which parcel.

    No number changes when the units of a parcel are rotated or their signs are flipped.
    """

    file: ClassVar[str] = "rsa.json"
    rank: ClassVar[int] = 44

    parcels: list[str]  #: names, in depth order
    layers: list[int]
    sites: list[str]
    n_prompts: int
    n_topics: int
    n_null: int
    n_boot: int
    explained: dict[str, Explained]  #: by property, over prompts
    matched: dict[str, Matched]  #: by property, over topics
    ceiling_low: list[float]  #: ceiling_low, ceiling_high: noise ceiling of RDMs of single runs
    ceiling_high: list[float]
    made_from: Json
    untrained: dict[str, Explained] | None = None  #: of the copy

    def tables(self) -> dict[str, pd.DataFrame]:
        """``prompts``: one row a property and parcel; ``topics``: the same over topics."""
        place = {"parcel": self.parcels, "layer": self.layers, "site": self.sites}
        prompts, topics = [], []
        for name, told in self.explained.items():
            columns = {c: getattr(told, c) for c in ("unique", "low", "high", "alone", "p")}
            prompts.append(pd.DataFrame({"property": name, **place, **columns}))
        for name, match in self.matched.items():
            columns = {"r": match.r, "low": match.low, "high": match.high}
            ends = {"ceiling_low": self.ceiling_low, "ceiling_high": self.ceiling_high}
            topics.append(pd.DataFrame({"property": name, **place, **columns, **ends}))
        return {"prompts": pd.concat(prompts), "topics": pd.concat(topics)}

    def plot(self, ax: Axes | None = None) -> Axes:
        """What each property explains alone of the others, by depth; mean over sites."""
        rows = []
        for name, told in self.explained.items():
            values = {"layer": self.layers, "site": name, "value": 100 * np.array(told.unique)}
            if self.untrained and name in self.untrained:
                values["baseline"] = 100 * np.array(self.untrained[name].unique)
            rows.append(pd.DataFrame(values))
        return plotting.plot_depth(pd.concat(rows), ax=ax, ylabel="Unique variance (%)", chance=0)

    def plot_topics(self, ax: Axes | None = None) -> Axes:
        """Correlation with RDMs of topics, by depth; mean over sites."""
        rows = [
            pd.DataFrame({"layer": self.layers, "site": name, "value": match.r})
            for name, match in self.matched.items()
        ]
        limit = float(np.mean(self.ceiling_low))
        table = pd.concat(rows)
        return plotting.plot_depth(table, ax=ax, ylabel="r with RDM", limit=limit, chance=0)

    def sections(self) -> list[Section]:
        """Which property of prompts explains which depth?"""
        paragraphs = [
            f"Distances between {count(self.n_prompts)} task prompts in each of "
            f"{count(len(self.parcels))} parcels (noise whitened), explained by what is known of "
            "the prompts. Weights are learned in all runs but one and judged in that one. Unique "
            f"is what a property adds to all others; the null exchanges prompts of this property "
            f"({count(self.n_null)} times) and takes the largest parcel.",
        ]
        plots = [
            Plot(
                "rsa",
                self.plot,
                "Unique variance of each property by layer.",
                "What each property adds to the others, mean over sites of a layer; dotted: the "
                "untrained copy.",
            ),
            Plot(
                "rsa_topics",
                self.plot_topics,
                "Correlation of crossnobis RDMs with model RDMs by layer.",
                f"Crossnobis RDMs of {self.n_topics} topics against model RDMs, mean over sites; "
                "dashed: mean lower noise ceiling of single runs.",
            ),
        ]
        title = "Which property of prompts explains which depth?"
        tables = [self._told_prompts(), self._told_topics()]
        return [Section("rsa", title, paragraphs, plots, tables)]

    def _told_prompts(self) -> Table:
        """The parcel that a property explains best."""
        rows = []
        for name, told in self.explained.items():
            best = int(np.argmax(told.unique))
            ends = f"{percent(told.low[best])} to {percent(told.high[best])}"
            row = {
                "Property": name,
                "Best parcel": self.parcels[best],
                "Unique": f"{percent(told.unique[best])} ({ends})",
                "Exchanged: 95th of largest": percent(told.limit),
                "Parcels at p < .05": f"{sum(p < 0.05 for p in told.p)} of {len(told.p)}",
                "Median unique": percent(float(np.median(told.unique))),
                "Median alone": percent(float(np.median(told.alone))),
            }
            if self.untrained and name in self.untrained:
                row["Untrained: median"] = percent(float(np.median(self.untrained[name].unique)))
            rows.append(row)
        caption = "Distances between prompts; ranges over held-out runs"
        return Table.of(caption, rows, ("Property", "Best parcel"))

    def _told_topics(self) -> Table:
        """The parcel that matches best."""
        rows = []
        for name, match in self.matched.items():
            best = int(np.argmax(match.r))
            ceiling = f"{number(self.ceiling_low[best])} to {number(self.ceiling_high[best])}"
            rows.append(
                {
                    "Property": name,
                    "Best parcel": self.parcels[best],
                    "r": f"{number(match.r[best])} [{number(match.low[best])}, "
                    f"{number(match.high[best])}]",
                    "Noise ceiling there": ceiling,
                    "Median r": number(float(np.median(match.r))),
                }
            )
        return Table.of("Crossnobis RDMs of topics", rows, ("Property", "Best parcel"))
