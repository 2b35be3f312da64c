"""What does the model get to see? Prompts as tokens, images as pixels; and what is a frame?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm2nifti.models import LoadedModel
from llm2nifti.models.loaded import MARK
from llm2nifti.paradigm import Paradigm
from llm2nifti.scanner.settings import ScanError, Settings

Positions = list[int]


@dataclass(frozen=True, eq=False)
class Stimuli:
    """All trials of a run, as the model reads them.

    Attributes
    ----------
    n_frames : int
        Tokens that are generated for each trial.
    stim_ids : list of str
        Identifiers.
    prompts, rendered : list of str
        Bare text, and text with the chat template applied.
    encoded : list of list of int
        Token ids; empty where there are images that no text stands beside.
    fill : int
        Padding token.
    is_chat : bool
        Whether the chat template was applied.
    images : list of Path
        One a trial, or none.
    frames : list of list of Positions
        In mode ``read``: the positions that make up each frame of each trial.
    """

    n_frames: int
    stim_ids: list[str]
    prompts: list[str]
    rendered: list[str]
    encoded: list[list[int]]
    fill: int
    is_chat: bool
    images: list[Path]
    frames: list[list[Positions]]

    def image_inputs(self, model: LoadedModel, trials: Iterable[int]) -> dict[str, Any]:
        """Inputs of a batch of images with their text."""
        from PIL import Image

        images, texts = [], []
        for trial in trials:
            texts.append(self.rendered[trial])
            with Image.open(self.images[trial]) as image:
                images.append(image.convert("RGB"))
        return model.image_inputs(images, texts)

    def by_image_size(self, trials: Iterable[int]) -> list[list[int]]:
        """Trials in groups whose images have one size."""
        from PIL import Image

        groups: dict[tuple[int, int], list[int]] = {}
        for trial in trials:
            with Image.open(self.images[trial]) as image:
                groups.setdefault(image.size, []).append(trial)
        return list(groups.values())


def prepare(model: LoadedModel, paradigm: Paradigm, settings: Settings) -> Stimuli:
    """Turn a paradigm's trials into what the model reads.

    Raises
    ------
    ScanError
        If a stimulus cannot be shown to the model.
    """
    trials = paradigm.trials
    prompts = list(trials["prompt"])
    images = [Path(path) for path in trials["image"]] if "image" in trials else []
    has_text = any(prompts)
    _check_kind(model, settings, has_image=bool(images), has_text=has_text)
    rendered = prompts
    encoded: list[list[int]] = [[] for _ in prompts]
    if model.kind != "vision":
        rendered = model.render(prompts, settings.template, has_image=bool(images))
    if not images or (model.kind == "dual" and has_text):
        encoded = model.encode(rendered, rendered=rendered != prompts)
        _check_lengths(model, paradigm, encoded, generates=settings.mode == "generate")
    frames: list[list[Positions]] = []
    if settings.mode == "read":
        frames = _image_frames(model, settings, len(images)) if images else []
        if not images:
            frames = read_frames(model, prompts, rendered, settings.template, settings.frames)
    _check_frames(paradigm, settings, frames)
    return Stimuli(
        n_frames=paradigm.n_frames,
        stim_ids=list(trials["stim_id"]),
        prompts=prompts,
        rendered=rendered,
        encoded=encoded,
        fill=fill_token(model),
        is_chat=rendered != prompts and model.kind != "vision",
        images=images,
        frames=frames,
    )


def fill_token(model: LoadedModel) -> int:
    """Padding token; its embedding is never attended to."""
    if model.tokenizer is None:
        return 0
    config = model.module.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    pads = (
        model.tokenizer.pad_token_id,
        model.tokenizer.eos_token_id,
        getattr(config, "pad_token_id", None),
        getattr(config, "eos_token_id", None),
        0,
    )
    fill = next(p for p in pads if p is not None)
    return int(fill[0] if isinstance(fill, list) else fill)


def _check_kind(model: LoadedModel, settings: Settings, *, has_image: bool, has_text: bool) -> None:
    """Raise if the model cannot see this kind of stimulus."""
    if has_image and model.kind not in ("vision", "imagetext", "dual"):
        raise ScanError(f"{model.name} reads no images; show it prompts, or use a vision model")
    if not has_image and model.kind == "vision":
        raise ScanError(
            f"{model.name} reads images only; give --stimuli a TSV with the columns task and image"
        )
    if has_image and settings.frames == "word":
        raise ScanError("images have no words; use --frames trial, token or last")
    both = has_image and (model.kind == "imagetext" or (model.kind == "dual" and has_text))
    if both and settings.mode == "read" and settings.frames == "token":
        raise ScanError(
            "image and text have different numbers of tokens; use --frames trial or last"
        )


def _check_lengths(
    model: LoadedModel, paradigm: Paradigm, encoded: list[list[int]], *, generates: bool
) -> None:
    """Raise if a prompt and its frames exceed the context, or a prompt has no token."""
    n_frames = paradigm.n_frames if generates and model.kind != "seq2seq" else 0
    for row, tokens in enumerate(encoded):
        stim_id = paradigm.trials["stim_id"].iloc[row]
        if not tokens:
            raise ScanError(f"prompt {stim_id!r} has no token for this model")
        if model.context and len(tokens) + n_frames > model.context:
            follow = f" and {n_frames} frames follow" if n_frames else ""
            raise ScanError(
                f"prompt {stim_id!r} has {len(tokens)} tokens{follow}; {model.name} reads at most "
                f"{model.context}. Shorten the prompt"
            )


def _check_frames(
    paradigm: Paradigm, settings: Settings, frames: Sequence[Sequence[Positions]]
) -> None:
    """Raise if a stimulus has no frame."""
    for row, some in enumerate(frames):
        if not some or not all(some):
            stim_id = paradigm.trials["stim_id"].iloc[row]
            raise ScanError(f"prompt {stim_id!r} has no {settings.frames} to read")


def _image_frames(model: LoadedModel, settings: Settings, n_trials: int) -> list[list[Positions]]:
    """Frames of images: every patch alone, all together, or the last."""
    n_tokens = model.stacks("read", has_image=True)[0].shape[1]
    if settings.frames == "token":
        return [[[i] for i in range(n_tokens)] for _ in range(n_trials)]
    return [[[-1] if settings.frames == "last" else list(range(n_tokens))]] * n_trials


def read_frames(
    model: LoadedModel,
    prompts: Sequence[str],
    rendered: Sequence[str],
    template: str,
    frames: str = "trial",
) -> list[list[Positions]]:
    """Positions of the tokens that make up each frame of each prompt, without the template's.

    Parameters
    ----------
    model : LoadedModel
        The model.
    prompts, rendered : sequence of str
        Bare prompts, and with the chat template applied.
    template : str
        Which template that was; see `llm2nifti.models.LoadedModel.render`.
    frames : {"trial", "token", "word", "last"}, default="trial"
        What a frame is; of ``trial`` and ``last`` every prompt has one.
    """
    is_rendered = list(rendered) != list(prompts)
    n_after = n_after_prompt(model, template) if is_rendered else 0
    found = []
    for text, prompt in zip(rendered, prompts, strict=True):
        start, shown = find_prompt(text, prompt, n_after)
        spans = _spans(model, text, rendered=is_rendered)
        found.append(_text_frames(text, shown, start, spans, frames))
    return found


def n_after_prompt(model: LoadedModel, template: str) -> int:
    """Characters that the chat template puts after a prompt."""
    return len(model.render([MARK], template)[0].rpartition(MARK)[2])


def find_prompt(text: str, prompt: str, n_after: int) -> tuple[int, str]:
    """Where in the rendered text a prompt starts, and how it is shown there.

    It is the last thing before what the template adds: "ant" also stands in "assistant".
    """
    for shown in (prompt, prompt.strip()):  # some templates trim
        start = text.rfind(shown, 0, len(text) - n_after)
        if start >= 0:
            return start, shown
    raise ScanError(
        f"the chat template changes the prompt {prompt!r}, so its tokens cannot be found; "
        "use --template none"
    )


def _text_frames(
    text: str, prompt: str, start: int, spans: Sequence[tuple[int, int]], frames: str
) -> list[Positions]:
    """Positions of each frame of one prompt: template and special tokens are not stimulus."""
    stop = start + len(prompt)
    inside = [i for i, (a, b) in enumerate(spans) if a < stop and b > start]
    if frames == "trial":
        return [inside]
    if frames == "last":
        return [inside[-1:]]
    if frames == "token":
        return [[i] for i in inside]
    words = [(m.start() + start, m.end() + start) for m in re.finditer(r"\S+", prompt)]
    letters = {i: (spans[i][1] - len(text[slice(*spans[i])].lstrip()), spans[i][1]) for i in inside}
    found = [[i for i in inside if letters[i][0] < b and letters[i][1] > a] for a, b in words]
    seen: set[int] = set()
    alone = []
    for some in found:  # a token that spans two words counts for the first
        alone.append([i for i in some if i not in seen])
        seen.update(some)
    return [some for some in alone if some]


def _spans(model: LoadedModel, text: str, *, rendered: bool) -> list[tuple[int, int]]:
    """Characters of each token; none of special tokens."""
    if not getattr(model.tokenizer, "is_fast", False):
        raise ScanError(
            f"the tokenizer of {model.name} gives no character offsets, which mode read needs; "
            "use a model with a fast tokenizer"
        )
    encoded = model.tokenizer(text, add_special_tokens=not rendered, return_offsets_mapping=True)
    special = set(getattr(model.tokenizer, "all_special_ids", []))
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return [(0, 0) if token in special else (int(a), int(b)) for token, (a, b) in pairs]
