"""What do all models and sessions of a dataset show? One page with a row for each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm2nifti import bids
from llm2nifti.bids.paths import REPORT
from llm2nifti.report.page import render
from llm2nifti.report.source import read_summary
from llm2nifti.tell.wording import NONE, height_control, number, percent

_NEEDED = ("sessions", "versions")


def write_overview(root: Path | str) -> Path:
    """Write the page that compares the sessions of a dataset and links to their reports.

    Parameters
    ----------
    root : path-like
        Root of the dataset.

    Returns
    -------
    Path
        ``derivatives/llm2nifti/report.html``.

    Raises
    ------
    ReportError
        If the dataset's ``summary.json`` does not compare sessions.
    """
    root = Path(root)
    folder = root / bids.DERIVATIVES
    summary = read_summary(folder, root, needed=_NEEDED)
    tasks = list(dict.fromkeys(task for row in summary["sessions"] for task in row["active"]))
    rows = [_row(session, tasks) for session in summary["sessions"]]
    rules = {row["rules"] for row in rows}
    text = render(
        "overview.html.j2",
        tasks=tasks,
        rows=rows,
        rule=rules.pop() if len(rules) == 1 else "",
        pairs=[_pair(pair) for pair in summary.get("between_sessions", [])],
        versions=summary["versions"],
    )
    path = folder / REPORT
    bids.write_text(path, root, text)
    return path


def _row(session: Mapping[str, Any], tasks: list[str]) -> dict[str, Any]:
    """Cells of one session."""
    names = ("model", "architecture", "revision", "dtype", "seed", "temperature")
    figures = {name: number(session[name]) for name in ("same_task_r", "cross_task_r")}
    shares = ("trials_right", "chance", "null_below_05", "pseudo_below_05")
    return {
        "link": f"{session['folder']}/{REPORT}",
        "session": session["session"] or NONE,
        **{name: session[name] for name in names},
        "rules": "; ".join(height_control(rule) for rule in session["rules"]),
        "active": [percent(session["active"].get(task)) for task in tasks],
        **figures,
        **{name: percent(session[name]) for name in shares},
    }


def _pair(pair: Mapping[str, Any]) -> dict[str, str]:
    """Cells of a pair of sessions."""
    names = ("same_prompts_r", "same_task_r", "cross_task_r")
    return {
        "sessions": f"{pair['sessions'][0]} and {pair['sessions'][1]}",
        **{name: number(pair[name]) for name in names},
    }
