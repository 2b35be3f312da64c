"""How does one batch generate while its sites are recorded?

Frame ``t`` of a trial holds the outputs of the forward pass that produced token ``t``: the first
frame is the last position of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any, cast

import numpy as np
import torch

from llm2nifti.geometry import ModelBrain
from llm2nifti.hooks import Point, first_tensor
from llm2nifti.models import LoadedModel
from llm2nifti.models.loading import quiet
from llm2nifti.scanner import prefill
from llm2nifti.scanner.sampling import OwnGenerators, plain_decoding
from llm2nifti.scanner.settings import ScanError, Settings
from llm2nifti.scanner.sink import Sink, listening
from llm2nifti.scanner.stimulus import Stimuli


@dataclass(frozen=True, eq=False)
class _Batch:
    """Inputs of one batch, ready for the model; the ids are those that the decoder gets."""

    ids: torch.Tensor
    mask: torch.Tensor | None
    extra: dict[str, Any]
    stim_ids: Sequence[str]


class Generator:
    """Records batches in which the model generates, or is forced to repeat given tokens.

    Parameters
    ----------
    model : LoadedModel
        The model.
    brain : ModelBrain
        What is recorded.
    settings : Settings
        How.
    stimuli : Stimuli
        All trials of the run.
    replay : sequence of (n_frames,) sequences of int, optional
        Tokens to force, one sequence a trial.

    Raises
    ------
    ScanError
        If the prompts need padding and the model reads it.
    """

    def __init__(
        self,
        model: LoadedModel,
        brain: ModelBrain,
        settings: Settings,
        stimuli: Stimuli,
        *,
        replay: Sequence[Sequence[int]] | None,
    ) -> None:
        self.model = model
        self.brain = brain
        self.settings = settings
        self.stimuli = stimuli
        self.replay = replay
        self.stream = Point(model.stacks("generate")[-1].blocks[-1].name)
        self.reads_ahead = prefill.can_continue(model)
        self._check_padding()

    def _check_padding(self) -> None:
        """Raise if prompts would have to be padded for a model that reads padding."""
        is_plain = self.model.kind == "causal" and not self.reads_ahead
        is_padded = self.settings.batch_size > 1 and len({*map(len, self.stimuli.encoded)}) > 1
        if is_plain and is_padded and not prefill.leaves_padding_out(self.model):
            raise ScanError(
                f"{self.model.name} reads padding as text, so prompts of different lengths cannot "
                "be recorded together; use batch_size=1"
            )

    def record(self, trials: slice, out: np.ndarray) -> list[dict[str, Any]]:
        """Record some trials into `out` (n_volumes, n_units); return their metadata."""
        batch = self._prepare(trials)
        n_frames = self.stimuli.n_frames
        is_reduced = self.settings.frames == "trial"
        sink = Sink(self.model, self.brain, out, n_summed=n_frames if is_reduced else 1)
        norms = torch.empty((len(batch.ids), n_frames), device=self.model.device)
        with torch.no_grad():
            if self.replay is None:
                tokens, logits = self._generate(batch, sink, norms)
            else:
                tokens = torch.tensor([list(t) for t in self.replay[trials]]).to(batch.ids.device)
                logits = self._force(batch, tokens, sink, norms)
        sink.finish()
        return self._describe(tokens, logits, norms)

    def _prepare(self, trials: slice) -> _Batch:
        """Inputs of a batch; what can be read ahead of generation is read here."""
        stim_ids = self.stimuli.stim_ids[trials]
        if self.stimuli.files:
            return self._prepare_files(trials)
        encoded, fill = self.stimuli.encoded[trials], self.stimuli.fill
        if self.reads_ahead:
            prompts = prefill.read_ahead(self.model, encoded, fill, room=self.stimuli.n_frames)
            extra = {} if prompts.cache is None else {"past_key_values": prompts.cache}
        else:
            prompts, extra = prefill.pad(encoded, fill), {}
        if self.model.kind == "seq2seq":
            prompts = prefill.pad(encoded, fill, at_end=True)
        device = self.model.device
        ids, mask = prompts.ids.to(device), prompts.mask.to(device)
        if self.model.kind == "seq2seq":  # ahead of the hooks: the encoder's pass is no frame
            read = self.model.module.get_encoder()(input_ids=ids, attention_mask=mask)
            extra = {"encoder_outputs": read}
            ids = torch.tensor([self.model.decoder_start()] * len(ids), device=device)
        return _Batch(ids, mask, extra, stim_ids)

    def _prepare_files(self, trials: slice) -> _Batch:
        """Inputs of a batch of images with their text, or of sounds that an encoder has read."""
        stim_ids = self.stimuli.stim_ids[trials]
        batches = list(self.stimuli.batches(self.model, trials))
        if len(batches) > 1:
            raise ScanError(
                f"{self.model.name} makes inputs of different shapes of these files, so they "
                "cannot be recorded together; use batch_size=1"
            )
        inputs = batches[0][1]
        if not self.model.has_decoder:
            return _Batch(inputs.pop("input_ids"), inputs.pop("attention_mask"), inputs, stim_ids)
        start = torch.tensor(self.stimuli.encoded[trials], device=self.model.device)
        read = self.model.module.get_encoder()(**inputs)
        return _Batch(start, inputs.get("attention_mask"), {"encoder_outputs": read}, stim_ids)

    def _rows(self, step: int, n_trials: int) -> slice:
        """Rows of the recording that one frame of all trials fills."""
        if self.settings.frames == "trial":
            return slice(0, n_trials)
        return slice(step, None, self.stimuli.n_frames)

    def _generate(
        self, batch: _Batch, sink: Sink, norms: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Generate tokens with hooks on; (n_trials, n_frames) ids and their logits."""
        from transformers import GenerationMixin

        n_trials, n_frames = norms.shape
        step = -1

        def next_step(_module: torch.nn.Module, _args: Any) -> None:
            nonlocal step
            step += 1

        def store(point: Point, tensor: torch.Tensor) -> None:
            # The pass of a prompt has many positions, the later ones have one: keep the last.
            last = tensor.reshape(n_trials, -1, tensor.shape[-1])[:, -1]
            sink.put(point, self._rows(step, n_trials), last)
            if point == self.stream:
                norms[:, step] = last.float().norm(dim=-1)

        module = self.model.module
        config = self._config()  # before the model's own is put aside: it names the end token
        inputs = {"attention_mask": batch.mask, **batch.extra}
        inputs["decoder_input_ids" if self.model.has_decoder else "input_ids"] = batch.ids
        generate = module.generate
        if self.model.kind == "speech":  # Whisper's own makes passes in between, and cuts up sounds
            generate = partial(GenerationMixin.generate, module)
        counter = module.register_forward_pre_hook(next_step)
        try:
            with (
                quiet(),  # of masks, which the encoder has read already
                listening(self.model, self.brain, self.stream, store),
                plain_decoding(module),
            ):
                result = generate(
                    **inputs,
                    generation_config=config,
                    logits_processor=self._samplers(batch.stim_ids),
                )
        finally:
            counter.remove()
        return result.sequences[:, -n_frames:], torch.stack(result.logits, dim=1)

    def _config(self) -> Any:
        """Decoding of exactly `n_frames` tokens."""
        from transformers import GenerationConfig

        model, n_frames = self.model, self.stimuli.n_frames
        return GenerationConfig(
            max_new_tokens=n_frames,
            min_new_tokens=n_frames,
            do_sample=False,
            pad_token_id=self.stimuli.fill,
            eos_token_id=model.module.generation_config.eos_token_id,
            decoder_start_token_id=model.decoder_start()[0] if model.has_decoder else None,
            return_dict_in_generate=True,
            output_logits=True,
        )

    def _samplers(self, stim_ids: Sequence[str]) -> list[OwnGenerators]:
        """Sampling with one generator a trial, or nothing for greedy decoding."""
        if self.settings.temperature == 0:
            return []
        return [OwnGenerators(self.settings.temperature, self.settings.seed, stim_ids)]

    def _force(
        self, batch: _Batch, tokens: torch.Tensor, sink: Sink, norms: torch.Tensor
    ) -> torch.Tensor:
        """Logits (n_trials, n_frames, vocabulary) of one pass over the prompt and given tokens."""
        n_trials, n_frames = tokens.shape

        def store(point: Point, tensor: torch.Tensor) -> None:
            frames = tensor.reshape(n_trials, -1, tensor.shape[-1])[:, -n_frames:]
            for t in range(n_frames):
                sink.put(point, self._rows(t, n_trials), frames[:, t])
            if point == self.stream:
                norms[:] = frames.float().norm(dim=-1)

        with listening(self.model, self.brain, self.stream, store):
            result = self.model.module(**self._forced_inputs(batch, tokens))
        logits, _ = first_tensor(result.logits)
        return cast(torch.Tensor, logits)[:, -n_frames:]

    def _forced_inputs(self, batch: _Batch, tokens: torch.Tensor) -> dict[str, Any]:
        """Inputs of the one pass; the last token is produced, never read."""
        given = tokens[:, :-1]
        inputs = dict(batch.extra)
        accepted = signature(self.model.module.forward).parameters
        if self.model.has_decoder:
            inputs |= {"attention_mask": batch.mask, "use_cache": False}
            return inputs | {"decoder_input_ids": torch.cat([batch.ids, given], dim=1)}
        cache = inputs.get("past_key_values")
        n_read = 0 if cache is None else cache.get_seq_length()
        mask = torch.cat([cast(torch.Tensor, batch.mask), torch.ones_like(given)], dim=1)
        inputs["input_ids"] = torch.cat([batch.ids, given], dim=1)[:, n_read:]
        inputs |= {"attention_mask": mask, "use_cache": cache is not None}
        if "token_type_ids" in inputs:  # what follows an image is text
            more = torch.zeros_like(given, dtype=inputs["token_type_ids"].dtype)
            inputs["token_type_ids"] = torch.cat([inputs["token_type_ids"], more], dim=1)
        if "position_ids" in accepted and not self.stimuli.files:
            inputs["position_ids"] = prefill.positions(mask)[:, n_read:]
        if "logits_to_keep" in accepted:
            inputs["logits_to_keep"] = tokens.shape[1]
        return inputs

    def _describe(
        self, tokens: torch.Tensor, logits: torch.Tensor, norms: torch.Tensor
    ) -> list[dict[str, Any]]:
        """Per-frame measures and the response of each trial, ready for JSON."""
        log_probability, entropy = measure(logits, tokens)
        decode = self.model.tokenizer.decode
        return [
            {
                "token_id": ids,
                "token": [decode([token]) for token in ids],
                "log_probability": log_probability[i].tolist(),
                "entropy": entropy[i].tolist(),
                "residual_norm": norms[i].tolist(),
                "response": decode(ids, skip_special_tokens=True),
            }
            for i, ids in enumerate(tokens.tolist())
        ]


def measure(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each token and entropy of its distribution, both (n_trials, n_tokens).

    Parameters
    ----------
    logits : (n_trials, n_tokens, vocabulary) tensor
        What each token was drawn from.
    tokens : (n_trials, n_tokens) int64 tensor
        The tokens.
    """
    log_probability = torch.empty(tokens.shape)
    entropy = torch.empty(tokens.shape)
    for t in range(tokens.shape[1]):  # one by one: logits of all frames at once are large
        log_p = logits[:, t].float().log_softmax(dim=-1)
        log_probability[:, t] = log_p.gather(1, tokens[:, t : t + 1])[:, 0]
        p = log_p.exp()
        of_token = -torch.linalg.vecdot(p, log_p)
        if of_token.isnan().any():  # tokens of probability 0, which a few models rule out
            of_token = torch.special.entr(p).sum(dim=-1)
        entropy[:, t] = of_token
    return log_probability, entropy
