"""How does a result read in a terminal? Its sections as plain text, without the figures."""

from __future__ import annotations

import shutil
import textwrap

from llm2nifti.tell.section import Section, Table

_WIDEST = 100  # columns of running text
_PLAIN = str.maketrans({"\N{NO-BREAK SPACE}": " ", "\N{MINUS SIGN}": "-", "–": "-"})


def as_text(*sections: Section) -> str:
    """Text of sections, wrapped to the terminal.

    Examples
    --------
    >>> print(as_text(Section("x", "What came out", ["All is well."])))
    What came out
    -------------
    All is well.
    """
    width = min(_WIDEST, shutil.get_terminal_size().columns)
    told = []
    for section in sections:
        parts = [textwrap.fill(text, width) for text in section.paragraphs]
        parts += [_table(table) for table in section.tables]
        parts += [textwrap.fill(text, width) for text in section.notes]
        told.append("\n".join([section.title, "-" * len(section.title), "\n\n".join(parts)]))
    return "\n\n".join(told).translate(_PLAIN)


def _table(table: Table) -> str:
    """A table with its caption; words to the left, numbers to the right."""
    columns = []
    for key, heading, is_number in table.columns:
        cells = [heading, *(row[key] for row in table.rows)]
        n = max(map(len, cells))
        columns.append([cell.rjust(n) if is_number else cell.ljust(n) for cell in cells])
    lines = ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
    return "\n".join([table.caption, *lines])
