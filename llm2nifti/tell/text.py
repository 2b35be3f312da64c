"""How does a result read in a terminal? Its sections as plain text, without the figures."""

from __future__ import annotations

import shutil
import textwrap

from llm2nifti.tell.section import Section, Table

_WIDEST = 100  # columns of running text
_PLAIN = str.maketrans({"\N{NO-BREAK SPACE}": " ", "\N{MINUS SIGN}": "-", "–": "-", "`": None})


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
    return "\n\n".join(_told(section, width) for section in sections).translate(_PLAIN)


def _told(section: Section, width: int) -> str:
    """Text of one section and of those under it."""
    parts = [textwrap.fill(text, width) for text in section.paragraphs]
    parts += [_table(table) for table in section.tables]
    parts += [textwrap.fill(text, width) for text in section.notes]
    head = f"{section.title}\n{'-' * len(section.title)}"
    blocks = ["\n".join([head, "\n\n".join(parts)]).rstrip()]
    return "\n\n".join([*blocks, *(_told(part, width) for part in section.parts)])


def _table(table: Table) -> str:
    """A table with its caption; words to the left, numbers to the right."""
    columns = []
    for heading, values in table.frame.items():
        cells = [str(heading), *map(str, values)]
        n = max(map(len, cells))
        is_words = table.is_words(str(heading))
        columns.append([cell.ljust(n) if is_words else cell.rjust(n) for cell in cells])
    lines = ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
    return "\n".join([table.caption, *lines])
