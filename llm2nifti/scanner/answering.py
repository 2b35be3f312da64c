"""What does the model answer? One prompt, greedily, until it ends by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from llm2nifti.models import LoadedModel
from llm2nifti.scanner.sampling import plain_decoding
from llm2nifti.scanner.settings import ScanError


def answer(
    model: LoadedModel,
    prompt: str,
    *,
    n_tokens: int,
    template: str = "auto",
    stopping: Sequence[Any] = (),
) -> str:
    """Let the model answer a prompt, as in a scan but for the end, which is the model's own.

    Parameters
    ----------
    model : LoadedModel
        A model that generates; interventions and monitors that are in force work.
    prompt : str
        What to ask.
    n_tokens : int
        Most tokens of the answer.
    template : {"auto", "chat", "none"}
        See `llm2nifti.models.LoadedModel.render`.
    stopping : sequence of transformers.StoppingCriteria
        What else ends the answer.

    Returns
    -------
    str

    Raises
    ------
    ScanError
        If the model does not generate, or the prompt has no token or does not fit.
    """
    if "generate" not in model.modes():
        raise ScanError(f"{model.name} does not generate, so it answers nothing")
    (text,) = model.render([prompt], template)
    (ids,) = model.encode([text], rendered=text != prompt)
    _check(model, prompt, len(ids), n_tokens)
    inputs = torch.tensor([ids], device=model.device)
    config = _decoding(model, n_tokens)  # before the model's own is put aside
    with torch.no_grad(), plain_decoding(model.module):
        out = model.module.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            generation_config=config,
            stopping_criteria=list(stopping),
        )
    written = out[0, 1 if model.has_decoder else len(ids) :]
    return str(model.tokenizer.decode(written, skip_special_tokens=True))


def _check(model: LoadedModel, prompt: str, n_ids: int, n_tokens: int) -> None:
    """Raise unless the prompt and its answer fit."""
    if n_tokens < 1:
        raise ScanError(f"n-tokens is {n_tokens}; it must be at least 1")
    start = prompt if len(prompt) <= 40 else f"{prompt[:40]}..."
    if not n_ids:
        raise ScanError(f"prompt {start!r} has no token for this model")
    room = 0 if model.has_decoder else n_tokens
    if model.context and n_ids + room > model.context:
        raise ScanError(
            f"prompt {start!r} has {n_ids} tokens and {room} follow; {model.name} reads at most "
            f"{model.context}. Shorten the prompt"
        )


def _decoding(model: LoadedModel, n_tokens: int) -> Any:
    """Greedy decoding that ends by itself."""
    from transformers import GenerationConfig

    ends = model.module.generation_config.eos_token_id
    pad = getattr(model.tokenizer, "pad_token_id", None)
    first_end = ends[0] if isinstance(ends, list) and ends else ends
    return GenerationConfig(
        max_new_tokens=n_tokens,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=next((p for p in (pad, first_end) if p is not None), 0),
        decoder_start_token_id=model.decoder_start()[0] if model.has_decoder else None,
    )
