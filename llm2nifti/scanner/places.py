"""Which tokens of a prompt make up each frame, where a model reads?

Here, `prompts` are bare, and `rendered` are the texts that a `model` reads: with its chat
`template`, where it is used. `frames` says what a frame is: ``trial``, ``token``, ``word`` or
``last``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from llm2nifti.models import LoadedModel
from llm2nifti.models.loaded import MARK

Positions = list[int]


class ScanError(ValueError):
    """A paradigm cannot be run through this model."""


def frames_of(positions: Positions, frames: str) -> list[Positions]:
    """Frames of what is read: every token, patch or time step alone, all together, or the last."""
    if frames == "token":
        return [[i] for i in positions]
    return [positions[-1:] if frames == "last" else positions]


def read_frames(
    model: LoadedModel,
    prompts: Sequence[str],
    rendered: Sequence[str],
    template: str,
    frames: str = "trial",
    *,
    parts: Sequence[tuple[int, int]] | None = None,
) -> list[list[Positions]]:
    """Positions of the tokens that make up each frame of each prompt, without the template's.

    Parameters
    ----------
    model, prompts, rendered, template, frames
        Who reads what, and what a frame is; see the head of this module.
    parts : sequence of (int, int), optional
        Where what is read of each prompt starts and ends, in characters; by default all of it.
    """
    if not getattr(model.tokenizer, "is_fast", False):
        raise ScanError(
            f"the tokenizer of {model.name} gives no character offsets, which mode read needs; "
            "use a model with a fast tokenizer"
        )
    is_bare = list(rendered) == list(prompts)
    special = set(getattr(model.tokenizer, "all_special_ids", []))
    by_text = []
    places = find_prompts(model, prompts, rendered, template)
    for number, (text, (start, shown)) in enumerate(zip(rendered, places, strict=True)):
        encoded = model.tokenizer(text, add_special_tokens=is_bare, return_offsets_mapping=True)
        spans = encoded["offset_mapping"]
        first, end = 0, len(shown)
        if parts:  # some templates trim
            first, end = (place - prompts[number].find(shown) for place in parts[number])
        inside = [
            i
            for i, (token, (a, b)) in enumerate(zip(encoded["input_ids"], spans, strict=True))
            if token not in special and a < start + end and b > start + first
        ]
        if frames == "word":
            by_text.append(_words(text, shown, start, {i: spans[i] for i in inside}))
        else:
            by_text.append(frames_of(inside, frames))
    return by_text


def find_prompts(
    model: LoadedModel, prompts: Sequence[str], rendered: Sequence[str], template: str
) -> Iterator[tuple[int, str]]:
    """Where in each rendered text its prompt starts, and how it is shown there.

    It is the last thing before what the template adds: "ant" also stands in "assistant".
    """
    n_after = 0
    if list(rendered) != list(prompts):
        n_after = len(model.render([MARK], template)[0].rpartition(MARK)[2])
    for text, prompt in zip(rendered, prompts, strict=True):
        for shown in (prompt, prompt.strip()):  # some templates trim
            start = text.rfind(shown, 0, len(text) - n_after)
            if start >= 0:
                break
        else:
            raise ScanError(
                f"the chat template changes the prompt {prompt!r}, so its tokens cannot be found; "
                "use template='none'"
            )
        yield start, shown


def _words(
    text: str, prompt: str, start: int, spans: Mapping[int, tuple[int, int]]
) -> list[Positions]:
    """Positions of each word; a token that spans two counts for the first."""
    words = [(m.start() + start, m.end() + start) for m in re.finditer(r"\S+", prompt)]
    positions: list[Positions] = [[] for _ in words]
    for i, (a, b) in spans.items():
        letters = b - len(text[a:b].lstrip())  # where they begin: many tokens bring a space
        for of_word, (first, last) in zip(positions, words, strict=True):
            if letters < last and b > first:
                of_word.append(i)
                break
    return [of_word for of_word in positions if of_word]


def parts_at(at: str | None, trials: pd.DataFrame) -> list[tuple[int, int]] | None:
    """Where the part of each prompt that is recorded starts and ends, in characters.

    Parameters
    ----------
    at : str or None
        ``word:N``, counted from 1, or ``span``: what the trials have in the column of this name.
        None is the whole prompt.
    trials : DataFrame
        The trials, with their ``prompt``.

    Examples
    --------
    >>> parts_at("word:2", pd.DataFrame({"prompt": ["the cat sleeps"]}))
    [(4, 7)]
    """
    if at is None:
        return None
    if at != "span":
        return [_word(prompt, int(at.partition(":")[2])) for prompt in trials["prompt"]]
    if "span" not in trials:
        raise ScanError("at='span' needs a column span in the stimuli: the words to record")
    starts = []
    for prompt, text in zip(trials["prompt"], trials["span"], strict=True):
        starts.append(prompt.find(text) if text else -1)
        if starts[-1] < 0:
            raise ScanError(f"the span {text!r} is not in the prompt {prompt!r}; correct it")
    return [(a, a + len(text)) for a, text in zip(starts, trials["span"], strict=True)]


def _word(prompt: str, number: int) -> tuple[int, int]:
    """Where a word, counted from 1, starts and ends."""
    words = list(re.finditer(r"\S+", prompt))
    if number > len(words):
        raise ScanError(
            f"at='word:{number}': the prompt {prompt!r} has {len(words)} words; take another one"
        )
    return words[number - 1].span()
