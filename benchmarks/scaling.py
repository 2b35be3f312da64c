"""What do larger models cost? Time, memory and disk of the default experiment, from measured pieces.

Run from the repository root on a quiet machine:

    python benchmarks/scaling.py > docs/scaling.md

Measured here: what a scan costs against prompts, frames, units and the size of the model (see
curves.py), how many operations a second a scan of the default model reaches, how fast a run is
written, how fast the GLM goes through a large run. Computed from them: everything else. Shapes are
those of the Llama family; the page says which numbers are measured.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import curves
import numpy as np
import pandas as pd
from timing import describe_machine

from llm2nifti import bids, geometry, glm, models, paradigm, scanner
from llm2nifti.geometry import Site

N_REPEATS = 3
GLM_UNITS, GLM_VOLUMES = 200_000, 600


@dataclass(frozen=True)
class Shape:
    """A decoder's size."""

    name: str
    layers: int
    width: int
    weights: float

    def brain(self):
        """Model brain of the default sites."""
        sites = [Site("embed", 0, "embed", self.width)]
        for layer in range(1, self.layers + 1):
            sites += [
                Site("attn", layer, f"{layer}.attn", self.width, side="left"),
                Site("resid", layer, f"{layer}", self.width),
                Site("mlp", layer, f"{layer}.mlp", self.width, side="right"),
            ]
        return geometry.layout([*sites, Site("norm", self.layers + 1, "norm", self.width)])


SHAPES = (
    Shape("SmolLM2-135M", 30, 576, 0.1345e9),
    Shape("1B (Llama 3.2)", 16, 2048, 1.24e9),
    Shape("8B (Llama 3.1)", 32, 4096, 8.03e9),
    Shape("70B (Llama 3.1)", 80, 8192, 70.6e9),
)


def computed_tokens(model, design):
    """Tokens that go through the blocks in a scan of one run, padding included."""
    seen = []
    handle = model.module.get_decoder().register_forward_pre_hook(
        lambda _m, args, kwargs: seen.append((args[0] if args else kwargs["input_ids"]).numel()),
        with_kwargs=True,
    )
    scanner.scan(model, design, on_trials=lambda _n: None)
    handle.remove()
    return sum(seen)


def measure_scan():
    """Operations a second of a scan, seconds and bytes of writing a run, tokens of a run."""
    model, design = models.load(), paradigm.blocks("pathology")
    n_tokens = computed_tokens(model, design)
    seconds, writing = [], []
    for _ in range(N_REPEATS):
        start = time.perf_counter()
        recording = scanner.scan(model, design, on_trials=lambda _n: None)
        seconds.append(time.perf_counter() - start)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            paths = bids.write(recording, folder)
            writing.append(time.perf_counter() - start)
            n_bytes = paths.bold.stat().st_size + paths.trial_bold.stat().st_size
    operations = 2 * SHAPES[0].weights * n_tokens
    return operations / np.median(seconds), n_bytes / np.median(writing), n_tokens


def measure_glm():
    """Values a second that the GLM of a large run goes through."""
    side = geometry.layout([Site("mlp", 1, "mlp", GLM_UNITS)])
    rng = np.random.default_rng(0)
    values = rng.normal(size=(GLM_VOLUMES, GLM_UNITS)).astype(np.float32)
    types = np.where(np.arange(GLM_VOLUMES) % 2, "task", "control")
    events = pd.DataFrame({"trial_type": types})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.nii"
        geometry.to_img(side, values, t_r=1.0).to_filename(path)
        import nibabel as nib

        run = SimpleNamespace(img=nib.load(path), events=events, brain=side, frames="token")
        start = time.perf_counter()
        glm.fit(run, verbose=0).contrast("task - control")
        return GLM_VOLUMES * GLM_UNITS / (time.perf_counter() - start)


def duration(seconds):
    """Seconds for people."""
    for size, name in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} s"


def rows(rate, disk, glm_rate, tokens_a_run):
    """Rows of the table: the default experiment on the trained model alone."""
    designs = paradigm.experiment()
    n_trials = sum(design.n_trials for design in designs)
    n_volumes = sum(design.n_trials * design.n_frames for design in designs)
    for shape in SHAPES:
        brain = shape.brain()
        volume = 4 * int(np.prod(brain.shape))
        tokens = (n_volumes + n_trials) * volume
        operations = 2 * shape.weights * tokens_a_run * len(designs)
        seconds = operations / rate
        writing, fitting = tokens / disk, n_trials * brain.n_units / glm_rate
        yield (
            f"| {shape.name} | {brain.n_units:,} | {4 * shape.weights / 1e9:.1f} / "
            f"{2 * shape.weights / 1e9:.1f} | {operations / 1e12:,.0f} | {duration(seconds)} "
            f"| {duration(writing)} | {duration(fitting)} | {tokens / 1e9:,.1f} "
            f"| {n_trials * volume / 1e9:,.1f} |"
        )


def main():
    """Measure and print the page."""
    if len(sys.argv) > 1:
        sys.exit(__doc__)
    load = os.getloadavg()[0]
    rate, disk, n_tokens = measure_scan()
    glm_rate = measure_glm()
    print(PAGE.format(
        rate=rate / 1e9,
        disk=disk / 1e6,
        glm=glm_rate / 1e6,
        n_tokens=n_tokens,
        n_rounds=curves.N_ROUNDS,
        n_runs=len(paradigm.experiment()),
        curves=curves.measure(),
        table="\n".join(rows(rate, disk, glm_rate, n_tokens)),
        machine=describe_machine(load),
    ), end="")  # fmt: skip


PAGE = """# Scaling

Made by `python benchmarks/scaling.py > docs/scaling.md`: what the default experiment ({n_runs} runs, the
trained model alone) costs in time, memory and disk for larger models.

## What a scan costs, measured

Whole scans by the machine named below, one quantity at a time, the others as by default: medians of {n_rounds} rounds in which
all points took turns. The line is that of least squares of relative deviations; the furthest point is so far from it, in
parts of what it took. Prompts bend it at the default batch of 128, larger models because larger matrices are multiplied
faster.

{curves}

Memory does not grow with the length of a run (docs/benchmarks.md, "Memory").

## Larger models, computed

**Measured** on the same machine: a scan of the default model does {rate:.0f} GFLOP/s (2 operations
a weight and token, {n_tokens:,} tokens a run, everything included), a run is written at {disk:.0f} MB/s with
all its files, the GLM of a large run goes through {glm:.0f} million values a second. **Computed** from these
pieces: every cell of the table. Times are those of this machine's CPU in float32, if its memory held the
weights; larger matrices run a little faster than these, so they are upper bounds. No GPU was at hand:
`python benchmarks/gpu.py` measures one.

| model | units, default sites | weights, GB (float32 / bfloat16) | TFLOP | scan, CPU | writing | GLM of all runs | disk, GB, `--frames token` | disk, GB, `--frames trial` |
|---|--:|--:|--:|--:|--:|--:|--:|--:|
{table}

An untrained copy (`--untrained`, the default) doubles time and adds the last column to the disk. `--sites all` records five to six times as
many units in a Llama.

## Which option at which size

| from | needed | why |
|---|---|---|
| any size | `--mode read` | one pass a prompt instead of one a generated token; encoders and vision models have only this |
| ~1B | `--no-untrained` | the copy doubles the time |
| ~8B | `--device cuda` | half an hour and more on two CPU cores |
| ~8B | `--dtype bfloat16` | half the weights' memory; values are rounded to 3 digits |
| ~8B | `--frames trial` | trial means are summed on the device, tokens are never stored: an eighth of the disk at 8 frames, one file for both levels |
| large runs | nothing: `glm.fit` goes through slabs by itself | peak memory stays flat |
| more than one GPU's memory | `--device auto` | accelerate spreads the weights over GPUs, memory and disk |
| many runs, several processes or machines | `--n-jobs N`, `--dask ADDRESS` | one task a run; every worker holds the model |

Memory of a scan: the weights, the keys and values of one batch, and one batch of the recording
(`batch size x frames x units x 4` bytes); it does not grow with the number of frames
(docs/benchmarks.md has the curve). Analyses of prompt-level runs hold one run of trial means at a time, `4 x
trials x units` bytes, and nulls and jackknife a few copies of it.

{machine}
"""

if __name__ == "__main__":
    main()
