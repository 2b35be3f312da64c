"""What connectivity says: similarity of parcels, its null, its repeatability, its communities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from llm2nifti import plotting
from llm2nifti.experiments.results import Interval, Result
from llm2nifti.plans import Json
from llm2nifti.tell import Plot, Section, Table
from llm2nifti.tell.wording import count, interval, number, p_value, percent, with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Matrix = list[list[float]]


def upper(matrix: ArrayLike) -> NDArray[np.float64]:
    """(n_pairs,) values of different parcels."""
    values = np.asarray(matrix, float)
    return values[np.triu_indices(len(values), 1)]


@dataclass(frozen=True)
class State:
    """Similarity of all parcels by the prompts of one kind."""

    n_prompts: int
    cka: Matrix
    mean: float  #: of different parcels
    null_95: float  #: null_95, null_max: 95th percentile and largest value of shuffled prompts
    null_max: float
    share_above: float  #: share of the pairs above `null_max`
    repeatability: Interval  #: correlation between runs: mean and range
    rdm: Matrix | None = None  #: correlations of RDMs, where topics repeat
    rdm_agreement: float | None = None  #: correlation of `rdm` with `cka` over pairs
    untrained_mean: float | None = None  #: the same of the untrained copy
    untrained_r: float | None = None  #: correlation with the copy's similarities
    untrained_repeatability: Interval | None = None


@dataclass(frozen=True)
class Contrast:
    """Similarity in a task minus that among its control, beside relabelled prompts."""

    size: float  #: root mean square over pairs
    null_size: Interval  #: of relabelled prompts: mean and 95 % range
    p: float
    mean: float  #: signed
    null_mean: Interval
    limit: float  #: 95th percentile of the largest difference of any pair under the null
    n_beyond: int  #: pairs beyond it: significant at .05 family-wise
    n_pairs: int


@dataclass(frozen=True)
class Graph:
    """Communities of the resting similarity, by parcel."""

    community: list[int]
    modularity: float
    null: list[float]  #: modularity of null networks with nearly the same strengths
    participation: list[float]  #: 0: all links inside its community
    strength: list[float]  #: mean similarity with all others

    @property
    def p(self) -> float:
        """P value of the modularity."""
        return (1 + sum(q >= self.modularity for q in self.null)) / (1 + len(self.null))


@dataclass(frozen=True)
class UnitLevel:
    """Partial correlations of single units at rest, at sites where these mean something."""

    units: list[str]  #: module:unit, those that tasks change most
    partial: Matrix  #: mean over runs
    repeatability: Interval  #: correlation between run numbers: mean and range
    null_max: float  #: largest mean |partial correlation| with prompts exchanged unit by unit
    share_above: float  #: pairs beyond it
    same_task_r: float | None = None  #: of tangent vectors of task prompts, between runs
    cross_task_r: float | None = None
    p: float | None = None  #: of the difference, runs exchanging their tasks


@dataclass(frozen=True, repr=False)
class ConnectivityResult(Result):
    """Similarity of parcels by what prompts evoke in them.

    No number but `units`, which is of sites whose basis is fixed, changes when the units of a
    parcel are rotated or their signs are flipped.
    """

    file: ClassVar[str] = "connectivity.json"
    rank: ClassVar[int] = 40

    parcels: list[str]  #: names, in depth order
    layers: list[int]
    sites: list[str]
    centres: list[list[float]]  #: x, y and z in mm
    states: dict[str, State]  #: ``control`` is rest
    contrasts: dict[str, Contrast]  #: by task
    graph: Graph  #: of rest
    made_from: Json
    units: UnitLevel | None = None  #: None where no site has units that mean something
    untrained: str | None = None  #: label of the copy

    def tables(self) -> dict[str, pd.DataFrame]:
        """``pairs``: one row a pair and state; ``parcels``: their place in the graph."""
        i, j = np.triu_indices(len(self.parcels), 1)
        names = np.array(self.parcels)
        pairs = [
            pd.DataFrame({"state": name, "a": names[i], "b": names[j], "cka": upper(state.cka)})
            for name, state in self.states.items()
        ]
        columns = ("community", "participation", "strength")
        graph = {name: getattr(self.graph, name) for name in columns}
        nodes = pd.DataFrame({"parcel": self.parcels, "layer": self.layers, "site": self.sites})
        return {"pairs": pd.concat(pairs, ignore_index=True), "parcels": nodes.assign(**graph)}

    def plot(self, ax: Axes | None = None, *, state: str = "control") -> Axes:
        """Matrix of a state: one site after another, from left to right, each in depth order."""
        order = np.lexsort((range(len(self.parcels)), [centre[0] for centre in self.centres]))
        cka = np.array(self.states[state].cka)[np.ix_(order, order)]
        names = [self.parcels[i] for i in order]
        what = "at rest" if state == "control" else f"of {state} prompts"
        title = f"Similarity {what}: sites from left to right, each in depth order"
        return plotting.plot_matrix(cka, names, ax=ax, title=title, colorbar_label="CKA", vmax=1)

    def plot_graph(self, ax: Axes | None = None) -> Axes:
        """Communities on the floor plan: depth is up, sites side by side."""
        cka, groups = self.states["control"].cka, self.graph.community
        return plotting.plot_graph(cka, self.centres, groups=groups, share=self._drawn(), ax=ax)

    def _drawn(self) -> float:
        """Share of the links that a graph shows: one in twenty, at most 250."""
        return min(0.05, 500 / (len(self.parcels) * (len(self.parcels) - 1)))

    def sections(self) -> list[Section]:
        """How alike do parcels represent the same prompts?"""
        graph, rest = self.graph, self.states["control"]
        low, high = np.percentile(graph.null, [2.5, 97.5])
        paragraphs = [
            f"Similarity of {count(len(self.parcels))} parcels (a site of a layer, or a head) by "
            "what the same prompts evoke in them: debiased linear CKA, 1 for parcels that differ "
            "by a rotation and a scale, about 0 for unrelated ones. Means of runs and question "
            "frames are taken out. Rest is the control prompts.",
            f"At rest there are {len(set(graph.community))} communities, modularity "
            f"{number(graph.modularity)}; null networks with the same strengths "
            f"{interval((low, high))}, {p_value(graph.p)}. Hubs, most similar to all others: "
            f"{', '.join(self._hubs())}.",
        ]
        plots = [
            Plot(
                "connectivity",
                self.plot,
                f"Matrix of {len(self.parcels)} parcels.",
                f"Mean {number(rest.mean)}; shuffled prompts at most {number(rest.null_max)}.",
            ),
            Plot(
                "connectivity_graph",
                self.plot_graph,
                "Parcels as points, layers upwards.",
                f"The strongest {percent(self._drawn())} of the links; colours are communities.",
            ),
        ]
        tables = [self._told_states(), self._told_contrasts()]
        paragraphs += self._told_units()
        title = "How alike do the parts of the model represent prompts?"
        return [Section("connectivity", title, paragraphs, plots, tables)]

    def _told_units(self) -> list[str]:
        """Sentence on single units."""
        told = self.units
        if told is None:
            return [
                "Single units are not connected here: nothing reads units of these sites by "
                "themselves. Scan with `--sites mlp_hidden` for that."
            ]
        r = with_interval(told.repeatability.value, told.repeatability)
        text = (
            f"Partial correlations of the {count(len(told.units))} units that tasks change most, "
            f"at rest: {percent(told.share_above)} of the pairs are beyond "
            f"{number(told.null_max)}, the largest with prompts exchanged unit by unit; between "
            f"runs they correlate at r = {r}."
        )
        if told.p is not None:
            text += (
                " In task prompts, tangent vectors of the same task correlate at "
                f"{number(told.same_task_r)} between runs, of different tasks at "
                f"{number(told.cross_task_r)} ({p_value(told.p)})."
            )
        return [text]

    def _hubs(self) -> list[str]:
        """Parcels of the greatest strength."""
        order = np.argsort(self.graph.strength)[::-1][:3]
        return [f"{self.parcels[i]} ({number(self.graph.strength[i])})" for i in order]

    def _told_states(self) -> Table:
        """Similarities by state."""
        rows = []
        for name, state in self.states.items():
            copy = state.untrained_repeatability
            row = {
                "Prompts": "rest (control)" if name == "control" else name,
                "n": count(state.n_prompts),
                "Mean CKA": number(state.mean),
                "Shuffled, 95th": number(state.null_95),
                "Pairs above all shuffled": percent(state.share_above),
                "Repeatability r": with_interval(state.repeatability.value, state.repeatability),
                "r with RDMs": number(state.rdm_agreement),
            }
            if copy:
                row["Untrained: mean"] = number(state.untrained_mean)
                row["repeatability"] = number(copy.value)
                row["r with it"] = number(state.untrained_r)
            rows.append(row)
        return Table.of("Similarity by state; ranges over pairs of runs", rows)

    def _told_contrasts(self) -> Table:
        """Task minus control."""
        rows = [
            {
                "Task minus control": task,
                "Size (RMS)": number(c.size, 3),
                "Relabelled": interval(c.null_size, 3),
                "p": p_value(c.p),
                "Mean": number(c.mean, 3),
                "Relabelled ": interval(c.null_mean, 3),
                "Pairs beyond chance": f"{count(c.n_beyond)} of {count(c.n_pairs)}",
            }
            for task, c in self.contrasts.items()
        ]
        return Table.of("Change of similarity; pairs at .05 family-wise", rows)
