"""How does one batch go through the model while its sites are recorded?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any, cast

import numpy as np
import torch

from llm2nifti.geometry import ModelBrain
from llm2nifti.hooks import Point, first_tensor, tap
from llm2nifti.models import LoadedModel
from llm2nifti.scanner.prefix import prefix_cache, shared_prefix
from llm2nifti.scanner.settings import Settings


class Operator:
    """Records one batch at a time: feeds the model, and stores what its sites put out."""

    def __init__(
        self,
        model: LoadedModel,
        brain: ModelBrain,
        settings: Settings,
        *,
        encoded: list[list[int]],
        stim_ids: Sequence[str],
        replay: Sequence[Sequence[int]] | None,
    ) -> None:
        self.model = model
        self.stim_ids = stim_ids
        self.settings = settings
        self.encoded = encoded
        self.replay = replay
        self.prefix = shared_prefix(model, encoded)
        self.slices: dict[Point, slice] = {
            Point(site.module, site.where): brain.slice_of(site) for site in brain.sites
        }
        self.stream = Point(model.anatomy.blocks[-1].name)
        tokenizer, config = model.tokenizer, model.module.config
        pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, config.eos_token_id, 0)
        pad = next(p for p in pads if p is not None)
        self.pad = pad[0] if isinstance(pad, list) else int(pad)

    def record(self, trials: slice, out: np.ndarray) -> list[dict[str, Any]]:
        """Record some trials into `out` (n_trials, n_frames, n_units); return their metadata."""
        ids, mask = self._pad_left(self.encoded[trials])
        n_frames = out.shape[1]
        buffer = torch.from_numpy(out)
        if self.model.device.type != "cpu":
            buffer = torch.empty(out.shape, dtype=torch.float32, device=self.model.device)
        norms = torch.empty(out.shape[:2], device=self.model.device)
        if self.replay is None:
            tokens, logits = self._generate(ids, mask, buffer, norms, trials)
        else:
            tokens = torch.tensor([list(t) for t in self.replay[trials]], device=ids.device)
            logits = self._force(ids, mask, tokens, buffer, norms)
        if self.model.device.type != "cpu":
            out[:] = buffer.cpu().numpy()
        return self._describe(tokens, logits, norms, n_frames)

    def _pad_left(self, encoded: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """(n_trials, longest) ids and attention mask; padding comes between prefix and rest."""
        longest, n_shared = max(map(len, encoded)), len(self.prefix)
        ids = torch.full((len(encoded), longest), self.pad)
        mask = torch.zeros_like(ids)
        ids[:, :n_shared] = torch.tensor(self.prefix)
        mask[:, :n_shared] = 1
        for row, tokens in enumerate(encoded):
            start = longest - len(tokens) + n_shared
            ids[row, start:] = torch.tensor(tokens[n_shared:])
            mask[row, start:] = 1
        return ids.to(self.model.device), mask.to(self.model.device)

    def _generate(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        buffer: torch.Tensor,
        norms: torch.Tensor,
        trials: slice,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Generate tokens with hooks on; (n_trials, n_frames) ids and their logits."""
        from transformers import GenerationConfig

        n_trials, n_frames, _ = buffer.shape
        step = -1

        def next_step(_module: torch.nn.Module, _args: Any) -> None:
            nonlocal step
            step += 1

        def store(point: Point, tensor: torch.Tensor) -> None:
            # The pass of the prompt has many positions, the later ones have one: keep the last.
            last = tensor.reshape(n_trials, -1, tensor.shape[-1])[:, -1]
            if point in self.slices:
                buffer[:, step, self.slices[point]] = last
            if point == self.stream:
                norms[:, step] = last.float().norm(dim=-1)

        config = GenerationConfig(
            max_new_tokens=n_frames,
            min_new_tokens=n_frames,
            do_sample=False,
            pad_token_id=self.pad,
            eos_token_id=self.model.module.generation_config.eos_token_id,
            return_dict_in_generate=True,
            output_logits=True,
        )
        points = dict.fromkeys([*self.slices, self.stream])
        cached = self._cached(n_trials)  # before the hooks: reading the prefix is no frame
        counter = self.model.module.register_forward_pre_hook(next_step)
        try:
            with tap(self.model.module, points, store), _plain_decoding(self.model.module):
                result = self.model.module.generate(
                    ids,
                    attention_mask=mask,
                    generation_config=config,
                    logits_processor=self._samplers(trials),
                    **cached,
                )
        finally:
            counter.remove()
        logits = torch.stack(result.logits, dim=1)
        return result.sequences[:, ids.shape[1] :], logits

    def _cached(self, n_trials: int) -> dict[str, Any]:
        """Argument that lets the model go on from the shared prefix."""
        if not self.prefix:
            return {}
        return {"past_key_values": prefix_cache(self.model, self.prefix, n_trials)}

    def _samplers(self, trials: slice) -> list[OwnGenerators]:
        """Sampling with one generator a trial, or nothing for greedy decoding."""
        if self.settings.temperature == 0:
            return []
        names = self.stim_ids[trials]
        return [OwnGenerators(self.settings.temperature, self.settings.seed, names)]

    @torch.no_grad()
    def _force(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        tokens: torch.Tensor,
        buffer: torch.Tensor,
        norms: torch.Tensor,
    ) -> torch.Tensor:
        """Logits (n_trials, n_frames, vocabulary) of one pass over the prompt and given tokens."""
        n_trials, n_frames, _ = buffer.shape

        def store(point: Point, tensor: torch.Tensor) -> None:
            frames = tensor.reshape(n_trials, -1, tensor.shape[-1])[:, -n_frames:]
            if point in self.slices:
                buffer[:, :, self.slices[point]] = frames
            if point == self.stream:
                norms[:] = frames.float().norm(dim=-1)

        # The last token is produced, never read.
        ids = torch.cat([ids, tokens[:, :-1]], dim=1)
        mask = torch.cat([mask, torch.ones_like(tokens[:, :-1])], dim=1)
        n_shared = len(self.prefix)
        inputs: dict[str, Any] = {"input_ids": ids[:, n_shared:], "attention_mask": mask}
        inputs |= {"use_cache": n_shared > 0, **self._cached(n_trials)}
        accepted = signature(self.model.module.forward).parameters
        if "position_ids" in accepted:
            inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, n_shared:]
        if "logits_to_keep" in accepted:
            inputs["logits_to_keep"] = n_frames
        points = dict.fromkeys([*self.slices, self.stream])
        with tap(self.model.module, points, store):
            result = self.model.module(**inputs)
        logits, _ = first_tensor(result.logits)
        return cast(torch.Tensor, logits)[:, -n_frames:]

    def _describe(
        self, tokens: torch.Tensor, logits: torch.Tensor, norms: torch.Tensor, n_frames: int
    ) -> list[dict[str, Any]]:
        """Per-frame measures and the response of each trial, ready for JSON."""
        log_probability = torch.empty(tokens.shape)
        entropy = torch.empty(tokens.shape)
        for t in range(n_frames):  # frame by frame: logits of all frames at once are large
            log_p = logits[:, t].float().log_softmax(dim=-1)
            log_probability[:, t] = log_p.gather(1, tokens[:, t : t + 1])[:, 0]
            entropy[:, t] = torch.special.entr(log_p.exp()).sum(dim=-1)
        decode = self.model.tokenizer.decode
        rows = []
        for i, ids in enumerate(tokens.tolist()):
            rows.append(
                {
                    "token_id": ids,
                    "token": [decode([token]) for token in ids],
                    "log_probability": log_probability[i].tolist(),
                    "entropy": entropy[i].tolist(),
                    "residual_norm": norms[i].tolist(),
                    "response": decode(ids, skip_special_tokens=True),
                }
            )
        return rows


@contextmanager
def _plain_decoding(module: torch.nn.Module) -> Iterator[None]:
    """Put the model's own decoding options (penalties, beams, ...) aside, then back.

    transformers fills every option that a call leaves open from them.
    """
    from transformers import GenerationConfig

    own: Any = module.generation_config
    module.generation_config = GenerationConfig(bos_token_id=own.bos_token_id)
    try:
        yield
    finally:
        module.generation_config = own


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
