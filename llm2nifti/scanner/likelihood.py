"""How probable is a text to the model?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llm2nifti.models import LoadedModel
from llm2nifti.scanner import prefill
from llm2nifti.scanner.kernels import fast_linear
from llm2nifti.scanner.settings import ScanError
from llm2nifti.scanner.stimulus import fill_token, read_frames

BATCH_SIZE = 32  # texts; each has a row of the vocabulary a token


@dataclass(frozen=True)
class Text:
    """A text, and which of its tokens are judged.

    Attributes
    ----------
    ids : tuple of int
        Tokens that the model reads; of an encoder-decoder, those that its decoder writes.
    scored : tuple of int
        Positions in `ids` whose probability counts; the first token has none.
    source : tuple of int
        What the encoder of an encoder-decoder reads.
    """

    ids: tuple[int, ...]
    scored: tuple[int, ...]
    source: tuple[int, ...] = ()


def dialogues(
    model: LoadedModel,
    prompts: Sequence[str],
    answers: Sequence[Sequence[int]],
    *,
    template: str = "auto",
) -> list[Text]:
    """Texts of prompts with their answers, as they were shown in a scan.

    The tokens of prompt and answer count, not those of the chat template. What an encoder reads
    has no probability: there, the answer alone counts.

    Parameters
    ----------
    model : LoadedModel
        A model that generates.
    prompts : sequence of str
        Bare prompts.
    answers : sequence of sequence of int
        Tokens that were generated.
    template : {"auto", "chat", "none"}
        See `llm2nifti.models.LoadedModel.render`.
    """
    _check_kind(model)
    rendered = model.render(list(prompts), template)
    encoded = model.encode(rendered, rendered=rendered != list(prompts))
    texts = []
    asked: list[list[list[int]]] = [[[]]] * len(encoded)
    if model.kind != "seq2seq":
        asked = read_frames(model, prompts, rendered, template)
    for ids, answer, inside in zip(encoded, answers, asked, strict=True):
        written = tuple(int(token) for token in answer)
        if model.kind == "seq2seq":
            start = model.decoder_start()
            after = tuple(range(len(start), len(start) + len(written)))
            texts.append(Text((*start, *written), after, tuple(ids)))
            continue
        before = tuple(i for i in inside[0] if i > 0)
        after = tuple(range(len(ids), len(ids) + len(written)))
        texts.append(Text((*ids, *written), (*before, *after)))
    return texts


@torch.no_grad()
def log_likelihoods(
    model: LoadedModel,
    texts: Sequence[Text],
    *,
    beginning: Any = None,
    batch_size: int = BATCH_SIZE,
) -> NDArray[np.float64]:
    """Mean log probability of the tokens of each text that count.

    Parameters
    ----------
    model : LoadedModel
        A model that generates; interventions that are in force count.
    texts : sequence of Text
        From `dialogues`.
    beginning : cache, optional
        What all texts begin with, from `read_beginning`; by default it is read here.
    batch_size : int, default=32
        Texts that are read together; those of about the same length are.

    Returns
    -------
    (n_texts,) array
        Nats a token.

    Raises
    ------
    ScanError
        If the model predicts no tokens, or a text has none that count.
    """
    _check_kind(model)
    empty = next((i for i, text in enumerate(texts) if not text.scored), None)
    if empty is not None:
        raise ScanError(f"text {empty} has no token whose probability counts")
    order = np.argsort([len(text.ids) for text in texts], kind="stable")
    out = np.empty(len(texts))
    with fast_linear(model.module):
        shared = read_beginning(model, texts) if beginning is None else beginning
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            out[rows] = _batch(model, [texts[row] for row in rows], shared)
    return out


def _check_kind(model: LoadedModel) -> None:
    """Raise unless the model predicts tokens."""
    if "generate" not in model.modes():
        raise ScanError(f"{model.name} predicts no next token, so texts have no likelihood in it")


@torch.no_grad()
def read_beginning(model: LoadedModel, texts: Sequence[Text]) -> Any:
    """Read what all texts begin with, such as a chat template, ahead of them.

    Read outside of an intervention, it is spared by it.

    Parameters
    ----------
    model : LoadedModel
        A model that generates.
    texts : sequence of Text
        From `dialogues`.

    Returns
    -------
    transformers.DynamicCache or None
        Up to the first token that predicts one that counts; None if there is nothing, or if the
        model's cache does not simply grow.
    """
    if not prefill.can_continue(model):
        return None
    heads = [text.ids[: min(text.scored) - 1] for text in texts]
    n_common = prefill.common_length(heads)
    return prefill.extend(model, None, torch.tensor([heads[0][:n_common]], dtype=torch.int64))


def _batch(model: LoadedModel, texts: Sequence[Text], shared: Any) -> NDArray[np.float64]:
    """Mean log probabilities of one batch."""
    n_before = 0 if shared is None else shared.get_seq_length()
    padded = prefill.pad([text.ids[n_before:] for text in texts], fill_token(model), at_end=True)
    device = model.device
    ids = padded.ids.to(device)
    if model.kind == "seq2seq":
        read = prefill.pad([text.source for text in texts], fill_token(model), at_end=True)
        inputs = {"input_ids": read.ids.to(device), "attention_mask": read.mask.to(device)}
        inputs["decoder_input_ids"] = ids
    else:
        inputs = {"input_ids": ids, **_causal_inputs(model, padded.mask, shared, len(texts))}
    logits = model.module(**inputs).logits
    rows = np.repeat(np.arange(len(texts)), [len(text.scored) for text in texts])
    columns = np.concatenate([text.scored for text in texts]) - n_before
    predicted = logits[torch.from_numpy(rows), torch.from_numpy(columns - 1)].float()
    right = ids[torch.from_numpy(rows), torch.from_numpy(columns)]
    chosen = predicted.gather(1, right[:, None])[:, 0] - predicted.logsumexp(dim=-1)
    sums = np.bincount(rows, weights=chosen.double().cpu().numpy(), minlength=len(texts))
    return np.asarray(sums / np.bincount(rows), float)


def _causal_inputs(
    model: LoadedModel, mask: torch.Tensor, shared: Any, n_texts: int
) -> dict[str, Any]:
    """Attention mask, positions and cache of a batch that goes on from what is shared."""
    n_before = 0 if shared is None else shared.get_seq_length()
    whole = torch.cat([torch.ones(n_texts, n_before, dtype=mask.dtype), mask], dim=1)
    inputs: dict[str, Any] = {"attention_mask": whole.to(model.device)}
    if "position_ids" in signature(model.module.forward).parameters:
        inputs["position_ids"] = prefill.positions(whole)[:, n_before:].to(model.device)
    if shared is not None:
        inputs["past_key_values"] = prefill.select(shared, [0] * n_texts)
    return inputs
