"""What is in one file? Readers that name it, and the line, where it is damaged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from llm2nifti.bids.paths import DERIVATIVES, DESCRIPTION
from llm2nifti.geometry import UNREADABLE
from llm2nifti.plans import Json

TEXT = dict.fromkeys(  # columns that stay text, whatever is in them
    ("trial_type", "stim_id", "prompt", "response", "question_frame", "topic", "concept", "token"),
    str,
)
_KINDS = {dict: "object", list: "list", str: "text", bool: "boolean"}
_KINDS |= {int: "whole number", float: "number"}


class DamagedFileError(ValueError):
    """A file of a dataset cannot be read as what it is; `what` is wrong with it, and where."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path}: {what}; the file is damaged: {_cure(path)}")


class MissingKeyError(DamagedFileError, KeyError):
    """A JSON object lacks a key; templates that ask whether it is there see a KeyError."""

    def __str__(self) -> str:
        """Message without the quotes that a KeyError puts around it."""
        return str(self.args[0])


def _cure(path: Path) -> str:
    """What to do about a damaged file: runs can be mended, results are measured again."""
    mark = DERIVATIVES.as_posix()
    if mark in path.as_posix() and path.parent.name not in ("func", "anat"):
        return "restore it, or delete it and run the command that made it again"
    for folder in path.parents:
        if (folder / DESCRIPTION).exists() and not folder.match(mark):
            return f"run llm2nifti check {folder} --repair, or restore it"
    return "restore it"


def read_json(path: Path, kinds: Mapping[str, type] | None = None) -> Json:
    """Read a JSON object; a key that is missing, there or deeper, is an error naming the file.

    `kinds` is what some keys hold, where they are there: dict, list, str, int or float.

    Raises
    ------
    DamagedFileError
        If the file is missing or holds something else.
    """
    try:
        content = json.loads(_read(path), object_hook=lambda pairs: _Object(pairs, path))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise DamagedFileError(path, f"{where}: not JSON ({error.msg})") from None
    except RecursionError:
        raise DamagedFileError(path, "not JSON that can be read (nested too deeply)") from None
    if not isinstance(content, dict):
        raise DamagedFileError(path, f"a JSON {type(content).__name__}, not an object")
    for key, kind in (kinds or {}).items():
        value = content.get(key, kind())
        allowed = (int, float) if kind is float else kind
        if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
            raise DamagedFileError(path, f"{key} is {value!r}, no {_KINDS[kind]}")
    return content


class _Object(dict):
    """A JSON object that knows its file, so that a missing key is named with it."""

    def __init__(self, content: Any, path: Path | None = None) -> None:
        super().__init__(content)
        self._path = path

    def __missing__(self, key: str) -> Any:
        if self._path is None:
            raise KeyError(key)
        raise MissingKeyError(self._path, f"{key} is missing")


def read_tsv(path: Path, kinds: Mapping[str, type] | None = None) -> pd.DataFrame:
    """Read a table written by `write_tsv`; only ``n/a`` counts as missing.

    The columns of `TEXT` stay text, also where all of it looks like numbers. `kinds` are columns
    that must be there and what they hold: str, int, or float (also n/a).

    Raises
    ------
    DamagedFileError
        If the file is missing, is no table, or lacks a column or a number.
    """
    table = read_text_tsv(path, na_values=["n/a"], dtype=TEXT)
    for column, kind in (kinds or {}).items():
        if column not in table:
            raise DamagedFileError(path, f"the column {column} is missing")
        if kind is str:
            continue
        cells = table[column]
        numbers = pd.to_numeric(cells, errors="coerce")
        bad = numbers.isna() & cells.notna() if kind is float else numbers % 1 != 0
        if bad.any():
            row = int(bad.to_numpy().argmax())
            value = f"{column} is {cells.astype(object).fillna('n/a').iloc[row]!r}"
            raise DamagedFileError(path, f"line {row + 2}: {value}, no {_KINDS[kind]}")
    return table


def read_text_tsv(path: Path, *, dtype: Any = str, **options: Any) -> pd.DataFrame:
    """Read a table whose cells all stay text: a number beside n/a must not become a float."""
    text = _read(path)
    try:
        table = pd.read_csv(StringIO(text), sep="\t", keep_default_na=False, dtype=dtype, **options)
    except ValueError as error:  # pandas' own errors are of that kind
        reason = " ".join(str(error).split()).removeprefix("Error tokenizing data. C error: ")
        raise DamagedFileError(path, f"not a table ({reason})") from None
    if not isinstance(table.index, pd.RangeIndex):
        raise DamagedFileError(path, "lines have more cells than there are names of columns")
    return table


def _read(path: Path) -> str:
    """Text of a file, which must hold some."""
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise DamagedFileError(path, "there is no such file") from None
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DamagedFileError(path, f"line {line}: not UTF-8 text ({error.reason})") from None
    if not text.strip():
        raise DamagedFileError(path, "the file is empty")
    return text


def read_img(path: Path) -> nib.Nifti1Image:
    """Open an image; 4D data are read later, but whether the file is long enough is checked.

    Raises
    ------
    DamagedFileError
        If the file is missing, no NIfTI image, or cut off.
    """
    try:
        img = nib.load(path)
        if not isinstance(img, nib.spatialimages.SpatialImage):
            raise DamagedFileError(path, "no image of a volume")
        if img.ndim < 4:
            np.asanyarray(img.dataobj)
        else:
            _check_size(path, img)
    except FileNotFoundError:
        raise DamagedFileError(path, "there is no such file") from None
    except DamagedFileError:
        raise
    except UNREADABLE as error:
        raise DamagedFileError(path, f"not a NIfTI image that can be read ({error})") from None
    return img


def _check_size(path: Path, img: nib.Nifti1Image) -> None:
    """Raise DamagedFileError unless a file is as long as its header says; nothing is unpacked."""
    n_bytes = img.dataobj.offset + img.dataobj.dtype.itemsize * int(np.prod(img.shape))
    size = path.stat().st_size
    if path.suffix == ".gz":  # the last bytes are the size of the content, modulo 2 ** 32
        with path.open("rb") as file:
            file.seek(size - 4)
            size, n_bytes = int.from_bytes(file.read(), "little"), n_bytes % 2**32
    if size != n_bytes:
        raise DamagedFileError(path, f"an image cut off: {size} bytes, not {n_bytes}")
