"""Which token comes next, and how likely is it? What a scan does with a model's logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch

from llm2nifti.hooks import first_tensor


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
    log_probability, entropy = torch.empty(tokens.shape), torch.empty(tokens.shape)
    for t in range(tokens.shape[1]):  # one by one: logits of all frames at once are large
        column = slice(t, t + 1)
        both = measure_one(logits[:, t].float(), tokens[:, column])
        log_probability[:, column], entropy[:, column] = both
    return log_probability, entropy


def measure_one(logits: torch.Tensor, token: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `measure`, of (n_trials, vocabulary) float32 logits; both (n_trials, 1), on their device.

    No value is looked at, which would wait for a GPU.
    """
    log_p = logits.log_softmax(dim=-1)
    log_probability = log_p.gather(1, token)
    # A few models rule tokens out: 0 x -inf is not a number.
    log_p.clamp_(min=torch.finfo(log_p.dtype).min)
    return log_probability, -torch.bmm(log_p.exp()[:, None], log_p[:, :, None])[:, 0]


class NeverEnd:
    """Logits processor that rules out the tokens that end a text, in place.

    transformers' own two for a least length copy all logits twice a token each.
    """

    def __init__(self, ends: Sequence[int]) -> None:
        self.ends = list(ends)

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
        return scores.float() / self.temperature + self.draw(scores.shape[-1]).to(scores)

    def draw(self, n_tokens: int) -> torch.Tensor:
        """(n_trials, n_tokens) float64 noise of the next token."""
        return torch.from_numpy(np.stack([g.gumbel(size=n_tokens) for g in self.generators]))
