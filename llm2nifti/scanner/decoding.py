"""How is the next token chosen? Greedily or drawn, in a scan or until the model ends by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from llm2nifti.models import LoadedModel
from llm2nifti.scanner.settings import ScanError
from llm2nifti.scanner.stimulus import check_length, fill_token


class OwnGenerators:
    """Logits processor that samples with one random generator a trial (the Gumbel-max trick).

    Adding Gumbel noise to ``logits / temperature`` and taking the largest is a draw from the
    softmax; with a generator a trial the draw does not depend on the other trials of the batch. The
    prompt's identifier is part of the seed: trials of different runs draw independently.
    """

    def __init__(self, temperature: float, seed: int, stim_ids: Sequence[str]) -> None:
        self.temperature = temperature
        self.generators = [np.random.default_rng([seed, *name.encode()]) for name in stim_ids]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return noisy scores (n_trials, vocabulary)."""
        noise = np.stack([g.gumbel(size=scores.shape[-1]) for g in self.generators])
        return scores.float() / self.temperature + torch.from_numpy(noise).to(scores)


@contextmanager
def greedy(model: LoadedModel, n_tokens: int, **options: Any) -> Iterator[GenerationConfig]:
    """Greedy decoding of at most `n_tokens`; the model's own penalties, beams, ... are put aside.

    transformers fills every option that a call leaves open from them.
    """
    module = model.module
    put_aside = module.generation_config
    config = GenerationConfig(
        max_new_tokens=n_tokens,
        do_sample=False,
        eos_token_id=put_aside.eos_token_id,
        pad_token_id=fill_token(model),
        decoder_start_token_id=model.decoder_start()[0] if model.has_decoder else None,
        **options,
    )
    module.generation_config = GenerationConfig(bos_token_id=put_aside.bos_token_id)
    try:
        yield config
    finally:
        module.generation_config = put_aside


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
    if n_tokens < 1:
        raise ScanError(f"n-tokens is {n_tokens}; it must be at least 1")
    room = 0 if model.has_decoder else n_tokens
    shown = prompt if len(prompt) <= 40 else f"{prompt[:40]}..."
    check_length(model, shown, ids, room, more=f" and {room} follow")
    inputs = torch.tensor([ids], device=model.device)
    with torch.no_grad(), greedy(model, n_tokens) as config:
        out = model.module.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            generation_config=config,
            stopping_criteria=list(stopping),
        )
    written = out[0, 1 if model.has_decoder else len(ids) :]
    return str(model.tokenizer.decode(written, skip_special_tokens=True))
