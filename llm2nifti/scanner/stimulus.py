"""What is the model shown? Prompts as tokens, images as pixels, sounds; and what is a frame?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from llm2nifti.media import MEDIA, listed, medium_of, problems, read_image, read_sound, resampled
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
        Token ids; of sounds, those that the decoder begins with; empty where there are images that
        no text stands beside.
    fill : int
        Padding token.
    is_chat : bool
        Whether the chat template was applied.
    files : list of Path
        Images or sounds, one a trial, or none.
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
    files: list[Path]
    frames: list[list[Positions]]

    def batches(
        self, model: LoadedModel, trials: slice
    ) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Inputs of files, together where they have one shape; with the numbers of their trials.

        Numbers count from the first trial of the slice. Nothing is padded: what a model makes of a
        file must not depend on the others of its batch.
        """
        files = self.files[trials]
        if model.medium == "audio":
            yield from _alike([sound_inputs(model, file) for file in files])
            return
        images, texts = [read_image(file) for file in files], self.rendered[trials]
        groups: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            # Some models of images and text cut large images into tiles, others see one size.
            groups.setdefault(image.size if model.kind == "imagetext" else (0, 0), []).append(i)
        for group in groups.values():
            yield (
                group,
                model.image_inputs([images[i] for i in group], [texts[i] for i in group]),
            )


def sound_inputs(model: LoadedModel, file: Path) -> dict[str, Any]:
    """Inputs of one sound."""
    rate, samples = read_sound(file)
    return model.sound_inputs(resampled(samples, rate, model.processor.sampling_rate))


def _alike(inputs: list[dict[str, Any]]) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Batches of inputs that have one shape."""
    groups: dict[tuple, list[int]] = {}
    for i, one in enumerate(inputs):
        groups.setdefault(tuple(value.shape for value in one.values()), []).append(i)
    for group in groups.values():
        names = inputs[group[0]]
        yield group, {name: torch.cat([inputs[i][name] for i in group]) for name in names}


def prepare(model: LoadedModel, paradigm: Paradigm, settings: Settings) -> Stimuli:
    """Turn a paradigm's trials into what the model reads.

    Raises
    ------
    ScanError
        If a stimulus cannot be shown to the model.
    """
    trials = paradigm.trials
    prompts = list(trials["prompt"])
    medium = medium_of(trials)
    files = [Path(path) for path in trials[medium]] if medium else []
    has_text = any(prompts)
    _check_kind(model, settings, medium, has_text=has_text)
    _check_files(trials, medium)
    rendered = prompts
    encoded: list[list[int]] = [[] for _ in prompts]
    if model.kind == "speech":
        encoded = [model.decoder_start() for _ in prompts]
        rendered = [model.tokenizer.decode(ids) for ids in encoded]
    elif model.tokenizer is not None:
        rendered = model.render(prompts, settings.template, has_image=bool(files))
    if not files or (model.kind == "dual" and has_text):
        encoded = model.encode(rendered, rendered=rendered != prompts)
    if not files or any(encoded):
        _check_lengths(model, paradigm, encoded, generates=settings.mode == "generate")
    lengths = sound_lengths(model, paradigm) if medium == "audio" else []
    frames: list[list[Positions]] = []
    if settings.mode == "read" and files:
        stack = model.stacks("read", has_image=medium == "image")[0]
        n_tokens = lengths or [stack.shape[1]] * len(files)
        frames = [_file_frames(settings.frames, n) for n in n_tokens]
    elif settings.mode == "read":
        frames = read_frames(model, prompts, rendered, settings.template, settings.frames)
    _check_frames(paradigm, settings, frames)
    return Stimuli(
        n_frames=paradigm.n_frames,
        stim_ids=list(trials["stim_id"]),
        prompts=prompts,
        rendered=rendered,
        encoded=encoded,
        fill=fill_token(model),
        is_chat=rendered != prompts and model.kind != "speech",
        files=files,
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


def _check_kind(model: LoadedModel, settings: Settings, medium: str, *, has_text: bool) -> None:
    """Raise if the model cannot be shown this kind of stimulus."""
    if medium and medium != model.medium:
        use = "an audio" if medium == "audio" else "a vision"
        raise ScanError(
            f"{model.name} reads no {MEDIA[medium]}; show it prompts, or use {use} model"
        )
    if not medium and not model.reads_text:
        raise ScanError(
            f"{model.name} reads {MEDIA[model.medium]} only; show it a TSV with the columns "
            f"task and {model.medium}"
        )
    if medium and settings.frames == "word":
        raise ScanError(f"{MEDIA[medium]} have no words; use frames='trial', 'token' or 'last'")
    both = medium and (model.kind == "imagetext" or (model.kind == "dual" and has_text))
    if both and settings.mode == "read" and settings.frames == "token":
        raise ScanError(
            "image and text have different numbers of tokens; use frames='trial' or 'last'"
        )


def _check_files(trials: pd.DataFrame, medium: str) -> None:
    """Raise if files cannot be shown: a table need not come from `llm2nifti.stimuli.load`."""
    if medium:
        bad = problems(dict(zip(trials["stim_id"], map(Path, trials[medium]), strict=True)), medium)
        if bad:
            raise ScanError(bad)


def sound_lengths(model: LoadedModel, paradigm: Paradigm) -> list[int]:
    """Tokens of each sound in the encoder, without what the processor pads it with.

    Raises
    ------
    ScanError
        If sounds are longer than what the processor keeps, or too short for a token: all are named.
    """
    wanted = model.processor.sampling_rate
    lengths, bad = [], []
    for stim_id, path in zip(paradigm.trials["stim_id"], paradigm.trials["audio"], strict=True):
        rate, samples = read_sound(Path(path))
        samples = resampled(samples, rate, wanted)
        limit = model.longest_sound or len(samples)
        lengths.append(model.n_tokens_of(samples) if len(samples) <= limit else 0)
        if len(samples) > limit:
            bad.append(f"{stim_id!r} lasts {len(samples) / wanted:.2f} s")
        elif lengths[-1] < 1:
            bad.append(f"{stim_id!r} is too short ({len(samples) / wanted:.3f} s)")
    if bad:
        longest = model.longest_sound
        most = f". It reads at most {longest / wanted:g} s" if longest else ""
        raise ScanError(f"{len(bad)} sounds do not fit {model.name}: {listed(bad)}{most}")
    return lengths


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
    for row, of_trial in enumerate(frames):
        if not of_trial or not all(of_trial):
            stim_id = paradigm.trials["stim_id"].iloc[row]
            raise ScanError(f"prompt {stim_id!r} has no {settings.frames} to read")


def _file_frames(frames: str, n_tokens: int) -> list[Positions]:
    """Frames of an image or sound: every patch or time step alone, all together, or the last."""
    if frames == "token":
        return [[i] for i in range(n_tokens)]
    return [[n_tokens - 1] if frames == "last" else list(range(n_tokens))]


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
    by_text = []
    for text, prompt in zip(rendered, prompts, strict=True):
        start, shown = find_prompt(text, prompt, n_after)
        spans = _spans(model, text, rendered=is_rendered)
        by_text.append(_text_frames(text, shown, start, spans, frames))
    return by_text


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
        "use template='none'"
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
    touched = [[i for i in inside if letters[i][0] < b and letters[i][1] > a] for a, b in words]
    seen: set[int] = set()
    alone = []
    for tokens in touched:  # a token that spans two words counts for the first
        alone.append([i for i in tokens if i not in seen])
        seen.update(tokens)
    return [tokens for tokens in alone if tokens]


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
