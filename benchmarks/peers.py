"""How fast is a scan, against other ways and other libraries that record the same values?

    python benchmarks/peers.py >> docs/benchmarks.md

Default model, greedy decoding, the same prompts and frames, the same weights, one process. Runs in
pairs, in turn, each way at the fastest of some batch sizes. `scanner.scan` (the whole call, batch
as by default) against
  (a) naive: hooks, one prompt at a time
  (b) hidden: `generate` with `output_hidden_states=True`; only the stream, so does the scan
  (c) nnsight: `generate` with `tracer.iter`
  (d) transformerlens: `TransformerBridge` with hooks, in Hugging Face's loop and in its own
  (e) bare: batched `generate` that records nothing
and how far it is from what the machine's matrix products allow (limit). Before timing, tokens and
values of every way are compared with the scan's.

The libraries are optional; what is not installed is left out with a note. An environment of their
own, in which nnsight 0.8.1 and transformer-lens 4.3.0 were resolved beside torch 2.13.0 and
transformers 5.23.0, so that all run in one process:

    python -m venv peers && . peers/bin/activate
    pip install -c constraints.txt -e . "nnsight==0.8.*" "transformer-lens==4.*"

What scan does more: it checks values and gives every token's probability and entropy. All keep
values in memory. The slow ones get a quarter of the prompts in each pair, another quarter every
time; frames a second are compared.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import numpy as np
import recorders
from limit import describe_limit
from timing import (
    N_PAIRS,
    TOLERANCE,
    check_positive,
    describe_machine,
    describe_ratio,
    draw_design,
    median_interval,
    race,
    seconds_a_frame,
    tokens_of,
    worst_error,
)

from llm2nifti import models, scanner
from llm2nifti.defaults import DEFAULT_MODEL, N_FRAMES

STRIDE = 4  # slow recorders get every fourth prompt
N_TRIALS = 256
N_TRIED = 2  # runs of every batch size, of which the fastest counts
SITES = "attn,resid,mlp"  # what every peer can record
WAYS = ("naive", "hidden", "nnsight", "transformerlens", "bare", "limit")
PACKAGES = {"nnsight": "nnsight", "transformerlens": "transformer_lens"}
HEAD = (
    "| scan against | its batch | sites | pairs | scan, frames/s | other, frames/s "
    "| scan is so many times as fast (95 % interval) | verdict |\n"
    "|---|--:|---|--:|--:|--:|--:|---|"
)


@dataclass(frozen=True)
class Rival:
    """Another way to record: `run(prompts)` gives (frames, result), `read(result)` its values."""

    title: str
    batch: int
    run: Any
    read: Any
    sites: str = SITES


def read_naive(result):
    """Tokens and {module: values} of the naive recorder."""
    tokens, values = result
    return tokens, {name: np.concatenate(parts) for name, parts in values.items()}


def read_bare(result):
    """Tokens alone."""
    return result, {}


def in_batches(title, record, batch, sites=SITES):
    """Rival of a batch recorder."""
    run = partial(recorders.record_batches, record, batch_size=batch)
    return Rival(title, batch, run, recorders.assemble, sites)


def rivals(way, model, design, batches):
    """All ways of one kind, each a list of its batch sizes, made when they are needed.

    Each way has its copy of the model.
    """
    sites, n_frames = model.sites(SITES), design.n_frames
    if way == "naive":
        names = [site.module for site in sites]
        run = partial(recorders.record_naively, model, names, n_frames=n_frames)
        yield [Rival("naive hooks", 1, run, read_naive)]
    elif way == "hidden":
        record = recorders.hidden_states(model, model.sites("resid"), n_frames)
        yield [in_batches("`output_hidden_states=True`", record, n, "resid") for n in batches]
    elif way == "nnsight":
        record = recorders.nnsight_trace(model, sites, n_frames)
        yield [in_batches("nnsight", record, n) for n in batches]
    elif way == "transformerlens":
        for loop, own_loop in (("`hf_generate`", False), ("own `generate`", True)):
            record = recorders.transformer_lens(model, sites, n_frames, own_loop=own_loop)
            yield [in_batches(f"TransformerLens, {loop}", record, n) for n in batches]
    elif way == "bare":
        yield [
            Rival(
                "bare `generate`, nothing recorded",
                n,
                partial(run_bare, model, recorders.pad_batches(model, design, n), n_frames),
                read_bare,
            )
            for n in batches
        ]


def run_bare(model, padded, n_frames, _prompts):
    """Frames and tokens of bare `generate`."""
    return recorders.generate_bare(model, padded, n_frames)


def fastest(way, prompts):
    """Batch size of a way that takes the least time, the better of two runs each."""
    if len(way) == 1:
        return way[0]
    seconds = [
        min(seconds_a_frame(lambda _pair, one=one: one.run(prompts), 0) for _ in range(N_TRIED))
        for one in way
    ]
    for one, each in zip(way, seconds, strict=True):
        print(f"{one.title}, batch {one.batch}: {1 / each:.1f} frames/s", file=sys.stderr)
    return way[int(np.argmin(seconds))]


def check(rival, model, design):
    """Compare a rival's tokens and values with a scan's; the largest error, or exit."""
    result = rival.run(list(design.trials["prompt"]))[1]
    tokens, values = rival.read(result)
    # The last hidden state is the final norm's output, not the last block's.
    is_stream = rival.sites == "resid"
    recording = recorders.scan(model, design, sites="resid,norm" if is_stream else rival.sites)[1]
    if tokens != tokens_of(recording):
        sys.exit(f"{rival.title} and scan disagree: they generated different tokens")
    if not values:
        return None
    sites = recording.brain.sites
    if is_stream and sites[-1].name == "norm":
        values[sites[-1].module] = values.pop(sites[-2].module)
        sites = (*sites[:-2], sites[-1])
    return worst_error(recording, values, sites)


def compare(rival, model, design, n_pairs):
    """Row of the table, and the error found before."""
    prompts = list(design.trials["prompt"])
    error = check(rival, model, design)
    print(f"{rival.title}, batch {rival.batch}: largest error {error}", file=sys.stderr)
    stride = STRIDE if rival.batch <= len(prompts) // STRIDE else 1

    def scanned(_pair):
        return recorders.scan(model, design, sites=rival.sites)

    def other(pair):
        return rival.run(prompts[pair % stride :: stride])

    seconds = race(f"scan, {rival.title}, batch {rival.batch}", scanned, other, n_pairs)
    ratios = seconds[:, 1] / seconds[:, 0]
    ours, theirs = np.median(1 / seconds, axis=0)
    row = (
        f"| {rival.title} | {rival.batch} | {rival.sites.replace(',', ', ')} | {n_pairs} "
        f"| {ours:.1f} | {theirs:.1f} | {describe_ratio(ratios, 2)} | {faster(ratios)} |"
    )
    return row, error


def faster(ratios):
    """Whether the interval excludes equal speed."""
    _, low, high = median_interval(ratios)
    if np.isnan([low, high]).any():
        return "too few pairs"
    return "faster" if low > 1 else "slower" if high < 1 else "undecided"


def measure(model, design, ways, batches, n_pairs):
    """Paragraphs: agreement, table, what was left out, limit."""
    rows, errors, missing = [], [], []
    for way in ways:
        package = PACKAGES.get(way)
        if package and find_spec(package) is None:
            missing.append(f"{way} is not installed here and was left out.")
            continue
        for sizes in rivals(way, model, design, batches):
            rival = fastest(sizes, list(design.trials["prompt"]))
            row, error = compare(rival, model, design, n_pairs)
            rows.append(row)
            errors += [] if error is None else [error]
    paragraphs = []
    if errors:
        paragraphs.append(
            "Checked before timing: every way generated the same tokens; values differ by at most "
            f"{max(errors):.1e} (relative L2 error of one site in one frame; allowed "
            f"{TOLERANCE:.0e})."
        )
    paragraphs += ["\n".join([HEAD, *rows])] if rows else []
    paragraphs += missing
    if "limit" in ways:
        print("limit", file=sys.stderr)
        paragraphs += describe_limit(model, design, sites=SITES)
    return paragraphs


def describe_setting(model, design, batches):
    """Sentences on what was compared and how."""
    batch = scanner.check(model, design, scanner.Settings())
    tried = ", ".join(map(str, batches))
    return (
        f"`{model.name}`, {design.n_trials} prompts (tasks and control) x {design.n_frames} "
        f"frames, greedy, the same weights in one process. `scan` is the whole call at batch "
        f"{batch}, its default; the others have the "
        f"fastest of batches {tried}, the better of {N_TRIED} runs each. Runs in pairs, their "
        f"order swapped every other pair, after a warm-up. With a batch of at most 1/{STRIDE} of "
        f"the prompts, what records gets 1/{STRIDE} of them in each pair, in turn. Median ratio "
        "over pairs with the exact 95 % interval of the median (order statistics)."
    )


def versions():
    """Versions of the peers that are installed."""
    found = []
    for package in ("nnsight", "transformer-lens"):
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return f"Peers: {', '.join(found)}." if found else "Peers: none installed."


def main():
    """Measure, print a Markdown section."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=N_PAIRS, help="pairs of runs (%(default)s)")
    parser.add_argument("--trials", type=int, default=N_TRIALS, help="prompts (%(default)s)")
    parser.add_argument("--frames", type=int, default=N_FRAMES, help="frames (%(default)s)")
    parser.add_argument("--batches", default="16,64,256", help="the others' (%(default)s)")
    parser.add_argument("--ways", default=",".join(WAYS), help="some of %(default)s")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="name or folder (%(default)s)")
    arguments = parser.parse_args()
    check_positive(parser, arguments)
    ways = arguments.ways.split(",")
    if not set(ways) <= set(WAYS):
        parser.error(f"--ways is {arguments.ways}; use some of {','.join(WAYS)}")
    if not all(batch.isdigit() and int(batch) for batch in arguments.batches.split(",")):
        parser.error(f"--batches is {arguments.batches}; use numbers such as 16,64,256")
    batches = [int(batch) for batch in arguments.batches.split(",")]
    load = os.getloadavg()[0]
    model = models.load(arguments.model)
    design = draw_design(arguments.trials, arguments.frames)
    paragraphs = measure(model, design, ways, batches, arguments.pairs)
    setting, machine = describe_setting(model, design, batches), describe_machine(load)
    print("\n\n".join(["## Against other recorders", setting, *paragraphs, versions(), machine]))


if __name__ == "__main__":
    main()
