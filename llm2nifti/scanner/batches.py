"""How many trials are computed together? As many as fast products need and the memory allows.

The number is a function of the model, what it is shown and the size of a GPU, never of a clock or
of free memory: which trials share a batch changes values by rounding, and equal plans are to give
equal bytes.
"""

from __future__ import annotations

import torch

from llm2nifti import defaults
from llm2nifti.models import LoadedModel
from llm2nifti.plans import Settings
from llm2nifti.scanner import prefill
from llm2nifti.scanner.stimulus import Stimuli

MOST = 128  # more make products faster by a few percent alone: docs/benchmarks.md
MOST_ON_GPU = 512
VALUES_OF_GPU = 2**32  # bytes of values that one batch brings to the host, where there are two
BUDGET = 2**30  # bytes for what grows with the batch
_FLOAT = 4


def n_together(model: LoadedModel, stimuli: Stimuli, settings: Settings) -> int:
    """Trials in a batch: what `settings`, which are resolved, ask for, or what fits the budget."""
    if settings.batch_size is not None:
        return settings.batch_size
    if settings.mode == "read" or stimuli.files or not prefill.can_continue(model):
        return defaults.BATCH_SIZE
    n_fit = _budget(model) // _bytes_of_trial(model, stimuli)
    size = MOST
    if model.device.type == "cuda":
        n_units = sum(site.n_units for site in stimuli.sites)
        n_fit = min(n_fit, VALUES_OF_GPU // (_FLOAT * n_units * stimuli.n_frames))
        size = MOST_ON_GPU
    while size > max(1, n_fit):
        size //= 2
    return size


def _budget(model: LoadedModel) -> int:
    """Bytes for what grows with the batch: of a GPU, half of what the weights leave of it.

    The other half is for what a pass computes. All memory counts, not what is free now.
    """
    if model.device.type != "cuda":
        return BUDGET
    weights = sum(x.nbytes for x in model.module.parameters() if x.device == model.device)
    left = torch.cuda.get_device_properties(model.device).total_memory - weights
    return max(BUDGET, left // 2)


def _bytes_of_trial(model: LoadedModel, stimuli: Stimuli) -> int:
    """Keys and values of all tokens, logits of all frames, and the units of all frames."""
    n_frames = stimuli.n_frames
    n_tokens = max(map(len, stimuli.encoded)) + n_frames
    n_units = sum(site.n_units for site in stimuli.sites)
    of_frame = _FLOAT * (len(model.tokenizer) + n_units)
    return prefill.bytes_of_token(model) * n_tokens + of_frame * n_frames
