"""What do batches that span runs save?

Runs of the default design, greedy decoding, the same prompts: each run in a batch of its own
against several runs in one batch. Run from the repository root on a quiet machine:

    python benchmarks/batches.py >> docs/benchmarks.md

In pairs, in turn. Peaks of memory are of other processes, one a batch, because a process never
gives its peak back; pages of files that are mapped count.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys

import numpy as np
from timing import check_positive, describe_machine, describe_ratio, race

from llm2nifti import models, paradigm, stimuli
from llm2nifti.defaults import DEFAULT_MODEL, N_BLOCKS, N_FRAMES, TRIALS_PER_BLOCK
from llm2nifti.plans import Settings
from llm2nifti.scanner import Shown, scan_together

HEAD = (
    "| runs in a batch | prompts in it | pairs | alone, frames/s | together, frames/s "
    "| together is so many times as fast (95 % interval) | peak, GB |\n"
    "|--:|--:|--:|--:|--:|--:|--:|"
)


def scan(model, designs, n_together):
    """Record all runs, so many in a batch; (frames, nothing)."""
    settings = Settings(batch_size=sum(design.n_trials for design in designs))
    for start in range(0, len(designs), n_together):
        shown = [Shown(design) for design in designs[start : start + n_together]]
        scan_together(model, shown, settings=settings, on_trials=lambda _n: None)
    return sum(design.n_trials * design.n_frames for design in designs), None


def peak(arguments, n_together):
    """Largest resident set of a process that records them once, GB, as text."""
    if arguments.no_peaks:
        return ""
    words = [sys.executable, __file__, "--peak", str(n_together), "--runs", str(arguments.runs)]
    words += ["--blocks", str(arguments.blocks), "--trials", str(arguments.trials)]
    words += ["--frames", str(arguments.frames), "--model", arguments.model]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return f"{float(done.stdout):.2f}"


def main():
    """Measure, print a Markdown section."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=6, help="pairs of scans (%(default)s)")
    parser.add_argument("--runs", type=int, default=4, help="runs (%(default)s)")
    parser.add_argument("--blocks", type=int, default=N_BLOCKS, help="on-blocks (%(default)s)")
    parser.add_argument(
        "--trials", type=int, default=TRIALS_PER_BLOCK, help="a block (%(default)s)"
    )
    parser.add_argument("--frames", type=int, default=N_FRAMES, help="frames (%(default)s)")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="name or folder (%(default)s)")
    parser.add_argument("--no-peaks", action="store_true", help="don't measure memory")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    check_positive(parser, arguments)
    load = os.getloadavg()[0]
    sizes = {"n_blocks": arguments.blocks, "trials_per_block": arguments.trials}
    known = [task for task in stimuli.TASKS if task != stimuli.WORDLESS]
    designs = [
        paradigm.blocks(task, **sizes, n_frames=arguments.frames)
        for task in known[: arguments.runs]
    ]
    model = models.load(arguments.model)
    if arguments.peak:
        scan(model, designs, arguments.peak)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)
        return
    numbers = sorted({1, 2, len(designs)})
    scan(model, designs, 1)  # warm-up
    rows = [f"| 1 | {designs[0].n_trials} | | | | | {peak(arguments, 1)} |"]
    for n in numbers[1:]:
        seconds = race(
            f"{n} runs",
            lambda _pair: scan(model, designs, 1),
            lambda _pair, n=n: scan(model, designs, n),
            arguments.pairs,
        )
        alone, both = np.median(1 / seconds, axis=0)
        ratio = describe_ratio(seconds[:, 0] / seconds[:, 1], 2)
        rows.append(
            f"| {n} | {n * designs[0].n_trials} | {arguments.pairs} | {alone:.1f} | {both:.1f} "
            f"| {ratio} | {peak(arguments, n)} |"
        )
    print(
        f"## Batches that span runs\n\n`{model.name}`, {len(designs)} runs of "
        f"{designs[0].n_trials} prompts x {arguments.frames} frames, greedy. Median ratio over "
        "pairs with the exact 95 % interval of the median (order statistics).\n\n"
        + "\n".join([HEAD, *rows])
        + f"\n\n{describe_machine(load)}"
    )


if __name__ == "__main__":
    main()
