"""What can be shown? Load, check and list stimulus sets.

A stimulus set is a TSV, one prompt a row. The bundled sets hold five disciplines and random
strings (the tasks), and a control over many unrelated topics.
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pandas as pd

from llm2nifti.media import MEDIA, medium_of, problems

TASKS = (
    "politicalscience",
    "medicalimaging",
    "paleontology",
    "archeology",
    "pathology",
    "randomstrings",
)
CONTROL = "control"
WORDLESS = "randomstrings"  # told apart by anything, so means over tasks are taken without it
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
TABLE = "stimuli.tsv"  # the table in a folder of stimuli
# Characters that end a cell or a line, or that no table of BIDS holds.
_UNKEPT = re.compile("([\x00-\x1f\x7f-\x9f\u2028\u2029])")


class StimulusError(ValueError):
    """A stimulus set cannot be used."""


def data_folder() -> Path:
    """Folder of the bundled sets: inside the installed package, else the checkout's ``data/``."""
    package = Path(__file__).resolve().parent
    folders = [package / "data", package.parent / "data"]
    for folder in folders:
        if folder.is_dir():
            return folder
    where = " nor ".join(map(str, folders))
    raise StimulusError(f"bundled stimuli not found in {where}; reinstall")


def load(path: Path | str | None = None, *, split: str | None = "evaluation") -> pd.DataFrame:
    """Load stimuli: the bundled sets, or a user's own file.

    Parameters
    ----------
    path : path-like, optional
        A TSV with at least the columns ``task`` and ``prompt``; by default the bundled sets.
        Tasks other than ``control`` that the file brings are added to the bundled control where
        the file has no control rows of its own. A column ``image`` or ``audio`` names files,
        relative to the table; prompts are optional then, and control rows are needed. A folder is
        read by the ``stimuli.tsv`` in it.
    split : {"evaluation", "development", None}
        Keep one split of the bundled sets; None keeps both. A user's file without a ``split``
        column belongs to every split.

    Returns
    -------
    DataFrame
        Columns as in `COLUMNS`; missing optional ones are filled in: ``frame`` is empty, and
        every prompt is its own topic and concept.

    Raises
    ------
    StimulusError
        If a column is missing or there twice, a prompt is empty or holds a control character, an
        identifier appears twice, two tasks would be called alike, an image or sound cannot be read,
        no row is of a task, the file is not UTF-8, or the split does not exist.

    Examples
    --------
    >>> sorted(load()["task"].unique())[:3]
    ['archeology', 'control', 'medicalimaging']
    """
    if split is not None and split not in SPLITS:
        raise StimulusError(f"split is {split!r}; use one of {', '.join(SPLITS)}")
    if path is None:
        sets = [read(data_folder() / f"{name}.tsv") for name in (*TASKS, CONTROL)]
        table = pd.concat(sets, ignore_index=True)
    else:
        table = read(Path(path))
        if CONTROL not in set(table["task"]):
            medium = medium_of(table)
            if medium:
                raise StimulusError(f"{path}: {MEDIA[medium]} need rows of task {CONTROL!r}, too")
            control = read(data_folder() / f"{CONTROL}.tsv")
            both = pd.concat([table, control], ignore_index=True)
            table = check(both, f"{path} with the bundled control")
    if split is not None:
        table = table[table["split"].isin(["", split])]
    if (table["task"] == CONTROL).all():
        of = f" of split {split!r}" if split else ""
        raise StimulusError(
            f"{path}: every row{of} is of task {CONTROL!r}; add rows of a task to compare with it"
        )
    return table.reset_index(drop=True)


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

    The result has the columns of `COLUMNS`, then ``image`` or ``audio`` where there is one.
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
    for column in (c for c in (*COLUMNS, *MEDIA) if c in table):
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
    return table[[*COLUMNS, *([medium] if medium else [])]]


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


def describe(table: pd.DataFrame) -> pd.DataFrame:
    """Count the prompts, topics and question frames of each task and split, with an example."""
    named = table.assign(
        split=table["split"].replace("", "any"), frames=table["frame"].replace("", pd.NA)
    )
    return named.groupby(["task", "split"], sort=False, as_index=False).agg(
        prompts=("prompt", "size"),
        topics=("topic", "nunique"),
        frames=("frames", "nunique"),
        example=("prompt", "first"),
    )
