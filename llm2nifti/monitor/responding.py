"""What does the model answer, and which networks are active meanwhile?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from llm2nifti.models import LoadedModel
from llm2nifti.monitor.projecting import MonitorError
from llm2nifti.monitor.watching import NetworkMonitor
from llm2nifti.scanner.sampling import plain_decoding


@dataclass(frozen=True)
class Response:
    """An answer and what was active while it was given.

    Attributes
    ----------
    prompt, response : str
        What was asked and answered.
    scores : dict of str to float
        Mean score of each network over the answer's tokens.
    top : str or None
        The network furthest above its threshold; None where none is above.
    stopped : bool
        Whether the answer ended because a network was above its threshold.
    """

    prompt: str
    response: str
    scores: dict[str, float]
    top: str | None
    stopped: bool = False


def respond(
    model: LoadedModel,
    monitor: NetworkMonitor,
    prompt: str,
    *,
    n_tokens: int,
    template: str = "auto",
    stop_when: str | None = None,
) -> Response:
    """Let the model answer one prompt, greedily, as in a scan, until it ends by itself.

    Parameters
    ----------
    model : LoadedModel
        The model.
    monitor : NetworkMonitor
        A monitor of this model that has been entered and has thresholds.
    prompt : str
        What to ask.
    n_tokens : int
        Most tokens of the answer.
    template : {"auto", "chat", "none"}
        Whether the prompt is wrapped in the model's chat template.
    stop_when : str, optional
        Network whose activity ends the answer.

    Returns
    -------
    Response

    Raises
    ------
    MonitorError
        If the prompt has no token, or does not fit into the model's context.
    """
    (text,) = model.render([prompt], template)
    (ids,) = model.encode([text], rendered=text != prompt)
    _check_length(model, prompt, len(ids), n_tokens)
    stop = [] if stop_when is None else [monitor.stop_when(stop_when)]
    inputs = torch.tensor([ids], device=model.device)
    config = _decoding(model, n_tokens)  # before the model's own is put aside
    with torch.no_grad(), plain_decoding(model.module):
        out = model.module.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            generation_config=config,
            stopping_criteria=stop,
        )
    answer = out[0, 1 if model.kind == "seq2seq" else len(ids) :].tolist()
    means = dict(zip(monitor.names, monitor.means[0].tolist(), strict=True))
    is_stopped = bool(stop) and bool(monitor.above()[0, monitor.names.index(str(stop_when))])
    response = model.tokenizer.decode(answer, skip_special_tokens=True)
    return Response(prompt, response, means, monitor.top[0], is_stopped)


def _check_length(model: LoadedModel, prompt: str, n_ids: int, n_tokens: int) -> None:
    """Raise unless the prompt and its answer fit."""
    if n_tokens < 1:
        raise MonitorError(f"n_tokens is {n_tokens}; it must be at least 1")
    start = prompt if len(prompt) <= 40 else f"{prompt[:40]}..."
    if not n_ids:
        raise MonitorError(f"prompt {start!r} has no token for this model")
    room = 0 if model.kind == "seq2seq" else n_tokens
    if model.context and n_ids + room > model.context:
        raise MonitorError(
            f"prompt {start!r} has {n_ids} tokens and {room} follow; {model.name} reads at most "
            f"{model.context}. Shorten the prompt"
        )


def _decoding(model: LoadedModel, n_tokens: int) -> Any:
    """Greedy decoding that ends by itself."""
    from transformers import GenerationConfig

    own, config = model.module.generation_config, model.module.config
    ends = own.eos_token_id
    pad = getattr(model.tokenizer, "pad_token_id", None)
    start = own.decoder_start_token_id
    if model.kind == "seq2seq" and start is None:
        start = getattr(config, "decoder_start_token_id", pad)
    first_end = ends[0] if isinstance(ends, list) and ends else ends
    return GenerationConfig(
        max_new_tokens=n_tokens,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=next((p for p in (pad, first_end) if p is not None), 0),
        decoder_start_token_id=start if model.kind == "seq2seq" else None,
    )
