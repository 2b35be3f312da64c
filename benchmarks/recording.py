"""How fast is a scan, against a naive recorder and against generation that records nothing?

Default model, sites and batch size; the same prompts and frames, greedy decoding. Run from the
repository root on a quiet machine:

    python benchmarks/recording.py >> docs/benchmarks.md

`scanner.scan` (hooks, memory map, tokens table: the whole call) is run in pairs with (a) the loop
that a user would write, one prompt at a time, and (b) bare batched ``generate``. One warm-up each,
which also checks that all three agree. The naive recorder is slow: in each pair of (a) it gets a
quarter of the prompts, another quarter every time, and frames a second are compared. With 20 pairs
(a) takes about 6 minutes on 2 cores and (b) about 4. Targets: (a) at least 6 times faster, (b) at
most 1.05 times the time; one is met when the 95 % interval of the median ratio does not exclude it.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import sys
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import transformers
from scipy.stats import quantile_test

from llm2nifti import models, paradigm, scanner
from llm2nifti.defaults import BATCH_SIZE, N_BLOCKS, N_FRAMES

TASK = "pathology"
N_PAIRS = 20
NAIVE_STRIDE = 4  # the naive recorder gets every fourth prompt
N_PARTS = 3  # scans whose parts are timed
TOLERANCE = 1e-4  # relative L2 error of one site in one frame
FASTER_THAN_NAIVE = 6.0
TIME_OF_BARE = 1.05


def draw_design(n_trials, n_frames):
    """Paradigm of exactly `n_trials`, spread evenly over the blocks of one run."""
    per_block = max(2, -(-n_trials // (2 * N_BLOCKS)))
    design = paradigm.blocks(TASK, trials_per_block=per_block, n_frames=n_frames)
    rows = np.linspace(0, design.n_trials - 1, n_trials).round().astype(int)
    return replace(design, trials=design.trials.iloc[rows].reset_index(drop=True))


def scan(model, design):
    """Frames and recording of the library; its temporary folder goes with the recording."""
    recording = scanner.scan(model, design, on_trials=lambda _n: None)
    return design.n_trials * design.n_frames, recording


def record_naively(model, names, prompts, n_frames):
    """Frames, and (tokens, {module: arrays}), as a user would write it: prompt by prompt."""
    module, tokenizer = model.module, model.tokenizer
    values, tokens = defaultdict(list), []

    def keep(name):
        def hook(_module, _args, output):
            output = output[0] if isinstance(output, tuple) else output
            values[name].append(output[:, -1].detach().cpu().numpy().copy())

        return hook

    with ExitStack() as stack:
        for name in names:
            handle = module.get_submodule(name).register_forward_hook(keep(name))
            stack.callback(handle.remove)
        for prompt in prompts:
            inputs = tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}],
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
            )
            ids = module.generate(**inputs, max_new_tokens=n_frames, do_sample=False)
            tokens.append(ids[0, inputs["input_ids"].shape[1] :].tolist())
    return sum(map(len, tokens)), (tokens, values)


def pad_batches(model, design):
    """Inputs of `generate`, padded on the left, in the batches that a scan uses."""
    rendered = model.render(list(design.trials["prompt"]))
    return [
        model.tokenizer(
            rendered[start : start + BATCH_SIZE],
            add_special_tokens=False,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        for start in range(0, len(rendered), BATCH_SIZE)
    ]


def generate_bare(model, batches, n_frames):
    """Frames and tokens of `generate` alone: no hook, nothing kept."""
    limits = {"max_new_tokens": n_frames, "min_new_tokens": n_frames, "do_sample": False}
    tokens = []
    for batch in batches:
        tokens += model.module.generate(**batch, **limits)[:, -n_frames:].tolist()
    return len(tokens) * n_frames, tokens


def check_agreement(recording, naive_tokens, naive_values, bare_tokens):
    """Sentence that says how well all ways agree; exit if they do not."""
    n_trials, n_frames, _ = recording.values.shape
    tokens = recording.tokens["token_id"].to_numpy().reshape(n_trials, n_frames).tolist()
    if not tokens == naive_tokens == bare_tokens:
        sys.exit("the recorders disagree: they generated different tokens")
    worst = 0.0
    for site in recording.brain.sites:
        ours = recording.values[:, :, recording.brain.slice_of(site)]
        theirs = np.concatenate(naive_values[site.module]).reshape(ours.shape)
        errors = np.linalg.norm(ours - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1)
        worst = max(worst, float(errors.max()))
    if not worst <= TOLERANCE:
        sys.exit(f"the recorders disagree: relative L2 error {worst:.1e} > {TOLERANCE:.0e}")
    n_sites = len(recording.brain.sites)
    return (
        f"Checked before timing: all {n_trials} x {n_frames} tokens of the three ways are equal; "
        f"values of scan and the naive recorder differ by at most {worst:.1e} (relative L2 error "
        f"over {n_trials} trials x {n_frames} frames x {n_sites} sites; allowed {TOLERANCE:.0e})."
    )


def seconds_a_frame(run, pair):
    """Wall time of one run over its frames; what it returns is freed after the clock stops."""
    gc.collect()
    start = time.perf_counter()
    n_frames, _result = run(pair)
    return (time.perf_counter() - start) / n_frames


def race(label, first, second, n_pairs):
    """Seconds a frame, (n_pairs, 2), of two ways in turn; every other pair in reverse order."""
    seconds = np.empty((n_pairs, 2))
    for pair in range(n_pairs):
        runs = [(0, first), (1, second)]
        for column, run in runs if pair % 2 == 0 else reversed(runs):
            seconds[pair, column] = seconds_a_frame(run, pair)
        a, b = 1 / seconds[pair]
        print(f"({label}) pair {pair + 1}/{n_pairs}: {a:.1f}, {b:.1f} frames/s", file=sys.stderr)
    return seconds


def median_interval(ratios):
    """Median and its exact 95 % interval from order statistics; nan with fewer than 6 pairs."""
    interval = quantile_test(ratios, p=0.5).confidence_interval(0.95)
    return float(np.median(ratios)), float(interval.low), float(interval.high)


def judge(low, high, target, at_least):
    """Whether an interval excludes a target."""
    if np.isnan([low, high]).any():
        return "too few pairs"
    if at_least:
        reached, excluded = low >= target, high < target
    else:
        reached, excluded = high <= target, low > target
    if excluded:
        return "not met"
    return "met by the whole interval" if reached else "met: not excluded"


def describe(label, seconds, ratios, target, at_least):
    """Row of the table."""
    middle, low, high = median_interval(ratios)
    scan_speed, other_speed = np.median(1 / seconds, axis=0)
    sign = "at least" if at_least else "at most"
    return (
        f"| {label} | {len(ratios)} | {scan_speed:.1f} | {other_speed:.1f} "
        f"| {middle:.3f} ({low:.3f} to {high:.3f}) | {sign} {target:g} "
        f"| {judge(low, high, target, at_least)} |"
    )


@contextmanager
def stopwatch(owner, name, seconds):
    """Add the time spent in a function of `owner` to ``seconds[name]``."""
    function = getattr(owner, name)

    def timed(*args, **kwargs):
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[name] += time.perf_counter() - start

    with mock.patch.object(owner, name, timed):
        yield


def describe_parts(model, design):
    """Sentence with the median share of a scan's parts."""
    shares = []
    for _ in range(N_PARTS):
        seconds = dict.fromkeys(("generate", "commit"), 0.0)
        with (
            stopwatch(model.module, "generate", seconds),
            stopwatch(scanner.Journal, "commit", seconds),
        ):
            total = seconds_a_frame(lambda _pair: scan(model, design), 0)
        total *= design.n_trials * design.n_frames
        shares.append([100 * seconds[name] / total for name in ("generate", "commit")])
    generate, commit = np.median(shares, axis=0)
    return (
        f"Of a scan's time, {generate:.1f} % is generation with hooks that store into the memory "
        f"map, {commit:.1f} % checking the values and flushing them to disk, the rest tokenising, "
        f"entropies, the tokens table and weight norms (medians of {N_PARTS} scans)."
    )


def describe_machine(load):
    """Line that names the machine and the libraries."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return (
        f"Machine: {name}, {os.cpu_count()} cores, torch {torch.__version__} with "
        f"{torch.get_num_threads()} threads, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}; load average before the run {load:.2f}."
    )


def describe_setting(model, design):
    """Sentences on what was compared and how."""
    stride = min(NAIVE_STRIDE, design.n_trials)
    return (
        f"`{model.name}`, {design.n_trials} prompts ({TASK} and control) x {design.n_frames} "
        f"frames, {len(model.sites())} sites (embed, attn, resid, mlp, norm), batch {BATCH_SIZE}, "
        "greedy. Runs in pairs, their order swapped every other pair, after one warm-up each. "
        f"The naive recorder gets 1/{stride} of the prompts in each pair, in turn, so frames a "
        "second are compared. Median ratio over pairs with the exact 95 % interval of the median "
        "(order statistics); a target is met when the interval does not exclude it."
    )


def measure(model, design, n_pairs):
    """Agreement, rows of the table, and parts, as Markdown paragraphs."""
    prompts = list(design.trials["prompt"])
    names = [site.module for site in model.sites()]
    batches = pad_batches(model, design)
    stride = min(NAIVE_STRIDE, len(prompts))

    def scanned(_pair):
        return scan(model, design)

    def naive(pair):
        return record_naively(model, names, prompts[pair % stride :: stride], design.n_frames)

    def bare(_pair):
        return generate_bare(model, batches, design.n_frames)

    print("warm-up and agreement", file=sys.stderr)
    reference = record_naively(model, names, prompts, design.n_frames)[1]
    agreement = check_agreement(scanned(0)[1], *reference, bare(0)[1])
    print(agreement, file=sys.stderr)
    del reference
    a = race("a: scan, naive", scanned, naive, n_pairs)
    b = race("b: scan, bare", scanned, bare, n_pairs)
    rows = [
        "| comparison | pairs | scan, frames/s | other, frames/s | ratio (95 % interval) "
        "| target | verdict |",
        "|---|--:|--:|--:|--:|--:|---|",
        describe("(a) speed, scan / naive", a, a[:, 1] / a[:, 0], FASTER_THAN_NAIVE, True),
        describe("(b) time, scan / bare `generate`", b, b[:, 0] / b[:, 1], TIME_OF_BARE, False),
    ]
    return [agreement, "\n".join(rows), describe_parts(model, design)]


def main():
    """Measure, print a Markdown section."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=N_PAIRS, help="pairs of runs (%(default)s)")
    parser.add_argument("--trials", type=int, default=BATCH_SIZE, help="prompts (%(default)s)")
    parser.add_argument("--frames", type=int, default=N_FRAMES, help="frames (%(default)s)")
    arguments = parser.parse_args()
    for name, value in vars(arguments).items():
        if value < 1:
            parser.error(f"--{name} is {value}; it must be at least 1")
    load = os.getloadavg()[0]
    model = models.load()
    design = draw_design(arguments.trials, arguments.frames)
    paragraphs = measure(model, design, arguments.pairs)
    setting, machine = describe_setting(model, design), describe_machine(load)
    print("\n\n".join(["## Recording speed", setting, *paragraphs, machine]))


if __name__ == "__main__":
    main()
