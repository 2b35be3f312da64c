"""What a decomposition says: how reproducible it is, and which components are tasks'."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import pandas as pd

from llm2nifti import bids
from llm2nifti.experiments.results import Result
from llm2nifti.networks.components import Decomposition
from llm2nifti.networks.similarity import Estimate
from llm2nifti.plans import Json
from llm2nifti.tell import Plot, Section, Table
from llm2nifti.tell.wording import count, listing, number, p_value, plural, with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_MAPS, LEAST = 6, 2.5  # that are drawn; SDs from which units are
_BASIS = (
    "Independence, sparsity and parcels belong to the basis of the model's units: if a site's were "
    "rotated, principal time courses would span the same space, but maps and parcels would change."
)
_NOTE = (
    "Maps: mean |r| of components paired up. Parcels: adjusted Rand index. Brackets: range over "
    "pairs of run numbers, or 95 % of a null. p: of the largest |r| of all components and tasks, "
    "labels shuffled; a component tells a task from control, and need not be the task's own."
)


@dataclass(frozen=True, repr=False)
class DecompositionResult(Result):
    """Components and parcels, made without labels; see `llm2nifti.networks.components`.

    A rotation of a site's units changes maps, parcels, and every figure that is made of them.
    """

    file: ClassVar[str] = "decomposition.json"
    rank: ClassVar[int] = 5
    prefix: ClassVar[str] = ""  #: of names of files
    title: ClassVar[str] = "Which components are there without labels?"
    shown: ClassVar[str] = "prompts"

    method: str
    n_runs: int  #: numbers of runs, which are decomposed apart
    n_trials: int
    n_shuffles: int  #: draws of the nulls
    trained: Decomposition
    untrained: Decomposition | None = None  #: of the copy
    made_from: Json | None = None  #: what tells whether something changed

    @property
    def models(self) -> dict[str, Decomposition]:
        """What was decomposed."""
        both = {"model": self.trained, "untrained copy": self.untrained}
        return {name: each for name, each in both.items() if each}

    @property
    def likeness(self) -> dict[str, dict[str, Estimate]]:
        """Likeness between run numbers and its nulls, of each part and model."""
        parts, models = ("maps", "parcels"), self.models.items()
        return {f"{part}, {name}": getattr(d, part) for part in parts for name, d in models}

    def tables(self) -> dict[str, pd.DataFrame]:
        """``components``: one row a component and task; ``likeness``: one a part, model, null."""
        parts = [
            {"component": i, "between_runs": each.between_runs, "task": task, "r": r}
            for i, each in enumerate(self.trained.components, start=1)
            for task, r in each.tasks.items()
        ]
        alike = self.likeness.items()
        rows = [{"of": n, "what": what, **vars(e)} for n, of in alike for what, e in of.items()]
        return {"components": pd.DataFrame(parts), "likeness": pd.DataFrame(rows)}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Likeness of the maps of different run numbers, beside its nulls."""
        from llm2nifti import plotting

        models = self.models.items()
        bars = {f"{name}, {what}": e for name, d in models for what, e in d.maps.items()}
        values = {name: e.value for name, e in bars.items()}
        ends = {name: (e.low, e.high) for name, e in bars.items()}
        return plotting.plot_bars(values, ends, ax=ax, ylabel="Mean |r| of maps")

    def sections(self) -> list[Section]:
        """Which components are there?"""
        d, hits = self.trained, [t for t, p in self.trained.task_p.items() if p < 0.05]
        r = {what: number(e.value) for what, e in d.maps.items()}
        told = [
            f"{count(self.n_trials)} {self.shown} are decomposed by {self.method} and k-means, "
            f"without labels; the {plural(self.n_runs, 'run number')} are decomposed apart, too.",
            f"Maps of different runs have |r| = {r['between runs']} on average, random directions "
            f"of the spaces that they span {r['random directions']}; "
            f"{d.n_reproducible} of {plural(len(d.components), 'component')} are more alike than "
            f"the best of random directions. {listing(hits) or 'No task'} "
            f"{'have' if len(hits) > 1 else 'has'} a component like its t map (p < .05).",
            _BASIS,
        ]
        caption = "Likeness of maps between run numbers, with its range over pairs and its nulls."
        anchor = f"{self.prefix}components"
        plots = [Plot(anchor, self.plot, f"Bars. {told[1]}", caption), *self._gallery()]
        return [Section(anchor, self.title, told, plots, self._tables(), [_NOTE])]

    def _tables(self) -> list[Table]:
        """Likeness between run numbers, and with the tasks."""
        alike = []
        for name, of in self.likeness.items():
            told = {what.capitalize(): with_interval(e.value, e) for what, e in of.items()}
            alike.append({"Of": name} | told)
        tasks = []
        for task in self.trained.task_p:
            cells = {"Task": task}
            for name, d in self.models.items():
                i, r = d.best(task)
                cells[f"Component, {name}"] = f"{i}: r {number(r)}, {p_value(d.task_p[task])}"
                cells[f"95 % of shuffles, {name}"] = number(d.task_limit)
            tasks.append(cells)
        tables = {"Likeness of parts of different runs": alike, "Components like t maps": tasks}
        return [Table.of(caption, rows) for caption, rows in tables.items()]

    def _gallery(self) -> list[Plot]:
        """The most reproducible maps; none of a result that does not know its session."""
        session, plots = self.session, []
        if session is None:
            return []
        from llm2nifti import plotting

        img = bids.read_img(session.first.paths.parts(self.method, self.prefix)["components"])
        how = {"bg_img": bids.anatomy(session.root, session.subject, session.session)}
        for i, each in enumerate(self.trained.components[:MOST_MAPS]):
            r, n = number(each.between_runs), count(each.n_units)
            title = f"Component {i + 1}: r {r} between runs, {n} units"
            how |= {"threshold": LEAST, "title": title, "label": "SD"}
            draw = partial(plotting.plot_map, img.slicer[..., i], **how)
            caption = f"{title}. Units beyond {LEAST} SD of the map; its sign is arbitrary."
            plots.append(Plot(f"{self.prefix}component_{i + 1:02d}", draw, title, caption))
        return plots


class RestResult(DecompositionResult):
    """Components of free generation, beside the tasks' t maps."""

    file = "decomposition_rest.json"
    rank = 6
    prefix = "rest"
    title = "Which components does free generation have?"
    shown = "trials of free generation"
