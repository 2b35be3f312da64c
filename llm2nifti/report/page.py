"""How does the dataset become a page? Read its results, draw, fill in the template, write."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from llm2nifti import bids, experiments, glm, plotting
from llm2nifti.bids import Session
from llm2nifti.bids.paths import REPORT
from llm2nifti.plans import Json
from llm2nifti.progress import stage
from llm2nifti.report.figures import Figures
from llm2nifti.report.summary import ReportError, SessionSummary, read_session_summary
from llm2nifti.tell import Plot, Section, Table, as_html, wording
from llm2nifti.tell.html import render
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


def write(
    root: Path | str,
    *,
    subject: str | None = None,
    session: str | None = None,
    verbose: int = 1,
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
    fixed = {"design": design_plot(recording), **brain_plots(recording)}
    plots = [*fixed.values(), *(plot for section in told for plot in section.all_plots())]
    figures = Figures(plots, recording.folder / "figures", recording.root, verbose=verbose)
    path = recording.folder / REPORT
    with stage("page", verbose=verbose):
        text = render(
            Path(__file__).parent,
            "report.html.j2",
            **_context(recording, summary),
            short=as_html(told[0]),
            told=as_html(*told[1:], embed=figures.embed),
            figures={name: figures.embed(plot) for name, plot in fixed.items()},
            links=[(section.anchor, _link(section)) for section in told[1:]],
        )
        bids.write_text(path, recording.root, text)
    return path


def _link(section: Section) -> str:
    """What leads to a section."""
    return "Is it real?" if section.anchor == "null" else section.anchor.capitalize()


def _context(session: Session, summary: SessionSummary) -> Json:
    """Values of the template."""
    run = session.of(next(iter(summary.tasks))).first
    is_task = (run.events["trial_type"] != glm.CONTROL).tolist()
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
        "question_frames": int(frames[frames != ""].nunique()),
        "meanings": {name: _SITES[name] for name in summary.design["sites"] if name in _SITES},
    }


def _examples(session: Session, summary: SessionSummary) -> Section:
    """First prompts of every task shown, and of the control, with their responses."""
    runs = [session.of(task).first for task in summary.maps.shown]
    wanted = [(run.events, run.task) for run in runs] + [(runs[0].events, glm.CONTROL)]
    says, rows = summary.design.get("mode") != "read", []
    for events, condition in wanted:
        first = events[events["trial_type"] == condition].head(_N_EXAMPLES)
        images = first["stim_file"] if "stim_file" in first else [""] * len(first)
        for image, prompt, response in zip(images, first["prompt"], first["response"], strict=True):
            row = {"Condition": condition, "Prompt": f"{image} {prompt}".strip()}
            rows.append({**row, **({"Response": str(response)} if says else {})})
    caption = "Example prompts and responses" if says else "Example prompts"
    table = Table.of(caption, rows, ("Condition", "Prompt", "Response"))
    return Section("", "Example prompts", tables=[table])


def design_plot(session: Session) -> Plot:
    """Block design of the first run."""
    run = session.first
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
    return Plot("design", lambda: plotting.plot_design(events), alt, caption)


def brain_plots(session: Session) -> dict[str, Plot]:
    """Floor plan and atlas."""
    brain, bg_img = session.brain, bids.anatomy(session.root, session.subject, session.session)
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
    return {"floor_plan": floor_plan, "atlas": atlas}
