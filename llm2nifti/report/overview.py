"""How do the models and sessions of one dataset compare? Their numbers, and a page of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llm2nifti import bids, experiments, geometry, networks
from llm2nifti.bids import Session
from llm2nifti.bids.paths import REPORT
from llm2nifti.bids.reading import Who
from llm2nifti.bids.sessions import sessions as open_all
from llm2nifti.experiments.results import Result
from llm2nifti.report.summary import ReportError, SessionSummary, complete
from llm2nifti.tell import Section, Table, as_html
from llm2nifti.tell.section import render
from llm2nifti.tell.wording import height_control, number, percent

Maps = dict[tuple[str, int], NDArray]  # (n_units,) by task and run
WHOLE = 0  # number that stands for all runs of a task together
_SETTINGS = {  # columns of a table; the first five hold words
    "Session": "name",
    "Model": "model",
    "Architecture": "architecture",
    "Revision": "revision",
    "Data type": "dtype",
    "Seed": "seed",
    "Temperature": "temperature",
}


@dataclass(frozen=True)
class SessionRow:
    """Numbers of one session, whose results are in `folder`; see its own summary.

    `active` is the share of active units by task, by `rules`.
    """

    subject: str
    session: str
    folder: str
    model: str
    architecture: str
    revision: str
    dtype: str
    seed: int | str
    temperature: float | str
    active: dict[str, float]
    rules: list[str]
    same_task_r: float | None = None
    cross_task_r: float | None = None
    trials_right: float | None = None
    chance: float | None = None
    null_below_05: float | None = None
    pseudo_below_05: float | None = None

    @property
    def name(self) -> str:
        """Model and session."""
        return " ".join(filter(None, [self.subject, self.session]))


@dataclass(frozen=True)
class SessionPair:
    """Maps of two sessions of one geometry, the `space`.

    ``same_prompts_r`` is the correlation of maps of one task, all runs together; ``same_task_r``
    and ``cross_task_r`` are of the same and different tasks in different runs: no shared prompt.
    """

    sessions: list[str]
    space: str
    same_prompts_r: float | None = None
    same_task_r: float | None = None
    cross_task_r: float | None = None


@dataclass(frozen=True, repr=False)
class Overview(Result):
    """All sessions of a dataset, and each pair with the same geometry."""

    sessions: list[SessionRow]
    between_sessions: list[SessionPair] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)  #: of what the numbers depend on

    def tables(self) -> dict[str, pd.DataFrame]:
        """``sessions`` and ``pairs``: one row each."""
        pairs = pd.DataFrame([vars(pair) for pair in self.between_sessions])
        return {"sessions": pd.DataFrame([vars(row) for row in self.sessions]), "pairs": pairs}

    def sections(self) -> list[Section]:
        """Models and sessions, what they are, and what is between them."""
        return [self._sessions(), self._settings(), self._between()]

    def _sessions(self) -> Section:
        """Results of each session."""
        tasks = list(dict.fromkeys(task for row in self.sessions for task in row.active))
        told = ["; ".join(height_control(rule) for rule in row.rules) for row in self.sessions]
        rows = []
        for row, rule in zip(self.sessions, told, strict=True):
            cells = {
                "Session": row.name,
                **{task: percent(row.active.get(task)) for task in tasks},
                "Same task r": number(row.same_task_r),
                "Different tasks r": number(row.cross_task_r),
                "Prompts named right": percent(row.trials_right),
                "Null p < .05": percent(row.null_below_05),
                "Pseudo-tasks": percent(row.pseudo_below_05),
            }
            rows.append({**cells, **({"Active by": rule} if len(set(told)) > 1 else {})})
        rule = f" ({told[0]})" if len(set(told)) == 1 else ""
        chance = self.sessions[0].chance
        note = (
            "Columns of tasks: share of units in the network of the task, all runs together"
            f"{rule}. Same task, different tasks: mean correlation of t maps of different runs of "
            "that session. Prompts named right: share of held-out prompts named as their task "
            f"by their activations; guessing gives {percent(chance)}. Null: units with "
            "p < .05 where control prompts are relabelled (5 % is nominal), and with whole control "
            "topics in the place of a task."
        )
        table = Table.of("Results of the sessions", rows, ("Session", "Active by"))
        return Section("sessions", "Models and sessions", tables=[table], notes=[note])

    def _settings(self) -> Section:
        """What the sessions are."""
        rows = [
            {heading: str(getattr(row, name)) for heading, name in _SETTINGS.items()}
            for row in self.sessions
        ]
        table = Table.of("Settings", rows, list(_SETTINGS)[:5])
        return Section("what", "What they are", tables=[table])

    def _between(self) -> Section:
        """Maps of pairs of sessions."""
        if not self.between_sessions:
            why = (
                "No two sessions have the same layers, sites and widths, so their maps cannot be "
                "compared unit by unit."
            )
            return Section("between", "Between sessions", [why])
        rows = [
            {
                "Sessions": " and ".join(pair.sessions),
                "Same prompts r": number(pair.same_prompts_r),
                "Same task r": number(pair.same_task_r),
                "Different tasks r": number(pair.cross_task_r),
            }
            for pair in self.between_sessions
        ]
        text = (
            "Sessions whose units live in the same places can be compared unit by unit. Same "
            "prompts: correlation of the t maps of one task, all runs together, so both sessions "
            "saw the same prompts. Same task, different tasks: correlation of t maps of different "
            "runs, which share no prompt. If a network outlasts the change from one session to the "
            "other, the same task correlates more than different tasks do."
        )
        note = (
            "Different models of one shape also appear here. Their units have no common order "
            "unless one was trained from the other, so expect 0 for those."
        )
        table = Table.of("Correlation of maps between sessions", rows)
        return Section("between", "Between sessions", [text], tables=[table], notes=[note])


def compare_sessions(root: Path) -> Overview:
    """Collect the numbers of all analysed sessions, compare their maps, and keep both.

    Parameters
    ----------
    root : Path
        Root of a dataset whose sessions have all been analysed.

    Returns
    -------
    Overview
        The content of the dataset's ``summary.json``.

    Raises
    ------
    ReportError
        If a session has not been analysed.
    """
    summaries: list[SessionSummary] = []
    rows, pairs = [], []
    spaces: dict[str, list[Session]] = {}
    for who in bids.analysed(root):
        content = bids.read_summary(root, who)
        if "null" not in content:
            name = "_".join(bids.folder_of(*who).parts)
            raise ReportError(f"{name} has not been analysed; run: llm2nifti run {root}")
        summaries.append(SessionSummary.of(content))
        rows.append(_row(who, summaries[-1]))
        session = bids.session(root, subject=who[0], session=who[1])
        spaces.setdefault(session.brain.space, []).append(session)
    for space, sessions in spaces.items():
        maps = {session.name: _maps(session) for session in sessions if len(sessions) > 1}
        for a, b in combinations(maps, 2):
            pairs.append(SessionPair([a, b], space, **between(maps[a], maps[b])))
    overview = Overview(rows, pairs, summaries[0].versions)
    parts = overview.content()
    old = {key: None for key in bids.read_summary(root) if key not in parts}
    bids.update_summary(root, **old, **parts)
    return overview


def _row(who: Who, summary: SessionSummary) -> SessionRow:
    """Numbers of one session, taken from its own summary."""
    settings, similarity = summary.design["settings"], summary.similarity
    model, trials = summary.model, getattr(summary.identification, "trials", None)
    return SessionRow(
        subject=who[0],
        session=who[1],
        folder=bids.folder_of(*who).as_posix(),
        model=model.get("Name", who[0]),
        architecture=model.get("Architecture", "n/a"),
        revision=model.get("Revision", "n/a"),
        dtype=model.get("DType", "n/a"),
        seed=settings.get("seed", "n/a"),
        temperature=settings.get("temperature", "n/a"),
        active={task: maps.share_active for task, maps in summary.tasks.items()},
        rules=list(dict.fromkeys(maps.threshold for maps in summary.tasks.values())),
        same_task_r=getattr(similarity, "same_task_r", None),
        cross_task_r=getattr(similarity, "cross_task_r", None),
        trials_right=getattr(trials, "accuracy", None),
        chance=getattr(trials, "chance", None),
        null_below_05=summary.null.relabelled.below_05,
        pseudo_below_05=summary.null.pseudo_tasks.below_05,
    )


def _maps(session: Session) -> Maps:
    """T maps of a session as they are on disk, by task and run; `WHOLE` for all runs together."""
    out = {}
    for run in session:
        for number_, only_run in ((run.run, True), (WHOLE, False)):
            img = bids.read_img(run.paths.stat_map("t", only_run=only_run))
            out[run.task, number_] = geometry.from_img(run.brain, img)
    return out


def between(a: Maps, b: Maps) -> dict[str, float | None]:
    """Correlation of the t maps of two sessions, averaged over tasks; see `SessionPair`."""
    tasks = [task for task in networks.tasks_of(a) if task in networks.tasks_of(b)]
    same_prompts = same = cross = float("nan")
    if tasks:
        same_prompts, _ = networks.same_and_cross(_matrix(a, b, tasks, WHOLE, WHOLE))
    matrices = [
        _matrix(a, b, tasks, r, s) for r, s in product(_runs(a, tasks), _runs(b, tasks)) if r != s
    ]
    if matrices:
        same, cross = networks.same_and_cross(np.mean(matrices, axis=0))
    figures = {"same_prompts_r": same_prompts, "same_task_r": same, "cross_task_r": cross}
    return {name: None if np.isnan(value) else value for name, value in figures.items()}


def _runs(maps: Maps, tasks: Sequence[str]) -> list[int]:
    """Runs that every one of the tasks has."""
    sets = [{run for name, run in maps if name == task} - {WHOLE} for task in tasks]
    return sorted(set.intersection(*sets)) if sets else []


def _matrix(a: Maps, b: Maps, tasks: Sequence[str], r: int, s: int) -> NDArray[np.float64]:
    """(n_tasks, n_tasks) similarity of run `r` of one session and run `s` of the other.

    `networks.matrix` compares maps of different runs: here the sessions take their place.
    """
    one = {(task, 1): a[task, r] for task in tasks}
    return networks.matrix({**one, **{(task, 2): b[task, s] for task in tasks}})


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
    content = complete(folder, root, needed=("sessions", "versions"))
    overview = Overview.of(content, folder / bids.SUMMARY.name)
    told = overview.sections()
    for kind in experiments.kept_results(whole=True):
        result = kind.read(open_all(root))
        told += result.sections() if result else []
    text = render(
        Path(__file__).parent,
        "overview.html.j2",
        n=len(overview.sessions),
        links=[(f"{row.folder}/{REPORT}", row.name) for row in overview.sessions],
        told=as_html(*told),
        versions=overview.versions,
    )
    bids.write_text(folder / REPORT, root, text)
    return folder / REPORT
