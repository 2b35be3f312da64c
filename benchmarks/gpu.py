"""What does recording cost on a CUDA device, and what does the reduction to trials save there?

    python benchmarks/gpu.py >> docs/benchmarks.md
    python benchmarks/gpu.py --device cpu --tiny     # tries the script out

The default model, and a Llama of the shape of a 7B model with random weights, in bfloat16 and, if
``--dtype`` says so, float32: `scanner.scan` with every token kept, and keeping one volume a trial,
summed on the device, each in pairs with bare batched `generate` of the same prompts; and in pairs
with `output_hidden_states` and, where it is installed, nnsight (see peers.py). How fast values
could come over at best is measured too: one copy of so many bytes into pinned memory. Before
timing, the first frame of every trial is compared with that of plain hooks. Without the device it
says so and ends with 0; a model that cannot be had is left out with a note.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
from random_model import TINY, random_llama
from recorders import (
    generate_bare,
    hidden_states,
    nnsight_trace,
    pad_batches,
    record_batches,
    scan,
)
from timing import (
    N_PAIRS,
    by_trial,
    check_positive,
    describe_machine,
    describe_ratio,
    draw_design,
    race,
    tokens_of,
)

from llm2nifti import models
from llm2nifti.defaults import DEFAULT_MODEL, N_FRAMES
from llm2nifti.hooks import Point, tap

SHAPE_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
N_TRIALS = 128
ROUNDS = 3  # copies, of which the fastest counts
# Relative L2 error of one site's first frame: bfloat16 keeps 8 bits, and batches differ in padding.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


def load(name, device, dtype, *, tiny):
    """One of the two models."""
    if tiny:
        return random_llama(f"tiny-{name}", device=device, dtype=dtype, **TINY)
    if name == "7b":
        return random_llama("random-7b", device=device, dtype=dtype, **SHAPE_7B)
    return models.load(DEFAULT_MODEL, device=device, dtype=str(dtype).removeprefix("torch."))


def try_to_load(name, device, dtype, *, tiny):
    """Model, or None and a note on why it cannot be had."""
    try:
        model = load(name, device, dtype, tiny=tiny)
        model.sites()  # an architecture check that can fail, too
    except models.ModelError as error:
        return None, f"`{name}` was left out: {error}."
    return model, ""


def first_frames(model, design, sites, batch):
    """{module: (n_trials, n_units)} of the pass that reads the prompts, with plain hooks."""
    kept = {site.module: [] for site in sites}

    def keep(point, tensor):
        kept[point.module].append(tensor[:, -1].float().cpu().numpy())

    for padded in pad_batches(model, design, batch):
        with tap(model.module, [Point(name) for name in kept], keep):
            model.module.generate(**padded, max_new_tokens=1, do_sample=False)
    return {name: np.concatenate(parts) for name, parts in kept.items()}


def check(model, design, recording, bare_tokens, batch):
    """Sentence that says how well scan and plain passes agree; exit if they do not."""
    dtype, worst = model.module.dtype, 0.0
    reference = first_frames(model, design, recording.brain.sites, batch)
    values = by_trial(recording)[:, 0]
    for site in recording.brain.sites:
        theirs = reference[site.module]
        difference = values[:, recording.brain.slice_of(site)] - theirs
        worst = max(
            worst,
            float((np.linalg.norm(difference, axis=1) / np.linalg.norm(theirs, axis=1)).max()),
        )
    if not worst <= TOLERANCE[dtype]:
        sys.exit(f"{model.name}: scan and hooks disagree, error {worst:.1e} > {TOLERANCE[dtype]}")
    same = np.mean(np.array(tokens_of(recording)) == np.array(bare_tokens))
    if dtype == torch.float32 and same < 1:
        sys.exit(f"{model.name}: scan and generate disagree, {same:.1%} of tokens are equal")
    return (
        f"`{model.name}`: first frames differ from plain hooks by at most {worst:.1e} (relative "
        f"L2 error of a site; allowed {TOLERANCE[dtype]:g}); {same:.1%} of scan's tokens are those "
        "of `generate` (roundings decide between near ties)."
    )


def peak_memory(run, device):
    """GiB of device memory at the peak of a run, as text; n/a where there is no CUDA device."""
    if torch.device(device).type != "cuda":
        return "n/a"
    gc.collect()
    torch.cuda.reset_peak_memory_stats(device)
    run(0)
    return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f}"


def check_trials(full, reduced):
    """Leave unless the reduced values are the means of the frames."""
    means = by_trial(full).mean(axis=1, dtype=np.float64)
    found = by_trial(reduced).reshape(means.shape)
    error = float(np.linalg.norm(found - means) / np.linalg.norm(means))
    if not error <= 1e-2:
        sys.exit(f"frames='trial' differs from the frames' means: relative error {error:.1e}")


def rivals(model, design, batch):
    """Other ways to record or to generate, by title, each a call that takes a pair's number."""
    padded, prompts = pad_batches(model, design, batch), list(design.trials["prompt"])
    n_frames = design.n_frames
    yield "bare `generate`", lambda _pair: generate_bare(model, padded, n_frames)
    record = hidden_states(model, model.sites("resid"), n_frames)
    yield "`output_hidden_states`", lambda _pair: record_batches(record, prompts, batch)
    if find_spec("nnsight") is not None:
        trace = nnsight_trace(model, model.sites(), n_frames)
        yield "nnsight", lambda _pair: record_batches(trace, prompts, batch)


def seconds_of_copies(n_bytes, device):
    """Seconds that bytes take from a device into pinned memory, in one piece; NaN without one."""
    if torch.device(device).type != "cuda":
        return float("nan")
    values = torch.zeros(n_bytes, dtype=torch.uint8, device=device)
    host, taken = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True), []
    for _ in range(ROUNDS):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        host.copy_(values, non_blocking=True)
        torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return min(taken)


def measure(model, design, device, batch, n_pairs):
    """Sentences on agreement and on copies, and rows of one model."""
    scans = {
        "scan": partial(scan, model, design, batch_size=batch),
        "scan, `--frames trial`": partial(scan, model, design, batch_size=batch, frames="trial"),
    }
    full, told, rows = scans["scan"]()[1], [], []
    check_trials(full, scans["scan, `--frames trial`"]()[1])
    n_bytes, n_units = full.values.nbytes, full.brain.n_units
    for title, other in rivals(model, design, batch):
        if title == "bare `generate`":
            told.append(check(model, design, full, other(0)[1], batch))
            print(told[-1], file=sys.stderr)
            del full
        for name, ours in scans.items():
            if name != "scan" and title != "bare `generate`":
                continue
            ways = (lambda _pair, ours=ours: ours(), other)
            seconds = race(f"{model.name}: {name}, {title}", *ways, n_pairs)
            a, b = np.median(1 / seconds, axis=0)
            memory = " and ".join(peak_memory(way, device) for way in ways)
            rows.append(
                f"| `{model.name}` | {n_units:,} | {name} against {title} | {n_pairs} | {a:.0f} "
                f"| {b:.0f} | {describe_ratio(seconds[:, 1] / seconds[:, 0])} | {memory} |"
            )
            if name == "scan" and title == "bare `generate`":
                taken = float(np.median(seconds[:, 0])) * design.n_trials * design.n_frames
                told.append(describe_copies(model, n_bytes, taken, device))
    return told, rows


def describe_copies(model, n_bytes, taken, device):
    """Sentence on what a scan moves, and how long that takes at best."""
    alone = seconds_of_copies(n_bytes, device)
    if np.isnan(alone):
        return f"A scan of `{model.name}` that keeps every token moves {n_bytes / 1e9:.2f} GB."
    return (
        f"A scan of `{model.name}` that keeps every token moves {n_bytes / 1e9:.2f} GB: "
        f"{alone:.2f} s at the {n_bytes / alone / 1e9:.1f} GB/s of a copy into pinned memory; the "
        f"whole scan takes {taken:.2f} s."
    )


def describe_device(device):
    """Name of the device."""
    if torch.device(device).type != "cuda":
        return f"Device: {device}."
    return f"Device: {torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}."


def parse():
    """Arguments."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="torch device (%(default)s)")
    parser.add_argument("--dtype", choices=models.DTYPES, help="bfloat16; float32 on cpu")
    parser.add_argument("--models", default="default,7b", help="some of %(default)s")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try this out")
    parser.add_argument("--pairs", type=int, default=N_PAIRS, help="pairs of runs (%(default)s)")
    parser.add_argument("--trials", type=int, default=N_TRIALS, help="prompts (%(default)s)")
    parser.add_argument("--batch", type=int, default=N_TRIALS, help="of all ways (%(default)s)")
    parser.add_argument("--frames", type=int, default=N_FRAMES, help="frames (%(default)s)")
    arguments = parser.parse_args()
    check_positive(parser, arguments)
    if not set(arguments.models.split(",")) <= {"default", "7b"}:
        parser.error(f"--models is {arguments.models}; use default, 7b or both")
    return arguments


def main():
    """Measure, print a Markdown section."""
    arguments = parse()
    device = arguments.device
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        print("No CUDA device here: nothing measured. Try the script with --device cpu --tiny.")
        return
    on_cpu = torch.device(device).type == "cpu"
    dtype = models.DTYPES[arguments.dtype or ("float32" if on_cpu else "bfloat16")]
    load = os.getloadavg()[0]
    design = draw_design(arguments.trials, arguments.frames)
    told, rows = [], []
    for name in arguments.models.split(","):
        model, note = try_to_load(name, device, dtype, tiny=arguments.tiny)
        if model is None:
            told.append(note)
            continue
        sentences, more = measure(model, design, device, arguments.batch, arguments.pairs)
        told += sentences
        rows += more
        del model
        gc.collect()
    head = (
        "| model | units | comparison | pairs | first, tokens/s | second, tokens/s "
        "| first is so many times as fast (95 % interval) | peak device memory, GiB |\n"
        "|---|--:|---|--:|--:|--:|--:|--:|"
    )
    setting = (
        f"{design.n_trials} prompts x {design.n_frames} frames, batch {arguments.batch}, {dtype}, "
        "greedy, default sites. Runs in pairs, their order swapped every other pair, after a "
        "warm-up."
    )
    machine = f"{describe_device(device)} {describe_machine(load)}"
    print("\n\n".join(["## On a GPU", setting, *told, "\n".join([head, *rows]), machine]))


if __name__ == "__main__":
    main()
