"""What a decomposition says: how reproducible it is, and which components are tasks'."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import pandas as pd

from llm2nifti import bids
from llm2nifti.experiments.results import Result
from llm2nifti.networks.components import Agreement, Decomposition
from llm2nifti.plans import Json
from llm2nifti.tell import Plot, Section, Table
from llm2nifti.tell.wording import count, listing, number, p_value, plural, with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_MAPS = 6  # that are drawn
LEAST = 2.5  # SDs of a map from which its units are drawn
_NULLS = {"rotated": "random directions", "shuffled": "shuffled units"}
_BASIS = (
    "Independence, sparsity and parcels belong to the basis of the model's units. Were the units "
    "of a site rotated, the model would compute the same, and principal time courses would span "
    "the same space; maps, parcels and all figures here would be others."
)
_NOTE = (
    "Maps: mean |r| of components paired up one to one. Parcels: adjusted Rand index. Brackets: "
    "range over pairs of run numbers, and 95 % of the draws of a null. p: against the largest |r| "
    "of all components and tasks with shuffled labels; it says that a component tells a task from "
    "control, not that it is the task's own."
)


@dataclass(frozen=True, repr=False)
class DecompositionResult(Result):
    """Components and parcels, made without labels.

    All figures change when the units of a site are rotated: see `llm2nifti.networks.components`.
    """

    file: ClassVar[str] = "decomposition.json"
    rank: ClassVar[int] = 5

    method: str
    n_runs: int  #: numbers of runs, which are decomposed apart
    n_prompts: int
    n_shuffles: int  #: draws of the nulls
    trained: Decomposition
    untrained: Decomposition | None = None  #: of the copy
    made_from: Json | None = None  #: what tells whether something changed

    @property
    def models(self) -> dict[str, Decomposition]:
        """What was decomposed."""
        both = {"model": self.trained, "untrained copy": self.untrained}
        return {name: each for name, each in both.items() if each}

    def tables(self) -> dict[str, pd.DataFrame]:
        """``components``: one row a component and task; ``agreement``: one a part and model."""
        parts = [
            {"component": i, "between_runs": each.between_runs, "task": task, "r": r}
            for i, each in enumerate(self.trained.components, start=1)
            for task, r in each.tasks.items()
        ]
        rows = []
        for name, a in self._agreements.items():
            nulls = {f"{k}_{end}": v for k, e in a.nulls.items() for end, v in vars(e).items()}
            rows.append({"of": name, "value": a.value, "low": a.lowest, "high": a.highest, **nulls})
        return {"components": pd.DataFrame(parts), "agreement": pd.DataFrame(rows)}

    @property
    def _agreements(self) -> dict[str, Agreement]:
        """How alike the parts of different run numbers are."""
        parts, models = ("maps", "parcels"), self.models.items()
        return {f"{part}, {name}": getattr(d, part) for part in parts for name, d in models}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Likeness of the maps of different run numbers, beside random directions."""
        from llm2nifti import plotting

        values, ends = {}, {}
        for name, d in self.models.items():
            values[name], ends[name] = d.maps.value, (d.maps.lowest, d.maps.highest)
            for null, e in d.maps.nulls.items():
                bar = f"{name}, {_NULLS[null]}"
                values[bar], ends[bar] = e.value, (e.low, e.high)
        return plotting.plot_bars(values, ends, ax=ax, ylabel="Mean |r| between runs")

    def sections(self) -> list[Section]:
        """Which components are there without labels?"""
        d, hits = self.trained, [t for t, p in self.trained.task_p.items() if p < 0.05]
        title = "Which components are there without labels?"
        told = [
            f"Made of {count(self.n_prompts)} prompts by {self.method} and k-means, which are not "
            "told what a prompt is about; question frames are taken out. The "
            f"{plural(self.n_runs, 'run number')}, which share no prompt, are also decomposed "
            "apart, to compare their parts.",
            f"Maps of different runs have |r| = {number(d.maps.value)} on average, random "
            f"directions of the spaces that they span {number(d.maps.nulls['rotated'].value)}; "
            f"{d.n_reproducible} of {plural(len(d.components), 'component')} are more alike than "
            f"the best of random directions. {listing(hits) or 'No task'} "
            f"{'have' if len(hits) > 1 else 'has'} a component like its t map (p < .05).",
            _BASIS,
        ]
        alt = f"Bars of the likeness of maps. {told[1]}"
        caption = "Likeness of maps between run numbers, with its range over pairs and its nulls."
        plots = [Plot("components", self.plot, alt, caption), *self._gallery()]
        return [Section("components", title, told, plots, self._tables(), [_NOTE])]

    def _tables(self) -> list[Table]:
        """Likeness between run numbers, and with the tasks."""
        alike, tasks = [], []
        for name, a in self._agreements.items():
            cells = {"Of": name, "Between runs": with_interval(a.value, (a.lowest, a.highest))}
            nulls = {
                _NULLS[null].capitalize(): with_interval(e.value, e) for null, e in a.nulls.items()
            }
            alike.append(cells | nulls)
        for task in self.trained.task_p:
            cells = {"Task": task}
            for name, d in self.models.items():
                i, r = d.best(task)
                cells[f"Component, {name}"] = f"{i}: r {number(r)}, {p_value(d.task_p[task])}"
                cells[f"95 % of shuffles, {name}"] = number(d.task_limit)
            tasks.append(cells)
        captions = "Likeness of parts of different runs", "Component most like each task's t map"
        return [Table.of(captions[0], alike), Table.of(captions[1], tasks)]

    def _gallery(self) -> list[Plot]:
        """The most reproducible maps; none of a result that does not know its session."""
        session, plots = self.session, []
        if session is None:
            return []
        from llm2nifti import plotting

        img = bids.read_img(session.first.paths.parts(self.method)["components"])
        how = {"bg_img": bids.anatomy(session.root, session.subject, session.session)}
        for i, each in enumerate(self.trained.components[:MOST_MAPS]):
            title = f"Component {i + 1}: r {number(each.between_runs)} between runs, "
            title += plural(round(each.n_units), "unit")
            how |= {"threshold": LEAST, "title": title, "label": "SD"}
            draw = partial(plotting.plot_map, img.slicer[..., i], **how)
            caption = f"{title}. Units beyond {LEAST} SD of the map; its sign is arbitrary."
            plots.append(
                Plot(f"component_{i + 1:02d}", draw, f"Slices of a map. {title}.", caption)
            )
        return plots
