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
import os
import sys
import time
from contextlib import ExitStack, contextmanager
from unittest import mock

import numpy as np
from recorders import generate_bare, pad_batches, record_naively, scan
from timing import (
    N_PAIRS,
    TASK,
    TOLERANCE,
    check_positive,
    describe_machine,
    describe_ratio,
    draw_design,
    judge,
    median_interval,
    race,
    seconds_a_frame,
    tokens_of,
    worst_error,
)

from llm2nifti import models, scanner
from llm2nifti.defaults import BATCH_SIZE, N_FRAMES

NAIVE_STRIDE = 4  # the naive recorder gets every fourth prompt
N_PARTS = 3  # scans whose parts are timed
FASTER_THAN_NAIVE = 6.0
TIME_OF_BARE = 1.05


def check_agreement(recording, naive_tokens, naive_values, bare_tokens):
    """Sentence that says how well all ways agree; exit if they do not."""
    if not tokens_of(recording) == naive_tokens == bare_tokens:
        sys.exit("the recorders disagree: they generated different tokens")
    sites, n_frames = recording.brain.sites, recording.paradigm.n_frames
    values = {site.module: np.concatenate(naive_values[site.module]) for site in sites}
    worst = worst_error(recording, values, sites)
    n_trials = recording.paradigm.n_trials
    return (
        f"Checked before timing: all {n_trials} x {n_frames} tokens of the three ways are equal; "
        f"values of scan and the naive recorder differ by at most {worst:.1e} (relative L2 error "
        f"over {n_trials} trials x {n_frames} frames x {len(sites)} sites; allowed "
        f"{TOLERANCE:.0e})."
    )


def describe(label, seconds, ratios, target, at_least):
    """Row of the table."""
    _, low, high = median_interval(ratios)
    scan_speed, other_speed = np.median(1 / seconds, axis=0)
    sign = "at least" if at_least else "at most"
    return (
        f"| {label} | {len(ratios)} | {scan_speed:.1f} | {other_speed:.1f} "
        f"| {describe_ratio(ratios)} | {sign} {target:g} "
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
    """Sentence with the median share of a scan's parts, of those that the scan goes through."""
    journal = getattr(scanner, "Journal", None)
    parts = {
        "generate": (model.module, "`generate` with hooks that store the values"),
        "commit": (journal, "checking the values and flushing them to disk"),
    }
    shares = []
    for _ in range(N_PARTS):
        seconds = dict.fromkeys(parts, 0.0)
        with ExitStack() as stack:
            for name, (owner, _text) in parts.items():
                if hasattr(owner, name):
                    stack.enter_context(stopwatch(owner, name, seconds))
            total = seconds_a_frame(lambda _pair: scan(model, design), 0)
        total *= design.n_trials * design.n_frames
        shares.append([100 * seconds[name] / total for name in parts])
    told = [
        f"{share:.1f} % is {text}"
        for share, (_owner, text) in zip(np.median(shares, axis=0), parts.values(), strict=True)
        if share > 0
    ]
    return f"Of a scan's time, {', '.join([*told, 'the rest other'])} (medians of {N_PARTS} scans)."


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
    batches = pad_batches(model, design, BATCH_SIZE)
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
    check_positive(parser, arguments)
    load = os.getloadavg()[0]
    model = models.load()
    design = draw_design(arguments.trials, arguments.frames)
    paragraphs = measure(model, design, arguments.pairs)
    setting, machine = describe_setting(model, design), describe_machine(load)
    print("\n\n".join(["## Recording speed", setting, *paragraphs, machine]))


if __name__ == "__main__":
    main()
