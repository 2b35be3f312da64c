"""How are tokens generated on a GPU? In steps of one fixed shape, captured once and replayed.

All that a step reads or writes is there before the first one: keys and values of all tokens, the
mask, what is recorded. So a CUDA graph launches the thousand kernels of a small model's step at
once, where each would wait for Python. What cannot be captured is done step by step. Nothing here
but the capture needs a GPU: the tests take the same steps on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from llm2nifti.hooks import first_tensor
from llm2nifti.models import LoadedModel
from llm2nifti.scanner import prefill
from llm2nifti.scanner.choosing import OwnGenerators, measure_one
from llm2nifti.scanner.prefill import Inputs, RoomyLayer

# What a forward raises that does not take such a mask, such positions or such a cache.
_REFUSALS = (TypeError, ValueError, AttributeError, IndexError, RuntimeError, NotImplementedError)
TOLERANCE = {torch.float32: 1e-4}  # relative, of logits
_COARSE = 0.05  # of half precision


class FixedLayer(DynamicLayer):
    """Keys and values of one layer at their final length; new ones go where `slot` says."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, slot: torch.Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values, self._slot = keys, values, slot

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put the keys and values of a token into place; return all."""
        self.keys.index_copy_(2, self._slot, key_states)
        self.values.index_copy_(2, self._slot, value_states)
        return self.keys, self.values


class Steps:
    """Generation of `n_frames` tokens from prompts that were read ahead, a token a step.

    `inputs` are those of `generate`, with the cache of `prefill.read_ahead`; `ends` are tokens that
    are never chosen; a `sampler` draws, otherwise the likeliest token is taken. What comes out is
    (n_trials, n_frames): `tokens`, `log_probability`, `entropy`. `frame`, (1,) int64, is the number
    of the step that is being taken, on the device.
    """

    def __init__(
        self,
        model: LoadedModel,
        inputs: Inputs,
        n_frames: int,
        ends: Sequence[int] = (),
        sampler: OwnGenerators | None = None,
    ) -> None:
        self._module, self._sampler = model.module, sampler
        ids, mask, cache = (inputs[n] for n in ("input_ids", "attention_mask", "past_key_values"))
        n_trials, n_read = len(ids), cache.get_seq_length()
        device, shape = ids.device, (n_trials, n_frames)
        self.frame = torch.zeros(1, dtype=torch.int64, device=device)
        self.tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        self.log_probability = torch.zeros(shape, device=device)
        self.entropy = torch.zeros(shape, device=device)
        self._ids, self._positions = ids[:, -1:].clone(), mask.sum(dim=1, keepdim=True) - 1
        self._slot = self.frame + n_read
        self._ends = torch.tensor(list(ends), dtype=torch.int64, device=device)
        # Added to attention scores, as every implementation of attention reads it.
        dtype = model.module.dtype
        self._mask = torch.full(
            (n_trials, 1, 1, n_read + n_frames), torch.finfo(dtype).min, dtype=dtype, device=device
        )
        self._mask[:, 0, 0, :n_read].masked_fill_(mask[:, :n_read].bool(), 0)
        self._cache = DynamicCache()
        buffers = [cast(RoomyLayer, layer).whole for layer in cache.layers]
        self._cache.layers = [FixedLayer(keys, values, self._slot) for keys, values in buffers]
        self._noise: torch.Tensor | None = None

    def run(self, *, is_captured: bool = True) -> None:
        """Take all steps; on a GPU those after the first as a graph, if it `is_captured`."""
        is_captured &= self.tokens.shape[1] > 1 and _is_capturable(self._module)
        graph: torch.cuda.CUDAGraph | None = None
        for t in range(self.tokens.shape[1]):
            self._draw()
            if graph is not None:
                graph.replay()
            elif t == 0 and is_captured:
                with torch.cuda.device(self._ids.device):
                    graph = self._first()
            else:
                self.take()
        if graph is not None:  # it goes when this returns, and may still be running
            torch.cuda.synchronize(self._ids.device)

    def take(self) -> torch.Tensor:
        """Take one step; (n_trials, vocabulary) float32 logits."""
        self._mask.index_fill_(3, self._slot, 0)
        output = self._module(
            input_ids=self._ids,
            attention_mask=self._mask,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        logits = cast(torch.Tensor, first_tensor(output.logits)[0])[:, -1].float()
        scores = logits.index_fill(1, self._ends, -torch.inf)
        if self._sampler is not None and self._noise is not None:
            scores = scores / self._sampler.temperature + self._noise
        chosen = scores.argmax(dim=-1, keepdim=True)
        log_probability, entropy = measure_one(logits, chosen)
        self.tokens.index_copy_(1, self.frame, chosen)
        self.log_probability.index_copy_(1, self.frame, log_probability)
        self.entropy.index_copy_(1, self.frame, entropy)
        self._ids.copy_(chosen)
        for number in (self.frame, self._slot, self._positions):
            number.add_(1)
        return logits

    def _draw(self) -> None:
        """Draw the noise of the next step into the buffer that steps read."""
        if self._sampler is None:
            return
        vocabulary = self._module.get_output_embeddings().weight.shape[0]
        drawn = self._sampler.draw(vocabulary)
        if self._noise is None:
            self._noise = drawn.to(self._ids.device, torch.float32)
        else:
            self._noise.copy_(drawn)

    def _first(self) -> torch.cuda.CUDAGraph | None:
        """Take the first step; a graph of the others, None where a layer cannot be captured."""
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):  # what libraries allocate at first use is not captured
            self.take()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):  # nothing is computed yet
                self.take()
        except RuntimeError:  # a layer that looks at values, as experts do
            return None
        return graph


def is_used(model: LoadedModel) -> bool:
    """Whether scans of a model take such steps: on a GPU, if they give what plain passes give."""
    return model.device.type == "cuda" and can_step(model)


@prefill.once_a_model
@torch.no_grad()
def can_step(model: LoadedModel) -> bool:
    """Whether steps of fixed shape give the logits of plain passes over whole prompts."""
    module = model.module
    if not getattr(module, "_can_compile_fullgraph", False) or _has_windows(module.config):
        return False  # transformers says which models take a cache of fixed length
    if not prefill.can_continue(model):
        return False
    encoded = [[1, 2, 3], [2, 1]]
    ids, mask, cache = prefill.read_ahead(model, encoded, 2)
    inputs = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}
    try:
        steps = Steps(model, inputs, 2)
        taken = [steps.take() for _ in range(2)]
    except _REFUSALS:
        return False
    tolerance = TOLERANCE.get(module.dtype, _COARSE)
    for trial, text in enumerate(encoded):
        for t, logits in enumerate(taken):
            whole = [*text, *steps.tokens[trial, :t].tolist()]
            plain = module(input_ids=torch.tensor([whole], device=model.device)).logits[0, -1]
            if not (logits[trial] - plain.float()).norm() <= tolerance * plain.float().norm():
                return False
    return True


def has_hooks(module: nn.Module) -> bool:
    """Whether anybody's hooks look at a module's parts or change what they give."""
    return any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def _has_windows(config: Any) -> bool:
    """Whether layers see so many tokens before alone: the mask of steps is one for all layers."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    names = ("sliding_window", "attention_chunk_size")
    return kinds != {"full_attention"} or any(getattr(config, name, None) for name in names)


def _is_capturable(module: nn.Module) -> bool:
    """Whether a graph may take the place of a module's Python: all on one GPU."""
    devices = {parameter.device for parameter in module.parameters()}
    is_moved = any(hasattr(part, "_hf_hook") for part in module.modules())
    return {device.type for device in devices} == {"cuda"} and len(devices) == 1 and not is_moved
