"""What was written? The dataset as a tree."""

from __future__ import annotations

from pathlib import Path

from llm2nifti import bids

_MOST_FILES = 12  # files of one folder that the tree names; of more, the first _FIRST_FILES
_FIRST_FILES = 4


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
