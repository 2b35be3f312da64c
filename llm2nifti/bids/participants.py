"""Which models are in a dataset, and in which sessions? The two tables that describe them.

`root` is a dataset, `subject` and `session` are BIDS labels (the latter empty where there are no
sessions) and `info` is what a recording says of its model and settings.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from llm2nifti.bids import manifest
from llm2nifti.bids.files import write_json, write_tsv
from llm2nifti.bids.paths import folder_of
from llm2nifti.bids.readers import DamagedFileError, read_text_tsv

_HASH = {"Description": "SHA-256 of the weights in memory, or how they were drawn."}
_NAME = {"Description": "Name or identifier that the model was loaded by."}
_NOT_APPLICABLE = {"Description": "n/a", "Levels": {"n/a": "not applicable"}}

PARTICIPANT_COLUMNS: dict[str, Mapping[str, object]] = {
    "participant_id": {"Description": "A model; no one took part."},
    "species": {"Description": "n/a: a language model has no species."},
    "age": {"Description": "n/a", "Units": "year"},
    "sex": _NOT_APPLICABLE,
    "handedness": _NOT_APPLICABLE,
    "model": _NAME,
    "architecture": {"Description": "Class of the model in transformers."},
    "layers": {"Description": "Number of blocks."},
    "width": {"Description": "Units of the residual stream."},
    "parameters": {"Description": "Number of weights."},
    "tokenizer": {"Description": "Class of the tokenizer in transformers."},
    "licence": {"Description": "Licence of the weights, where it is known."},
    "weights_hash": _HASH,
    "untrained": {
        "Description": "Whether the weights are random.",
        "Levels": {"yes": "random weights", "no": "trained weights"},
    },
}
SESSION_COLUMNS: dict[str, Mapping[str, object]] = {
    "session_id": {"Description": "A way in which the model was recorded."},
    "model": _NAME,
    "revision": {"Description": "Revision of the weights: branch, tag or commit."},
    "dtype": {"Description": "Data type of the weights."},
    "seed": {"Description": "Seed of the sampling."},
    "temperature": {"Description": "Temperature of the sampling; 0 is greedy."},
    "weights_hash": _HASH,
}
PARTICIPANTS = "participants.tsv"
SESSIONS = "_sessions.tsv"
# Keys of info["Model"] that are not the name of their column with a capital letter.
_KEYS = {"model": "Name", "dtype": "DType", "weights_hash": "WeightsHash"}


def add_participant(root: Path, subject: str, session: str, info: Mapping[str, Any]) -> None:
    """Describe a model in participants.tsv, sorted by name.

    A model without sessions that is there already is left alone. Where the sessions of one model
    differ in a column, it says n/a: the table of sessions tells.
    """
    is_random = str(info.get("Model", {}).get("WeightsHash", "")).startswith("random")
    row = {"participant_id": f"sub-{subject}", "untrained": "yes" if is_random else "no"}
    _add_row(root / PARTICIPANTS, root, row, info, merge=bool(session))


def add_session(root: Path, subject: str, session: str, info: Mapping[str, Any]) -> None:
    """Describe a session in the model's table of sessions; one that is there is left alone."""
    settings = info.get("Settings", {})
    row = {"session_id": f"ses-{session}"}
    row |= {name: settings.get(name) for name in ("seed", "temperature")}
    path = _sessions_path(root, subject)
    if not path.with_suffix(".json").exists():
        write_json(path.with_suffix(".json"), root, SESSION_COLUMNS)
    _add_row(path, root, row, info, merge=False)


def weights_hash(root: Path, subject: str, session: str = "") -> str | None:
    """What identifies the weights that a model's runs were made with; None if it has no runs."""
    if session:
        path, name = _sessions_path(root, subject), f"ses-{session}"
    else:
        path, name = root / PARTICIPANTS, f"sub-{subject}"
    if not path.exists():
        return None
    table = read_text_tsv(path)
    if "weights_hash" not in table:
        raise DamagedFileError(path, "the column weights_hash is missing")
    hashes = table.loc[table.iloc[:, 0] == name, "weights_hash"]
    return None if hashes.empty else str(hashes.iloc[0])


def _sessions_path(root: Path, subject: str) -> Path:
    """Table of a model's sessions."""
    return root / folder_of(subject) / f"sub-{subject}{SESSIONS}"


def _columns(path: Path) -> dict[str, Mapping[str, object]]:
    """Columns that a table has of ours."""
    return SESSION_COLUMNS if path.name.endswith(SESSIONS) else PARTICIPANT_COLUMNS


def _add_row(
    path: Path, root: Path, row: Mapping[str, object], info: Mapping[str, Any], *, merge: bool
) -> None:
    """Add a row to a sorted table, or keep what is equal of the row that is there.

    The rest of the row is what `info` says of the model. Columns that others added stay.
    """
    columns, model = _columns(path), info.get("Model", {})
    described = {name: model.get(_KEYS.get(name, name.capitalize())) for name in columns}
    new = {k: "n/a" if value is None else str(value) for k, value in {**described, **row}.items()}
    table = read_text_tsv(path) if path.exists() else pd.DataFrame(columns=[*columns], dtype=str)
    table = table.reindex(columns=list(dict.fromkeys([*columns, *table])), fill_value="n/a")
    key = table.columns[0]
    is_there = table[key] == new[key]
    if is_there.any():
        old = table[is_there].iloc[0].to_dict()
        same = {name: cell if new.get(name, cell) == cell else "n/a" for name, cell in old.items()}
        if not merge or same == old:
            return
        table, new = table[~is_there], same
    table = pd.concat([table, pd.DataFrame([dict.fromkeys(table, "n/a") | new])])
    write_tsv(path, root, table.sort_values(key), merged=True)


def drop_rows(path: Path, root: Path, names: Collection[str]) -> None:
    """Take rows out of a table; without a row of others it goes.

    What others added to it, be it a column or a cell, is kept as a copy.
    """
    if not path.exists():
        return
    table = read_text_tsv(path)
    if not manifest.is_as_written(root, path) or set(table) != set(_columns(path)):
        manifest.keep_copy(root, path)
    others = table[~table.iloc[:, 0].isin(names)]
    if others.empty:
        manifest.delete(root, path)
    else:
        write_tsv(path, root, others, merged=True)
