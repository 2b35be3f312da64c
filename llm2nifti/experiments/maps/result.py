"""What the maps say: how many units respond to each task, where, and how they look."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
import pandas as pd

from llm2nifti import bids, geometry
from llm2nifti.bids import Session
from llm2nifti.experiments.errors import ExperimentError
from llm2nifti.experiments.results import Result
from llm2nifti.networks import Rule
from llm2nifti.tell import Plot, Section, Table, Viewer
from llm2nifti.tell.wording import count, height_control, number, percent, plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_MAPS = 24  # tasks whose maps are drawn: more would make a page too large to open


@dataclass(frozen=True)
class TaskMaps:
    """Numbers of one task's maps; shares are of all units."""

    n_runs: int  #: fitted together
    n_active: int  #: units of the network
    share_active: float
    n_more: int  #: units whose mean is higher than in control prompts
    n_less: int
    threshold: str  #: the rule in words
    df: float  #: residual degrees of freedom
    max_t: float  #: the largest |t|
    n_constant: int  #: units that never change within a run; they have no t
    share_below_05: float  #: units with p < .05, two-sided, uncorrected
    share_below_05_per_run: list[float]
    welch_disagreement: float | None = None  #: share of units where Welch's test decides otherwise
    #: layer, site, n_units, n_active, share of every site of a layer
    profile: list[dict[str, int | float | str]] = field(default_factory=list)
    note: str = ""  #: what has to be said of the p values
    network: str = "network"  #: entity desc of the network's files
    rule: Rule | None = None  #: which units are the network

    @property
    def active(self) -> str:
        """Number and share of the active units."""
        return f"{count(self.n_active)} ({percent(self.share_active)})"


@dataclass(frozen=True, repr=False)
class MapsResult(Result):
    """Maps and networks of the tasks, by label.

    The numbers of active units change when the units of a site are rotated: they belong to the
    basis that the model computes in.
    """

    tasks: dict[str, TaskMaps]
    #: Rates of `llm2nifti.glm.token_level` where nothing is there, if tokens were fitted.
    token_level_null: dict[str, float] | None = None
    stale_report: bool = False  #: whether the report shows the maps that were there before
    more: str = ""  #: what was asked beside the tasks' own contrasts; the report has none of it

    def keep(self, session: Session) -> None:
        """Bring the numbers of the session's summary, if it has one, up to the maps."""
        who = (session.subject, session.session)
        summary = bids.read_summary(session.root, who)
        is_plain = self.token_level_null is None and not self.more
        if "tasks" in summary and is_plain:  # the report reads both
            object.__setattr__(self, "stale_report", True)
            tasks = {**summary["tasks"], **self.content()["tasks"]}
            # No longer what `run` makes of the runs; its options stay for a repair.
            bids.update_summary(session.root, who, tasks=tasks, made_from=None)
        bids.writing.clear_work(session.root)

    def tables(self) -> dict[str, pd.DataFrame]:
        """``tasks``: one row a task; ``profile``: one row a task, layer and site."""
        numbers = {
            task: {**vars(maps), "rule": str(maps.rule)} for task, maps in self.tasks.items()
        }
        profiles = [pd.DataFrame(m.profile).assign(task=task) for task, m in self.tasks.items()]
        table = pd.DataFrame.from_dict(numbers, orient="index").drop(columns="profile")
        return {"tasks": table.rename_axis("task").reset_index(), "profile": pd.concat(profiles)}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Share of each layer's units that are active, of the first task."""
        from llm2nifti import plotting

        maps = next(iter(self.tasks.values()))
        return plotting.plot_layer_profile(pd.DataFrame(maps.profile), ax=ax)

    def sections(self, session: Session | None = None) -> list[Section]:
        """Table of the tasks; with their `session` the maps themselves, of the largest networks."""
        if session is not None:
            return [self._map_section(session)]
        rows = [
            {
                "Task": task,
                "Active units": maps.active,
                "Active by": height_control(maps.threshold),
                "p < .05": percent(maps.share_below_05),
            }
            for task, maps in self.tasks.items()
        ]
        table = Table.of("Result of each task, all runs together", rows, ("Task", "Active by"))
        notes = [f"Asked: {self.more}; the tasks' own maps stay as they are."] if self.more else []
        if self.stale_report:
            notes.append("The report is of the maps before: `llm2nifti report` makes it again.")
        if self.token_level_null is not None:
            notes.append(
                f"Token level: {percent(self.token_level_null['below_05'])} of units pass p < .05 "
                "where nothing is there (nominal 5 %); the prompt is the unit of inference."
            )
        return [Section("maps", "Units that respond to each task", tables=[table], notes=notes)]

    @property
    def shown(self) -> list[str]:
        """Tasks whose maps are drawn: all, or of many those with the largest networks."""
        largest = sorted(self.tasks, key=lambda task: -self.tasks[task].n_active)[:MOST_MAPS]
        return [task for task in self.tasks if task in set(largest)]

    def _map_section(self, session: Session) -> Section:
        """A map for each task."""
        text = (
            "t values of the contrast task − control, fixed effect over runs, on the anatomical "
            "image. Positive (red) means a larger mean activation for the task than for the "
            "control."
        )
        if len(self.shown) < len(self.tasks):
            text += (
                f" Of {plural(len(self.tasks), 'task')}, maps, example prompts and bars are shown "
                f"of the {len(self.shown)} with the largest networks; tables and matrices have all "
                "of them, and the maps of the others are among the files."
            )
        anatomy = bids.anatomy(session.root, session.subject, session.session)
        parts = [self._task_section(session, task, anatomy) for task in self.shown]
        return Section("maps", "A map for each task", [text], parts=parts)

    def _task_section(self, session: Session, task: str, bg_img: nib.Nifti1Image) -> Section:
        """Map, profile and viewer of one task; ExperimentError if a file is missing."""
        from llm2nifti import plotting

        maps, brain, paths = self.tasks[task], session.brain, session.of(task).first.paths
        t_img = _load(paths.stat_map("t"), session.root)
        t = np.asarray(geometry.from_img(brain, t_img), float)
        mask_img = _load(paths.network(desc=maps.network), session.root)
        active = geometry.from_img(brain, mask_img) > 0
        best, n_units = int(np.abs(t).argmax()), int(active.sum())
        peak = geometry.locate(brain, brain.voxels[best].tolist(), voxel=True)
        words, low = height_control(maps.threshold), None
        told = f"No unit passes the threshold ({words}), so the map is shown without one."
        name, hidden = "all values", "no unit passes the threshold, so no value is hidden"
        if n_units:
            low = float(np.abs(t[active]).min())
            name = f"|t| ≥ {number(low)}"
            hidden = f"units with |t| below {number(low)} are hidden"
            told = f"The threshold is {name}, the smallest |t| inside the network ({words})."
        text = (
            f"{count(maps.n_active)} of {count(brain.n_units)} units "
            f"({percent(maps.share_active)}) are active: {count(maps.n_more)} are higher and "
            f"{count(maps.n_less)} lower than in control prompts. {told} The largest |t| is "
            f"{number(abs(t[best]), 1)}: unit {peak.unit} of `{peak.site.key}` "
            f"(t = {number(t[best], 1)}), at ({', '.join(number(mm, 0) for mm in peak.mm)}) mm."
        )
        paragraphs = [f"{text} {maps.note}." if maps.note else text]
        if n_units != maps.n_active:
            paragraphs.append(
                f"The network image now holds {count(n_units)} units, the summary says "
                f"{count(maps.n_active)}: the images were made anew after the summary, with other "
                "settings. The figure shows the images. To bring both together, run the analysis "
                "again."
            )
        how = {"bg_img": bg_img, "threshold": low}
        plot = Plot(
            f"map_{task}",
            partial(plotting.plot_map, t_img, title=f"{task}, {name}", **how),
            f"Slices of the t map of {task} against control: {count(maps.n_more)} units are "
            f"higher and {count(maps.n_less)} lower.",
            f"The coronal slices with the strongest responses to {task}: red units are higher "
            f"than in control prompts, blue units lower; {hidden}.",
        )
        viewer = Viewer(task, partial(plotting.view, t_img, title=task, **how))
        return Section("", task, paragraphs, [plot, _layers_plot(task, maps), viewer])


def _layers_plot(task: str, maps: TaskMaps) -> Plot:
    """Share of each layer's units that are active."""
    from llm2nifti import plotting

    profile = pd.DataFrame(maps.profile)
    best = profile.loc[profile["share"].idxmax()]
    densest = f"{percent(best['share'], 0)} of {best['site']} in layer {best['layer']}"
    caption = f"Where the network of {task} lies: its densest part is {densest}."
    if not best["share"]:
        densest, caption = "0 %", f"The network of {task} is empty in every layer."
    return Plot(
        f"layers_{task}",
        partial(plotting.plot_layer_profile, profile),
        f"Share of units in the network of {task} by layer and site; the largest is {densest}.",
        caption,
    )


def _load(path: Path, root: Path) -> nib.Nifti1Image:
    """Image of the analysis."""
    if not path.exists():
        raise ExperimentError(f"{path} is missing; run: llm2nifti run {root}")
    return bids.read_img(path)
