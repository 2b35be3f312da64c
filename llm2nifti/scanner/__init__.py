"""Run a paradigm through a model and record what its layers do.

Trials run in batches; hooks fire in the forward passes and their values go straight to the
recording. In mode ``generate`` frame ``t`` of a trial holds the outputs of the pass that produced
token ``t``; in mode ``read`` a frame is a token, a word or the whole of the stimulus.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import transformers
from tqdm import tqdm

from llm2nifti import __version__
from llm2nifti.geometry import layout
from llm2nifti.models import LoadedModel
from llm2nifti.paradigm import Paradigm
from llm2nifti.plans import Json, Settings
from llm2nifti.recording import TOKEN_COLUMNS, Journal, Recording, TrialRow, volume_counts
from llm2nifti.scanner.generating import Generator, answer
from llm2nifti.scanner.kernels import fast_linear, name_for
from llm2nifti.scanner.likelihood import dialogues, log_likelihoods
from llm2nifti.scanner.reading import Reader
from llm2nifti.scanner.stimulus import ScanError, prepare, resolved

__all__ = ["ScanError", "Settings", "answer", "check", "dialogues", "log_likelihoods", "scan"]


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
        Where to keep the values. An interrupted recording in this folder is resumed. By default a
        temporary folder that lives as long as the recording.
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
    settings = resolved(settings or Settings(), model)
    stimuli = prepare(model, paradigm, settings)
    brain = layout(stimuli.sites)
    if settings.mode == "read":  # as many frames as there are to read
        counts = tuple(map(len, stimuli.frames))
        differing = counts if len(set(counts)) > 1 else None
        paradigm = replace(paradigm, n_frames=max(counts), frame_counts=differing)
    if replay is not None:
        replay = [list(map(int, tokens)) for tokens in replay]
        lengths = {len(tokens) for tokens in replay}
        if (len(replay), lengths) != (paradigm.n_trials, {paradigm.n_frames}):
            raise ScanError(
                f"replay has {len(replay)} trials of {sorted(lengths)} tokens, the paradigm has "
                f"{paradigm.n_trials} of {paradigm.n_frames}"
            )
    info = _provenance(model, settings, is_chat=stimuli.is_chat, replayed=replay is not None)
    plan = {
        "info": info,
        "space": brain.space,
        "rendered": stimuli.rendered,
        "images": [path.name for path in stimuli.files],
        "replay": replay,
    }
    temporary = None
    if folder is None:
        temporary = tempfile.TemporaryDirectory(prefix="llm2nifti-", ignore_cleanup_errors=True)
        folder = temporary.name
    # The operator first: what it refuses must not leave a journal that other settings clash with.
    if settings.mode == "generate":
        operator: Generator | Reader = Generator(model, brain, settings, stimuli, replay)
    else:
        operator = Reader(model, brain, settings, stimuli)
    n_volumes = volume_counts(paradigm, settings.frames).tolist()
    journal = Journal(Path(folder), n_volumes, brain.n_units, plan)
    with fast_linear(model.module):
        _record(operator, journal, paradigm, settings.batch_size, on_trials)
    rows = journal.rows()
    return Recording(
        values=journal.values,
        paradigm=paradigm,
        brain=brain,
        tokens=_token_table(rows),
        responses=[row["response"] for row in rows],
        rendered=stimuli.rendered,
        info=info,
        norms=model.weight_norms(brain.sites),
        frames=settings.frames,
        owner=temporary,
    )


def check(model: LoadedModel, paradigm: Paradigm, settings: Settings) -> None:
    """Raise an error if this paradigm can't be shown to the model, or it lacks the sites."""
    prepare(model, paradigm, resolved(settings, model))


def _record(
    operator: Generator | Reader,
    journal: Journal,
    paradigm: Paradigm,
    batch_size: int,
    on_trials: Callable[[int], object] | None,
) -> None:
    """Record the batches that are not in the journal yet; show a bar, unless the caller does."""
    finished = {batch["start"] for batch in journal.batches}
    label = f"scan {paradigm.task} run {paradigm.run}"
    hide = None if on_trials is None else True
    with tqdm(total=paradigm.n_trials, desc=label, unit="trial", disable=hide) as bar:
        for start in range(0, paradigm.n_trials, batch_size):
            stop = min(start + batch_size, paradigm.n_trials)
            if start not in finished:
                values = journal.open(start, stop)
                rows = operator.record(slice(start, stop), values)
                journal.commit(start, stop, values, rows)
            (on_trials or bar.update)(stop - start)


def _provenance(model: LoadedModel, settings: Settings, *, is_chat: bool, replayed: bool) -> Json:
    """Everything that decides the values, for sidecars and for resuming."""
    decoding = "greedy" if settings.temperature == 0 else "sampled"
    if replayed:
        decoding = "teacher-forced replay of another model's tokens"
    if settings.mode == "read":
        decoding = "none: the stimulus is read"
    return {
        "Model": {"Subject": model.name, **model.source},
        "Settings": asdict(settings),
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


def _token_table(rows: list[TrialRow]) -> pd.DataFrame:
    """One row a frame from one row a trial."""
    parts = [
        pd.DataFrame(row).assign(trial=trial, position=np.arange(len(row["token"])))
        for trial, row in enumerate(rows)
    ]
    table = pd.concat(parts, ignore_index=True)
    table["is_punctuation"] = [int(not any(map(str.isalnum, text))) for text in table["token"]]
    return table[list(TOKEN_COLUMNS)]
