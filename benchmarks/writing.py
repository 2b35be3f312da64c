"""How fast is a run's 4D image written, against a plain write of the same bytes?

    python benchmarks/writing.py >> docs/benchmarks.md

`bids.files.write_frames` scatters every trial's units into a volume and writes it; the other way
writes the same bytes, already in memory, in sequence to the same folder. Both end with fsync. Runs
in pairs, in turn; the values are a memory map, as after a scan. Target: at least 80 % of the plain
write's bytes a second. The disk's cache and its neighbours decide how far single pairs scatter.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from timing import (
    N_PAIRS,
    check_positive,
    describe_machine,
    describe_ratio,
    judge,
    median_interval,
    race,
)

from llm2nifti import geometry
from llm2nifti.bids.files import write_frames
from llm2nifti.geometry import Site
from llm2nifti.recording import windows

TARGET = 0.8
PIECE = 16 << 20  # bytes of a plain write's call
SIDES = {"attn": "left", "resid": "middle", "mlp": "right"}


def make_brain(n_layers, width):
    """Brain of the default sites of a decoder of this size."""
    sites = [Site("embed", 0, "embed", width)]
    for layer in range(1, n_layers + 1):
        sites += [
            Site(name, layer, f"h.{layer}.{name}", width, side=side) for name, side in SIDES.items()
        ]
    return geometry.layout([*sites, Site("norm", n_layers + 1, "norm", width)])


def make_values(path, n_volumes, n_units):
    """(n_volumes, n_units) random values in a memory map that is on disk, as a recording's."""
    shape = (n_volumes, n_units)
    values = np.memmap(path, np.float32, "w+", shape=shape)
    rng = np.random.default_rng(0)
    for volume in values:
        rng.standard_normal(dtype=np.float32, out=volume)
    values.flush()
    return np.memmap(path, np.float32, "r", shape=shape)


def flush(path):
    """Wait until a file is on disk."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def write_plain(path, content):
    """Write bytes that are in memory, in sequence."""
    view = memoryview(content)
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(view), PIECE):
            file.write(view[start : start + PIECE])


def check_image(path, brain, values):
    """Leave unless the image holds the values, unit by unit."""
    x, y, z = brain.voxels.T
    data = np.asanyarray(nib.load(path).dataobj)
    for volume, expected in enumerate(values):
        if not np.array_equal(data[x, y, z, volume], expected):
            sys.exit(f"the image of write_frames does not hold the values of volume {volume}")


def measure(folder, brain, counts, n_pairs):
    """Paragraph and table."""
    n_volumes = sum(counts)
    values = make_values(folder / "values.f32", n_volumes, brain.n_units)
    paths = folder / "ours.nii", folder / "plain.nii"

    def ours(_pair):
        parts = windows(values, counts)
        write_frames(paths[0], folder, brain, parts, n_volumes=n_volumes, t_r=1.0)
        flush(paths[0])
        return megabytes, None

    def plain(_pair):
        write_plain(paths[1], content)
        flush(paths[1])
        return megabytes, None

    def clean():
        for path in paths:
            path.unlink(missing_ok=True)
        os.sync()

    megabytes = brain_bytes(brain, n_volumes) / 1e6
    ours(0)
    check_image(paths[0], brain, values)
    content = paths[0].read_bytes()
    if len(content) != round(1e6 * megabytes):
        sys.exit(f"the image has {len(content)} bytes, expected {1e6 * megabytes:.0f}")
    plain(0)
    seconds = race("write_frames, plain, MB", ours, plain, n_pairs, before=clean)
    ratios = seconds[:, 1] / seconds[:, 0]
    speeds = np.median(1 / seconds, axis=0)
    _, low, high = median_interval(ratios)
    share = brain.n_units / np.prod(brain.shape)
    return [
        f"{len(content) / 1e6:.0f} MB: {len(counts)} trials x {counts[0]} frames x "
        f"{brain.n_units:,} units in {' x '.join(map(str, brain.shape))} voxels ({share:.0%} of "
        "them hold a unit), checked unit by unit before timing. Both ways end with fsync; pairs in "
        "turn, the order swapped every other pair, disk synchronised and old file deleted before "
        "each.",
        "| pairs | `write_frames`, MB/s | plain, MB/s | ratio (95 % interval) | target | verdict |"
        "\n|--:|--:|--:|--:|--:|---|\n"
        f"| {n_pairs} | {speeds[0]:.0f} | {speeds[1]:.0f} | {describe_ratio(ratios)} "
        f"| at least {TARGET:g} | {judge(low, high, TARGET, True)} |",
    ]


def brain_bytes(brain, n_volumes):
    """Size of the 4D image: header and one float32 volume a frame."""
    return 352 + 4 * n_volumes * int(np.prod(brain.shape))


def main():
    """Measure, print a Markdown section."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=N_PAIRS, help="pairs of runs (%(default)s)")
    parser.add_argument("--trials", type=int, default=250, help="trials (%(default)s)")
    parser.add_argument("--frames", type=int, default=8, help="frames a trial (%(default)s)")
    parser.add_argument("--layers", type=int, default=30, help="blocks (%(default)s)")
    parser.add_argument("--width", type=int, default=576, help="units of a site (%(default)s)")
    parser.add_argument("--scratch", type=Path, help="where to write (the temporary folder)")
    arguments = parser.parse_args()
    check_positive(parser, arguments)
    load = os.getloadavg()[0]
    brain = make_brain(arguments.layers, arguments.width)
    counts = [arguments.frames] * arguments.trials
    with tempfile.TemporaryDirectory(dir=arguments.scratch, prefix="llm2nifti-writing-") as folder:
        paragraphs = measure(Path(folder), brain, counts, arguments.pairs)
    print("\n\n".join(["## Writing speed", *paragraphs, describe_machine(load)]))


if __name__ == "__main__":
    main()
