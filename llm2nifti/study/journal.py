"""Which pieces of long work are done? One JSON line each, so that interrupted work resumes."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any


class Journal:
    """Finished pieces of one job; the file goes when the job ends without an error.

    Parameters
    ----------
    path : Path
        The file.
    settings : dict
        What the pieces depend on, ready for JSON: pieces of other settings are thrown away.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.settings = json.loads(json.dumps(settings))
        self.pieces: dict[str, Any] = {}

    def __enter__(self) -> Journal:
        """Read what is there."""
        lines = self.path.read_text("utf-8").splitlines() if self.path.exists() else []
        records = [record for record in map(_parsed, lines) if record is not None]
        if records and records[0] == self.settings:
            self.pieces = {record["key"]: record["value"] for record in records[1:]}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", encoding="utf-8") as file:  # a line cut short goes
            for record in (self.settings, *_records(self.pieces)):
                file.write(json.dumps(record) + "\n")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Remove the file when all is done, or nothing was."""
        if kind is None or not self.pieces:
            self.path.unlink(missing_ok=True)

    def __contains__(self, key: str) -> bool:
        """Whether a piece is done."""
        return key in self.pieces

    def __getitem__(self, key: str) -> Any:
        """Value of a piece."""
        return self.pieces[key]

    def __setitem__(self, key: str, value: Any) -> None:
        """Note a piece as done."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "value": value}) + "\n")
        self.pieces[key] = value


def _records(pieces: dict[str, Any]) -> list[dict[str, Any]]:
    """Lines of the file."""
    return [{"key": key, "value": value} for key, value in pieces.items()]


def _parsed(line: str) -> Any:
    """Content of a line, or None if it was cut short."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
