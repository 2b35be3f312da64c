"""Run a paradigm through a model and record what its layers do.

Trials are generated in batches; hooks fire during generation and their values go straight to the
recording. Frame ``t`` of a trial holds the outputs of the forward pass that produced token ``t``:
the first frame is the last position of the pass that reads the prompt.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from llm2nifti import __version__
from llm2nifti.geometry import layout
from llm2nifti.models import LoadedModel
from llm2nifti.paradigm import Paradigm
from llm2nifti.recording import TOKEN_COLUMNS, Journal, Recording
from llm2nifti.scanner.operator import Operator
from llm2nifti.scanner.settings import ScanError, Settings

__all__ = ["ScanError", "Settings", "check", "scan"]


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
    settings = settings or Settings()
    brain = layout(model.sites(settings.sites))
    rendered, encoded = _read_prompts(model, paradigm, settings)
    is_chat = rendered != list(paradigm.trials["prompt"])
    _check_replay(paradigm, replay)
    info = _provenance(model, settings, is_chat=is_chat, replayed=replay is not None)
    plan = {
        "info": info,
        "space": brain.space,
        "rendered": rendered,
        "n_frames": paradigm.n_frames,
        "replay": None if replay is None else [list(map(int, tokens)) for tokens in replay],
    }
    temporary = None
    if folder is None:
        temporary = tempfile.TemporaryDirectory(prefix="llm2nifti-", ignore_cleanup_errors=True)
        folder = temporary.name
    shape = (paradigm.n_trials, paradigm.n_frames, brain.n_units)
    journal = Journal(Path(folder), shape, plan)
    stim_ids = list(paradigm.trials["stim_id"])
    operator = Operator(model, brain, settings, encoded=encoded, stim_ids=stim_ids, replay=replay)
    with _progress(paradigm, on_trials) as advance:
        _run_batches(operator, journal, settings.batch_size, advance)
    rows = journal.rows()
    return Recording(
        values=journal.values,
        paradigm=paradigm,
        brain=brain,
        tokens=_token_table(rows),
        responses=[row["response"] for row in rows],
        rendered=rendered,
        info=info,
        norms=model.weight_norms(brain.sites),
        owner=temporary,
    )


def check(model: LoadedModel, paradigm: Paradigm, settings: Settings) -> None:
    """Raise ScanError if a prompt of the paradigm can't be shown to the model."""
    _read_prompts(model, paradigm, settings)


def _read_prompts(
    model: LoadedModel, paradigm: Paradigm, settings: Settings
) -> tuple[list[str], list[list[int]]]:
    """Rendered prompts and their tokens, which fit the model's context."""
    prompts = list(paradigm.trials["prompt"])
    rendered = model.render(prompts, settings.template)
    encoded = model.encode(rendered, rendered=rendered != prompts)
    _check_lengths(model, paradigm, encoded)
    return rendered, encoded


def _run_batches(
    operator: Operator, journal: Journal, batch_size: int, advance: Callable[[int], object]
) -> None:
    """Record the batches that are not in the journal yet."""
    finished = {batch["start"] for batch in journal.batches}
    n_trials = len(journal.values)
    for start in range(0, n_trials, batch_size):
        stop = min(start + batch_size, n_trials)
        if start not in finished:
            rows = operator.record(slice(start, stop), journal.values[start:stop])
            journal.commit(start, stop, rows)
        advance(stop - start)


@contextmanager
def _progress(
    paradigm: Paradigm, on_trials: Callable[[int], object] | None
) -> Iterator[Callable[[int], object]]:
    """Progress bar of a single scan, unless the caller shows its own."""
    if on_trials is not None:
        yield on_trials
        return
    label = f"scan {paradigm.task} run {paradigm.run}"
    with tqdm(total=paradigm.n_trials, desc=label, unit="trial", disable=None) as bar:
        yield bar.update


def _check_lengths(model: LoadedModel, paradigm: Paradigm, encoded: list[list[int]]) -> None:
    """Raise if a prompt and its frames exceed the context, or a prompt has no token."""
    for row, tokens in enumerate(encoded):
        trial = paradigm.trials.iloc[row]
        if not tokens:
            raise ScanError(f"prompt {trial['stim_id']!r} has no token for this model")
        if model.context and len(tokens) + paradigm.n_frames > model.context:
            raise ScanError(
                f"prompt {trial['stim_id']!r} has {len(tokens)} tokens and {paradigm.n_frames} "
                f"frames follow; {model.name} reads at most {model.context}. Shorten the prompt"
            )


def _check_replay(paradigm: Paradigm, replay: Sequence[Sequence[int]] | None) -> None:
    """Raise unless the replay has n_frames tokens for every trial."""
    if replay is None:
        return
    lengths = {len(tokens) for tokens in replay}
    if len(replay) != paradigm.n_trials or lengths != {paradigm.n_frames}:
        raise ScanError(
            f"replay has {len(replay)} trials of {sorted(lengths)} tokens, the paradigm has "
            f"{paradigm.n_trials} of {paradigm.n_frames}"
        )


def _provenance(
    model: LoadedModel, settings: Settings, *, is_chat: bool, replayed: bool
) -> dict[str, Any]:
    """Everything that decides the values, for sidecars and for resuming."""
    import transformers

    return {
        "Model": {"Subject": model.name, **model.source},
        "Settings": asdict(settings),
        "ChatTemplate": is_chat,
        "Decoding": "teacher-forced replay of another model's tokens"
        if replayed
        else ("greedy" if settings.temperature == 0 else "sampled"),
        "Threads": torch.get_num_threads(),
        "Versions": {
            "llm2nifti": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _token_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """One row a frame from one row a trial."""
    parts = []
    for trial, row in enumerate(rows):
        columns = {k: row[k] for k in ("token_id", "token", "log_probability", "entropy")}
        part = pd.DataFrame(columns)
        part["trial"], part["position"] = trial, np.arange(len(part))
        part["is_punctuation"] = [int(not any(map(str.isalnum, t))) for t in part["token"]]
        part["residual_norm"] = row["residual_norm"]
        parts.append(part)
    return pd.concat(parts, ignore_index=True)[list(TOKEN_COLUMNS)]
