"""How does a model generate? Recorded in batches, or answering until it ends by itself.

Frame ``t`` of a trial holds the outputs of the forward pass that produced token ``t``: the first
frame is the last position of the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from llm2nifti.scanner import prefill
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
    def record(self, trials: slice, outs: Sequence[np.ndarray]) -> list[TrialRow]:
        """Record some trials into `outs`, see `Sink`; return their metadata."""
        inputs = self._file_inputs(trials) if self.stimuli.files else self._text_inputs(trials)
        n_frames = self.stimuli.n_frames
        is_reduced = self.settings.frames == "trial"
        sink = Sink(self.model, self.brain, outs, n_summed=n_frames if is_reduced else 1)
        device = self.model.device
        norms = torch.empty((trials.stop - trials.start, n_frames), device=device)
        if self.replay is None:
            meter = Meter(norms.shape)
            tokens = self._generate(inputs, self.stimuli.stim_ids[trials], sink, norms, meter)
            log_probability, entropy = meter.log_probability, meter.entropy
        else:
            tokens = torch.tensor(self.replay[trials], device=device)
            with self._keeping(n_frames, sink, norms):
                result = self.model.module(**self._forced_inputs(inputs, tokens))
            logits = cast(torch.Tensor, first_tensor(result.logits)[0])[:, -n_frames:]
            log_probability, entropy = measure(logits, tokens)
        sink.finish()
        decode, columns = self.model.tokenizer.decode, (tokens, log_probability, entropy, norms)
        return [
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

    def _generate(
        self,
        inputs: Inputs,
        stim_ids: Sequence[str],
        sink: Sink,
        norms: torch.Tensor,
        meter: Meter,
    ) -> torch.Tensor:
        """Generate tokens with hooks on; (n_trials, n_frames) ids."""
        from transformers import GenerationMixin  # imports much

        module, how, n_frames = self.model.module, self.settings, norms.shape[1]
        generate = module.generate
        if self.model.kind == "speech":  # Whisper's own makes passes in between, and cuts up sounds
            generate = partial(GenerationMixin.generate, module)
        processors: list[Any] = [NeverEnd(module.generation_config.eos_token_id)]
        if how.temperature:
            processors.append(OwnGenerators(how.temperature, how.seed, stim_ids))
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
        return result[:, -n_frames:]

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


class Meter:
    """Measures every token as it is generated; of all of them, logits would fill the memory.

    It never stops generation. `shape` is (n_trials, n_tokens), as are what it measures.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.log_probability, self.entropy = torch.empty(shape), torch.empty(shape)
        self._logits = torch.empty(0)
        self._n_read = 0

    @contextmanager
    def reading(self, module: torch.nn.Module) -> Iterator[None]:
        """Read the logits of every pass before what decodes changes them."""

        def read(_module: Any, _args: Any, output: Any) -> None:
            self._logits = cast(torch.Tensor, first_tensor(output.logits)[0])[:, -1:]

        handle = module.register_forward_hook(read)
        try:
            yield
        finally:
            handle.remove()

    def __call__(self, input_ids: torch.Tensor, _scores: Any, **_more: Any) -> torch.Tensor:
        """Measure the token that was chosen last, of every trial."""
        t = slice(self._n_read, self._n_read + 1)
        chosen = input_ids[:, -1:].to(self._logits.device)
        self.log_probability[:, t], self.entropy[:, t] = measure(self._logits, chosen)
        self._n_read += 1
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


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
        of_token = -torch.bmm(p[:, None], log_p[:, :, None])[:, 0, 0]
        if of_token.isnan().any():  # tokens of probability 0, which a few models rule out
            of_token = torch.special.entr(p).sum(dim=-1)
        entropy[:, t] = of_token
    return log_probability, entropy


class NeverEnd:
    """Logits processor that rules out the tokens that end a text, in place.

    transformers' own two for a least length copy all logits twice a token each.
    """

    def __init__(self, ends: int | Sequence[int] | None) -> None:
        self.ends = [ends] if isinstance(ends, int) else list(ends or ())

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores (n_trials, vocabulary), a copy of the logits that generation made."""
        scores[:, self.ends] = -torch.inf
        return scores


class OwnGenerators:
    """Logits processor that samples with one random generator a trial (the Gumbel-max trick).

    Adding Gumbel noise to ``logits / temperature`` and taking the largest is a draw from the
    softmax; with a generator a trial the draw does not depend on the other trials of the batch. The
    prompt's identifier is part of the seed: trials of different runs draw independently.
    """

    def __init__(self, temperature: float, seed: int, stim_ids: Sequence[str]) -> None:
        self.temperature = temperature
        self.generators = [np.random.default_rng([seed, *name.encode()]) for name in stim_ids]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return noisy scores (n_trials, vocabulary)."""
        noise = np.stack([g.gumbel(size=scores.shape[-1]) for g in self.generators])
        return scores.float() / self.temperature + torch.from_numpy(noise).to(scores)


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
