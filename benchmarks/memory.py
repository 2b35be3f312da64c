"""Does the memory of scanning and writing grow with the length of a run?

    python benchmarks/memory.py >> docs/benchmarks.md

A Llama with random weights and about 200,000 units with `--sites all` is scanned and written with
`bids.write`, each length in a fresh process, everything in one folder of the given disk. Peaks are
the process's own (Linux, /proc): VmHWM is all resident memory, pages of mapped files among it,
which the system may take back at any time; RssAnon, sampled, is what it may not. `--frames trial`
keeps one volume a prompt; it is left out where `scanner.Settings` has no such option.
A run is called flat if what it adds a frame is at most 5 % of a frame. Needs about three times the
size of the longest run on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import fields
from pathlib import Path

import nibabel as nib
import numpy as np
from random_model import TINY, random_llama
from recorders import scan
from timing import by_trial, check_positive, describe_machine, draw_design, take_trials

from llm2nifti import bids, scanner

LENGTHS = (500, 1000, 2000, 5000)  # frames of a run
FRAMES_A_TRIAL = 10
BATCH = 50  # every length is made of full batches; an incomplete one needs less memory
FLAT = 0.05  # of a frame's size, added a frame
N_DIFFERENT = 100  # prompts; longer runs show them again
INTERVAL = 0.005  # s between samples of RssAnon
WIDE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 9,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}
STATUS = Path("/proc/self/status")


def status():
    """{name: MiB} of this process's memory, as the system counts it."""
    lines = [line.split() for line in STATUS.read_text("utf-8").splitlines()]
    return {line[0].rstrip(":"): int(line[1]) / 1024 for line in lines if line[-1] == "kB"}


class Watch:
    """Largest RssAnon while it is open, in MiB, from samples."""

    def __enter__(self):
        """Start to look."""
        self.peak = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self):
        while True:
            self.peak = max(self.peak, status()["RssAnon"])
            if self._done.wait(INTERVAL):
                return

    def __exit__(self, *_error):
        """Stop."""
        self._done.set()
        self._thread.join()


def make_design(n_frames):
    """Paradigm of so many frames; beyond the first prompts they come again."""
    n_trials = n_frames // FRAMES_A_TRIAL
    design = draw_design(min(n_trials, N_DIFFERENT), FRAMES_A_TRIAL)
    return take_trials(design, np.arange(n_trials) % design.n_trials)


def scan_and_write(n_frames, *, tiny, batch, **settings):
    """What one fresh process measures: sizes in MiB, seconds."""
    model = random_llama("random", **(TINY if tiny else WIDE))
    design = make_design(n_frames)
    n_units = sum(site.n_units for site in model.sites("all"))
    before = status()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as root, Watch() as watch:
        how = {"sites": "all", "batch_size": batch, **settings}
        recording = scan(model, design, Path(root) / "values", **how)[1]
        paths = bids.write(recording, Path(root) / "ds")
        seconds, after, anonymous = time.perf_counter() - start, status(), watch.peak
        images = [path for path in (paths.bold, paths.trial_bold) if path.exists()]
        check_last(images[0], recording)
        written = sum(path.stat().st_size for path in images)
        del recording
    return {
        "frames": n_frames,
        "units": n_units,
        "before": before["VmRSS"],
        "peak": after["VmHWM"],
        "anonymous": anonymous,
        "written": written / 2**20,
        "seconds": seconds,
    }


def check_last(image, recording):
    """Leave unless the image's last volume holds what was recorded last."""
    x, y, z = recording.brain.voxels.T
    found = np.asanyarray(nib.load(image).dataobj[..., -1])[x, y, z]
    expected = by_trial(recording)[-1]
    if not np.array_equal(found, expected.reshape(-1, recording.brain.n_units)[-1]):
        sys.exit(f"{image.name} does not hold the values that were recorded")


def in_fresh_process(task, scratch):
    """Result of `scan_and_write` in a process of its own, whose files go to `scratch`."""
    environment = {**os.environ, "TMPDIR": str(scratch)}
    command = [sys.executable, __file__, "--child", json.dumps(task)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"a run of {task['n_frames']} frames failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def describe(label, results):
    """Rows of the table, and sentences that say whether the peaks are flat."""
    rows = [
        f"| {label} | {r['frames']} | {r['units']:,} | {r['written']:.0f} | {r['before']:.0f} "
        f"| {r['peak']:.0f} | {r['anonymous']:.0f} | {r['seconds']:.0f} |"
        for r in results
    ]
    if len(results) < 2:
        return rows, [f"{label}: one length says nothing about growth."]
    frame = results[0]["units"] * 4 / 1024
    told = []
    for name, key in (("RssAnon", "anonymous"), ("VmHWM", "peak")):
        slope = 1024 * np.polyfit([r["frames"] for r in results], [r[key] for r in results], 1)[0]
        verdict = "flat" if slope <= FLAT * frame else "not flat"
        told.append(
            f"{name} {verdict} ({slope:+.1f} KiB a frame, {100 * slope / frame:+.1f} % of a "
            f"frame's {frame:.0f} KiB)"
        )
    return rows, [f"{label}: {'; '.join(told)}."]


def largest(results):
    """One of equal runs, with the largest peaks of all."""
    return {**results[0], **{key: max(r[key] for r in results) for key in ("peak", "anonymous")}}


def measure(lengths, scratch, *, repeats, **options):
    """Paragraphs: table, verdicts, what was left out."""
    kinds = [("every frame", {})]
    notes = []
    if "frames" in {field.name for field in fields(scanner.Settings)}:
        kinds.append(("one volume a trial", {"frames": "trial"}))
    else:
        notes.append("`--frames trial` was left out: this version has no such option.")
    rows = [
        "| kept | frames | units | images, MiB | before the scan, MiB | VmHWM, MiB | RssAnon, MiB "
        "| s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    told = []
    for label, settings in kinds:
        results = []
        for n_frames in lengths:
            task = {"n_frames": n_frames, **options, **settings}
            result = largest([in_fresh_process(task, scratch) for _ in range(repeats)])
            print(f"{label}, {n_frames} frames: {result}", file=sys.stderr)
            results.append(result)
        more_rows, more_told = describe(label, results)
        rows += more_rows
        told += more_told
    return ["\n".join(rows), " ".join(told), *notes]


def main():
    """Measure, print a Markdown section; or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    default = ",".join(map(str, LENGTHS))
    parser.add_argument("--lengths", default=default, help="frames of the runs (%(default)s)")
    parser.add_argument("--batch", type=int, default=BATCH, help="trials a batch (%(default)s)")
    parser.add_argument("--repeats", type=int, default=1, help="runs of a length (%(default)s)")
    parser.add_argument("--scratch", type=Path, help="where to write (the temporary folder)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try this out")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(scan_and_write(**json.loads(arguments.child))))
        return
    check_positive(parser, arguments)
    if not STATUS.exists():
        sys.exit("memory.py reads /proc/self/status, which this system does not have; use Linux")
    if not all(n.isdigit() and int(n) >= 2 * FRAMES_A_TRIAL for n in arguments.lengths.split(",")):
        parser.error(f"--lengths is {arguments.lengths}; use numbers from {2 * FRAMES_A_TRIAL}")
    lengths = sorted({int(n) for n in arguments.lengths.split(",")})
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=arguments.scratch, prefix="llm2nifti-memory-") as scratch:
        options = {"tiny": arguments.tiny, "batch": arguments.batch}
        paragraphs = measure(lengths, Path(scratch), repeats=arguments.repeats, **options)
    setting = (
        f"A Llama with random weights, `--sites all`, {FRAMES_A_TRIAL} frames a trial, batch "
        f"{arguments.batch}; `scanner.scan` and `bids.write`, each length in a fresh process, "
        f"the largest peak of {arguments.repeats}. "
        f"RssAnon is sampled every {1000 * INTERVAL:.0f} ms. VmHWM counts pages of mapped files "
        "too, which the system may take back. "
        f"Flat: at most {100 * FLAT:.0f} % of a frame's size a frame "
        "(least squares over the lengths)."
    )
    print("\n\n".join(["## Memory", setting, *paragraphs, describe_machine(load)]))


if __name__ == "__main__":
    main()
