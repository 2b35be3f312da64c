"""How is a table of stimuli read and checked? Row by row, with the first bad one named."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd

from llm2nifti.media import MEDIA, medium_of, problems
from llm2nifti.stimuli.measures import MEASURES

CONTROL = "control"
REST = "rest"  # task of free generation from an empty prompt
SPLITS = ("development", "evaluation")
COLUMNS = {
    "stim_id": "unique identifier of the prompt",
    "task": "task that the prompt belongs to, or control",
    "topic": "subfield or everyday topic of the concept",
    "concept": "noun phrase that the prompt asks about",
    "frame": "question frame (sentence pattern); empty where the prompt has none",
    "split": "development or evaluation",
    "prompt": "the text that the model is shown",
}
CONDITIONS = {
    "condition": "condition of a task that has its own, such as sentences or nonwords",
    "pair": "number that the prompts of a minimal pair have in common",
}
ROLE = "role"
OF_DESIGN = {  # columns of events that only some designs have
    ROLE: "whether the condition is the task's or its control's",
    "sustained": "1 within blocks that hold the task, 0 within blocks of controls alone",
}
OF_EVENTS = (
    "onset",
    "duration",
    "trial_type",
    "block",
    "stim_file",
    "response",
    "question_frame",
)
TABLE = "stimuli.tsv"  # the table in a folder of stimuli
# Characters that end a cell or a line, or that no table of BIDS holds.
_UNKEPT = re.compile("([\x00-\x1f\x7f-\x9f\u2028\u2029])")


class StimulusError(ValueError):
    """A stimulus set cannot be used."""


def read(path: Path) -> pd.DataFrame:
    """Read and check one stimulus file; see `load`."""
    path = path / TABLE if path.is_dir() else path
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise StimulusError(f"no stimulus file {path} ({error.strerror})") from None
    except UnicodeDecodeError as error:
        row = error.object[: error.start].count(b"\n") + 1
        raise StimulusError(f"{path}, row {row}: not UTF-8 ({error.reason}); save it so") from None
    rows = _parse(text, str(path))
    table = check(pd.DataFrame(rows[1:], columns=rows[0], dtype=str), str(path))
    medium = medium_of(table)
    if medium:
        shown = {
            f"row {row}, {name!r}": (path.parent / name).resolve()
            for row, name in enumerate(table[medium], start=2)
        }
        if bad := problems(shown, medium):
            raise StimulusError(f"{path}: {bad}")
        table[medium] = [str(file) for file in shown.values()]
    return table


def _parse(text: str, name: str) -> list[list[str]]:
    """Cells of a table separated by tabs; row numbers in messages are those of the file."""
    reader = csv.reader(io.StringIO(text), delimiter="\t", strict=True)
    rows: list[list[str]] = []
    try:
        for cells in reader:
            if any("\n" in cell for cell in cells):
                raise csv.Error("a quotation mark is opened and not closed on its row")
            if rows and len(cells) != len(rows[0]):
                raise csv.Error(f"{len(cells)} cells, the header has {len(rows[0])}")
            rows.append(cells)
    except csv.Error as error:
        raise StimulusError(f"{name}, row {len(rows) + 1}: {error}") from None
    if len(rows) < 2:
        raise StimulusError(f"{name}: no rows; needed are a header and one prompt a row")
    for column in rows[0]:
        places = [str(i) for i, other in enumerate(rows[0], start=1) if other == column]
        if len(places) > 1:
            raise StimulusError(
                f"{name}, row 1: column {column!r} is there {len(places)} times (columns "
                f"{', '.join(places)}); keep one"
            )
    return rows


def check(table: pd.DataFrame, name: str = "stimuli") -> pd.DataFrame:
    """Fill in optional columns and check every row, naming the first bad one of table `name`.

    The result has the columns of `COLUMNS`, then ``image`` or ``audio`` where there is one, then
    further columns of the table: as numbers where all their cells are numbers, empty or ``n/a``.
    StimulusError if a column is missing, a cell is empty or holds a control character, an
    identifier or prompt appears twice, or two tasks would be called alike.
    """
    medium = medium_of(table)
    shown = medium or "prompt"
    for column in ("task", shown):
        if column not in table:
            raise StimulusError(
                f"{name}: no column {column!r}; the header has {', '.join(table.columns)}. Needed "
                f"are task and prompt (or {' or '.join(MEDIA)}), separated by tabs"
            )
    if set(MEDIA) <= set(table.columns):
        raise StimulusError(f"{name}: columns {' and '.join(MEDIA)}; a table shows one of them")
    optional = [c for c in ("prompt", "frame", "split", "topic", "concept") if c not in table]
    table = table.assign(**dict.fromkeys(optional, ""))
    for column in ("task", shown):
        empty = table[column].isna() | (table[column].astype(str).str.strip() == "")
        _raise_at(empty, name, f"empty {column}")
    more = [name for name in table if name not in (*COLUMNS, *MEDIA)]
    _check_names(more, name)
    for column in (c for c in (*COLUMNS, *MEDIA, *more) if c in table and is_text(table[c])):
        seen = table[column].astype(str).str.extract(_UNKEPT, expand=False)
        first = next(iter(seen.dropna()), "")
        what = f"{column} holds the control character {first!r}; take it out"
        _raise_at(seen.notna(), name, what)
    _check_tasks(table["task"], name)
    if "stim_id" not in table:
        number = table.groupby("task").cumcount() + 1
        table["stim_id"] = table["task"] + number.map("-{:04d}".format)
    _raise_at(table["stim_id"].str.strip() == "", name, "empty stim_id")
    _raise_at(table["stim_id"].duplicated(), name, "stim_id used before", table["stim_id"])
    _raise_at(table[shown].duplicated(), name, f"{shown} used before", table[shown])
    for column in ("topic", "concept"):
        table[column] = table[column].where(table[column] != "", table["stim_id"])
    _raise_at(~table["split"].isin(["", *SPLITS]), name, "unknown split", table["split"])
    table = table.assign(**{column: _numbers(table[column]) for column in more})
    return table[[*COLUMNS, *([medium] if medium else []), *more]]


def is_text(column: pd.Series) -> bool:
    """Whether a column of a table holds texts."""
    return not pd.api.types.is_numeric_dtype(column)


def _numbers(column: pd.Series) -> pd.Series:
    """Column as numbers, if all of its cells are finite numbers, empty or n/a; else as texts."""
    if not is_text(column):
        return column
    texts = column.fillna("").astype(str).str.strip()
    is_empty = texts.isin(["", "n/a"])
    numbers = pd.to_numeric(texts.mask(is_empty), errors="coerce")
    is_number = np.isfinite(numbers) | is_empty
    has_numbers = not is_empty.all() or column.name in MEASURES
    return numbers if is_number.all() and has_numbers else texts.mask(is_empty, "")


def _check_names(names: list[str], table: str) -> None:
    """Raise where a further column would be lost beside those of events.tsv."""
    for name in names:
        if name in (*OF_EVENTS, *OF_DESIGN):
            raise StimulusError(
                f"{table}: column {name!r} would be called as one that every events.tsv has "
                f"({', '.join((*OF_EVENTS, *OF_DESIGN))}); rename it"
            )


def _check_tasks(tasks: pd.Series, name: str) -> None:
    """Raise where a task would be called as the control or another task is in file names.

    Names of files keep only ASCII letters and digits, and some file systems do not tell upper from
    lower case.
    """
    labels = tasks.map(lambda task: re.sub("[^0-9a-z]", "", task.lower()))
    _raise_at(labels == "", name, "task has no ASCII letter or digit to name files by", tasks)
    what = f"task is called {REST!r}, which is free generation from an empty prompt; rename it"
    _raise_at(labels == REST, name, what)
    is_like = (labels == CONTROL) & (tasks != CONTROL)
    _raise_at(is_like, name, f"task has the same BIDS label as {CONTROL!r}; rename it", tasks)
    first = tasks.groupby(labels).transform("first")
    for other in first[tasks != first].head(1):
        _raise_at(tasks != first, name, f"task has the same BIDS label as {other!r}; rename", tasks)


def _raise_at(bad: pd.Series, name: str, what: str, values: pd.Series | None = None) -> None:
    """Raise with the file's row number of the first bad row; the header is row 1."""
    if bad.any():
        row = int(bad.to_numpy().argmax())
        value = "" if values is None else f" ({values.iloc[row]!r})"
        raise StimulusError(f"{name}, row {row + 2}: {what}{value}")
