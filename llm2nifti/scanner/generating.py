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
from llm2nifti.plans import Settings
from llm2nifti.recording import TrialRow
from llm2nifti.scanner import prefill
from llm2nifti.scanner.decoding import OwnGenerators, greedy
from llm2nifti.scanner.prefill import Inputs
from llm2nifti.scanner.settings import ScanError
from llm2nifti.scanner.sink import Sink
from llm2nifti.scanner.stimulus import Stimuli, fill_token


@dataclass(eq=False)
class Generator:
    """Records batches in which the model generates, or is forced to repeat given tokens.

    `replay` holds (n_frames,) tokens to force for each trial. Prompts that need padding raise
    ScanError if the model reads it.
    """

    model: LoadedModel
    brain: ModelBrain
    settings: Settings
    stimuli: Stimuli
    replay: Sequence[Sequence[int]] | None = None

    def __post_init__(self) -> None:
        """Look at the model."""
        self.stream = Point(self.model.stacks("generate")[-1].blocks[-1].name)
        self.ids_name = "decoder_input_ids" if self.model.has_decoder else "input_ids"
        self.reads_ahead = prefill.can_continue(self.model)
        is_plain = self.model.kind == "causal" and not self.reads_ahead
        is_padded = self.settings.batch_size > 1 and len({*map(len, self.stimuli.encoded)}) > 1
        if is_plain and is_padded and not prefill.leaves_padding_out(self.model):
            raise ScanError(
                f"{self.model.name} reads padding as text, so prompts of different lengths cannot "
                "be recorded together; use batch_size=1"
            )

    @torch.no_grad()  # of the encoder's pass, too
    def record(self, trials: slice, out: np.ndarray) -> list[TrialRow]:
        """Record some trials into `out` (n_volumes, n_units); return their metadata."""
        inputs = self._file_inputs(trials) if self.stimuli.files else self._text_inputs(trials)
        n_frames = self.stimuli.n_frames
        is_reduced = self.settings.frames == "trial"
        sink = Sink(self.model, self.brain, out, n_summed=n_frames if is_reduced else 1)
        device = self.model.device
        norms = torch.empty((trials.stop - trials.start, n_frames), device=device)
        if self.replay is None:
            tokens, logits = self._generate(inputs, self.stimuli.stim_ids[trials], sink, norms)
        else:
            tokens = torch.tensor([list(t) for t in self.replay[trials]], device=device)
            logits = self._force(inputs, tokens, sink, norms)
        sink.finish()
        return self._describe(tokens, logits, norms)

    def _text_inputs(self, trials: slice) -> Inputs:
        """Inputs of a batch of prompts; what can be read ahead of generation is read here."""
        model, encoded = self.model, self.stimuli.encoded[trials]
        fill, is_seq2seq = fill_token(model), model.kind == "seq2seq"
        if self.reads_ahead:
            prompts = prefill.read_ahead(model, encoded, fill, room=self.stimuli.n_frames)
        else:
            prompts = prefill.pad(encoded, fill, at_end=is_seq2seq)
        ids, mask = prompts.ids.to(model.device), prompts.mask.to(model.device)
        inputs: Inputs = {self.ids_name: ids, "attention_mask": mask}
        if prompts.cache is not None:
            inputs["past_key_values"] = prompts.cache
        if is_seq2seq:  # ahead of the hooks: the encoder's pass is no frame
            read = model.module.get_encoder()(input_ids=ids, attention_mask=mask)
            start = torch.tensor([model.decoder_start()] * len(ids), device=model.device)
            inputs |= {self.ids_name: start, "encoder_outputs": read}
        return inputs

    def _file_inputs(self, trials: slice) -> Inputs:
        """Inputs of a batch of images with their text, or of sounds that an encoder has read."""
        model = self.model
        batches = list(self.stimuli.batches(model, trials))
        if len(batches) > 1:
            raise ScanError(
                f"{model.name} makes inputs of different shapes of these files, so they "
                "cannot be recorded together; use batch_size=1"
            )
        inputs = batches[0][1]
        if not model.has_decoder:
            return inputs
        return {
            self.ids_name: torch.tensor(self.stimuli.encoded[trials], device=model.device),
            "attention_mask": inputs.get("attention_mask"),
            "encoder_outputs": model.module.get_encoder()(**inputs),
        }

    def _rows(self, step: int, n_trials: int) -> slice:
        """Rows of the recording that one frame of all trials fills."""
        if self.settings.frames == "trial":
            return slice(0, n_trials)
        return slice(step, None, self.stimuli.n_frames)

    def _generate(
        self, inputs: Inputs, stim_ids: Sequence[str], sink: Sink, norms: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Generate tokens with hooks on; (n_trials, n_frames) ids and their logits."""
        from transformers import GenerationMixin  # imports much

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

        module, how = self.model.module, self.settings
        generate = module.generate
        if self.model.kind == "speech":  # Whisper's own makes passes in between, and cuts up sounds
            generate = partial(GenerationMixin.generate, module)
        samplers = [OwnGenerators(how.temperature, how.seed, stim_ids)] if how.temperature else []
        options = {"return_dict_in_generate": True, "output_logits": True}
        with (
            quiet(),  # of masks, which the encoder has read already
            module.register_forward_pre_hook(next_step),
            sink.listening(self.stream, store),
            greedy(self.model, n_frames, min_new_tokens=n_frames, **options) as config,
        ):
            result = generate(**inputs, generation_config=config, logits_processor=samplers)
        return result.sequences[:, -n_frames:], torch.stack(result.logits, dim=1)

    def _force(
        self, inputs: Inputs, tokens: torch.Tensor, sink: Sink, norms: torch.Tensor
    ) -> torch.Tensor:
        """Logits (n_trials, n_frames, vocabulary) of one pass over the prompt and given tokens."""
        n_trials, n_frames = tokens.shape

        def store(point: Point, tensor: torch.Tensor) -> None:
            frames = tensor.reshape(n_trials, -1, tensor.shape[-1])[:, -n_frames:]
            for t in range(n_frames):
                sink.put(point, self._rows(t, n_trials), frames[:, t])
            if point == self.stream:
                norms[:] = frames.float().norm(dim=-1)

        with sink.listening(self.stream, store):
            result = self.model.module(**self._forced_inputs(inputs, tokens))
        logits, _ = first_tensor(result.logits)
        return cast(torch.Tensor, logits)[:, -n_frames:]

    def _forced_inputs(self, inputs: Inputs, tokens: torch.Tensor) -> Inputs:
        """Inputs of the one pass; the last token is produced, never read."""
        given, module = tokens[:, :-1], self.model.module
        ids = torch.cat([inputs[self.ids_name], given], dim=1)
        if self.model.has_decoder:
            return {**inputs, self.ids_name: ids, "use_cache": False}
        cache = inputs.get("past_key_values")
        ids = ids if cache is None else ids[:, cache.get_seq_length() :]
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(given)], dim=1)
        forced = {**inputs, "input_ids": ids, "attention_mask": mask}
        forced["use_cache"] = cache is not None
        if not self.stimuli.files:
            forced |= prefill.inputs_for(self.model, module, ids, mask)
        if "token_type_ids" in inputs:  # what follows an image is text
            more = torch.zeros_like(given, dtype=inputs["token_type_ids"].dtype)
            forced["token_type_ids"] = torch.cat([inputs["token_type_ids"], more], dim=1)
        if "logits_to_keep" in signature(module.forward).parameters:
            forced["logits_to_keep"] = tokens.shape[1]
        return forced

    def _describe(
        self, tokens: torch.Tensor, logits: torch.Tensor, norms: torch.Tensor
    ) -> list[TrialRow]:
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

    Tokens are (n_trials, n_tokens) int64, drawn from logits (n_trials, n_tokens, vocabulary).
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
