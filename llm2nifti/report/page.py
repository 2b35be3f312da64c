"""How does the dataset become a page? Read, draw, fill in the template, write."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from llm2nifti import bids, glm, plotting
from llm2nifti.bids.paths import REPORT
from llm2nifti.progress import stage
from llm2nifti.report import findings
from llm2nifti.report.detection import detection_section
from llm2nifti.report.figures import Figure, draw, threshold_words
from llm2nifti.report.lesions import lesion_section, steer_section
from llm2nifti.report.nulls import null_section
from llm2nifti.report.source import Source, TaskMap, read_source, read_task_map
from llm2nifti.report.training import training_section
from llm2nifti.tell import Section, wording

_PAGE_BYTES = 14_000_000  # of figures and viewers, so that the page stays below 15 MB
_VIEWER_BYTES = 8_000_000  # of all viewers together
_LATER = {
    "detection.json": detection_section,
    "lesion.json": lesion_section,
    "steer.json": steer_section,
    "training.json": training_section,
}
_N_EXAMPLES = 2  # prompts of each condition


def write(
    root: Path | str,
    *,
    subject: str | None = None,
    session: str | None = None,
    quiet: bool = False,
) -> Path:
    """Write the figures and the report of one analysed session.

    Parameters
    ----------
    root : path-like
        Root of the dataset. It is all that is read: no model is needed.
    subject, session : str, optional
        See `llm2nifti.bids.read`; by default the only session there is.
    quiet : bool, default=False
        Show no progress bar.

    Returns
    -------
    Path
        ``report.html`` in the session's `llm2nifti.bids.analysis_folder`: one file with everything
        in it. The figures are beside it as PNG and SVG. Equal datasets give equal bytes.

    Raises
    ------
    ReportError
        If the dataset has not been analysed, or a file of the analysis is missing.

    Examples
    --------
    >>> report.write("ds")  # doctest: +SKIP
    PosixPath('ds/derivatives/llm2nifti/report.html')
    """
    source = read_source(root, subject=subject, session=session)
    maps = {task: read_task_map(source, task) for task in source.shown}
    sections = _later_sections(source)
    plots = [plot for section in sections for plot in section.plots]
    figures = draw(source, maps, more=plots, quiet=quiet)
    path = source.folder / REPORT
    with stage("page", quiet=quiet):
        bids.write_text(path, source.root, _render(source, maps, figures, sections))
    return path


def _later_sections(source: Source) -> list[Section]:
    """Sections on what was done with the dataset after its analysis."""
    paths = [(source.folder / name, make) for name, make in _LATER.items()]
    return [make(bids.read_json(path)) for path, make in paths if path.exists()]


def _render(
    source: Source,
    maps: Mapping[str, TaskMap],
    figures: Mapping[str, Figure],
    sections: Sequence[Section],
) -> str:
    """Fill in the template of one session."""
    return render(
        "report.html.j2",
        **_context(source),
        figures=figures,
        findings=findings,
        rates=null_section(source.summary["null"]),
        sections=sections,
        tasks=_task_sections(source, maps, figures),
    )


def render(template: str, **values: Any) -> str:
    """Fill in a template of this folder; everything from the data is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for name in ("number", "count", "percent", "listing", "height_control"):
        environment.filters[name] = getattr(wording, name)
    environment.globals["plural"] = wording.plural
    return environment.get_template(template).render(**values)


def _context(source: Source) -> dict[str, Any]:
    """Values of the template that need the runs."""
    run = source.first_run(source.tasks[0])
    is_task = (run.events["trial_type"] != glm.CONTROL).tolist()
    widest = max(source.brain.sites, key=lambda site: site.n_units)
    return {
        "summary": source.summary,
        "model": source.summary["model"],
        "design": source.summary["design"],
        "session": run.session,
        "files": bids.folder_of(run.subject, run.session).as_posix(),
        "inside": source.folder != source.root / bids.DERIVATIVES,
        "brain": source.brain,
        "volume": wording.volume(source.summary["design"]),
        "widest": widest,
        "examples": _examples(source),
        "rendered": run.sidecar.get("Rendered", [""])[is_task.index(True)],
        "question_frames": _question_frames(source),
    }


def _examples(source: Source) -> list[dict[str, str]]:
    """First prompts of every task shown, and of the control, with their responses."""
    runs = [source.first_run(task) for task in source.shown]
    wanted = [(run.events, run.task) for run in runs] + [(runs[0].events, glm.CONTROL)]
    rows = []
    for events, condition in wanted:
        first = events[events["trial_type"] == condition].head(_N_EXAMPLES)
        rows += [
            {"condition": condition, "prompt": str(prompt), "response": str(response)}
            for prompt, response in zip(_shown(first), first["response"], strict=True)
        ]
    return rows


def _shown(events: pd.DataFrame) -> list[str]:
    """What was shown in each trial: the prompt, or the name of its image."""
    images = events["stim_file"] if "stim_file" in events else [""] * len(events)
    pairs = zip(images, events["prompt"], strict=True)
    return [f"{image} {prompt}".strip() for image, prompt in pairs]


def _question_frames(source: Source) -> int:
    """Number of question frames of the experiment."""
    frames = pd.concat([run.events["question_frame"] for run in source.session])
    return int(frames[frames != ""].nunique())


@dataclass(frozen=True)
class _TaskSection:
    """What the page shows of one task."""

    name: str
    numbers: dict[str, Any]
    map: TaskMap
    threshold: str
    viewer: dict[str, str] | None
    figure: Figure
    layers: Figure


def _task_sections(
    source: Source, maps: Mapping[str, TaskMap], figures: Mapping[str, Figure]
) -> list[_TaskSection]:
    """One section a task; viewers as long as the page stays small."""
    left = min(_VIEWER_BYTES, _PAGE_BYTES - sum(len(figure.uri) for figure in figures.values()))
    sections = []
    for task, task_map in maps.items():
        numbers = source.summary["tasks"][task]
        viewer = _viewer(source, task_map) if left > 0 else None
        left -= len(viewer["document"]) if viewer else 0
        sections.append(
            _TaskSection(
                name=task,
                numbers=numbers,
                map=task_map,
                threshold=threshold_words(task_map, numbers["threshold"]),
                viewer=viewer if left >= 0 else None,
                figure=figures[f"map_{task}"],
                layers=figures[f"layers_{task}"],
            )
        )
    return sections


def _viewer(source: Source, task_map: TaskMap) -> dict[str, str]:
    """Document and size of the interactive viewer, taken out of plotting's ``<iframe>``.

    The page needs its own tag around it, with a title and lazy loading.
    """
    tag = plotting.view(
        task_map.t_img,
        bg_img=source.bg_img,
        threshold=task_map.threshold,
        title=task_map.task,
    )
    parts = dict(re.findall(r'(srcdoc|width|height)="([^"]*)"', tag))
    return {
        "document": html.unescape(parts["srcdoc"]),
        "width": parts["width"],
        "height": parts["height"],
    }
