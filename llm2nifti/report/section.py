"""What is a section that the page has only where something more was done with the dataset?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm2nifti import bids
from llm2nifti.report.figures import Plot

Column = tuple[str, str, bool]  # key of a row's dictionary, heading, whether it is a number


@dataclass(frozen=True)
class Table:
    """A table of a section."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes
    ----------
    anchor, title : str
        Where links lead to, and the heading.
    paragraphs : sequence of str
        Text; it is escaped.
    plots : sequence of Plot
        Figures, after the text.
    tables : sequence of Table
        After the figures.
    """

    anchor: str
    title: str
    paragraphs: Sequence[str]
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = field(default_factory=tuple)


def read_json(path: Path) -> dict[str, Any] | None:
    """Results of a later step, or None where it was not done."""
    return bids.read_json(path) if path.exists() else None
