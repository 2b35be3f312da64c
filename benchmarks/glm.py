"""How fast is a GLM of a large run, and how much memory does it take, against FirstLevelModel?

A run of random values in a real ``.nii`` file, written to a temporary folder (1.4 GB with the
defaults) and removed afterwards. Run from the repository root on a quiet machine with 8 GB
of memory (14 GB for `--noise-model ar1`):

    python benchmarks/glm.py >> docs/benchmarks.md

`glm.fit` with one contrast is run in pairs with nilearn's ``FirstLevelModel`` with the same
settings, design and contrast, each in a fresh process that reports its wall time, without imports
and start, and its peak memory, with them. One warm-up pair also checks that both find the same t.
Targets: at least 4 times faster, at most a quarter of the memory; one is met when the 95 % interval
of the median ratio does not exclude it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import nilearn
import numpy as np
import pandas as pd
from nilearn.glm.first_level import FirstLevelModel

from llm2nifti import geometry, glm
from llm2nifti.bids.files import write_frames
from llm2nifti.geometry import Site

TASK = "pathology"
CONTRAST = f"{TASK} - {glm.CONTROL}"
N_PAIRS = 10
N_UNITS = 500_000
N_FRAMES = 600
N_LAYERS = 32
N_QUESTION_FRAMES = 8
WAYS = ("glm.fit", "FirstLevelModel")
NOISE_MODELS = {"ols": "trial", "ar1": "token"}
TOLERANCE = 1e-6  # of a t value; float32 rounds at 6e-8 of its size
FASTER = 4.0
MEMORY = 0.25


@dataclass(frozen=True)
class LargeRun:
    """What `glm.fit` needs of a run, in one file; a trial has one frame."""

    path: Path
    n_units: int
    n_volumes: int
    task = TASK
    frames = "token"
    n_frames = 1
    t_r = 1.0

    @property
    def brain(self):
        """Three sites in each of 32 layers; their sizes differ by at most one unit."""
        sizes = [len(part) for part in np.array_split(np.arange(self.n_units), 3 * N_LAYERS)]
        kinds = [("attn", "left"), ("resid", "middle"), ("mlp", "right")] * N_LAYERS
        sites = [
            Site(name, 1 + i // 3, f"h.{i // 3}.{name}", size, side=side)
            for i, ((name, side), size) in enumerate(zip(kinds, sizes, strict=True))
        ]
        return geometry.layout(sites)

    @property
    def volume_counts(self):
        """Volumes of each trial."""
        return np.ones(self.n_volumes, np.int64)

    @property
    def events(self):
        """Blocks of 10 control and 10 task trials; question frames cycle in each condition."""
        trial = np.arange(self.n_volumes)
        types = np.where(trial // 10 % 2, TASK, glm.CONTROL)
        frames = [f"frame{i}" for i in (trial // 20 * 10 + trial % 10) % N_QUESTION_FRAMES]
        return pd.DataFrame({"trial_type": types, "question_frame": frames})

    @property
    def img(self):
        """Image, not loaded."""
        return nib.load(self.path)

    frames_img = img


class RandomTrials:
    """(n_volumes, 1, n_units) float32 values, drawn when they are asked for."""

    def __init__(self, n_volumes, n_units):
        self.shape = (n_volumes, 1, n_units)

    def __iter__(self):
        """Independent normal values; units differ in mean and scale, as activations do."""
        rng = np.random.default_rng(0)
        n_volumes, _, n_units = self.shape
        scale = np.exp(rng.standard_normal(n_units, np.float32))
        mean = 5 * rng.standard_normal(n_units, np.float32)
        for _ in range(n_volumes):
            yield rng.standard_normal((1, n_units), np.float32) * scale + mean


def run_first_level_model(run, noise_model):
    """Map of t by plain nilearn, with the settings that `glm.fit` uses."""
    model = FirstLevelModel(
        t_r=run.t_r,
        hrf_model=None,
        drift_model=None,
        signal_scaling=False,
        smoothing_fwhm=None,
        noise_model=noise_model,
        mask_img=geometry.mask_img(run.brain),
    )
    design = glm.design_matrix(run.events)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(run.img, design_matrices=design)
        vector = glm.contrast_vector(design, CONTRAST)
        return model.compute_contrast(vector, stat_type="t", output_type="stat")


def run_glm_fit(run, noise_model):
    """Map of t by the library, which makes the maps of z and effect too."""
    return glm.fit(run, frames=NOISE_MODELS[noise_model], verbose=0).contrast(CONTRAST).t_img


def work(run, way, noise_model):
    """What a fresh process does: time one way, save its t values, print the measures as JSON."""
    function = run_glm_fit if way == WAYS[0] else run_first_level_model
    start = time.perf_counter()
    img = function(run, noise_model)
    seconds = time.perf_counter() - start
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    np.save(run.path.with_name(f"{way}.npy"), geometry.from_img(run.brain, img))
    print(json.dumps([seconds, peak / 1e9]))


def measure(run, way, noise_model):
    """Seconds and peak memory in GB of one way in a fresh process."""
    arguments = ["--work", way, str(run.path), "--noise-model", noise_model]
    arguments += ["--units", str(run.n_units), "--frames", str(run.n_volumes)]
    done = subprocess.run(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(done.stdout)


def race(run, noise_model, n_pairs):
    """Measures, (n_pairs, 2 ways, 2), taken in turn; every other pair in reverse order."""
    measures = np.empty((n_pairs, 2, 2))
    for pair in range(n_pairs):
        for column in (0, 1) if pair % 2 == 0 else (1, 0):
            measures[pair, column] = measure(run, WAYS[column], noise_model)
        report(f"pair {pair + 1}/{n_pairs}", measures[pair])
    return measures


def report(label, measures):
    """Say on stderr how a pair went."""
    parts = [f"{way} {s:.2f} s {gb:.2f} GB" for way, (s, gb) in zip(WAYS, measures, strict=True)]
    print(f"{label}: {', '.join(parts)}", file=sys.stderr)


def check_agreement(run, noise_model):
    """Sentence that says how well both ways agree, after a warm-up; exit if they do not."""
    report("warm-up", [measure(run, way, noise_model) for way in WAYS])
    ours, theirs = (np.load(run.path.with_name(f"{way}.npy")) for way in WAYS)
    worst = float(np.abs(ours - theirs).max())
    if not worst <= TOLERANCE:
        sys.exit(f"the two ways disagree: t differs by {worst:.1e} > {TOLERANCE:.0e}")
    return (
        f"Checked before timing: the t values of all {run.n_units:,} units, up to "
        f"{np.abs(theirs).max():.1f}, differ by at most {worst:.1e} (allowed {TOLERANCE:.0e})."
    )


def describe(label, unit, measures, *, ratios, target, at_least):
    """Row of the table."""
    from timing import judge, median_interval

    middle, low, high = median_interval(ratios)
    ours, theirs = np.median(measures, axis=0)
    sign = "at least" if at_least else "at most"
    return (
        f"| {label} | {len(ratios)} | {ours:.2f} {unit} | {theirs:.2f} {unit} "
        f"| {middle:.3f} ({low:.3f} to {high:.3f}) | {sign} {target:g} "
        f"| {judge(low, high, target, at_least)} |"
    )


def describe_setting(run, noise_model):
    """Sentences on what was compared and how."""
    n_columns = glm.design_matrix(run.events).shape[1]
    size = run.path.stat().st_size / 1e9
    return (
        f"{run.n_units:,} units x {run.n_volumes} frames of random float32 values in a `.nii` file "
        f"of {size:.2f} GB, {n_columns} design columns, noise model `{noise_model}`, fit and one "
        "contrast. Every run in a fresh process, in pairs, their order swapped every other pair, "
        "after one warm-up each; the file is in the page cache. Time without imports, memory with "
        "them. Median ratio over pairs with the exact 95 % interval of the median (order "
        "statistics); a target is met when the interval does not exclude it."
    )


def make_section(run, noise_model, n_pairs):
    """Markdown paragraphs."""
    from timing import describe_machine

    load = os.getloadavg()[0]
    trials, n_volumes = RandomTrials(run.n_volumes, run.n_units), run.n_volumes
    write_frames(run.path, run.path.parent, run.brain, trials, n_volumes=n_volumes, t_r=run.t_r)
    agreement = check_agreement(run, noise_model)
    print(agreement, file=sys.stderr)
    measures = race(run, noise_model, n_pairs)
    seconds, memory = measures[..., 0], measures[..., 1]
    rows = [
        "| comparison | pairs | `glm.fit` | `FirstLevelModel` | ratio (95 % interval) | target "
        "| verdict |",
        "|---|--:|--:|--:|--:|--:|---|",
        describe(
            "speed, FirstLevelModel's time / glm.fit's",
            "s",
            seconds,
            ratios=seconds[:, 1] / seconds[:, 0],
            target=FASTER,
            at_least=True,
        ),
        describe(
            "peak memory, glm.fit / FirstLevelModel",
            "GB",
            memory,
            ratios=memory[:, 0] / memory[:, 1],
            target=MEMORY,
            at_least=False,
        ),
    ]
    versions = f"numpy {np.__version__}, nilearn {nilearn.__version__}, nibabel {nib.__version__}."
    setting, machine = describe_setting(run, noise_model), describe_machine(load)
    return ["## GLM of a large run", setting, agreement, "\n".join(rows), f"{machine} {versions}"]


def main():
    """Measure, print a Markdown section."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=N_PAIRS, help="pairs of runs (%(default)s)")
    parser.add_argument("--units", type=int, default=N_UNITS, help="units (%(default)s)")
    parser.add_argument("--frames", type=int, default=N_FRAMES, help="volumes (%(default)s)")
    parser.add_argument("--noise-model", choices=NOISE_MODELS, default="ols", help="(%(default)s)")
    parser.add_argument("--work", nargs=2, metavar=("WAY", "PATH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for name, least in (("pairs", 1), ("units", 3 * N_LAYERS), ("frames", 40)):
        if getattr(arguments, name) < least:
            parser.error(f"--{name} is {getattr(arguments, name)}; it must be at least {least}")
    if arguments.work:
        way, path = arguments.work
        work(LargeRun(Path(path), arguments.units, arguments.frames), way, arguments.noise_model)
        return
    with tempfile.TemporaryDirectory(prefix="llm2nifti-glm-") as folder:
        run = LargeRun(Path(folder) / "bold.nii", arguments.units, arguments.frames)
        print("\n\n".join(make_section(run, arguments.noise_model, arguments.pairs)))


if __name__ == "__main__":
    main()
