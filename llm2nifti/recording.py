"""What came out? Frames x units of one run, memory-mapped, with everything needed to read them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llm2nifti.geometry import ModelBrain
from llm2nifti.paradigm import Paradigm

TOKEN_COLUMNS = {
    "trial": "0-based number of the trial in the run",
    "position": "0-based position of the generated token in its trial",
    "token_id": "index in the vocabulary",
    "token": "the token's text",
    "log_probability": "natural logarithm of the token's probability",
    "entropy": "entropy of the next-token distribution in nats",
    "is_punctuation": "1 if the token has no letter and no digit",
    "residual_norm": "Euclidean norm of the last block's output",
}


class RecordingError(ValueError):
    """A recording cannot be continued or holds values that are not numbers."""

    exit_code = 1


@dataclass(frozen=True, eq=False)
class Recording:
    """One run through a paradigm.

    Attributes
    ----------
    values : (n_trials, n_frames, n_units) float32 array
        What every unit did in every frame; usually a memory map.
    paradigm : Paradigm
        What was shown.
    brain : ModelBrain
        Where the units live.
    tokens : DataFrame
        One row a frame; see `TOKEN_COLUMNS`.
    responses : list of str
        Generated text of each trial.
    rendered : list of str
        The text that the model read, its chat template applied.
    info : dict
        Provenance: model, settings, versions.
    norms : (n_units,) float32 array
        Norm of the weights that write into each unit.
    owner : object
        What keeps a temporary folder alive that `values` is mapped from.
    """

    values: NDArray[np.float32]
    paradigm: Paradigm
    brain: ModelBrain
    tokens: pd.DataFrame
    responses: list[str]
    rendered: list[str]
    info: dict[str, Any] = field(default_factory=dict)
    norms: NDArray[np.float32] | None = None
    owner: object = field(default=None, repr=False)

    def trial_means(self) -> NDArray[np.float32]:
        """(n_trials, n_units) mean of each trial's frames."""
        means = np.empty((self.values.shape[0], self.values.shape[2]), np.float32)
        for i, trial in enumerate(self.values):  # one trial at a time: the array may be large
            means[i] = trial.mean(axis=0, dtype=np.float64)
        return means

    def __repr__(self) -> str:
        """Say the sizes."""
        n_trials, n_frames, n_units = self.values.shape
        return (
            f"Recording: task {self.paradigm.task}, run {self.paradigm.run}, {n_trials} trials x "
            f"{n_frames} frames x {n_units} units"
        )


def _reserve(path: Path, n_bytes: int) -> None:
    """Reserve a file's space: a full disk must be an error now, not a crash in a page fault."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        file.seek(size - n_bytes)  # macOS and Windows: the new array is all zeros, write them
        for start in range(0, n_bytes, 1 << 24):
            file.write(bytes(min(1 << 24, n_bytes - start)))


class Journal:
    """Values of an unfinished recording, written batch by batch so that it can be resumed.

    A folder with ``plan.json`` (what is being recorded), ``values.npy`` (a memory map of the full
    size) and ``batches.jsonl`` (one line a finished batch). A batch counts once its line is on
    disk; everything after the last line is done again.

    Parameters
    ----------
    folder : Path
        Where to write; created if needed.
    shape : tuple of int
        Trials, frames, units.
    plan : mapping
        Everything that decides the values. Resuming with another plan is refused.

    Raises
    ------
    RecordingError
        If the folder holds a recording with another plan.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int], plan: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._lines = folder / "batches.jsonl"
        path = folder / "values.npy"
        text = json.dumps({"shape": shape, **plan}, indent=1, sort_keys=True, default=str)
        plan_path = folder / "plan.json"
        if plan_path.exists():
            if plan_path.read_text("utf-8") != text:
                raise RecordingError(
                    f"{folder} holds an unfinished recording with other settings; finish it with "
                    "the same settings, or start anew with --overwrite"
                )
            self.values = np.lib.format.open_memmap(path, mode="r+")
        else:
            self._lines.unlink(missing_ok=True)
            self.values = np.lib.format.open_memmap(path, "w+", np.float32, shape)
            _reserve(path, self.values.nbytes)
            temporary = plan_path.with_suffix(".tmp")
            temporary.write_text(text, "utf-8")
            temporary.rename(plan_path)
        self.batches = self._read()

    def _read(self) -> list[dict[str, Any]]:
        """Finished batches; a torn last line is cut off."""
        if not self._lines.exists():
            return []
        data = self._lines.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with self._lines.open("r+b") as file:
                file.truncate(len(whole))
        return [json.loads(line) for line in whole.splitlines()]

    def commit(self, start: int, stop: int, rows: list[dict[str, Any]]) -> None:
        """Make the trials from `start` to `stop` permanent, with their rows of metadata.

        Raises
        ------
        RecordingError
            If a value is not finite.
        """
        for trial in range(start, stop):
            if not np.isfinite(self.values[trial]).all():
                unit = int(np.argwhere(~np.isfinite(self.values[trial]))[0][1])
                raise RecordingError(
                    f"trial {trial} has NaN or infinite activations (first in unit {unit}); "
                    "try --dtype float32, or another model"
                )
        self.values.flush()
        line = json.dumps({"start": start, "stop": stop, "rows": rows})
        with self._lines.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.batches.append({"start": start, "stop": stop, "rows": rows})

    def rows(self) -> list[dict[str, Any]]:
        """Metadata of all finished trials in order."""
        ordered = sorted(self.batches, key=lambda batch: batch["start"])
        return [row for batch in ordered for row in batch["rows"]]
