"""How does one batch read while its sites are recorded? One pass, nothing is generated.

A frame is a token, a word, the whole stimulus, or its last token. Encoders and vision models have
only this, and it takes one forward pass where generation takes one a token.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from inspect import signature
from typing import Any

import numpy as np
import torch

from llm2nifti.geometry import ModelBrain
from llm2nifti.hooks import Point, first_tensor
from llm2nifti.models import LoadedModel
from llm2nifti.scanner import prefill
from llm2nifti.scanner.generating import measure
from llm2nifti.scanner.settings import ScanError, Settings
from llm2nifti.scanner.sink import Sink, listening
from llm2nifti.scanner.stimulus import Positions, Stimuli

Rows = list[dict[str, Any]]


class Reader:
    """Records batches in which the model reads and puts nothing out.

    Parameters
    ----------
    model : LoadedModel
        The model.
    brain : ModelBrain
        What is recorded.
    settings : Settings
        How.
    stimuli : Stimuli
        All trials of the run, with the positions of their frames.
    """

    def __init__(
        self, model: LoadedModel, brain: ModelBrain, settings: Settings, stimuli: Stimuli
    ) -> None:
        self.model = model
        self.brain = brain
        self.stimuli = stimuli
        self.stream = Point(model.stacks("read")[-1].blocks[-1].name)
        self.sees = tuple(f"{s.path}." for s in model.stacks("read", has_image=True)[:-1])
        # Logits cost as much as a fifth of a small model's pass: only where tokens are frames.
        self.has_logits = model.kind == "causal" and settings.frames in ("token", "word")

    def record(self, trials: slice, out: np.ndarray) -> Rows:
        """Record some trials into `out` (n_volumes, n_units); return their metadata."""
        sink = Sink(self.model, self.brain, out)
        with torch.no_grad():
            rows = (self._read_files if self.stimuli.files else self._read_texts)(trials, sink)
        sink.finish()
        return rows

    def _read_files(self, trials: slice, sink: Sink) -> Rows:
        """Read images or sounds, with their text where the model reads text."""
        frames = self.stimuli.frames[trials]
        first = np.cumsum([0, *map(len, frames)])
        for group, inputs in self.stimuli.batches(self.model, trials):
            into = torch.cat([torch.arange(first[i], first[i + 1]) for i in group])
            self._read_alike([frames[i] for i in group], inputs, into, sink)
        return [_empty_row() for _ in frames]

    def _read_alike(
        self, frames: list[list[Positions]], inputs: dict[str, Any], into: torch.Tensor, sink: Sink
    ) -> None:
        """Read files that give inputs of one shape into rows of the batch."""
        mask = inputs.get("attention_mask")

        @cache
        def pool(length: int) -> Pool:
            longest = max(positions[-1] for of_trial in frames for positions in of_trial) + 1
            if longest > length:
                raise ScanError(f"a sound has {length} tokens where {longest} were expected")
            return Pool(frames, length, self.model.device)

        def store(point: Point, tensor: torch.Tensor) -> None:
            values = tensor.reshape(len(frames), -1, tensor.shape[-1])
            if self.model.medium == "image":
                padded = None if point.module.startswith(self.sees) else mask
                values = self._of_images(values, padded, frames)
            else:
                values = pool(values.shape[1])(values.flatten(0, 1))
            sink.put(point, into.to(values.device), values)

        module = self.model.module
        run = module.get_encoder() if self.model.has_decoder else module
        if self.model.kind == "dual" and "input_ids" not in inputs:
            run = module.get_image_features
        with listening(self.model, self.brain, self.stream, store):
            run(**inputs)

    @staticmethod
    def _of_images(
        values: torch.Tensor, mask: torch.Tensor | None, frames: list[list[list[int]]]
    ) -> torch.Tensor:
        """(n_frames, n_units) of a batch; stacks of one model differ in their numbers of tokens."""
        if len(frames[0]) > 1:
            if values.shape[1] != len(frames[0]):
                raise ScanError(
                    f"an image has {values.shape[1]} tokens where {len(frames[0])} were expected; "
                    "use frames='trial' or 'last'"
                )
            return values.flatten(0, 1)
        is_last = len(frames[0][0]) == 1
        if mask is None or mask.shape[1] != values.shape[1]:
            return values[:, -1] if is_last else values.float().mean(dim=1)
        if is_last:  # padding may come last
            return values[torch.arange(len(values)), mask.shape[1] - 1 - mask.flip(1).argmax(1)]
        weights = mask[..., None].float()
        return (values.float() * weights).sum(dim=1) / weights.sum(dim=1)

    def _read_texts(self, trials: slice, sink: Sink) -> Rows:
        """Read prompts, in batches of about the same length."""
        encoded = self.stimuli.encoded[trials]
        frames = self.stimuli.frames[trials]
        first = np.cumsum([0, *map(len, frames)])
        order = np.argsort([len(tokens) for tokens in encoded], kind="stable")
        rows: dict[int, dict[str, Any]] = {}
        for chunk in np.array_split(order, min(prefill.N_CHUNKS, len(order))):
            prompts = prefill.pad([encoded[i] for i in chunk], self.stimuli.fill, at_end=True)
            pool = Pool([frames[i] for i in chunk], prompts.ids.shape[1], self.model.device)
            into = torch.cat([torch.arange(first[i], first[i + 1]) for i in chunk])
            norms, logits = self._pass(prompts, pool, into, sink)
            measures = self._measure(prompts, pool, logits, norms)
            ends = np.cumsum([0, *(len(frames[i]) for i in chunk)])
            for k, i in enumerate(chunk):
                part = slice(int(ends[k]), int(ends[k + 1]))
                rows[int(i)] = self._describe(encoded[i], frames[i], measures, part)
        return [rows[i] for i in range(len(encoded))]

    def _pass(
        self, prompts: prefill.Prompts, pool: Pool, into: torch.Tensor, sink: Sink
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One forward pass; norms of the stream's end (n_frames,) and logits, where wanted."""
        norms = torch.zeros(len(into))

        def store(point: Point, tensor: torch.Tensor) -> None:
            values = pool(tensor.reshape(-1, tensor.shape[-1]))
            sink.put(point, into.to(values.device), values)
            if point == self.stream:
                norms[:] = values.norm(dim=-1).cpu()

        device = self.model.device
        inputs: dict[str, Any] = {"input_ids": prompts.ids.to(device)}
        inputs["attention_mask"] = prompts.mask.to(device)
        run = self._trunk()
        if "use_cache" in signature(run.forward).parameters:
            inputs["use_cache"] = False
        with listening(self.model, self.brain, self.stream, store):
            result = run(**inputs)
        logits = first_tensor(result.logits)[0] if self.has_logits else None
        return norms, logits

    def _trunk(self) -> Any:
        """What is run: without the head, where neither its logits nor its units are needed."""
        module = self.model.module
        if self.model.has_decoder:
            return module.get_encoder()
        if self.model.kind == "dual":
            return module.get_submodule(self.model.stacks("read")[-1].path)
        if self.model.kind == "encoder" or self.has_logits:
            return module
        trunk = module.get_decoder()
        inside = next((f"{name}." for name, part in module.named_modules() if part is trunk), "")
        return trunk if all(s.module.startswith(inside) for s in self.brain.sites) else module

    def _measure(
        self,
        prompts: prefill.Prompts,
        pool: Pool,
        logits: torch.Tensor | None,
        norms: torch.Tensor,
    ) -> dict[str, np.ndarray]:
        """Per-frame measures; a word has its tokens' log-probabilities added up."""
        measures = {"residual_norm": norms.numpy()}
        if logits is None:
            return measures
        ids = prompts.ids.to(logits.device)
        log_p, entropy = measure(logits[:, :-1], ids[:, 1:])
        nothing = torch.full((len(ids), 1), float("nan"))  # nothing predicts the first token
        for name, values, total in (("log_probability", log_p, True), ("entropy", entropy, False)):
            flat = torch.cat([nothing, values], dim=1).reshape(-1, 1)
            measures[name] = pool(flat, total=total)[:, 0].numpy()
        return measures

    def _describe(
        self,
        ids: list[int],
        frames: list[list[int]],
        measures: dict[str, np.ndarray],
        part: slice,
    ) -> dict[str, Any]:
        """Row of one trial, ready for JSON."""
        decode: Callable[[list[int]], str] = self.model.tokenizer.decode
        row = {
            "token_id": [ids[positions[0]] for positions in frames],
            "token": [decode([ids[i] for i in positions]) for positions in frames],
            "response": "",
        }
        for name in ("log_probability", "entropy", "residual_norm"):
            values = measures.get(name)
            numbers = [None] * len(frames) if values is None else values[part].tolist()
            row[name] = [None if v is None or v != v else v for v in numbers]  # noqa: PLR0124
        return row


class Pool:
    """Means of the tokens of each frame.

    Parameters
    ----------
    frames : list of list of list of int
        Positions of each frame of each trial.
    length : int
        Tokens of a padded trial.
    device : torch.device
        Where the values are.
    """

    def __init__(
        self, frames: list[list[list[int]]], length: int, device: torch.device | str
    ) -> None:
        pairs = [
            (trial * length + position, i)
            for i, (trial, positions) in enumerate(
                (trial, positions) for trial, shown in enumerate(frames) for positions in shown
            )
            for position in positions
        ]
        self.rows, self.frame = torch.tensor(pairs, device=device).T
        self.n_frames = int(self.frame[-1]) + 1
        self.sizes = torch.bincount(self.frame, minlength=self.n_frames)[:, None]

    def __call__(self, values: torch.Tensor, *, total: bool = False) -> torch.Tensor:
        """(n_frames, n_units) float32 means, or sums, of (n_trials * length, n_units) values."""
        rows, frame = self.rows.to(values.device), self.frame.to(values.device)
        picked = values[rows].float()
        if len(rows) == self.n_frames:
            return picked
        out = picked.new_zeros(self.n_frames, values.shape[1]).index_add_(0, frame, picked)
        return out if total else out / self.sizes.to(values.device)


def _empty_row() -> dict[str, Any]:
    """Row of a trial that has no tokens to speak of."""
    names = ("token_id", "token", "log_probability", "entropy", "residual_norm")
    return {**{name: [] for name in names}, "response": ""}
