"""Which figures does the page have? Each with the text that stands for it and what to see in it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from llm2nifti import glm, plotting
from llm2nifti.bids.files import write_bytes
from llm2nifti.progress import track
from llm2nifti.report import findings
from llm2nifti.report.source import Source, TaskMap
from llm2nifti.tell import Plot
from llm2nifti.tell.wording import count, height_control, number, percent, plural

_LARGEST_SVG = 400_000  # bytes; a larger drawing is embedded as PNG if that is smaller
_PIXELS_PER_INCH = 118  # of the page: a figure of 6.2 inches is 732 pixels wide


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Attributes
    ----------
    uri : str
        The image itself, as a data URI.
    width, height : int
        Size in pixels of the page.
    alt, caption : str
        What stands for it, and one sentence on what to see.
    """

    uri: str
    width: int
    height: int
    alt: str
    caption: str


def draw(
    source: Source,
    maps: Mapping[str, TaskMap],
    *,
    more: Sequence[Plot] = (),
    quiet: bool = False,
) -> dict[str, Figure]:
    """Draw all figures into the dataset, as PNG and SVG.

    Parameters
    ----------
    source : Source
        The dataset.
    maps : mapping of str to TaskMap
        Map of each task.
    more : sequence of Plot
        Figures of further sections.
    quiet : bool, default=False
        Show no progress bar.

    Returns
    -------
    dict of str to Figure
        By the stem of the file.
    """
    folder = source.folder / "figures"
    plots = [*_design_plots(source), *_brain_plots(source)]
    for task_map in maps.values():
        plots += _task_plots(source, task_map)
    plots += _similarity_plots(source.summary, source.shown)
    plots += [*_identification_plots(source.summary), *_null_plots(source.summary, source.shown)]
    plots += more
    return {
        plot.stem: _save(plot, folder, source.root)
        for plot in track(plots, "figures", unit="figure", quiet=quiet)
    }


def _save(plot: Plot, folder: Path, root: Path) -> Figure:
    """Draw, write and embed one figure."""
    figure: Any = plot.draw().figure
    width, height = (round(_PIXELS_PER_INCH * inches) for inches in figure.get_size_inches())
    with TemporaryDirectory() as scratch:
        paths = plotting.save(figure, Path(scratch) / plot.stem)
        png, svg = (path.read_bytes() for path in paths)
    for path, content in zip(paths, (png, svg), strict=True):
        write_bytes(folder / path.name, root, content)
    if len(svg) <= max(_LARGEST_SVG, len(png)):
        kind, content = "svg+xml", svg
    else:
        kind, content = "png", png
    uri = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return Figure(uri, width, height, plot.alt, plot.caption)


def _design_plots(source: Source) -> list[Plot]:
    """Block design of the first run."""
    run = source.first_run(source.tasks[0])
    events = run.events
    is_control = events["trial_type"] == glm.CONTROL
    seconds = float((events["onset"] + events["duration"]).max())
    n_on, n_off = (events.loc[rows, "block"].nunique() for rows in (~is_control, is_control))
    alt = (
        f"Timeline of task {run.task}, run {run.run}: {plural(n_on, 'task block')} with "
        f"{plural(int((~is_control).sum()), 'prompt')} and {plural(n_off, 'control block')} with "
        f"{plural(int(is_control.sum()), 'prompt')} take turns over {number(seconds, 0)} s."
    )
    caption = (
        f"The first run of {run.task}: blocks of its prompts (upper row) between blocks of control "
        f"prompts (lower row); each small box is one prompt of {plural(run.n_frames, 'frame')}."
    )
    return [Plot("design", lambda: plotting.plot_design(events), alt, caption)]


def _brain_plots(source: Source) -> list[Plot]:
    """Floor plan and atlas."""
    brain = source.brain
    tiles = dict.fromkeys(f"{site.slot} ({site.side})" for site in brain.sites)
    layers = [site.layer for site in brain.sites]
    return [
        Plot(
            "floor_plan",
            lambda: plotting.plot_floor_plan(brain),
            f"Floor plan of a layer with the tiles {', '.join(tiles)}.",
            "Every layer has this floor plan: a unit keeps its place on it, and its layer is its "
            "height.",
        ),
        Plot(
            "atlas",
            lambda: plotting.plot_atlas(brain, bg_img=source.bg_img),
            f"Atlas of layers {min(layers)} to {max(layers)} in a coronal and an axial slice: one "
            "hue a site, lighter for later layers.",
            "A slice from the front (top) shows the layers from the bottom up, a slice from above "
            "(bottom) shows one layer; the colour is the site and gets lighter with depth.",
        ),
    ]


def _task_plots(source: Source, task_map: TaskMap) -> list[Plot]:
    """Map and layer profile of a task."""
    numbers = source.summary["tasks"][task_map.task]
    return [_map_plot(source, task_map, numbers), _layers_plot(task_map.task, numbers)]


def _map_plot(source: Source, task_map: TaskMap, numbers: Mapping[str, Any]) -> Plot:
    """Map of a task on the anatomy."""
    task, low = task_map.task, task_map.threshold
    name, hidden = "all values", "no unit passes the threshold, so no value is hidden"
    if low is not None:
        name, hidden = f"|t| ≥ {number(low)}", f"units with |t| below {number(low)} are hidden"
    return Plot(
        f"map_{task}",
        lambda: plotting.plot_map(
            task_map.t_img, bg_img=source.bg_img, threshold=low, title=f"{task}, {name}"
        ),
        f"Slices of the t map of {task} against control: {count(numbers['n_more'])} units respond "
        f"more and {count(numbers['n_less'])} less.",
        f"The coronal slices with the strongest responses to {task}: red units respond more than "
        f"to control prompts, blue units less; {hidden}.",
    )


def _layers_plot(task: str, numbers: Mapping[str, Any]) -> Plot:
    """Layer profile of a task."""
    profile = pd.DataFrame(numbers["profile"])
    best = profile.loc[profile["share"].idxmax()]
    densest = f"{percent(best['share'], 0)} of {best['site']} in layer {best['layer']}"
    caption = f"Where the network of {task} lies: its densest part is {densest}."
    if not best["share"]:
        densest, caption = "0 %", f"The network of {task} is empty in every layer."
    return Plot(
        f"layers_{task}",
        lambda: plotting.plot_layer_profile(profile),
        f"Share of units in the network of {task} by layer and site; the largest is {densest}.",
        caption,
    )


def _similarity_plots(summary: Mapping[str, Any], shown: Sequence[str]) -> list[Plot]:
    """Matrices of similarity, and repeatability with intervals."""
    similarity = summary.get("similarity")
    if not similarity:
        return []
    tasks, r = similarity["tasks"], np.array(similarity["r"], float)
    share = percent(similarity["top_share"], 0)
    plots = [_matrix_plot("similarity_r", tasks, r, "Correlation of t maps", "r")]
    corrected = np.array(similarity["r_corrected"], float)
    if np.isfinite(corrected[~np.eye(len(tasks), dtype=bool)]).any():
        title = "Corrected for reliability"
        plots.append(_matrix_plot("similarity_corrected", tasks, corrected, title, "r, corrected"))
    dice = np.array(similarity["dice"], float)
    plots.append(
        _matrix_plot("similarity_dice", tasks, dice, f"Dice, top {share} of units", "Dice")
    )
    return [*plots, _repeatability_plot(similarity, shown)]


def _repeatability_plot(similarity: Mapping[str, Any], shown: Sequence[str]) -> Plot:
    """Same-task correlations with their intervals, beside other pairs of maps."""
    tasks = similarity["tasks"]
    values = {task: similarity["r"][i][i] for i, task in enumerate(tasks) if task in set(shown)}
    others = "maps of shuffled labels"
    if len(tasks) > 1:
        values["different tasks"] = similarity["cross_task_r"]
        others = f"maps of different tasks and {others}"
    keys = {**{task: task for task in tasks}, "different tasks": "cross_task_r"}
    limits = similarity.get("intervals", {})
    ends = {name: limits[keys[name]] for name in values if keys[name] in limits}
    intervals = {name: (both["low"], both["high"]) for name, both in ends.items()}
    values["shuffled labels"] = similarity["shuffled_same_task_r"]["mean"]
    figures = ", ".join(f"{name} {number(value)}" for name, value in values.items())
    return Plot(
        "repeatability",
        lambda: plotting.plot_bars(values, intervals, ylabel="Correlation between runs (r)"),
        f"Bars of the correlation of maps between runs: {figures}.",
        "Correlation of each task's maps between runs, with 95 % jackknife intervals; beside it, "
        f"{others}.",
    )


def _matrix_plot(
    stem: str, tasks: Sequence[str], values: np.ndarray, title: str, label: str
) -> Plot:
    """Matrix over tasks."""
    captions = {
        "similarity_r": "Mean correlation of t maps from different runs: the diagonal is the "
        "repeatability of a task, the other cells are pairs of different tasks.",
        "similarity_corrected": "The same correlations divided by the geometric mean of both "
        "repeatabilities: 1 means as alike as repetitions of one task are; noise can exceed 1.",
        "similarity_dice": "Overlap of the units with the largest |t|, equally many in each map: "
        "the diagonal is the overlap of runs of the same task.",
    }
    finite = np.abs(values[np.isfinite(values)])
    top = max(0.2, float(finite.max()))  # noise alone should not fill the range of colours
    return Plot(
        stem,
        lambda: plotting.plot_matrix(values, tasks, title=title, colorbar_label=label, vmax=top),
        f"Matrix, {title}: {_extremes(values)}.",
        captions[stem],
    )


def _extremes(values: np.ndarray) -> str:
    """Range of the diagonal and of the rest of a matrix."""
    off = ~np.eye(len(values), dtype=bool)
    parts = []
    for name, cells in (("diagonal", np.diag(values)), ("other cells", values[off])):
        finite = cells[np.isfinite(cells)]
        if len(finite):
            parts.append(f"{name} from {number(finite.min())} to {number(finite.max())}")
    return ", ".join(parts)


def _identification_plots(summary: Mapping[str, Any]) -> list[Plot]:
    """Confusion matrix of held-out trials."""
    named = summary.get("identification")
    if not named:
        return []
    trials = named["trials"]
    values = np.array(trials["confusion"], float)

    def draw_confusion() -> Axes:
        ax = plotting.plot_matrix(
            values, trials["tasks"], title="Held-out prompts", colorbar_label="Share", vmax=1
        )
        ax.set_xlabel("Named as", fontsize=9)
        ax.set_ylabel("Shown", fontsize=9)
        return ax

    return [
        Plot(
            "confusion",
            draw_confusion,
            f"Confusion matrix of {count(trials['n_items'])} held-out prompts, as "
            f"shares of a row: {_extremes(values)}.",
            "Each row holds the held-out prompts of one task, by the task that they were named as: "
            f"the diagonal is right, {number(trials['chance'])} is expected by guessing.",
        )
    ]


def _null_plots(summary: Mapping[str, Any], shown: Sequence[str]) -> list[Plot]:
    """Shares of units beside those of pseudo-tasks."""
    null = summary["null"]["pseudo_tasks"].get("rates_below_05")
    if not null:
        return []
    shares = {task: s for task, s in findings.run_shares(summary).items() if task in set(shown)}
    figures = ", ".join(f"{task} {percent(share)}" for task, share in shares.items())
    return [
        Plot(
            "pseudo_tasks",
            lambda: plotting.plot_shares(shares, null),
            f"Share of units with p < .05 in a run: {figures}; pseudo-tasks "
            f"{percent(min(null))} to {percent(max(null))}.",
            "Share of units with p < .05 in a run of each task (mean over runs) above the shares "
            "of pseudo-tasks, one point each: only what exceeds them can be specific to a task.",
        )
    ]


def threshold_words(task_map: TaskMap, how: str) -> str:
    """The threshold of a map in words."""
    how = height_control(how)
    if task_map.threshold is None:
        return f"No unit passes the threshold ({how}), so the map is shown without one."
    return (
        f"The threshold is |t| ≥ {number(task_map.threshold)}, the smallest |t| inside the network "
        f"({how})."
    )
