"""How is the next token chosen where decoding is not greedy?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


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
def plain_decoding(module: torch.nn.Module) -> Iterator[None]:
    """Put the model's own decoding options (penalties, beams, ...) aside, then back.

    transformers fills every option that a call leaves open from them.
    """
    from transformers import GenerationConfig

    put_aside: Any = module.generation_config
    module.generation_config = GenerationConfig(bos_token_id=put_aside.bos_token_id)
    try:
        yield
    finally:
        module.generation_config = put_aside
