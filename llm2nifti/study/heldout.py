"""How likely is text to a model? Prompts of a run, and the answers that the model gave to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from llm2nifti.bids import Run
from llm2nifti.models import LoadedModel
from llm2nifti.paradigm import Paradigm
from llm2nifti.scanner import prefill
from llm2nifti.scanner.settings import Settings
from llm2nifti.scanner.stimulus import prepare

BATCH_SIZE = 16
N_BOOTSTRAPS = 2000


class Text(NamedTuple):
    """One prompt with its answer.

    Attributes
    ----------
    ids : list of int
        Tokens: template, prompt, answer.
    scored : list of int
        Positions of the tokens of prompt and answer; the template is no text of a task.
    """

    ids: list[int]
    scored: list[int]


def texts_of(model: LoadedModel, run: Run) -> list[Text]:
    """Prompts of a run, each with the answer that was recorded.

    Parameters
    ----------
    model : LoadedModel
        The model that was scanned.
    run : Run
        A run of prompts.

    Returns
    -------
    list of Text
        One a trial, in order.
    """
    events = run.events
    paradigm = Paradigm(run.task, run.run, run.n_frames, events)
    template = run.sidecar["Settings"].get("template", "auto")
    settings = Settings(mode="read", frames="token", template=template)
    stimuli = prepare(model, paradigm, settings)
    answers: list[list[int]] = [[] for _ in range(len(events))]
    if run.sidecar["Settings"].get("mode", "generate") == "generate":
        for trial, token in run.tokens[["trial", "token_id"]].itertuples(index=False):
            answers[int(trial)].append(int(token))
    texts = []
    for ids, frames, answer in zip(stimuli.encoded, stimuli.frames, answers, strict=True):
        inside = [position for positions in frames for position in positions if position > 0]
        texts.append(Text([*ids, *answer], [*inside, *range(len(ids), len(ids) + len(answer))]))
    return texts


@torch.no_grad()
def log_likelihoods(model: LoadedModel, texts: Sequence[Text]) -> NDArray[np.float64]:
    """Mean log probability of the scored tokens of each text.

    Parameters
    ----------
    model : LoadedModel
        A causal model, lesioned or not.
    texts : sequence of Text
        What to score.

    Returns
    -------
    (n_texts,) float64 array
        In nats a token.
    """
    out = np.empty(len(texts))
    order = np.argsort([len(text.ids) for text in texts], kind="stable")
    for start in range(0, len(order), BATCH_SIZE):
        rows = order[start : start + BATCH_SIZE]
        batch = prefill.pad([texts[i].ids for i in rows], 0, at=None)
        ids, mask = batch.ids.to(model.device), batch.mask.to(model.device)
        logits = model.module(input_ids=ids, attention_mask=mask).logits
        for row, i in enumerate(rows):
            positions = torch.tensor(texts[i].scored, device=ids.device)
            log_p = logits[row, positions - 1].float().log_softmax(dim=-1)
            out[i] = log_p.gather(1, ids[row, positions, None]).mean().item()
    return out


def interval(values: NDArray[np.float64], *, seed: int = 0) -> list[float]:
    """95 % percentile bootstrap interval of the mean over prompts.

    Parameters
    ----------
    values : (n_prompts,) array
        One value a prompt.
    seed : int, default=0
        Seed of the resampling.
    """
    rng = np.random.default_rng([seed, 20231110])
    draws = rng.integers(len(values), size=(N_BOOTSTRAPS, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return [float(low), float(high)]
