"""What does recording cost on a CUDA device, and what does the reduction to trials save there?

    python benchmarks/gpu.py >> docs/benchmarks.md
    python benchmarks/gpu.py --device cpu --tiny     # tries the script out

The default model, and a Llama of the shape of a 7B model with random weights, in bfloat16:
`scanner.scan` in pairs with bare batched `generate` of the same prompts, and, where
`scanner.Settings` has ``frames``, with itself keeping one volume a trial, reduced on the device.
Before timing, the first frame of every trial is compared with that of plain hooks. Without the
device it says so and ends with 0; a model that cannot be had is left out with a note.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from dataclasses import fields

import numpy as np
import torch
from random_model import TINY, random_llama
from recorders import generate_bare, pad_batches, scan
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

from llm2nifti import models, scanner
from llm2nifti.defaults import BATCH_SIZE, DEFAULT_MODEL, N_FRAMES
from llm2nifti.hooks import Point, tap

SHAPE_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
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


def first_frames(model, design, sites):
    """{module: (n_trials, n_units)} of the pass that reads the prompts, with plain hooks."""
    kept = {site.module: [] for site in sites}

    def keep(point, tensor):
        kept[point.module].append(tensor[:, -1].float().cpu().numpy())

    for batch in pad_batches(model, design, BATCH_SIZE):
        with tap(model.module, [Point(name) for name in kept], keep):
            model.module.generate(**batch, max_new_tokens=1, do_sample=False)
    return {name: np.concatenate(parts) for name, parts in kept.items()}


def check(model, design, recording, bare_tokens):
    """Sentence that says how well scan and plain passes agree; exit if they do not."""
    dtype, worst = model.module.dtype, 0.0
    reference = first_frames(model, design, recording.brain.sites)
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


def measure(model, design, device, n_pairs):
    """Sentence of agreement, and rows of one model."""
    batches = pad_batches(model, design, BATCH_SIZE)
    ways = {
        "bare `generate`": lambda _pair: generate_bare(model, batches, design.n_frames),
        "scan": lambda _pair: scan(model, design),
    }
    full = ways["scan"](0)[1]
    agreement = check(model, design, full, ways["bare `generate`"](0)[1])
    print(agreement, file=sys.stderr)
    if has_trial_frames():
        name = "scan, `--frames trial`"
        ways[name] = lambda _pair: scan(model, design, frames="trial")
        check_trials(full, ways[name](0)[1])
    n_units = full.brain.n_units
    del full
    rows = []
    for first, second in zip(list(ways)[1:], list(ways), strict=False):
        seconds = race(f"{model.name}: {first}, {second}", ways[first], ways[second], n_pairs)
        a, b = np.median(1 / seconds, axis=0)
        memory = " and ".join(peak_memory(ways[way], device) for way in (first, second))
        rows.append(
            f"| `{model.name}` | {n_units:,} | {first} against {second} | {n_pairs} | {a:.0f} "
            f"| {b:.0f} | {describe_ratio(seconds[:, 1] / seconds[:, 0])} | {memory} |"
        )
    return agreement, rows


def has_trial_frames():
    """Whether this version can keep one volume a trial."""
    return "frames" in {field.name for field in fields(scanner.Settings)}


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
    parser.add_argument("--trials", type=int, default=BATCH_SIZE, help="prompts (%(default)s)")
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
        agreement, more = measure(model, design, device, arguments.pairs)
        told.append(agreement)
        rows += more
        del model
        gc.collect()
    if not has_trial_frames():
        told.append("`--frames trial` was left out: this version has no such option.")
    head = (
        "| model | units | comparison | pairs | first, tokens/s | second, tokens/s "
        "| first is so many times as fast (95 % interval) | peak device memory, GiB |\n"
        "|---|--:|---|--:|--:|--:|--:|--:|"
    )
    setting = (
        f"{design.n_trials} prompts x {design.n_frames} frames, batch {BATCH_SIZE}, {dtype}, "
        "greedy, default sites. Runs in pairs, their order swapped every other pair, after a "
        "warm-up."
    )
    machine = f"{describe_device(device)} {describe_machine(load)}"
    print("\n\n".join(["## On a GPU", setting, *told, "\n".join([head, *rows]), machine]))


if __name__ == "__main__":
    main()
