"""What is a result told in? Sections with sentences, figures and tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd


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
    is_small : bool
        Whether it may stand beside another one.
    """

    stem: str
    draw: Callable[[], Any]
    alt: str
    caption: str
    is_small: bool = False


@dataclass(frozen=True)
class Viewer:
    """An interactive viewer, which only a page shows.

    Attributes
    ----------
    title : str
        What it shows.
    draw : callable
        Gives its ``<iframe>`` tag.
    """

    title: str
    draw: Callable[[], str]


@dataclass(frozen=True, eq=False)
class Table:
    """A table of cells that are written already.

    Attributes
    ----------
    caption : str
        What it is of.
    frame : DataFrame
        One column a heading; cells are text.
    words : sequence of str
        Headings of columns of words, the others hold numbers; by default the first.
    """

    caption: str
    frame: pd.DataFrame
    words: Sequence[str] = ()

    @classmethod
    def of(
        cls, caption: str, rows: Sequence[Mapping[str, str]], words: Sequence[str] = ()
    ) -> Table:
        """Table of rows by heading."""
        return cls(caption, pd.DataFrame(list(rows), dtype=object).fillna(""), words)

    def is_words(self, heading: str) -> bool:
        """Whether a column holds words."""
        return heading in (self.words or self.frame.columns[:1])


@dataclass(frozen=True)
class Section:
    """A section of a page, or what a command prints.

    Attributes
    ----------
    anchor, title : str
        Where links lead to, and the heading.
    paragraphs : sequence of str
        Text, with names of files and commands in backticks; a page escapes it.
    plots : sequence of Plot or Viewer
        Figures, after the text.
    tables : sequence of Table
        After the figures.
    notes : sequence of str
        Text after the tables.
    parts : sequence of Section
        Sections under this one.
    """

    anchor: str
    title: str
    paragraphs: Sequence[str] = ()
    plots: Sequence[Plot | Viewer] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    parts: Sequence[Section] = ()

    def all_plots(self) -> list[Plot]:
        """Figures of this section and of those under it."""
        drawn = [plot for plot in self.plots if isinstance(plot, Plot)]
        return [*drawn, *(plot for part in self.parts for plot in part.all_plots())]
