"""How does the dataset become a page? Read its results, draw, fill in the template, write."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from markupsafe import Markup

from llm2nifti import bids, experiments, glm, plotting
from llm2nifti.bids import Session
from llm2nifti.bids.files import write_bytes
from llm2nifti.bids.paths import REPORT
from llm2nifti.plans import Json
from llm2nifti.progress import stage, track
from llm2nifti.report.summary import ReportError, SessionSummary, read_session_summary
from llm2nifti.stimuli.tables import ROLE
from llm2nifti.tell import Plot, Section, Table, Viewer, as_html, wording
from llm2nifti.tell.section import img, render
from llm2nifti.tell.wording import number, plural

_N_EXAMPLES = 2  # prompts of each condition
_SITES = {
    "embed": "the embedding of the tokens",
    "attn": "what the attention of a block adds to the residual stream",
    "resid": "the residual stream after a block",
    "mlp": "what the MLP of a block adds to the residual stream",
    "norm": "the output of the final norm",
    "heads": "the input of the attention's output projection",
    "mlp_hidden": "the input of the MLP's down projection",
}

_LARGEST_SVG = 400_000  # bytes; a larger drawing is embedded as PNG if that is smaller
_PIXELS_PER_INCH = 118  # of the page: a figure of 6.2 inches is 732 pixels wide
_PAGE_BYTES = 14_000_000  # of figures and viewers, so that the page stays below 15 MB
_VIEWER_BYTES = 8_000_000  # of all viewers together
_DETAILS = Markup(
    "<details>\n<summary>Interactive viewer: {title}</summary>\n"
    '<div class="scroll">\n<iframe title="Interactive viewer of the t map of {title}" '
    'loading="lazy"\nwidth="{width}" height="{height}"\nsrcdoc="{document}"></iframe>\n'
    "</div>\n</details>\n"
)
_NO_VIEWER = (
    "<p>An interactive viewer of this map would make the page too large; any NIfTI viewer opens "
    "it.</p>\n"
)


def write(
    root: Path | str, *, subject: str | None = None, session: str | None = None, verbose: int = 1
) -> Path:
    """Write the figures and the report of one analysed session.

    Parameters
    ----------
    root : path-like
        Root of the dataset. It is all that is read: no model is needed.
    subject, session : str, optional
        See `llm2nifti.bids.session`.
    verbose : int, default=1
        0 shows no progress.

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
    recording = bids.session(root, subject=subject, session=session)
    summary = read_session_summary(recording)
    lost = sorted(set(summary.tasks) - set(recording.tasks))
    if lost:
        raise ReportError(
            f"the summary has task {lost[0]!r}, the dataset has no run of it; run: llm2nifti run "
            f"{root}"
        )
    recording = recording.only(summary.tasks)
    told = summary.sections(recording)
    for kind in experiments.kept_results():
        result = kind.read(recording)
        told += result.sections() if result else []
    fixed = _fixed_plots(recording)
    plots = [*fixed, *(plot for section in told for plot in section.all_plots())]
    figures = Figures(plots, recording.folder / "figures", recording.root, verbose=verbose)
    path = recording.folder / REPORT
    with stage("page", verbose=verbose):
        text = render(
            Path(__file__).parent,
            "report.html.j2",
            **_context(recording, summary),
            short=as_html(told[0]),
            told=as_html(*told[1:], embed=figures.embed),
            figures={plot.stem: figures.embed(plot) for plot in fixed},
            links=[
                (s.anchor, s.title if s.anchor == "null" else s.anchor.capitalize())
                for s in told[1:]
            ],
        )
        bids.write_text(path, recording.root, text)
    return path


def _context(session: Session, summary: SessionSummary) -> Json:
    """Values of the template."""
    run = session.of(next(iter(summary.tasks))).first
    is_task = glm.is_on(run.events).tolist()
    frames = pd.concat([run.events["question_frame"] for run in session])
    return {
        "summary": summary,
        "model": summary.model,
        "design": summary.design,
        "session": run.session,
        "files": bids.folder_of(run.subject, run.session).as_posix(),
        "inside": session.folder != session.root / bids.DERIVATIVES,
        "brain": session.brain,
        "volume": wording.volume(summary.design),
        "shown": summary.maps.shown,
        "rule": next(iter(summary.tasks.values())).threshold,
        "examples": as_html(_examples(session, summary), level=3),
        "rendered": run.sidecar.get("Rendered", [""])[is_task.index(True)],
        "designs": _designs(session, summary),
        "question_frames": int(frames[frames != ""].nunique()),
        "meanings": {name: _SITES[name] for name in summary.design["sites"] if name in _SITES},
    }


def _designs(session: Session, summary: SessionSummary) -> dict[str, str]:
    """What each of the tasks shown compares, and in which order.

    Empty where all are in blocks against the common control.
    """
    runs = [session.of(task).first for task in summary.maps.shown]
    usual = [ROLE not in run.events and "TrialOrder" not in run.raw_sidecar for run in runs]
    if all(usual):
        return {}
    told = [str(run.raw_sidecar.get("TaskDescription", "")) for run in runs]
    return {
        r.task: text.partition(" The participant")[0] for r, text in zip(runs, told, strict=True)
    }


def _examples(session: Session, summary: SessionSummary) -> Section:
    """First prompts of every task shown, and of the control, with their responses."""
    runs = [session.of(task).first for task in summary.maps.shown]
    wanted = [(run, run.task) for run in runs] + [(runs[0], glm.CONTROL)]
    says, rows = summary.design.get("mode") != "read", []
    for run, condition in wanted:
        first = run.events[glm.kinds(run.task, run.events) == condition].head(_N_EXAMPLES)
        images = first["stim_file"] if "stim_file" in first else [""] * len(first)
        for image, prompt, response in zip(images, first["prompt"], first["response"], strict=True):
            row = {"Condition": condition, "Prompt": f"{image} {prompt}".strip()}
            rows.append({**row, **({"Response": str(response)} if says else {})})
    caption = "Example prompts and responses" if says else "Example prompts"
    table = Table.of(caption, rows, ("Condition", "Prompt", "Response"))
    return Section("", "Example prompts", tables=[table])


def _fixed_plots(session: Session) -> list[Plot]:
    """Block design of the first run, floor plan and atlas."""
    run, brain, events = session.first, session.brain, session.first.events
    is_control = ~glm.is_on(events)
    seconds = float((events["onset"] + events["duration"]).max())
    n_on, n_off = (events.loc[rows, "block"].nunique() for rows in (~is_control, is_control))
    alt = (
        f"Timeline of task {run.task}, run {run.run}: {plural(n_on, 'task block')} with "
        f"{plural(int((~is_control).sum()), 'prompt')} and {plural(n_off, 'control block')} with "
        f"{plural(int(is_control.sum()), 'prompt')} take turns over {number(seconds, 0)} s."
    )
    caption = (
        f"The first run of {run.task}: its prompts (above) and control prompts (below, grey); each "
        f"small box is one prompt of {plural(run.n_frames, 'frame')}."
    )
    design = Plot("design", lambda: plotting.plot_design(events), alt, caption)
    bg_img = bids.anatomy(session.root, session.subject, session.session)
    tiles = dict.fromkeys(f"{site.slot} ({site.side})" for site in brain.sites)
    layers = [site.layer for site in brain.sites]
    floor_plan = Plot(
        "floor_plan",
        lambda: plotting.plot_floor_plan(brain),
        f"Floor plan of a layer with the tiles {', '.join(tiles)}.",
        "Every layer has this floor plan: a unit keeps its place on it, and its layer is its "
        "height.",
    )
    atlas = Plot(
        "atlas",
        lambda: plotting.plot_atlas(brain, bg_img=bg_img),
        f"Atlas of layers {min(layers)} to {max(layers)} in a coronal and an axial slice: one "
        "hue a site, lighter for later layers.",
        "A slice from the front (top) shows the layers from the bottom up, a slice from above "
        "(bottom) shows one layer; the colour is the site and gets lighter with depth.",
    )
    return [design, floor_plan, atlas]


class Figures:
    """Figures of a page, drawn into a folder of the dataset as PNG and SVG."""

    def __init__(self, plots: Sequence[Plot], folder: Path, root: Path, *, verbose: int) -> None:
        self._tags = {
            plot.stem: _save(plot, folder, root)
            for plot in track(plots, "figures", unit="figure", verbose=verbose)
        }
        self._left = min(_VIEWER_BYTES, _PAGE_BYTES - sum(map(len, self._tags.values())))

    def embed(self, plot: Plot | Viewer) -> str:
        """HTML of a figure; of a viewer as long as the page stays small."""
        if isinstance(plot, Plot):
            return self._tags[plot.stem]
        if self._left <= 0:  # nor is it drawn
            return _NO_VIEWER
        # Taken out of plotting's tag: the page needs its own, with a title and lazy loading.
        parts = dict(re.findall(r'(srcdoc|width|height)="([^"]*)"', plot.draw()))
        document = html.unescape(parts.pop("srcdoc"))
        self._left -= len(document)
        if self._left < 0:
            return _NO_VIEWER
        return _DETAILS.format(title=plot.title, document=document, **parts)


def _save(plot: Plot, folder: Path, root: Path) -> str:
    """Draw, write and embed one figure."""
    figure: Any = plot.draw().figure
    with TemporaryDirectory() as scratch:
        paths = plotting.save(figure, Path(scratch) / plot.stem)
        png, svg = (path.read_bytes() for path in paths)
    for path, content in zip(paths, (png, svg), strict=True):
        write_bytes(folder / path.name, root, content)
    is_drawing = len(svg) <= max(_LARGEST_SVG, len(png))
    kind, content = ("svg+xml", svg) if is_drawing else ("png", png)
    return img(plot, figure, content, kind=kind, dpi=_PIXELS_PER_INCH)
