"""What the comparison of several models says: depth, units, geometry, and carried maps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd

from llm2nifti import plotting
from llm2nifti.experiments.group import told
from llm2nifti.experiments.group.parts import (
    Carried,
    DepthLevel,
    Member,
    ModelPair,
    VoxelLevel,
    Written,
)
from llm2nifti.experiments.results import Result
from llm2nifti.plans import Json
from llm2nifti.tell import Plot, Section
from llm2nifti.tell.wording import count, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_PLOTS = 6  # matrices of pairs that are drawn
_NUMBERS = ["mean", "best", "best_p", "condition", "limit", "share_above", "depth_r", "depth_p"]


@dataclass(frozen=True, repr=False)
class GroupResult(Result):
    """What the models and sessions of a dataset have in common.

    Only `voxels` and `written` depend on the basis of a parcel's units.
    """

    file: ClassVar[str] = "group.json"
    rank: ClassVar[int] = 50
    whole: ClassVar[bool] = True

    members: list[Member]
    tasks: list[str]
    n_prompts: int  #: that all of them saw, and that pairs are compared by
    n_bins: int
    sites: list[str]  #: of the common space, from left to right
    depth: list[DepthLevel]
    voxels: list[VoxelLevel]
    pairs: list[ModelPair]
    carried: list[Carried]
    made_from: Json
    written: list[Written] = field(default_factory=list)

    @property
    def names(self) -> dict[str, str]:
        """What readers see in place of the names of models and sessions."""
        return told.names_for([one.name for one in self.members])

    def tables(self) -> dict[str, pd.DataFrame]:
        """``depth``: one row a model, task, site and bin; ``pairs``, ``carried``: one row each."""
        rows = []
        for level in self.depth:
            for model, grid in level.models.items():
                for site, values in grid.items():
                    table = pd.DataFrame({"value": values, "t": level.t[site]})
                    table["p_max"] = level.p_max[site] if level.p_max else np.nan
                    table["depth"] = (np.arange(len(values)) + 0.5) / len(values)
                    names = {"task": level.task, "kind": level.kind, "model": model, "site": site}
                    rows.append(table.assign(**names))
        pairs = [{name: getattr(one, name) for name in ["a", "b", *_NUMBERS]} for one in self.pairs]
        carried = [
            {**vars(one), "cosine": one.cosine.value, "null": one.null.value}
            | {"null_low": one.null.low, "null_high": one.null.high}
            for one in self.carried
        ]
        return {
            "depth": pd.concat(rows, ignore_index=True),
            "voxels": pd.DataFrame([{**vars(v), "same_r": v.same_r.value} for v in self.voxels]),
            "pairs": pd.DataFrame(pairs),
            "carried": pd.DataFrame(carried),
        }

    def plot(self, ax: Axes | None = None, *, pair: int = 0) -> Axes:
        """Similarity of every parcel of a model with every parcel of another."""
        one = self.pairs[pair]
        a, b = (next(m for m in self.members if m.name == name) for name in (one.a, one.b))
        by_site = [np.lexsort((m.layers, [m.sites.index(s) for s in m.sites])) for m in (a, b)]
        cka = np.array(one.cka)[np.ix_(*by_site)]
        names = [[m.parcels[i] for i in order] for m, order in zip((a, b), by_site, strict=True)]
        labels = {"ylabel": self.names[a.name], "xlabel": self.names[b.name]}
        return plotting.plot_cross(cka, *names, ax=ax, colorbar_label="Debiased CKA", **labels)

    def plot_depth(self, ax: Axes | None = None, *, task: str = "", kind: str = "effect") -> Axes:
        """Effect of a task at relative depths, a colour a site, a line style a model."""
        table = self.tables()["depth"]
        table = table[(table["task"] == (task or self.tasks[0])) & (table["kind"] == kind)]
        table = table.assign(model=table["model"].map(self.names))
        ylabel = "Effect energy (noise of a prompt)"
        return plotting.plot_profiles(table, ax=ax, ylabel=ylabel)

    def plot_carried(self, ax: Axes | None = None) -> Axes:
        """Carried maps beside what shuffled prompts give and how repeatable the target's are."""
        rows: dict[str, list[Carried]] = {}
        for one in self.carried:
            rows.setdefault(f"{self.names[one.source]} → {self.names[one.target]}", []).append(one)
        return plotting.plot_beside(
            {name: [one.cosine.value or 0.0 for one in group] for name, group in rows.items()},
            {name: [one.repeat for one in group] for name, group in rows.items()},
            {name: [one.null.high or 0.0 for one in group] for name, group in rows.items()},
            ax=ax,
            labels=("target's other runs", "carried", "shuffled stays below"),
            xlabel="Cosine with the target's map of a held-out run",
        )

    def sections(self) -> list[Section]:
        """What do several models have in common?"""
        first = (
            f"{count(len(self.members))} models or sessions: {', '.join(self.names.values())}. "
            f"Pairs of them are compared by {count(self.n_prompts)} prompts that all saw in the "
            "same runs."
        )
        parts = [self._in_depth(), *self._in_units(), self._in_geometry(), self._in_function()]
        title = "What do several models have in common?"
        return [Section("group", title, [first], parts=parts)]

    def _in_depth(self) -> Section:
        """Effects at relative depths."""
        plots = [
            Plot(
                f"group_depth_{task}",
                lambda task=task: self.plot_depth(task=task),  # type: ignore[misc]
                f"Effect of {task} by relative depth.",
                f"{task}: 0 is what is expected without an effect.",
                is_small=True,
            )
            for task in self.tasks
        ]
        subjects = {one.name.partition("_")[0] for one in self.members}
        texts = told.about_depth(self.depth, "models" if len(subjects) > 1 else "sessions")
        title = "Where in depth? A common space"
        return Section(
            "group-depth", title, texts, plots, [told.depth_table(self.depth, self.names)]
        )

    def _in_units(self) -> list[Section]:
        """Effects unit by unit, where sessions share a geometry."""
        if not self.voxels:
            return []
        texts, table = told.about_voxels(self.voxels), told.voxel_table(self.voxels)
        return [Section("group-units", "The same units?", texts, tables=[table])]

    def _in_geometry(self) -> Section:
        """Similarity of parcels."""
        plots = [
            Plot(
                f"group_cka_{i + 1}",
                lambda i=i: self.plot(pair=i),  # type: ignore[misc]
                f"Matrix of parcels of {both}.",
                f"{both}: shuffled prompts stay below {number(one.limit)} in all cells (95th "
                "percentile).",
            )
            for i, one in enumerate(self.pairs[:_MOST_PLOTS])
            for both in [f"{self.names[one.a]} and {self.names[one.b]}"]
        ]
        tables = told.pair_tables(self.pairs, self.names)
        return Section("group-geometry", "The same geometry?", told.ABOUT_PAIRS, plots, tables)

    def _in_function(self) -> Section:
        """Maps carried over."""
        plot = Plot(
            "group_carried",
            self.plot_carried,
            "Cosines of carried maps by pair of models.",
            "A dot is a task; its bar: how repeatable the target's own map is; its tick: 97.5th "
            "percentile of shuffled prompts.",
        )
        tables = told.carried_tables(self.carried, self.written, self.names)
        title = "The same function? Maps carried from one model into another"
        return Section("group-function", title, told.ABOUT_CARRIED, [plot], tables)
