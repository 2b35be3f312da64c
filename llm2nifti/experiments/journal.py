"""Where are finished pieces of long work kept? In a file of lines, one as soon as it is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llm2nifti.bids import Run, manifest
from llm2nifti.experiments.errors import ExperimentError
from llm2nifti.plans import Json
from llm2nifti.recording import Lines


class ResultJournal:
    """Results by key, each written when it comes; what an interruption cut off is dropped.

    Parameters
    ----------
    path : Path
        A file of JSON lines; the first says what settings they were made with.
    settings : dict
        What decides the results.
    overwrite : bool, default=False
        Start anew.

    Raises
    ------
    ExperimentError
        If the file was made with other settings.
    """

    def __init__(self, path: Path, settings: Json, *, overwrite: bool = False) -> None:
        self.path = path
        self._settings = json.loads(json.dumps(settings))
        self._lines = Lines(path)
        if overwrite or len(self._lines.contents) < 2:  # in the latter case nothing is lost
            self._lines.clear()
        else:
            _compare(path, self._lines.contents[0], self._settings)
        self._results: Json = dict(self._lines.contents[1:])

    def __contains__(self, key: str) -> bool:
        """Whether the result is there."""
        return key in self._results

    def __len__(self) -> int:
        """Number of results."""
        return len(self._results)

    def __getitem__(self, key: str) -> Any:
        """Result of a key."""
        return self._results[key]

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        """Result of a key, made and kept, on disk too, unless it is there."""
        if key not in self._results:
            result = make()
            settings = [] if self._lines.contents else [self._settings]
            if settings:
                manifest.record_journal(self.path)
            self._lines.append(*settings, [key, result])
            self._results[key] = result
        return self._results[key]

    def finish(self) -> None:
        """Forget what is now kept elsewhere."""
        manifest.delete_journal(self.path)


def hash_texts(runs: Sequence[Run]) -> str:
    """SHA-256 of the prompts and answers of some runs, which a new scan may have changed."""
    digest = hashlib.sha256()
    for run in runs:
        shown = run.events[["trial_type", "prompt"]].to_csv(index=False)
        digest.update(shown.encode() + run.tokens["token_id"].to_csv(index=False).encode())
    return digest.hexdigest()


def _compare(path: Path, kept: Json, asked: Json) -> None:
    """Raise ExperimentError where settings differ."""
    changed = [
        f"{name} {kept.get(name)!r}, now {value!r}"
        for name, value in asked.items()
        if kept.get(name) != value
    ]
    if changed:
        raise ExperimentError(
            f"{path} was made with other settings ({'; '.join(changed)}); use the same, or "
            "overwrite=True to measure all of it again"
        )
