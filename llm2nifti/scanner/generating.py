"""How does a model generate? Recorded in batches, or answering until it ends by itself.

Frame ``t`` of a trial holds the outputs of the forward pass that produced token ``t``: the first
frame is the last position of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any, cast

import numpy as np
import torch
from transformers import GenerationConfig

from llm2nifti.geometry import ModelBrain
from llm2nifti.hooks import Point, first_tensor
from llm2nifti.models import LoadedModel
from llm2nifti.models.loading import quiet
from llm2nifti.plans import Settings
from llm2nifti.recording import TrialRow
from llm2nifti.scanner import prefill, stepping
from llm2nifti.scanner.choosing import Meter, NeverEnd, OwnGenerators, measure
from llm2nifti.scanner.prefill import Inputs
from llm2nifti.scanner.sink import Sink
from llm2nifti.scanner.stimulus import ScanError, Stimuli, check_length


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
    replay: Sequence[Sequence[int]] | None

    def __post_init__(self) -> None:
        """Look at the model."""
        self.stream = Point(self.model.stacks("generate")[-1].blocks[-1].name)
        self.ids_name = "decoder_input_ids" if self.model.has_decoder else "input_ids"
        self.reads_ahead = prefill.can_continue(self.model)
        is_plain = self.model.kind == "causal" and not self.reads_ahead
        is_padded = self.settings.batch_size != 1 and len({*map(len, self.stimuli.encoded)}) > 1
        if is_plain and is_padded and not prefill.leaves_padding_out(self.model):
            raise ScanError(
                f"{self.model.name} reads padding as text, so prompts of different lengths cannot "
                "be recorded together; use batch_size=1"
            )

    @torch.no_grad()  # of the encoder's pass, too
    def record(
        self, trials: slice, outs: Sequence[np.ndarray]
    ) -> tuple[list[TrialRow], Callable[[], None]]:
        """Record some trials into `outs`; their metadata, and what to call before values are used.

        See `Sink.finish`.
        """
        inputs = self._file_inputs(trials) if self.stimuli.files else self._text_inputs(trials)
        n_frames = self.stimuli.n_frames
        is_reduced = self.settings.frames == "trial"
        sink = Sink(self.model, self.brain, outs, n_summed=n_frames if is_reduced else 1)
        device = self.model.device
        norms = torch.empty((trials.stop - trials.start, n_frames), device=device)
        if self.replay is None:
            is_stepped = "past_key_values" in inputs and stepping.is_used(self.model)
            generate = self._step if is_stepped else self._generate
            stim_ids = self.stimuli.stim_ids[trials]
            tokens, log_probability, entropy = generate(inputs, stim_ids, sink, norms)
        else:
            tokens = torch.tensor(self.replay[trials], device=device)
            with self._keeping(n_frames, sink, norms):
                result = self.model.module(**self._forced_inputs(inputs, tokens))
            logits = cast(torch.Tensor, first_tensor(result.logits)[0])[:, -n_frames:]
            log_probability, entropy = measure(logits, tokens)
        land = sink.finish()
        decode, columns = self.model.tokenizer.decode, (tokens, log_probability, entropy, norms)
        rows = [
            TrialRow(
                token_id=ids,
                token=[decode([token]) for token in ids],
                log_probability=of_trial[0],
                entropy=of_trial[1],
                residual_norm=of_trial[2],
                response=decode(ids, skip_special_tokens=True),
            )
            for ids, *of_trial in zip(*(column.tolist() for column in columns), strict=True)
        ]
        return rows, land

    def _text_inputs(self, trials: slice) -> Inputs:
        """Inputs of a batch of prompts; what can be read ahead of generation is read here."""
        model, encoded = self.model, self.stimuli.encoded[trials]
        is_seq2seq = model.kind == "seq2seq"
        if self.reads_ahead:
            ids, mask, cache = prefill.read_ahead(model, encoded, self.stimuli.n_frames)
        else:
            ids, mask, cache = prefill.pad(model, encoded, "right" if is_seq2seq else "left")
        inputs: Inputs = {self.ids_name: ids, "attention_mask": mask}
        if cache is not None:
            inputs["past_key_values"] = cache
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

    @contextmanager
    def _keeping(self, n_kept: int, sink: Sink, norms: torch.Tensor) -> Iterator[None]:
        """Keep the last `n_kept` positions of every pass, each of which is a frame."""
        n_trials, n_frames = norms.shape
        first = -n_kept

        def next_pass(_module: torch.nn.Module, _args: Any) -> None:
            nonlocal first
            first += n_kept

        def store(point: Point, tensor: torch.Tensor) -> None:
            kept = tensor.reshape(n_trials, -1, tensor.shape[-1])[:, -n_kept:]
            for t in range(n_kept):
                is_reduced = self.settings.frames == "trial"
                rows = slice(0, n_trials) if is_reduced else slice(first + t, None, n_frames)
                sink.put(point, rows, kept[:, t])
            if point == self.stream:
                norms[:, first : first + n_kept] = kept.float().norm(dim=-1)

        with (
            self.model.module.register_forward_pre_hook(next_pass),
            sink.listening(self.stream, store),
        ):
            yield

    def _ends(self) -> list[int]:
        """Tokens that end a text, of the model's own generation config."""
        ends = self.model.module.generation_config.eos_token_id
        return [ends] if isinstance(ends, int) else list(ends or ())

    def _sampler(self, stim_ids: Sequence[str]) -> OwnGenerators | None:
        """What draws tokens, unless decoding is greedy."""
        how = self.settings
        return OwnGenerators(how.temperature, how.seed, stim_ids) if how.temperature else None

    def _step(
        self, inputs: Inputs, stim_ids: Sequence[str], sink: Sink, norms: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Generate tokens in steps of fixed shape; see `_generate`."""
        n_trials, n_frames = norms.shape
        # Someone else's hooks may do another thing at every call, which a graph cannot.
        is_alone = not stepping.has_hooks(self.model.module)
        sampler = self._sampler(stim_ids)
        steps = stepping.Steps(self.model, inputs, n_frames, self._ends(), sampler)
        firsts = torch.arange(n_trials, device=norms.device) * n_frames
        is_reduced = self.settings.frames == "trial"

        def store(point: Point, tensor: torch.Tensor) -> None:
            last = tensor.reshape(n_trials, -1, tensor.shape[-1])[:, -1]
            sink.put(point, slice(0, n_trials) if is_reduced else firsts + steps.frame, last)
            if point == self.stream:
                norms.index_copy_(1, steps.frame, last.float().norm(dim=-1, keepdim=True))

        with sink.listening(self.stream, store):
            steps.run(is_captured=is_alone)
        return steps.tokens, steps.log_probability, steps.entropy

    def _generate(
        self, inputs: Inputs, stim_ids: Sequence[str], sink: Sink, norms: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Generate tokens with hooks on; ids, log-probabilities, entropies, each as `norms` is."""
        from transformers import GenerationMixin  # imports much

        module, n_frames, meter = self.model.module, norms.shape[1], Meter(norms.shape)
        generate = module.generate
        if self.model.kind == "speech":  # Whisper's own makes passes in between, and cuts up sounds
            generate = partial(GenerationMixin.generate, module)
        sampler = self._sampler(stim_ids)
        processors: list[Any] = [NeverEnd(self._ends()), *([sampler] if sampler else [])]
        with (
            quiet(),  # of masks, which the encoder has read already
            self._keeping(1, sink, norms),
            meter.reading(module),
            greedy(self.model, n_frames, ends=False) as config,
        ):
            result = generate(
                **inputs,
                generation_config=config,
                logits_processor=processors,
                stopping_criteria=[meter],
            )
        return result[:, -n_frames:], meter.log_probability, meter.entropy

    def _forced_inputs(self, inputs: Inputs, tokens: torch.Tensor) -> Inputs:
        """Inputs of one pass over the prompt and given tokens; the last is produced, never read."""
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


@contextmanager
def greedy(model: LoadedModel, n_tokens: int, *, ends: bool = True) -> Iterator[GenerationConfig]:
    """Greedy decoding of at most `n_tokens`; the model's own penalties, beams, ... are put aside.

    transformers fills every option that a call leaves open from them. With `ends`, the model's end
    token ends the text.
    """
    module = model.module
    put_aside = module.generation_config
    config = GenerationConfig(
        max_new_tokens=n_tokens,
        do_sample=False,
        eos_token_id=put_aside.eos_token_id if ends else None,
        pad_token_id=prefill.fill_token(model),
        decoder_start_token_id=model.decoder_start()[0] if model.has_decoder else None,
    )
    module.generation_config = GenerationConfig(bos_token_id=put_aside.bos_token_id)
    try:
        yield config
    finally:
        module.generation_config = put_aside


def answer(
    model: LoadedModel,
    prompt: str,
    *,
    n_tokens: int,
    template: str = "auto",
    stopping: Sequence[Any] = (),
) -> str:
    """Let the model answer a prompt, as in a scan but for the end, which is the model's own.

    Parameters
    ----------
    model : LoadedModel
        A model that generates; interventions and monitors that are in force work.
    prompt : str
        What to ask.
    n_tokens : int
        Most tokens of the answer.
    template : {"auto", "chat", "none"}
        See `llm2nifti.models.LoadedModel.render`.
    stopping : sequence of transformers.StoppingCriteria
        What else ends the answer.

    Returns
    -------
    str

    Raises
    ------
    ScanError
        If the model does not generate, or the prompt has no token or does not fit.
    """
    if "generate" not in model.modes():
        raise ScanError(f"{model.name} does not generate, so it answers nothing")
    (text,) = model.render([prompt], template)
    (ids,) = model.encode([text], rendered=text != prompt)
    if n_tokens < 1:
        raise ScanError(f"n-tokens is {n_tokens}; it must be at least 1")
    room = 0 if model.has_decoder else n_tokens
    shown = prompt if len(prompt) <= 40 else f"{prompt[:40]}..."
    check_length(model, shown, ids, room, f" and {room} follow")
    inputs = torch.tensor([ids], device=model.device)
    with torch.no_grad(), greedy(model, n_tokens) as config:
        out = model.module.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            generation_config=config,
            stopping_criteria=list(stopping),
        )
    written = out[0, 1 if model.has_decoder else len(ids) :]
    return str(model.tokenizer.decode(written, skip_special_tokens=True))
