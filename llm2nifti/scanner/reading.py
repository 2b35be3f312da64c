"""How does one batch read while its sites are recorded? One pass, nothing is generated.

A frame is a token, a word, the whole stimulus, or its last token. Encoders and vision models have
only this, and it takes one forward pass where generation takes one a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from inspect import signature
from math import isnan
from typing import Any

import numpy as np
import torch
from torch import nn

from llm2nifti.geometry import ModelBrain
from llm2nifti.hooks import Point, first_tensor
from llm2nifti.models import LoadedModel
from llm2nifti.plans import Settings
from llm2nifti.recording import TrialRow
from llm2nifti.scanner import prefill
from llm2nifti.scanner.choosing import measure
from llm2nifti.scanner.prefill import Inputs
from llm2nifti.scanner.sink import Sink
from llm2nifti.scanner.stimulus import Positions, ScanError, Stimuli

NO_TOKENS = TrialRow(
    token_id=[], token=[], log_probability=[], entropy=[], residual_norm=[], response=""
)


@dataclass(eq=False)
class Reader:
    """Records batches in which the model reads and puts nothing out."""

    model: LoadedModel
    brain: ModelBrain
    settings: Settings
    stimuli: Stimuli

    def __post_init__(self) -> None:
        """Look at the model."""
        self.stream = Point(self.model.stacks("read")[-1].blocks[-1].name)
        self.sees = tuple(f"{s.path}." for s in self.model.stacks("read", has_image=True)[:-1])
        # Logits cost as much as a fifth of a small model's pass: only where tokens are frames.
        is_fine = self.settings.frames in ("token", "word")
        self.has_logits = self.model.kind == "causal" and is_fine

    @torch.no_grad()
    def record(
        self, trials: slice, outs: Sequence[np.ndarray]
    ) -> tuple[list[TrialRow], Callable[[], None]]:
        """Record some trials into `outs`; their metadata, and what to call before values are used.

        See `Sink.finish`.
        """
        sink, frames = Sink(self.model, self.brain, outs), self.stimuli.frames[trials]
        counts = [len(shown) for shown in frames]
        volumes, measures = torch.arange(sum(counts)).split(counts), torch.empty(3, sum(counts))
        for group, inputs in self._batches(trials):
            into = torch.cat([volumes[i] for i in group])
            measures[:, into] = self._read([frames[i] for i in group], inputs, into, sink)
        land = sink.finish()
        if self.stimuli.files:
            return [NO_TOKENS] * len(frames), land
        decode, encoded = self.model.tokenizer.decode, self.stimuli.encoded[trials]
        rows: list[TrialRow] = []
        for ids, shown, part in zip(encoded, frames, measures.split(counts, dim=1), strict=True):
            log_p, entropy, norms = (
                [None if isnan(value) else value for value in values] for values in part.tolist()
            )
            rows.append(
                {
                    "token_id": [ids[positions[0]] for positions in shown],
                    "token": [decode([ids[i] for i in positions]) for positions in shown],
                    "response": "",
                    "log_probability": log_p,
                    "entropy": entropy,
                    "residual_norm": norms,
                }
            )
        return rows, land

    def _batches(self, trials: slice) -> Iterator[tuple[Sequence[int] | np.ndarray, Inputs]]:
        """Inputs of files of one shape, or of prompts of about one length, and their numbers."""
        if self.stimuli.files:
            yield from self.stimuli.batches(self.model, trials)
            return
        encoded = self.stimuli.encoded[trials]
        for group in prefill.of_like_length(encoded):
            ids, mask, _ = prefill.pad(self.model, [encoded[i] for i in group], "right")
            yield group, {"input_ids": ids, "attention_mask": mask}

    def _read(
        self, frames: list[list[Positions]], inputs: Inputs, into: torch.Tensor, sink: Sink
    ) -> torch.Tensor:
        """One forward pass; (3, n_frames) log-probability, entropy, norm of the stream's end.

        A word has its tokens' log-probabilities added up. NaN stands for what is not there.
        """
        measures, mask = torch.full((3, len(into)), torch.nan), inputs.get("attention_mask")
        pool = cache(partial(Pool, frames, self.model.device))

        def store(point: Point, tensor: torch.Tensor) -> None:
            values = tensor.reshape(len(frames), -1, tensor.shape[-1])
            if self.stimuli.files and self.model.medium == "image":
                padded = None if point.module.startswith(self.sees) else mask
                values = _of_images(values, padded, frames)
            else:
                values = pool(values.shape[1])(values.flatten(0, 1))
            sink.put(point, into.to(values.device), values)
            if point == self.stream and not self.stimuli.files:
                measures[2] = values.norm(dim=-1)

        run = self._runner(inputs)
        if not self.stimuli.files and "use_cache" in signature(run.forward).parameters:
            inputs["use_cache"] = False
        with sink.listening(self.stream, store):
            result = run(**inputs)
        logits = first_tensor(result.logits)[0] if self.has_logits else None
        if logits is not None:
            ids = inputs["input_ids"]
            both = measure(logits[:, :-1], ids[:, 1:].to(logits.device))
            for row, values in enumerate(both):  # nothing predicts the first token
                flat = nn.functional.pad(values, (1, 0), value=torch.nan).reshape(-1, 1)
                measures[row] = pool(ids.shape[1])(flat, total=row == 0)[:, 0]
        return measures

    def _runner(self, inputs: Inputs) -> Any:
        """What is run: without the head, where neither its logits nor its units are needed."""
        module, kind = self.model.module, self.model.kind
        if self.model.has_decoder:
            return module.get_encoder()
        if kind == "dual" and not self.stimuli.files:
            return module.get_submodule(self.model.stacks("read")[-1].path)
        if kind == "dual" and "input_ids" not in inputs:
            return module.get_image_features
        if self.stimuli.files or kind == "encoder" or self.has_logits:
            return module
        trunk = module.get_decoder()
        inside = next((f"{name}." for name, part in module.named_modules() if part is trunk), "")
        return trunk if all(s.module.startswith(inside) for s in self.brain.sites) else module


class Pool:
    """Means of the tokens of each frame, of trials that are padded to one length."""

    def __init__(
        self, frames: list[list[Positions]], device: torch.device | str, length: int
    ) -> None:
        flat = [(trial, positions) for trial, shown in enumerate(frames) for positions in shown]
        longest = max(positions[-1] for _, positions in flat) + 1
        if longest > length:
            raise ScanError(f"a sound has {length} tokens where {longest} were expected")
        rows = [trial * length + position for trial, positions in flat for position in positions]
        sizes = torch.tensor([len(positions) for _, positions in flat], device=device)
        self.rows = torch.tensor(rows, device=device)
        self.frame = torch.repeat_interleave(sizes)
        self.sizes = sizes[:, None]

    def __call__(self, values: torch.Tensor, *, total: bool = False) -> torch.Tensor:
        """(n_frames, n_units) float32 means, or sums, of (n_trials * length, n_units) values."""
        rows, frame = self.rows.to(values.device), self.frame.to(values.device)
        picked = values[rows].float()
        if len(rows) == len(self.sizes):
            return picked
        out = picked.new_zeros(len(self.sizes), values.shape[1]).index_add_(0, frame, picked)
        return out if total else out / self.sizes.to(values.device)


def _of_images(
    values: torch.Tensor, mask: torch.Tensor | None, frames: list[list[Positions]]
) -> torch.Tensor:
    """(n_frames, n_units) of a batch; stacks of one model differ in their numbers of tokens."""
    n_tokens = values.shape[1]
    if len(frames[0]) > 1:
        if n_tokens != len(frames[0]):
            raise ScanError(
                f"an image has {n_tokens} tokens where {len(frames[0])} were expected; "
                "use frames='trial' or 'last'"
            )
        return values.flatten(0, 1)
    is_last = len(frames[0][0]) == 1
    if mask is None or mask.shape[1] != n_tokens:
        return values[:, -1] if is_last else values.float().mean(dim=1)
    if is_last:  # padding may come last
        return values[torch.arange(len(values)), n_tokens - 1 - mask.flip(1).argmax(1)]
    weights = mask[..., None].float()
    return (values.float() * weights).sum(dim=1) / weights.sum(dim=1)
