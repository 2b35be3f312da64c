"""What came out? Volumes x units of one run, memory-mapped, with everything needed to read them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llm2nifti.geometry import ModelBrain
from llm2nifti.paradigm import Paradigm
from llm2nifti.plans import Json

TOKEN_COLUMNS = {
    "trial": "0-based number of the trial in the run",
    "position": "0-based position of the frame in its trial",
    "token_id": "index of its (first) token in the vocabulary",
    "token": "its text",
    "log_probability": "natural logarithm of the probability of its token or tokens",
    "entropy": "entropy of the next-token distribution in nats",
    "is_punctuation": "1 if the text has no letter and no digit",
    "residual_norm": "Euclidean norm of the last block's output",
}
REDUCED = ("trial", "last")  # one volume a trial


class TrialRow(TypedDict):
    """One trial as JSON, a value a frame, None where there is none; see `TOKEN_COLUMNS`."""

    token_id: list[int]
    token: list[str]
    log_probability: list[float | None]
    entropy: list[float | None]
    residual_norm: list[float | None]
    response: str


class RecordingError(ValueError):
    """A recording cannot be continued or holds values that are not numbers."""

    exit_code = 1


@dataclass(frozen=True, eq=False)
class Recording:
    """One run through a paradigm."""

    values: NDArray[np.float32]  #: (n_volumes, n_units) of every unit; large ones are mapped
    paradigm: Paradigm  #: what was shown
    brain: ModelBrain  #: where the units live
    tokens: pd.DataFrame  #: one row a token or word; see `TOKEN_COLUMNS`
    responses: list[str]  #: generated text of each trial
    rendered: list[str]  #: the text that the model read, its chat template applied
    info: Json = field(default_factory=dict)  #: provenance: model, settings, versions
    norms: NDArray[np.float32] | None = None  #: (n_units,) of the weights that write into each unit
    frames: str = "token"  #: what one volume is: token, word, or one a trial; see `REDUCED`
    owner: object = field(default=None, repr=False)  #: keeps alive the folder of mapped values

    @property
    def counts(self) -> NDArray[np.int64]:
        """(n_trials,) volumes of each trial."""
        return volume_counts(self.paradigm, self.frames)

    @property
    def t_r(self) -> float:
        """Seconds a volume."""
        n_frames = self.paradigm.n_frames if self.frames in REDUCED else 1
        return self.paradigm.t_r * n_frames

    def trials(self) -> Iterator[NDArray[np.float32]]:
        """(n_volumes, n_units) of one trial after another.

        Of a memory map only one trial is read at a time: memory stays flat, however long the run.
        """
        return windows(self.values, self.counts)

    def by_trial(self) -> NDArray[np.float32]:
        """(n_trials, n_frames, n_units) view; RecordingError if trials differ in their frames."""
        if len(set(self.counts)) != 1:
            raise RecordingError("trials have different numbers of frames; use trials()")
        return self.values.reshape(len(self.counts), -1, self.values.shape[1])

    def means(self) -> Iterator[NDArray[np.float32]]:
        """(1, n_units) mean of the volumes of one trial after another."""
        for trial in self.trials():
            yield trial.mean(axis=0, dtype=np.float64, keepdims=True).astype(np.float32)

    def trial_means(self) -> NDArray[np.float32]:
        """(n_trials, n_units) mean of each trial's volumes."""
        return np.concatenate(list(self.means()))

    def __repr__(self) -> str:
        """Say the sizes."""
        counts = sorted(set(self.counts))
        n_frames = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        return (
            f"Recording: task {self.paradigm.task}, run {self.paradigm.run}, {len(self.counts)} "
            f"trials x {n_frames} frames x {self.values.shape[1]} units"
        )


def volume_counts(paradigm: Paradigm, frames: str) -> NDArray[np.int64]:
    """(n_trials,) volumes of each trial."""
    if frames in REDUCED:
        return np.ones(paradigm.n_trials, np.int64)
    return paradigm.counts


def windows(
    values: NDArray[np.float32], counts: Sequence[int] | NDArray[np.int64]
) -> Iterator[NDArray[np.float32]]:
    """Rows of an array, `counts` at a time; those of a memory map are read from its file."""
    start = 0
    for count in counts:
        if isinstance(values, np.memmap) and values.filename is not None:
            offset, size = values.offset + start * values.strides[0], count * values.shape[1]
            rows = np.fromfile(values.filename, np.float32, int(size), offset=int(offset))
            yield rows.reshape(count, -1)
        else:
            yield values[start : start + count]
        start += count


class DamagedJournalError(ValueError):
    """A line of a journal that was written whole is no longer what was written."""


class Lines:
    """A file of JSON lines that only grows: what is written stays, also where the power fails.

    A torn last line counts as not there, and goes when the next one comes. The file appears with
    its first line. A line that cannot be read raises DamagedJournalError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        data = path.read_bytes() if path.exists() else b""
        self._size = data.rfind(b"\n") + 1
        self.contents: list[Any] = []
        for number, line in enumerate(data[: self._size].splitlines(), start=1):
            try:
                self.contents.append(json.loads(line))
            except ValueError as error:
                raise DamagedJournalError(
                    f"{path}: line {number}: {error}; the file is damaged: restore it, or delete "
                    "it to do that work again"
                ) from None

    def append(self, *contents: Any) -> None:
        """Write lines, all of them or none that counts."""
        text = "".join(json.dumps(content) + "\n" for content in contents).encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.truncate(self._size)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(text)
        self.contents += contents

    def clear(self) -> None:
        """Forget all lines; the file is emptied when the next one comes."""
        self.contents, self._size = [], 0


class Journal:
    """Values of an unfinished recording, written batch by batch so that it can be resumed.

    A folder with ``plan.json`` (what is being recorded), ``values.f32`` (volumes after volumes; it
    grows) and ``batches.jsonl`` (one line a finished batch). A batch counts once its line is on
    disk; everything after the last line is done again.

    `counts` are the volumes of each trial, (n_trials,). `plan` is everything that decides the
    values: resuming with another one raises RecordingError, as does a disk too full for this one.
    """

    def __init__(
        self, folder: Path, counts: Sequence[int], n_units: int, plan: Mapping[str, Any]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.n_units = n_units
        self._first = np.cumsum([0, *counts])
        self._path, plan_path = folder / "values.f32", folder / "plan.json"
        counted = {"counts": [int(n) for n in counts], "n_units": n_units}
        text = json.dumps({**counted, **plan}, indent=1, sort_keys=True, default=str)
        if not plan_path.exists():
            (folder / "batches.jsonl").unlink(missing_ok=True)
            self._path.write_bytes(b"")
            self._check_space()
            temporary = plan_path.with_suffix(".tmp")
            temporary.write_text(text, "utf-8")
            temporary.rename(plan_path)
        elif plan_path.read_bytes() != text.encode():
            raise RecordingError(
                f"{folder} holds an unfinished recording with other settings; finish it with "
                "the same settings, or start anew with overwrite=True"
            )
        self._lines = Lines(folder / "batches.jsonl")

    def _check_space(self) -> None:
        """Raise if the disk cannot hold the recording: better now than after hours."""
        needed = int(self._first[-1]) * self.n_units * 4
        free = shutil.disk_usage(self._path.parent).free
        if needed > free:
            raise RecordingError(
                f"the recording needs {needed / 1e9:.1f} GB and {self._path.parent} has "
                f"{free / 1e9:.1f} GB left; free some space, or record less "
                "(frames='trial', or fewer sites)"
            )

    @property
    def batches(self) -> list[Json]:
        """Finished batches: the trials from ``start`` to ``stop``, and their ``rows``."""
        return self._lines.contents

    def open(self, start: int, stop: int) -> NDArray[np.float32]:
        """(n_volumes, n_units) to fill and commit; the file grows as far as these trials reach.

        It is memory, not a map of the file: there, the first touch of each page costs more than
        writing the page.
        """
        a, b = int(self._first[start]), int(self._first[stop])
        _grow(self._path, b * self.n_units * 4)
        return np.zeros((b - a, self.n_units), np.float32)

    def commit(
        self, start: int, stop: int, values: NDArray[np.float32], rows: list[TrialRow]
    ) -> None:
        """Make the trials from `start` to `stop` permanent, if all their values are finite."""
        _check_finite(values, start, np.diff(self._first[start : stop + 1]))
        with self._path.open("r+b") as file:
            file.seek(int(self._first[start]) * self.n_units * 4)
            file.write(np.ascontiguousarray(values).data)
            file.flush()
            os.fsync(file.fileno())
        self._lines.append({"start": start, "stop": stop, "rows": rows})

    @property
    def values(self) -> np.memmap:
        """(n_volumes, n_units) memory map of everything."""
        return np.memmap(self._path, np.float32, "r", shape=(int(self._first[-1]), self.n_units))

    def rows(self) -> list[TrialRow]:
        """Metadata of all finished trials in order."""
        ordered = sorted(self.batches, key=itemgetter("start"))
        return [row for batch in ordered for row in batch["rows"]]


class InMemory:
    """Values of a recording that nobody will resume; it is used as a `Journal` is."""

    def __init__(self, counts: Sequence[int], n_units: int) -> None:
        self._first = np.cumsum([0, *counts])
        self.values = np.zeros((int(self._first[-1]), n_units), np.float32)
        self.batches: list[Json] = []

    def open(self, start: int, stop: int) -> NDArray[np.float32]:
        """(n_volumes, n_units) of some trials, to fill and commit."""
        return self.values[self._first[start] : self._first[stop]]

    def commit(
        self, start: int, stop: int, values: NDArray[np.float32], rows: list[TrialRow]
    ) -> None:
        """Keep the trials, if all their values are finite."""
        _check_finite(values, start, np.diff(self._first[start : stop + 1]))
        self.batches.append({"start": start, "stop": stop, "rows": rows})

    def rows(self) -> list[TrialRow]:
        """Metadata of all trials in order, which is that of recording."""
        return [row for batch in self.batches for row in batch["rows"]]


def _check_finite(values: NDArray[np.float32], start: int, counts: NDArray[np.int64]) -> None:
    """Raise RecordingError unless all volumes of the trials from `start` on are finite."""
    trials = np.repeat(np.arange(start, start + len(counts)), counts)
    for trial, volume in zip(trials, values, strict=True):
        if not np.isfinite(volume).all():
            unit = int(np.argmin(np.isfinite(volume)))
            raise RecordingError(
                f"trial {trial} has NaN or infinite activations (first in unit {unit}); "
                "try dtype='float32', or another model"
            )


def _grow(path: Path, size: int) -> None:
    """Reserve a file's space: a full disk must be an error now, not a crash in a page fault."""
    missing = size - path.stat().st_size
    if missing <= 0:
        return
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), size - missing, missing)
            return
        file.seek(0, os.SEEK_END)  # macOS and Windows: write zeros
        for start in range(0, missing, 1 << 24):
            file.write(bytes(min(1 << 24, missing - start)))
