"""What does half precision change, and what does it save, on this machine?

    python benchmarks/precision.py >> docs/benchmarks.md

The default model in float32 and in another data type. The same prompts and tokens: the other copy
is shown the tokens that float32 generated. Compared are values, site by site, and the maps of a
task over runs, fitted as always. For speed both generate, in pairs, in turn.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from recorders import scan
from timing import (
    TASK,
    by_trial,
    check_positive,
    describe_machine,
    describe_ratio,
    race,
    tokens_of,
)

from llm2nifti import bids, glm, models, networks, paradigm, scanner
from llm2nifti.defaults import DEFAULT_MODEL, N_BLOCKS, N_FRAMES, N_RUNS, TRIALS_PER_BLOCK


def record(model, designs, replays):
    """Recordings of all runs; with replays, of these tokens."""
    return [
        scanner.scan(model, design, replay=tokens, on_trials=lambda _n: None)
        for design, tokens in zip(designs, replays, strict=True)
    ]


def errors_of(exact, rounded):
    """Rows of a table: relative L2 error of a trial's values at every kind of site."""
    rows = []
    sites = exact[0].brain.sites
    for name in dict.fromkeys(site.name for site in sites):
        errors = []
        for one, other in zip(exact, rounded, strict=True):
            for site in (site for site in sites if site.name == name):
                part = one.brain.slice_of(site)
                values, differing = (by_trial(run)[:, :, part].mean(axis=1) for run in (one, other))
                lengths = np.linalg.norm(values, axis=-1)
                errors.append(np.linalg.norm(values - differing, axis=-1) / lengths)
        middle, high = np.percentile(errors, [50, 95])
        rows.append(f"| {name} | {middle:.1e} | {high:.1e} | {np.max(errors):.1e} |")
    return rows


def maps_of(recordings, folder):
    """Whole map of t, and for every unit whether it is in the network."""
    for recording in recordings:
        bids.write(recording, folder)
    stats = glm.fit(bids.session(folder), verbose=0).contrast(f"{TASK} - control")
    return stats.t(), networks.select(stats).units


def describe_maps(exact, rounded):
    """Sentence on how far maps agree."""
    with tempfile.TemporaryDirectory() as scratch:
        pairs = [maps_of(runs, Path(scratch) / str(i)) for i, runs in enumerate((exact, rounded))]
    (t, units), (other, others) = pairs
    differing = np.abs(t - other)
    both = (units & others).sum() * 2 / max(1, units.sum() + others.sum())
    return (
        f"Maps of {TASK} over {len(exact)} runs: r = {np.corrcoef(t, other)[0, 1]:.5f}, t differs "
        f"by {np.median(differing):.3f} in the median unit and by {differing.max():.2f} at most; "
        f"networks at a false discovery rate of .05 have {units.sum():,} and {others.sum():,} "
        f"units, Dice {both:.3f}."
    )


def describe_tokens(model, designs, exact):
    """Sentence on how many tokens are the same when both generate."""
    own = record(model, designs, [None] * len(designs))
    pairs = [
        a == b
        for one, other in zip(exact, own, strict=True)
        for a, b in zip(tokens_of(one), tokens_of(other), strict=True)
    ]
    return (
        f"Left to generate by itself, it writes the same tokens for {np.mean(pairs):.0%} of "
        f"{len(pairs)} prompts."
    )


def measure(arguments):
    """Paragraphs: values, maps, tokens, speed."""
    models_ = [models.load(arguments.model, dtype=name) for name in ("float32", arguments.dtype)]
    designs = paradigm.experiment(
        [TASK],
        n_runs=arguments.runs,
        n_blocks=arguments.blocks,
        trials_per_block=arguments.trials,
        n_frames=arguments.frames,
    )
    exact = record(models_[0], designs, [None] * len(designs))
    rounded = record(models_[1], designs, list(map(tokens_of, exact)))
    head = "| site | median | 95th percentile | largest |\n|---|--:|--:|--:|"
    paragraphs = ["\n".join([head, *errors_of(exact, rounded)])]
    paragraphs += [describe_tokens(models_[1], designs, exact), describe_maps(exact, rounded)]
    ways = [lambda _pair, model=model: scan(model, designs[0]) for model in reversed(models_)]
    seconds = race(arguments.dtype, *ways, arguments.pairs)
    speeds = np.median(1 / seconds, axis=0)
    paragraphs.append(
        f"A scan of one run: {speeds[0]:.1f} frames/s, {speeds[1]:.1f} in float32; "
        f"{describe_ratio(seconds[:, 1] / seconds[:, 0], 2)} times as fast, over "
        f"{arguments.pairs} pairs (95 % interval)."
    )
    return paragraphs


def main():
    """Measure, print a Markdown section."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dtype", default="bfloat16", help="data type (%(default)s)")
    parser.add_argument("--pairs", type=int, default=6, help="pairs of scans (%(default)s)")
    parser.add_argument("--runs", type=int, default=N_RUNS, help="runs (%(default)s)")
    parser.add_argument("--blocks", type=int, default=N_BLOCKS, help="on-blocks (%(default)s)")
    parser.add_argument(
        "--trials", type=int, default=TRIALS_PER_BLOCK, help="a block (%(default)s)"
    )
    parser.add_argument("--frames", type=int, default=N_FRAMES, help="frames (%(default)s)")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="name or folder (%(default)s)")
    arguments = parser.parse_args()
    check_positive(parser, arguments)
    load = os.getloadavg()[0]
    setting = (
        f"`{arguments.model}` in {arguments.dtype} against float32: {arguments.runs} runs of "
        f"{TASK}, {arguments.frames} frames, the tokens of float32 replayed. Relative L2 error of "
        "a prompt's mean over frames at one site of one layer:"
    )
    try:
        paragraphs = measure(arguments)
    except (TypeError, ValueError) as error:
        sys.exit(f"--dtype is {arguments.dtype}: {error}")
    machine = describe_machine(load)
    print("\n\n".join([f"## Precision: {arguments.dtype}", setting, *paragraphs, machine]))


if __name__ == "__main__":
    main()
