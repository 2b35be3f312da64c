"""What came out, as one JSON file, a short table and a tree."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from llm2nifti import __version__, bids
from llm2nifti.bids import Session, manifest

Who = tuple[str, str]  # labels of a model and of its session, the latter empty if it has none

_MOST_FILES = 12  # files of one folder that the tree names; of more, the first _FIRST_FILES
_FIRST_FILES = 4


def read_summary(root: Path, who: Who | None = None) -> dict[str, Any]:
    """Content of a dataset's, or of one session's, summary.json; empty if there is none."""
    root = Path(root)
    path = _folder(root, who) / bids.SUMMARY.name
    if not path.exists():
        return {}
    is_ours = path.relative_to(root).as_posix() in manifest.written(root)
    if is_ours and not manifest.is_as_written(root, path):
        raise bids.DamagedFileError(path, "not what was written")
    return bids.read_json(path)


def update_summary(root: Path, who: Who | None = None, **parts: Any) -> dict[str, Any]:
    """Replace parts of a summary, or remove those that are None, and return the whole.

    Parameters
    ----------
    root : Path
        Root of the dataset.
    who : (str, str), optional
        Labels of a model and of its session; by default the dataset's own summary.
    **parts : dict
        What to replace.

    Returns
    -------
    dict
    """
    content = {**read_summary(root, who), **parts}
    content = {key: content[key] for key in sorted(content) if content[key] is not None}
    bids.write_json(_folder(Path(root), who) / bids.SUMMARY.name, Path(root), content)
    return content


def _folder(root: Path, who: Who | None) -> Path:
    """Where a summary is."""
    return bids.analysis_folder(root, *who) if who else root / bids.DERIVATIVES


def describe_dataset(session: Session) -> dict[str, Any]:
    """Design, model and versions, read from the runs' sidecars."""
    first = session.first
    events = first.events
    is_control = events["trial_type"] == "control"
    brain = first.brain
    return {
        "model": first.sidecar["Model"],
        "design": {
            "subject": first.subject,
            "session": first.session,
            "tasks": list(session.tasks),
            "n_runs": len(session.folds),
            "n_blocks": int(events.loc[~is_control, "block"].nunique()),
            "n_task_trials": int((~is_control).sum()),
            "n_control_trials": int(is_control.sum()),
            "n_frames": first.n_frames,
            "frame_seconds": first.t_r / first.n_frames,
            "mode": first.sidecar.get("Settings", {}).get("mode", "generate"),
            "frames": first.frames,
            "shown": first.sidecar.get("Stimuli", "images" if "stim_file" in events else "prompts"),
            "n_units": brain.n_units,
            "n_layers": len({site.layer for site in brain.sites}),
            "shape": list(brain.shape),
            "space": brain.space,
            "sites": first.sidecar["Sites"],
            "settings": first.sidecar["Settings"],
            "decoding": first.sidecar["Decoding"],
            "chat_template": first.sidecar["ChatTemplate"],
            "threads": first.sidecar["Threads"],
        },
        "versions": {
            **first.sidecar["Versions"],
            **versions(),
        },
    }


def versions() -> dict[str, str]:
    """Versions of what the analysis depends on."""
    packages = ("nilearn", "nibabel", "numpy", "pandas", "scipy", "scikit-learn")
    return {"llm2nifti": __version__, **{name: version(name) for name in packages}}


def table(summary: dict[str, Any]) -> str:
    """Short table for the terminal: one row a task, then the nulls."""
    similarity, tasks = summary.get("similarity", {}), summary.get("tasks", {})
    named = summary.get("identification", {}).get("trials", {})
    rules = dict.fromkeys(numbers["threshold"] for numbers in tasks.values())
    rows = []
    for task, numbers in tasks.items():
        row = {
            "task": task,
            "active units": f"{numbers['n_active']} ({numbers['share_active']:.1%})",
        }
        if len(rules) > 1:
            row["active by"] = numbers["threshold"]
        row["p < .05"] = f"{numbers['share_below_05']:.1%}"
        if similarity:
            j = similarity["tasks"].index(task)
            row["repeatability r"] = _interval(similarity, task, similarity["r"][j][j])
        if named:
            i = named["tasks"].index(task)
            row["trials named right"] = f"{named['confusion'][i][i]:.0%}"
        rows.append(row)
    lines = [pd.DataFrame(rows).to_string(index=False)] if rows else []
    lines += [f"active: {rule}, all runs together" for rule in rules if len(rules) == 1]
    return "\n".join([*lines, *_sentences(summary)])


def _interval(similarity: dict[str, Any], name: str, value: float) -> str:
    """Figure with its interval where there is one."""
    estimate = similarity.get("intervals", {}).get(name)
    return (
        f"{value:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"
        if estimate
        else f"{value:.2f}"
    )


def _sentences(summary: dict[str, Any]) -> list[str]:
    """The figures that belong to the whole experiment."""
    lines = []
    similarity, named = summary.get("similarity"), summary.get("identification")
    if similarity:
        cross = similarity["cross_task_r"]
        text = (
            f"maps: same task r {_interval(similarity, 'same_task_r', similarity['same_task_r'])}, "
            + (f"different tasks {cross:.2f}, " if cross is not None else "")
            + f"shuffled labels {similarity['shuffled_same_task_r']['mean']:.2f}"
        )
        untrained = summary.get("untrained", {}).get("similarity")
        if untrained and cross is not None:
            text += (
                f"; same minus different {similarity['same_minus_cross']:.2f}, "
                f"untrained {untrained['same_minus_cross']:.2f}"
            )
        lines.append(text)
    if named:
        parts = [
            f"{what} {named[what]['accuracy']:.0%}" for what in ("runs", "trials") if what in named
        ]
        prompts = named.get("prompts")
        characters = f"from the prompts' characters {prompts['accuracy']:.0%}, " if prompts else ""
        chance = f"chance {named['trials']['chance']:.0%}"
        lines.append(f"identification: {', '.join(parts)} right; {characters}{chance}")
    null = summary.get("null")
    if null:
        lines.append(_null_sentence(null))
    return lines


def _null_sentence(null: dict[str, Any]) -> str:
    """What the nulls found, or why they were not possible."""
    rate, pseudo = null["relabelled"], null["pseudo_tasks"].get("below_05")
    if "not_possible" in rate:
        return f"null: not possible ({rate['not_possible']})"
    line = f"null: {rate['below_05']:.1%} of units at p < .05"
    line += f" ({rate['n_relabellings']} relabellings)"
    return line if pseudo is None else f"{line}; pseudo-tasks of unrelated topics {pseudo:.1%}"


def overview_table(summary: dict[str, Any]) -> str:
    """Short table for the terminal: one row a session, then pairs of sessions."""
    lines = [
        pd.DataFrame([_overview_row(row) for row in summary["sessions"]]).to_string(index=False)
    ]
    pairs = summary.get("between_sessions", [])
    if pairs:
        table = pd.DataFrame(pairs)
        table["sessions"] = [" - ".join(names) for names in table["sessions"]]
        lines += ["", "maps between sessions (r)", table.round(2).to_string(index=False)]
    return "\n".join(lines)


def _overview_row(session: dict[str, Any]) -> dict[str, str]:
    """Cells of a session."""
    shares = session["active"].values()
    right, null = session["trials_right"], session["null_below_05"]
    row = {"model": session["subject"], "session": session["session"] or "-"}
    row["active units"] = f"{min(shares):.1%} to {max(shares):.1%}"
    row["active by"] = "; ".join(session["rules"])
    for title, name in (("same task r", "same_task_r"), ("different r", "cross_task_r")):
        row[title] = "-" if session[name] is None else f"{session[name]:.2f}"
    row["trials named right"] = "-" if right is None else f"{right:.0%}"
    row["null"] = "-" if null is None else f"{null:.1%}"
    return row


def networks_table(content: dict[str, Any]) -> str:
    """Matrices of map correlation and overlap, then the figures of `table`."""
    similarity = content["similarity"]
    names = similarity["tasks"]
    parts = []
    for key, title in (("r", "map correlation between runs"), ("dice", "Dice of the top units")):
        matrix = pd.DataFrame(similarity[key], index=names, columns=names).round(2)
        parts.append(f"{title} (diagonal: repeatability)\n{matrix.to_string()}")
    return "\n\n".join([*parts, "\n".join(_sentences(content))])


def tree(root: Path) -> str:
    """The dataset as a tree; long folders are cut short, with the number of files."""
    lines = [f"{root}/"]
    _branch(Path(root), "", lines)
    return "\n".join(lines)


def _branch(folder: Path, indent: str, lines: list[str]) -> None:
    """Add one folder to the tree."""
    entries = sorted(folder.iterdir(), key=lambda p: (p.is_dir(), p.name))
    entries = [p for p in entries if p.name != bids.WORK]
    files = [p for p in entries if p.is_file()]
    shown = files if len(files) <= _MOST_FILES else files[:_FIRST_FILES]
    lines += [f"{indent}|-- {p.name}" for p in shown]
    if len(shown) < len(files):
        lines.append(f"{indent}|-- ... {len(files) - len(shown)} more files")
    for child in entries:
        if child.is_dir():
            lines.append(f"{indent}|-- {child.name}/")
            _branch(child, indent + "|   ", lines)
