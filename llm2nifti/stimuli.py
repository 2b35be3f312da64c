"""What can be shown? Load, check and list stimulus sets.

A stimulus set is a TSV, one prompt a row. The bundled sets hold five disciplines and random
strings (the tasks), and a control over many unrelated topics.
"""

from __future__ import annotations

import csv
import io
from importlib.resources import files
from pathlib import Path

import pandas as pd

TASKS = (
    "politicalscience",
    "medicalimaging",
    "paleontology",
    "archeology",
    "pathology",
    "randomstrings",
)
CONTROL = "control"
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
IMAGE = "image"  # column of image stimuli: a file, given relative to the table
TABLE = "stimuli.tsv"  # the table in a folder of stimuli


class StimulusError(ValueError):
    """A stimulus set cannot be used."""


def data_folder() -> Path:
    """Folder of the bundled sets: inside the installed package, else the checkout's ``data/``."""
    packaged = Path(str(files("llm2nifti"))) / "data"
    if packaged.is_dir():
        return packaged
    checkout = Path(__file__).resolve().parent.parent / "data"
    if checkout.is_dir():
        return checkout
    raise StimulusError(f"bundled stimuli not found in {packaged} nor {checkout}; reinstall")


def load(path: Path | str | None = None, *, split: str | None = "evaluation") -> pd.DataFrame:
    """Load stimuli: the bundled sets, or a user's own file.

    Parameters
    ----------
    path : path-like, optional
        A TSV with at least the columns ``task`` and ``prompt``; by default the bundled sets.
        Tasks other than ``control`` that the file brings are added to the bundled control where
        the file has no control rows of its own. A column ``image`` names image files, relative to
        the table; prompts are optional then, and control rows are needed. A folder is read by the
        ``stimuli.tsv`` in it.
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
        If a column is missing, a prompt is empty, an identifier appears twice, the file is not
        UTF-8, or the split does not exist.

    Examples
    --------
    >>> sorted(load()["task"].unique())[:3]
    ['archeology', 'control', 'medicalimaging']
    """
    if split is not None and split not in SPLITS:
        raise StimulusError(f"split is {split!r}; use one of {', '.join(SPLITS)}")
    bundled = [data_folder() / f"{name}.tsv" for name in (*TASKS, CONTROL)]
    if path is None:
        table = pd.concat([read(file) for file in bundled], ignore_index=True)
    else:
        table = read(Path(path))
        has_control = CONTROL in set(table["task"])
        if IMAGE in table and not has_control:
            raise StimulusError(f"{path}: images need rows of task {CONTROL!r} of their own")
        if not has_control:
            both = pd.concat([table, read(bundled[-1])], ignore_index=True)
            table = check(both, f"{path} with the bundled control")
    if split is not None:
        table = table[table["split"].isin(["", split])]
    return table.reset_index(drop=True)


def read(path: Path) -> pd.DataFrame:
    """Read and check one stimulus file; see `load`."""
    path = path / TABLE if path.is_dir() else path
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StimulusError(f"no stimulus file {path} ({error.strerror})") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data[: error.start].count(b"\n") + 1
        raise StimulusError(f"{path}, row {row}: not UTF-8 ({error.reason}); save it so") from None
    rows = _parse(text, str(path))
    table = check(pd.DataFrame(rows[1:], columns=rows[0], dtype=str), str(path))
    if IMAGE in table:
        table[IMAGE] = [str((path.parent / name).resolve()) for name in table[IMAGE]]
        missing = ~table[IMAGE].map(lambda name: Path(name).is_file())
        _raise_at(missing, str(path), "no such image file", table[IMAGE])
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
    return rows


def check(table: pd.DataFrame, name: str = "stimuli") -> pd.DataFrame:
    """Fill in optional columns and check every row, naming the first bad one.

    Parameters
    ----------
    table : DataFrame
        At least ``task`` and ``prompt``, as strings.
    name : str
        What to call the table in messages.

    Returns
    -------
    DataFrame
        All columns of `COLUMNS`, in that order, and ``image`` where there is one.
    """
    shown = IMAGE if IMAGE in table else "prompt"
    missing = [column for column in ("task", shown) if column not in table]
    if missing:
        raise StimulusError(
            f"{name}: no column {missing[0]!r}; the header has {', '.join(table.columns)}. Needed "
            "are task and prompt (or image), separated by tabs"
        )
    table = table.copy()
    if "prompt" not in table:
        table["prompt"] = ""
    for column in ("task", shown):
        empty = table[column].isna() | (table[column].astype(str).str.strip() == "")
        _raise_at(empty, name, f"empty {column}")
    if "stim_id" not in table:
        number = table.groupby("task").cumcount() + 1
        table["stim_id"] = table["task"] + number.map("-{:04d}".format)
    _raise_at(table["stim_id"].str.strip() == "", name, "empty stim_id")
    _raise_at(table["stim_id"].duplicated(), name, "stim_id used before", table["stim_id"])
    _raise_at(table[shown].duplicated(), name, f"{shown} used before", table[shown])
    for column in ("frame", "split", "topic", "concept"):
        if column not in table:
            table[column] = ""
    for column in ("topic", "concept"):
        table[column] = table[column].where(table[column] != "", table["stim_id"])
    _raise_at(~table["split"].isin(["", *SPLITS]), name, "unknown split", table["split"])
    return table[[*COLUMNS, *([IMAGE] if IMAGE in table else [])]]


def _raise_at(bad: pd.Series, name: str, what: str, values: pd.Series | None = None) -> None:
    """Raise with the file's row number of the first bad row; the header is row 1."""
    if bad.any():
        row = int(bad.to_numpy().argmax())
        value = "" if values is None else f" ({values.iloc[row]!r})"
        raise StimulusError(f"{name}, row {row + 2}: {what}{value}")


def describe(table: pd.DataFrame) -> pd.DataFrame:
    """Count prompts, topics and question frames of each task and split.

    Returns
    -------
    DataFrame
        Columns ``task, split, prompts, topics, frames, example``.
    """
    rows = [
        (
            task,
            split or "any",
            len(rows),
            rows["topic"].nunique(),
            rows["frame"].replace("", pd.NA).nunique(),
            rows["prompt"].iloc[0],
        )
        for (task, split), rows in table.groupby(["task", "split"], sort=False)
    ]
    columns = ["task", "split", "prompts", "topics", "frames", "example"]
    return pd.DataFrame(rows, columns=columns)
