"""Run a paradigm through a model and record what its layers do.

Trials run in batches; hooks fire in the forward passes and their values go straight to the
recording. In mode ``generate`` frame ``t`` of a trial holds the outputs of the pass that produced
token ``t``; in mode ``read`` a frame is a token, a word or the whole of the stimulus.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from numpy.typing import NDArray
from tqdm import tqdm

from llm2nifti import __version__
from llm2nifti.geometry import layout
from llm2nifti.models import LoadedModel
from llm2nifti.paradigm import Paradigm
from llm2nifti.plans import Json, Settings
from llm2nifti.recording import (
    TOKEN_COLUMNS,
    InMemory,
    Journal,
    Recording,
    TrialRow,
    volume_counts,
)
from llm2nifti.scanner import prefill
from llm2nifti.scanner.batches import n_together
from llm2nifti.scanner.generating import Generator, answer
from llm2nifti.scanner.kernels import fast_linear, name_for
from llm2nifti.scanner.likelihood import dialogues, log_likelihoods
from llm2nifti.scanner.reading import Reader
from llm2nifti.scanner.stimulus import ScanError, Stimuli, prepare, resolved

__all__ = [
    "ScanError",
    "Settings",
    "Shown",
    "answer",
    "check",
    "dialogues",
    "log_likelihoods",
    "scan",
    "scan_together",
]

IN_MEMORY = 2**30  # bytes of values that need no file, as long as nobody could resume them


def scan(
    model: LoadedModel,
    paradigm: Paradigm,
    *,
    settings: Settings | None = None,
    folder: Path | str | None = None,
    replay: Sequence[Sequence[int]] | None = None,
    on_trials: Callable[[int], object] | None = None,
) -> Recording:
    """Show a paradigm to a model and record its units.

    Parameters
    ----------
    model : LoadedModel
        From `llm2nifti.models.load`.
    paradigm : Paradigm
        What to show.
    settings : Settings, optional
        What and how to record.
    folder : path-like, optional
        Where to keep the values. An interrupted recording in this folder is resumed. By default
        they are in memory up to a gibibyte, beyond it in a temporary folder that lives as long as
        the recording.
    replay : sequence of (n_frames,) sequences of int, optional
        Token ids to force, one sequence a trial, instead of letting the model generate: one
        forward pass a batch. Used for untrained models, which only repeat one token by themselves.
    on_trials : callable, optional
        Called with the number of trials of every finished batch; by default a progress bar.

    Returns
    -------
    Recording

    Raises
    ------
    ScanError
        If a prompt does not fit the model's context or the replay does not fit the paradigm.

    Examples
    --------
    >>> from llm2nifti import models, paradigm, scanner  # doctest: +SKIP
    >>> scanner.scan(models.load(), paradigm.blocks("pathology"))  # doctest: +SKIP
    Recording: task pathology, run 1, 56 trials x 8 frames x 52992 units
    """
    shown = Shown(paradigm, Path(folder) if folder is not None else None, replay)
    (recording,) = scan_together(model, [shown], settings=settings, on_trials=on_trials)
    assert recording is not None  # it is wanted
    return recording


@dataclass(frozen=True, eq=False)
class Shown:
    """A run that is recorded."""

    paradigm: Paradigm
    folder: Path | None = None  #: of the values; None for memory, or a temporary one, see `scan`
    replay: Sequence[Sequence[int]] | None = None  #: token ids to force, see `scan`
    is_wanted: bool = True  #: otherwise it is computed with the others alone, and not kept


def scan_together(
    model: LoadedModel,
    shown: Sequence[Shown],
    *,
    settings: Settings | None = None,
    on_trials: Callable[[int], object] | None = None,
) -> list[Recording | None]:
    """Record several runs in one batch, or one run in batches of ``settings.batch_size``.

    Products of large matrices are faster, and what prompts begin with together is read once for
    all runs. Which trials share a batch changes values by rounding. Runs of files, and those of a
    model that reads padding as text, are recorded one after the other.

    Parameters
    ----------
    model, settings, on_trials
        See `scan`.
    shown : sequence of Shown
        Runs with as many frames a trial.

    Returns
    -------
    list of Recording or None
        None of a run that is not wanted.
    """
    settings = resolved(settings or Settings(), model)
    prepared = [prepare(model, one.paradigm, settings) for one in shown]
    size = min(n_together(model, stimuli, settings) for stimuli in prepared)
    settings = replace(settings, batch_size=size)
    begun = [_Run(model, *one, settings) for one in zip(shown, prepared, strict=True)]
    if len(begun) > 1 and not _can_share(model, begun, settings):
        how: Json = {"settings": settings, "on_trials": on_trials}
        return [scan_together(model, [one], **how)[0] for one in shown]
    stimuli, brain = Stimuli.joined([run.stimuli for run in begun]), begun[0].brain
    # The operator first: what it refuses must not leave a journal that other settings clash with.
    if settings.mode == "generate":
        replay = [tokens for run in begun for tokens in run.replay or ()]
        operator: Generator | Reader = Generator(model, brain, settings, stimuli, replay or None)
    else:
        operator = Reader(model, brain, settings, stimuli)
    for run in begun:
        run.open()
    with fast_linear(model.module):
        _record(operator, begun, size, on_trials)
    norms = model.weight_norms(brain.sites)
    return [run.recording(norms) if run.shown.is_wanted else None for run in begun]


def _can_share(model: LoadedModel, runs: Sequence[_Run], settings: Settings) -> bool:
    """Whether trials of different runs can be in one batch."""
    if any(run.stimuli.files or run.brain.sites != runs[0].brain.sites for run in runs):
        return False
    is_plain = settings.mode == "generate" and model.kind == "causal"
    return not is_plain or prefill.can_continue(model) or prefill.leaves_padding_out(model)


class _Run:
    """A run while it is recorded: what is shown, and where its values go."""

    def __init__(
        self, model: LoadedModel, shown: Shown, stimuli: Stimuli, settings: Settings
    ) -> None:
        self.shown, self.stimuli, self.settings = shown, stimuli, settings
        self.brain = layout(self.stimuli.sites)
        self.paradigm = shown.paradigm
        if settings.mode == "read":  # as many frames as there are to read
            counts = tuple(map(len, self.stimuli.frames))
            differing = counts if len(set(counts)) > 1 else None
            self.paradigm = replace(self.paradigm, n_frames=max(counts), frame_counts=differing)
        self.replay = None if shown.replay is None else _checked(shown.replay, self.paradigm)
        is_replayed = self.replay is not None
        chat = self.stimuli.is_chat
        self.info = _provenance(model, settings, is_chat=chat, replayed=is_replayed)
        self._n_volumes = volume_counts(self.paradigm, settings.frames)
        self._owner: object = None
        self._journal: Journal | InMemory | None = None
        self._finished: set[int] = set()  # first trials of the batches that are in the journal

    def open(self) -> None:
        """Open the journal, if the run is wanted; what nobody can resume needs none."""
        folder = self.shown.folder
        if not self.shown.is_wanted:
            return
        n_bytes = 4 * int(self._n_volumes.sum()) * self.brain.n_units
        if folder is None and n_bytes <= IN_MEMORY:
            self._journal = InMemory(self._n_volumes.tolist(), self.brain.n_units)
            return
        if folder is None:
            owner = tempfile.TemporaryDirectory(prefix="llm2nifti-", ignore_cleanup_errors=True)
            self._owner, folder = owner, Path(owner.name)
        plan = {
            "info": self.info,
            "space": self.brain.space,
            "rendered": self.stimuli.rendered,
            "images": [path.name for path in self.stimuli.files],
            "replay": self.replay,
        }
        self._journal = Journal(folder, self._n_volumes.tolist(), self.brain.n_units, plan)
        self._finished = {batch["start"] for batch in self._journal.batches}

    def is_recorded(self, start: int) -> bool:
        """Whether the batch that begins with this trial is done, or nobody wants it."""
        return self._journal is None or start in self._finished

    def values(self, start: int, stop: int) -> np.ndarray:
        """(n_volumes, n_units) where the values of some trials go."""
        if self._journal is not None and not self.is_recorded(start):
            return self._journal.open(start, stop)
        return np.empty((int(self._n_volumes[start:stop].sum()), self.brain.n_units), np.float32)

    def commit(self, start: int, stop: int, values: np.ndarray, rows: list[TrialRow]) -> None:
        """Make trials permanent, unless they are or nobody wants them."""
        if self._journal is not None and not self.is_recorded(start):
            self._journal.commit(start, stop, values, rows)
            self._finished.add(start)

    def recording(self, norms: NDArray[np.float32]) -> Recording:
        """What was recorded, with the (n_units,) norms of weights."""
        assert self._journal is not None
        rows = self._journal.rows()
        return Recording(
            values=self._journal.values,
            paradigm=self.paradigm,
            brain=self.brain,
            tokens=_token_table(rows),
            responses=[row["response"] for row in rows],
            rendered=self.stimuli.rendered,
            info=self.info,
            norms=norms,
            frames=self.settings.frames,
            owner=self._owner,
        )


def _checked(replay: Sequence[Sequence[int]], paradigm: Paradigm) -> list[list[int]]:
    """Tokens to force as JSON has them; ScanError unless they fit the paradigm."""
    tokens = [list(map(int, of_trial)) for of_trial in replay]
    lengths = {len(of_trial) for of_trial in tokens}
    if (len(tokens), lengths) != (paradigm.n_trials, {paradigm.n_frames}):
        raise ScanError(
            f"replay has {len(tokens)} trials of {sorted(lengths)} tokens, the paradigm has "
            f"{paradigm.n_trials} of {paradigm.n_frames}"
        )
    return tokens


def check(model: LoadedModel, paradigm: Paradigm, settings: Settings) -> int:
    """Trials that are computed together; an error if the model can't be shown them or lacks sites.

    Parameters
    ----------
    model, paradigm, settings
        See `scan`.

    Returns
    -------
    int
        The batch size of the settings, or the default one for this model and paradigm.

    Raises
    ------
    ScanError
        If a prompt does not fit the model.
    SiteError
        If the model lacks the sites.
    """
    settings = resolved(settings, model)
    return n_together(model, prepare(model, paradigm, settings), settings)


def _record(
    operator: Generator | Reader,
    runs: Sequence[_Run],
    batch_size: int,
    on_trials: Callable[[int], object] | None,
) -> None:
    """Record the batches that are not in a journal yet; show a bar, unless the caller does."""
    label = ", ".join(f"{run.paradigm.task} run {run.paradigm.run}" for run in runs)
    sizes = [run.paradigm.n_trials for run in runs]
    batches = [[(run, 0, size) for run, size in zip(runs, sizes, strict=True)]]
    if len(runs) == 1:
        starts = range(0, sizes[0], batch_size)
        batches = [[(runs[0], start, min(start + batch_size, sizes[0]))] for start in starts]
    hide = None if on_trials is None else True
    first, is_on_gpu = 0, operator.model.device.type == "cuda"
    with (
        tqdm(total=sum(sizes), desc=f"scan {label}", unit="trial", disable=hide) as bar,
        ThreadPoolExecutor(max_workers=1) as disk,
    ):
        committing: Future[None] = disk.submit(lambda: None)
        for batch in batches:
            counts = [stop - start for _, start, stop in batch]
            if not all(run.is_recorded(start) for run, start, _ in batch):
                outs = [run.values(start, stop) for run, start, stop in batch]
                rows, land = operator.record(slice(first, first + sum(counts)), outs)
                committing.result()
                # A GPU computes the next batch meanwhile; a CPU has no time to give, nor memory.
                committing = disk.submit(_commit, batch, outs, rows, land)
                if not is_on_gpu:
                    committing.result()
            first += sum(counts)
            (on_trials or bar.update)(sum(counts))
        committing.result()


def _commit(
    batch: Sequence[tuple[_Run, int, int]],
    outs: Sequence[np.ndarray],
    rows: Sequence[TrialRow],
    land: Callable[[], None],
) -> None:
    """Make a batch permanent, of every run its part, once its values have landed."""
    land()
    left = iter(rows)
    for (run, start, stop), values in zip(batch, outs, strict=True):
        run.commit(start, stop, values, list(islice(left, stop - start)))


def _provenance(model: LoadedModel, settings: Settings, *, is_chat: bool, replayed: bool) -> Json:
    """Everything that decides the values, for sidecars and for resuming."""
    decoding = "greedy" if settings.temperature == 0 else "sampled"
    if replayed:
        decoding = "teacher-forced replay of another model's tokens"
    if settings.mode == "read":
        decoding = "none: the stimulus is read"
    # Left out where it is not used, as in recordings that were begun before it was there.
    kept = {k: v for k, v in asdict(settings).items() if k != "at" or v is not None}
    return {
        "Model": {"Subject": model.name, **model.source},
        "Settings": kept,
        "ChatTemplate": is_chat,
        "Decoding": decoding,
        "Threads": torch.get_num_threads(),
        "LinearLayers": name_for(model.module),
        "Versions": {
            "llm2nifti": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _token_table(rows: Sequence[Any]) -> pd.DataFrame:
    """One row a frame from one row a trial."""
    lengths = [len(row["token"]) for row in rows]
    columns = [name for name in TOKEN_COLUMNS if name in rows[0]]
    table = pd.DataFrame({name: list(chain(*(row[name] for row in rows))) for name in columns})
    table["trial"] = np.repeat(np.arange(len(rows)), lengths)
    table["position"] = np.concatenate([np.arange(n) for n in lengths])
    table["is_punctuation"] = [int(not any(map(str.isalnum, text))) for text in table["token"]]
    return table[list(TOKEN_COLUMNS)]
