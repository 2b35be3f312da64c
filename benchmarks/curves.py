"""How does the cost of a scan grow with prompts, frames, units and the size of the model?

    python benchmarks/curves.py            # also a part of `python benchmarks/scaling.py`

Whole calls of `scanner.scan`, one quantity at a time: of the default model its prompts, frames and
recorded units, and Llamas of several shapes with random weights. All points of a curve are measured
in turn, several times, and the median counts. A curve is called straight if no point is further
from the least-squares line than 10 % of what it took.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from dataclasses import dataclass

import numpy as np
from random_model import TINY, random_llama
from recorders import scan
from timing import check_positive, describe_machine, draw_design

from llm2nifti import models
from llm2nifti.defaults import DEFAULT_MODEL

N_ROUNDS = 3
N_PROMPTS, N_FRAMES = 64, 8  # where they are not what grows
N_PROMPTS_OF_SHAPES = 32
STRAIGHT = 0.1  # of a point's time
PROMPTS = (16, 32, 64, 128, 256)
FRAMES = (1, 2, 4, 8, 16, 32)
SITES = ("norm", "resid", "attn,resid,mlp", "all")
# (width, inner width, blocks, heads, of keys): the last three are SmolLM2's and Llama 3.2's.
SHAPES = (
    (128, 512, 4, 4, 2),
    (256, 1024, 8, 4, 2),
    (512, 1536, 16, 8, 4),
    (576, 1536, 30, 9, 3),
    (960, 2560, 32, 15, 5),
    (2048, 8192, 16, 32, 8),
)
HEAD = "| grows | seconds of a scan | line | furthest point | verdict |\n|---|---|---|--:|---|"


@dataclass(frozen=True)
class Curve:
    """Seconds at several sizes of one quantity, in units that a slope is told in."""

    title: str
    sizes: list[float]
    seconds: list[float]
    unit: str
    per: float = 1  #: sizes that one of the unit has

    def row(self):
        """Row of the table."""
        slope, start = np.polyfit(self.sizes, self.seconds, 1, w=1 / np.array(self.seconds))
        line = slope * np.array(self.sizes) + start
        furthest = float(np.max(np.abs(line - self.seconds) / self.seconds))
        points = ", ".join(
            f"{size:,.0f}: {taken:.2f}" if size >= 1 else f"{size:.3f}: {taken:.2f}"
            for size, taken in zip(self.sizes, self.seconds, strict=True)
        )
        verdict = "straight" if furthest <= STRAIGHT else "not straight"
        return (
            f"| {self.title} | {points} | {start:.2f} s + {slope * self.per:.3g} s {self.unit} "
            f"| {furthest:.0%} | {verdict} |"
        )


def medians(calls, n_rounds):
    """Median seconds of each call, all taken in turn, after a warm-up of the first."""
    calls[0]()
    seconds = np.empty((n_rounds, len(calls)))
    for i in range(n_rounds):
        for j, call in enumerate(calls):
            gc.collect()
            start = time.perf_counter()
            call()
            seconds[i, j] = time.perf_counter() - start
    return np.median(seconds, axis=0).tolist()


def of_prompts(model, sizes, n_rounds):
    """Curve of prompts."""
    designs = [draw_design(n, N_FRAMES) for n in sizes]
    taken = medians([lambda d=design: scan(model, d) for design in designs], n_rounds)
    return Curve(f"prompts, {N_FRAMES} frames each", list(sizes), taken, "a prompt")


def of_frames(model, sizes, n_rounds):
    """Curve of frames."""
    designs = [draw_design(N_PROMPTS, n) for n in sizes]
    taken = medians([lambda d=design: scan(model, d) for design in designs], n_rounds)
    return Curve(f"frames a prompt, {N_PROMPTS} prompts", list(sizes), taken, "a frame")


def of_units(model, specs, n_rounds):
    """Curve of recorded units."""
    design = draw_design(N_PROMPTS, N_FRAMES)
    taken = medians([lambda s=spec: scan(model, design, sites=s) for spec in specs], n_rounds)
    sizes = [sum(site.n_units for site in model.sites(spec)) for spec in specs]
    title = f"units, {N_PROMPTS} prompts x {N_FRAMES} frames"
    return Curve(title, sizes, taken, "for 10,000 units", 1e4)


def of_sizes(shapes, n_rounds):
    """Curve of weights, of one random Llama after the other: memory holds one."""
    design, sizes, taken = draw_design(N_PROMPTS_OF_SHAPES, N_FRAMES), [], []
    names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    for shape in shapes:
        model = random_llama("random", **dict(zip(names, shape, strict=True)))
        sizes.append(model.source["Parameters"] / 1e6)
        taken += medians([lambda m=model: scan(m, design)], n_rounds)
        print(f"{sizes[-1]:.1f} million weights: {taken[-1]:.2f} s", file=sys.stderr)
        del model
    title = f"millions of weights, {N_PROMPTS_OF_SHAPES} prompts x {N_FRAMES} frames"
    return Curve(title, sizes, taken, "for 100 million", 100)


def measure(name=DEFAULT_MODEL, *, tiny=False, n_rounds=N_ROUNDS):
    """Markdown table of all curves."""
    model = models.load(name)
    curves = [
        of_prompts(model, (2, 4) if tiny else PROMPTS, n_rounds),
        of_frames(model, FRAMES[:2] if tiny else FRAMES, n_rounds),
        of_units(model, SITES[:2] if tiny else SITES, n_rounds),
    ]
    del model
    shapes = [tuple(TINY.values()), (64, 128, 2, 4, 2)] if tiny else SHAPES
    curves.append(of_sizes(shapes, n_rounds))
    return "\n".join([HEAD, *(curve.row() for curve in curves)])


def main():
    """Measure and print a Markdown section."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default=DEFAULT_MODEL, help="name or folder (%(default)s)")
    parser.add_argument("--rounds", type=int, default=N_ROUNDS, help="of all points (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="two points each, to try this out")
    arguments = parser.parse_args()
    check_positive(parser, arguments)
    load = os.getloadavg()[0]
    table = measure(arguments.model, tiny=arguments.tiny, n_rounds=arguments.rounds)
    print(f"## What a scan costs\n\n{table}\n\n{describe_machine(load)}")


if __name__ == "__main__":
    main()
