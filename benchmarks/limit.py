"""How far is a scan from what this machine's matrix products allow?

The work of a forward pass is its linear layers: 2 x weights x tokens floating-point operations.
How fast the machine does them, by the same library as in a scan, is measured with the model's own
weights, one layer after the other, at the rows that decoding has (a batch) and at those of a long
prompt pass. The limit is work over rate: no attention, no norms, no Python, no recording.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from recorders import scan
from torch.utils.flop_counter import FlopCounterMode

from llm2nifti.scanner.kernels import fast_linear, name_for

ROWS = (64, 1024)  # decoding, reading prompts
N_REPEATS = 5


@dataclass(frozen=True)
class Work:
    """Tokens that have to go through the blocks, and outputs of the head."""

    prompt: int
    decoded: int
    heads: int

    @property
    def tokens(self):
        """All tokens through the blocks."""
        return self.prompt + self.decoded


def linear_weights(model):
    """Weight matrices of the blocks, one after the other, and that of the head."""
    head = model.module.get_output_embeddings().weight.detach()
    stack = model.stacks("generate")[-1]
    blocks = [model.module.get_submodule(block.name) for block in stack.blocks]
    weights = [w.detach() for block in blocks for w in block.parameters() if w.ndim == 2]
    return weights, [head]


def seconds_of_products(weights, n_rows):
    """Wall time of one linear layer after the other on `n_rows` rows."""
    inputs = {w.shape[1]: torch.randn(n_rows, w.shape[1]).to(w) for w in weights}
    layers = [torch.nn.Linear(*reversed(w.shape), bias=False, device="meta") for w in weights]
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    with torch.inference_mode(), fast_linear(torch.nn.ModuleList(layers)):
        start = time.perf_counter()
        for layer in layers:
            layer(inputs[layer.in_features])
        return time.perf_counter() - start


def operations(weights, n_rows):
    """Floating-point operations of linear layers on `n_rows` rows."""
    return 2 * n_rows * sum(weight.numel() for weight in weights)


def needed(model, design, *, shared):
    """Work of a design; with `shared`, every beginning that prompts have in common once."""
    prompts = list(design.trials["prompt"])
    rendered = model.render(prompts)
    encoded = model.encode(rendered, rendered=rendered != prompts)
    n_prompt = sum(map(len, encoded))
    if shared:
        n_prompt = len({tuple(ids[:n]) for ids in encoded for n in range(1, len(ids) + 1)})
    # The last token of a trial is produced, never read.
    n_trials, n_frames = design.n_trials, design.n_frames
    return Work(n_prompt, n_trials * (n_frames - 1), n_trials * n_frames)


def count_linear(x_shape, weight_shape, *_args, **_kwargs):
    """Floating-point operations of oneDNN's linear layer, which torch does not count."""
    return 2 * int(np.prod(x_shape)) * weight_shape[0]


def count_operations(run):
    """Floating-point operations of a call, as torch counts them.

    They are those of matrix products; torch 2.13 does not count its attention kernel for CPUs.
    """
    onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    known = {onednn: count_linear} if onednn is not None else {}
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        run()
    return counter.get_total_flops()


def measure_rates(model, run):
    """Operations a second of (blocks at 64, blocks at 1024, head at 64 rows), seconds of `run`."""
    blocks, head = linear_weights(model)
    cases = [(blocks, ROWS[0]), (blocks, ROWS[1]), (head, ROWS[0])]
    for case in cases:
        seconds_of_products(*case)  # warm-up
    seconds, runs = [], []
    for _ in range(N_REPEATS):
        seconds.append([seconds_of_products(*case) for case in cases])
        start = time.perf_counter()
        run()
        runs.append(time.perf_counter() - start)
    done = np.array([operations(*case) for case in cases])
    return done / np.median(seconds, axis=0), float(np.median(runs))


def describe_limit(model, design, **settings):
    """Markdown paragraphs: rates, and how far a scan is from them."""

    def run():
        return scan(model, design, **settings)

    (decoding, reading, head), seconds = measure_rates(model, run)
    blocks, heads = linear_weights(model)

    def limit(work):
        return (
            operations(blocks, work.prompt) / reading
            + operations(blocks, work.decoded) / decoding
            + operations(heads, work.heads) / head
        )

    whole, once = (needed(model, design, shared=shared) for shared in (False, True))
    rows = [
        "| work | tokens through the blocks | GFLOP | limit, s | scan's time / limit |",
        "|---|--:|--:|--:|--:|",
    ]
    for label, work in (("prompts whole", whole), ("common beginnings once", once)):
        total = operations(blocks, work.tokens) + operations(heads, work.heads)
        rows.append(describe_work(f"needed, {label}", work.tokens, total, limit(work), seconds))
    counted = count_operations(run)
    fixed = operations(blocks, once.decoded) + operations(heads, once.heads)
    if counted > fixed:  # else it uses operations that torch's counter does not know
        time_ = limit(Work(0, once.decoded, once.heads)) + (counted - fixed) / reading
        rows.append(describe_work("counted in a scan", "", counted, time_, seconds))
    return [
        f"Limit: {sum(w.numel() for w in blocks):,} weights in the blocks' matrices and "
        f"{heads[0].numel():,} in the head's, 2 operations a weight and token. `linear` with them "
        f"({name_for(model.module)}) does "
        f"{decoding / 1e9:.1f} GFLOP/s at {ROWS[0]} rows (the head {head / 1e9:.1f}) and "
        f"{reading / 1e9:.1f} at {ROWS[1]}; prompts count at the latter, decoded tokens and logits "
        f"at the former. A scan took {seconds:.2f} s; medians of {N_REPEATS}, in turn. Counted: "
        "by torch's FlopCounterMode, with padding; what is not decoding counts as prompt.",
        "\n".join(rows),
    ]


def describe_work(label, tokens, total, limit, seconds):
    """Row of the table."""
    return f"| {label} | {tokens} | {total / 1e9:.1f} | {limit:.2f} | {seconds / limit:.2f} |"
