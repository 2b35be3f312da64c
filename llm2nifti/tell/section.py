"""What is a result told in? Sections with sentences, figures and tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Column = tuple[str, str, bool]  # key of a row, heading, whether it is a number


@dataclass(frozen=True)
class Plot:
    """A figure to be drawn.

    Attributes
    ----------
    stem : str
        Name of its files.
    draw : callable
        Draws it and returns its Axes.
    alt, caption : str
        What stands for it, and one sentence on what to see.
    """

    stem: str
    draw: Callable[[], Any]
    alt: str
    caption: str


@dataclass(frozen=True)
class Table:
    """A table of cells that are written already.

    Attributes
    ----------
    caption : str
        What it is of.
    columns : sequence of (str, str, bool)
        Key of a row, heading, and whether the cells are numbers.
    rows : sequence of mapping
        Cells by key.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Section:
    """A section of a page, or what a command prints.

    Attributes
    ----------
    anchor, title : str
        Where links lead to, and the heading.
    paragraphs : sequence of str
        Text; a page escapes it.
    plots : sequence of Plot
        Figures, after the text.
    tables : sequence of Table
        After the figures.
    notes : sequence of str
        Text after the tables.
    """

    anchor: str
    title: str
    paragraphs: Sequence[str]
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
