"""How probable is a text to the model?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llm2nifti.models import LoadedModel
from llm2nifti.scanner import prefill
from llm2nifti.scanner.kernels import fast_linear
from llm2nifti.scanner.places import ScanError, read_frames


@dataclass(frozen=True)
class Text:
    """A text, and which of its tokens are judged."""

    ids: tuple[int, ...]  #: what the model reads, or what the decoder beside an encoder writes
    scored: tuple[int, ...]  #: positions in `ids` whose probability counts; the first has none
    source: tuple[int, ...] = ()  #: what that encoder reads


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
    is_seq2seq = model.kind == "seq2seq"
    start = model.decoder_start() if is_seq2seq else []
    asked = [[[]]] * len(encoded) if is_seq2seq else read_frames(model, prompts, rendered, template)
    texts = []
    for ids, answer, (inside,) in zip(encoded, answers, asked, strict=True):
        before = start if is_seq2seq else ids
        written = range(len(before), len(before) + len(answer))
        texts.append(
            Text(
                ids=(*before, *map(int, answer)),
                scored=(*(i for i in inside if i > 0), *written),
                source=tuple(ids) if is_seq2seq else (),
            )
        )
    return texts


def measures(
    model: LoadedModel, prompts: Sequence[str], *, template: str = "auto", batch_size: int = 64
) -> dict[str, NDArray[np.float64]]:
    """Length in tokens and mean surprisal of prompts, as a model has them.

    Parameters
    ----------
    model : LoadedModel
        A model that generates.
    prompts : sequence of str
        Bare prompts; tokens of the chat template are not counted.
    template : {"auto", "chat", "none"}
        See `llm2nifti.models.LoadedModel.render`.
    batch_size : int, default=64
        Prompts that are read together.

    Returns
    -------
    dict
        ``tokens`` and ``surprisal``, (n_prompts,) each, the latter in nats a token.
    """
    texts = dialogues(model, prompts, [[]] * len(prompts), template=template)
    nats = -log_likelihoods(model, texts, batch_size=batch_size)
    return {"tokens": np.array([float(len(text.scored)) for text in texts]), "surprisal": nats}


@torch.no_grad()
def log_likelihoods(
    model: LoadedModel,
    texts: Sequence[Text],
    *,
    beginning: Any = None,
    batch_size: int = 32,
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
        Texts that are read together, of about the same length. Each has a row of the vocabulary a
        token.

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


def read_beginning(model: LoadedModel, texts: Sequence[Text]) -> Any:
    """Cache of what all texts begin with, such as a chat template, read ahead of them.

    Read outside of an intervention, it is spared by it. It ends before the first token that
    predicts one that counts; it is None if there is nothing, or if the model's cache does not
    simply grow.
    """
    if not prefill.can_continue(model):
        return None
    heads = [text.ids[: min(text.scored) - 1] for text in texts]
    n_common = prefill.common_length(heads)
    return prefill.extend(model, None, torch.tensor([heads[0][:n_common]], dtype=torch.int64))


def _batch(model: LoadedModel, texts: Sequence[Text], shared: Any) -> NDArray[np.float64]:
    """Mean log probabilities of one batch."""
    n_before = 0 if shared is None else shared.get_seq_length()
    ids, mask, _ = prefill.pad(model, [text.ids[n_before:] for text in texts], "right")
    if model.kind == "seq2seq":
        read, seen, _ = prefill.pad(model, [text.source for text in texts], "right")
        inputs = {"input_ids": read, "attention_mask": seen, "decoder_input_ids": ids}
    else:
        inputs = prefill.inputs_for(model, model.module, ids, prefill.after(shared, mask))
        if shared is not None:
            inputs["past_key_values"] = prefill.select(shared, [0] * len(texts))
    logits = model.module(**inputs).logits
    counts = torch.tensor([len(text.scored) for text in texts])
    rows = torch.repeat_interleave(counts)
    columns = torch.tensor([i - n_before for text in texts for i in text.scored])
    predicted, right = logits[rows, columns - 1].float(), ids[rows, columns]
    chosen = predicted.gather(1, right[:, None])[:, 0] - predicted.logsumexp(dim=-1)
    return np.bincount(rows, weights=chosen.double().cpu().numpy()) / counts.numpy()
