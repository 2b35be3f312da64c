"""What is the model shown, and how? Tokens, pixels or sounds; what is a frame?

Here, `prompts` are bare, and `rendered` are the texts that a `model` reads: with its chat
`template`, where it is used. `frames` says what a frame is: ``trial``, ``token``, ``word`` or
``last``.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from llm2nifti.geometry import Site
from llm2nifti.media import MEDIA, listed, medium_of, problems, read_image, read_sound, resampled
from llm2nifti.models import LoadedModel, Mode
from llm2nifti.paradigm import Paradigm
from llm2nifti.plans import FRAMES, Json, Settings
from llm2nifti.scanner.places import Positions, ScanError, frames_of, parts_at, read_frames
from llm2nifti.scanner.prefill import Inputs
from llm2nifti.stimuli import REST


def resolved(settings: Settings, model: LoadedModel) -> Settings:
    """Settings with ``auto`` replaced by what it means for a model; ScanError if it can't do it."""
    mode = next((mode for mode in model.modes() if settings.mode in ("auto", mode)), None)
    if mode is None:
        raise ScanError(f"{model.name} generates nothing; use mode='read'")
    auto = {"frames": FRAMES[mode][0]} if settings.frames == "auto" else {}
    return replace(settings, mode=mode, **auto)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Stimuli:
    """All trials of a run, as the model reads them."""

    n_frames: int  #: tokens that are generated for each trial
    sites: tuple[Site, ...]  #: of the stacks that see these stimuli
    stim_ids: list[str]
    rendered: list[str]  #: with the chat template applied
    encoded: list[list[int]]  #: of sounds, what the decoder begins with; empty of images alone
    is_chat: bool
    files: list[Path]  #: images or sounds, one a trial, or none
    frames: list[list[Positions]]  #: in mode read: what makes up each frame of each trial

    @classmethod
    def joined(cls, parts: Sequence[Stimuli]) -> Stimuli:
        """Trials of several runs that a model reads at the same sites, one run after the other."""
        columns = ("stim_ids", "rendered", "encoded", "files", "frames")
        whole: Json = {
            name: [one for part in parts for one in getattr(part, name)] for name in columns
        }
        return replace(parts[0], **whole)

    def batches(self, model: LoadedModel, trials: slice) -> Iterator[tuple[list[int], Inputs]]:
        """Inputs of files, together where they have one shape; with the numbers of their trials.

        Numbers count from the first trial of the slice. Nothing is padded: what a model makes of a
        file must not depend on the others of its batch.
        """
        files, texts = self.files[trials], self.rendered[trials]
        if model.medium == "audio":
            sounds = [model.sound_inputs(_samples(model, file)) for file in files]
            for group in _alike(tuple(value.shape for value in one.values()) for one in sounds):
                names = sounds[group[0]]
                yield group, {name: torch.cat([sounds[i][name] for i in group]) for name in names}
            return
        images = [read_image(file) for file in files]
        # Some models of images and text cut large images into tiles, others see one size.
        is_cut = model.kind == "imagetext"
        for group in _alike(image.size if is_cut else None for image in images):
            yield group, model.image_inputs([images[i] for i in group], [texts[i] for i in group])


def _alike(keys: Iterable[Hashable]) -> list[list[int]]:
    """Numbers of what has one key."""
    groups: dict[Hashable, list[int]] = {}
    for i, key in enumerate(keys):
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def _samples(model: LoadedModel, file: Path) -> NDArray[np.float32]:
    """Sound at the rate of the model."""
    rate, samples = read_sound(file)
    return resampled(samples, rate, model.processor.sampling_rate)


def prepare(model: LoadedModel, paradigm: Paradigm, settings: Settings) -> Stimuli:
    """Turn a paradigm's trials into what the model reads, or raise an error if it can't.

    Settings are `resolved`.
    """
    trials = paradigm.trials
    stim_ids, prompts = list(trials["stim_id"]), list(trials["prompt"])
    medium = medium_of(trials)
    files = [Path(path) for path in trials[medium]] if medium else []
    _check_kind(model, settings, medium, has_text=any(prompts))
    if paradigm.task == REST and settings.mode == "read":
        raise ScanError(f"rest is free generation, and {model.name} only reads here: leave it out")
    # A table need not come from `llm2nifti.stimuli.load`, which looks at the files, too.
    if medium and (bad := problems(dict(zip(stim_ids, files, strict=True)), medium)):
        raise ScanError(bad)
    rendered, encoded = _encode(model, prompts, settings.template, has_files=bool(files))
    if not files or any(encoded):
        is_longer = settings.mode == "generate" and model.kind != "seq2seq"
        n_more = paradigm.n_frames if is_longer else 0
        more = f" and {n_more} frames follow" if n_more else ""
        for stim_id, ids in zip(stim_ids, encoded, strict=True):
            check_length(model, stim_id, ids, n_more, more)
    lengths = _sound_lengths(model, stim_ids, files) if medium == "audio" else []
    frames: list[list[Positions]] = []
    if settings.mode == "read" and files:
        stack = model.stacks("read", has_image=medium == "image")[0]
        n_tokens = lengths or [stack.shape[1]] * len(files)
        frames = [frames_of(list(range(n)), settings.frames) for n in n_tokens]
    elif settings.mode == "read":
        how: Json = {"frames": settings.frames, "parts": parts_at(settings.at, trials)}
        frames = read_frames(model, prompts, rendered, settings.template, **how)
    for stim_id, of_trial in zip(stim_ids, frames, strict=False):
        if not of_trial or not all(of_trial):
            raise ScanError(f"prompt {stim_id!r} has no {settings.frames} to read")
    is_chat = rendered != prompts and model.kind != "speech"
    if not files:  # an empty text has the token that it begins with
        rendered = [t or model.tokenizer.decode(i) for t, i in zip(rendered, encoded, strict=True)]
    shown = {"has_image": bool(files), "has_text": any(prompts)}
    mode, fused_qkv = cast(Mode, settings.mode), settings.fused_qkv
    sites = model.sites(settings.sites, mode=mode, fused_qkv=fused_qkv, **shown)
    return Stimuli(paradigm.n_frames, sites, stim_ids, rendered, encoded, is_chat, files, frames)


def _encode(
    model: LoadedModel, prompts: list[str], template: str, *, has_files: bool
) -> tuple[list[str], list[list[int]]]:
    """Texts and tokens that are read, or that a decoder of sounds begins with."""
    if model.kind == "speech":
        starts = [model.decoder_start() for _ in prompts]
        return [model.tokenizer.decode(ids) for ids in starts], starts
    rendered = prompts
    if model.tokenizer is not None:
        rendered = model.render(prompts, template, has_image=has_files)
    if not has_files or (model.kind == "dual" and any(prompts)):
        encoded = model.encode(rendered, rendered=rendered != prompts)
        start = model.text_start()
        return rendered, [
            ids or ([] if text else start) for text, ids in zip(rendered, encoded, strict=True)
        ]
    return rendered, [[] for _ in prompts]


def check_length(
    model: LoadedModel, prompt: str, ids: Sequence[int], n_more: int, more: str
) -> None:
    """Raise if a prompt has no token, or exceeds the context with those that follow.

    Parameters
    ----------
    model, prompt, ids, n_more, more
        Who reads what: its name and tokens; how many follow, and how the message says so.
    """
    if not ids:
        raise ScanError(f"prompt {prompt!r} has no token for this model")
    if model.context and len(ids) + n_more > model.context:
        raise ScanError(
            f"prompt {prompt!r} has {len(ids)} tokens{more}; {model.name} reads at most "
            f"{model.context}. Shorten the prompt"
        )


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
    if medium and settings.at:
        raise ScanError(f"{MEDIA[medium]} have no words to read at; leave out at=...")
    if medium and settings.frames == "word":
        raise ScanError(f"{MEDIA[medium]} have no words; use frames='trial', 'token' or 'last'")
    both = medium and (model.kind == "imagetext" or (model.kind == "dual" and has_text))
    if both and settings.mode == "read" and settings.frames == "token":
        raise ScanError(
            "image and text have different numbers of tokens; use frames='trial' or 'last'"
        )


def _sound_lengths(model: LoadedModel, stim_ids: Sequence[str], files: Sequence[Path]) -> list[int]:
    """Tokens of each sound in the encoder, without what the processor pads it with.

    Sounds that are longer than what the processor keeps or too short for a token are all named.
    """
    rate, longest = model.processor.sampling_rate, model.longest_sound
    lengths, bad = [], []
    for stim_id, file in zip(stim_ids, files, strict=True):
        samples = _samples(model, file)
        seconds = len(samples) / rate
        if longest and len(samples) > longest:
            bad.append(f"{stim_id!r} lasts {seconds:.2f} s")
            continue
        lengths.append(model.n_tokens_of(samples))
        if lengths[-1] < 1:
            bad.append(f"{stim_id!r} is too short ({seconds:.3f} s)")
    if bad:
        most = f". It reads at most {longest / rate:g} s" if longest else ""
        raise ScanError(f"{len(bad)} sounds do not fit {model.name}: {listed(bad)}{most}")
    return lengths
