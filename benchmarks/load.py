"""How does the time of `llm2nifti run` grow with the number of tasks, or of sessions?

    python benchmarks/load.py                         # 25, 50, 100, 200 tasks, 2 runs each
    python benchmarks/load.py --tasks 3 --sessions 20

Every size is a whole experiment in a fresh dataset: random stimuli, a tiny random Llama, so that
almost nothing but the package's own work is timed: in seconds of the processor, which other load
on the machine hardly changes, and in one thread, whose waiting would count as well. `--clock` takes
the seconds a user waits instead, with all threads; the machine has to be quiet.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits
from timing import check_positive, describe_machine

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import tiny

from llm2nifti import report, study
from llm2nifti.plans import Design, ModelChoice, ScanPlan, Settings
from llm2nifti.report import page
from llm2nifti.study import crews, scanning, sessions

FRAMES = ("What is {}?", "Tell me about {}.")
TOPICS = 60  # of the control
STAGES = (
    "design",
    "prompts checked",
    "scan",
    "maps",
    "similarity",
    "identification",
    "null",
    "untrained",
    "comparison",
    "figures",
    "page",
    "rest",
)


def draw_stimuli(path, n_tasks, design, seed=0):
    """Write a TSV with what `n_tasks` need and a tenth more; every concept is a random word."""
    rng = np.random.default_rng(seed)
    n_on = design["n_blocks"] * design["trials_per_block"] * design["n_runs"]
    n_off = 3 * n_on * n_tasks // 2
    counts = {f"task{i:03d}": n_on for i in range(n_tasks)} | {"control": n_off}
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    rows, seen = [], set()
    for task, n in counts.items():
        for i in range(n + n // 10 + 4):
            word = "".join(rng.choice(letters, 9))
            while word in seen:
                word = "".join(rng.choice(letters, 9))
            seen.add(word)
            frame = i % len(FRAMES)
            topic = f"{task}-{i // len(FRAMES) % (TOPICS if task == 'control' else 4)}"
            rows.append((task, topic, word, f"frame{frame}", FRAMES[frame].format(word)))
    table = pd.DataFrame(rows, columns=["task", "topic", "concept", "frame", "prompt"])
    table.to_csv(path, sep="\t", index=False)
    return path


@contextmanager
def timed(stack, now):
    """Count the seconds in each stage while the context lasts; a stage excludes those inside it."""
    seconds, open_stages = Counter(), []

    def wrapped(function, stage):
        @wraps(function)
        def call(*args, **options):
            start = now()
            open_stages.append(0.0)
            try:
                return function(*args, **options)
            finally:
                took = now() - start
                seconds[stage] += took - open_stages.pop()
                if open_stages:
                    open_stages[-1] += took

        return call

    places = {
        "design": [(scanning, "paradigms")],
        "prompts checked": [(crews.ThisProcess, "check")],
        "scan": [(crews.ThisProcess, "record")],
        "maps": [(sessions, "fit_maps")],
        "similarity": [(sessions, "compare")],
        "identification": [(sessions, "identify")],
        "null": [(sessions, "measure_nulls")],
        "untrained": [(sessions, "_untrained")],
        "comparison": [(report, "compare_sessions")],
        "figures": [(page, "Figures")],
        "page": [(report, "write"), (report, "write_overview")],
    }
    for stage, targets in places.items():
        for owner, name in targets:
            stack.enter_context(patch.object(owner, name, wrapped(getattr(owner, name), stage)))
    start = now()
    yield seconds
    seconds["rest"] = now() - start - sum(seconds.values())


def one_size(n_tasks, n_sessions, design, scratch, *, untrained=True, clock=False):
    """Seconds of every stage of one experiment, of the clock in all, and its report's bytes."""
    now, threads = (time.perf_counter, None) if clock else (time.process_time, 1)
    root, model = scratch / "ds", scratch / "model"
    shutil.rmtree(root, ignore_errors=True)
    stimuli = draw_stimuli(scratch / "stimuli.tsv", n_tasks, design)
    shown = Design(stimuli=str(stimuli), **design)
    plans = [
        ScanPlan(
            ModelChoice(str(model), subject="tiny", session=session, untrained=untrained),
            shown,
            Settings(seed=i, temperature=float(n_sessions > 1)),
        )
        for i, session in enumerate(
            [f"seed{i:02d}" for i in range(n_sessions)] if n_sessions > 1 else [""]
        )
    ]
    start = time.perf_counter()
    with ExitStack() as stack, timed(stack, now) as seconds, threadpool_limits(threads):
        path = study.run(root, plans, verbose=0, threads=threads)
    return seconds, time.perf_counter() - start, path.stat().st_size


def print_section(arguments, results):
    """Print what was run, and the table."""
    many = arguments.sessions > 1
    what = f"{arguments.sessions} sessions" if many else "one session"
    copy = "" if arguments.no_untrained else " and its untrained copy"
    print(f"## Many {'sessions' if many else 'tasks'}\n")
    kind = "of the clock, all threads" if arguments.clock else "of the processor, one thread"
    print(
        f"`llm2nifti run`, {what} of a tiny random Llama{copy}; a task has {arguments.n_runs} runs "
        f"of {arguments.n_blocks} on-blocks of {arguments.trials_per_block} prompts of "
        f"{arguments.n_frames} frames. Seconds {kind}.\n"
    )
    print("| seconds | " + " | ".join(f"{n} tasks" for n in arguments.tasks) + " |")
    print("|---|" + "--:|" * len(arguments.tasks))
    seconds, clock, size = zip(*results, strict=True)
    totals = [sum(s.values()) for s in seconds]
    rows = {stage: [s[stage] for s in seconds] for stage in STAGES}
    rows["all"] = totals
    rows["all but the scan"] = [t - s["scan"] for t, s in zip(totals, seconds, strict=True)]
    rows["all, by the clock"] = clock
    rows["report, MB"] = [n / 1e6 for n in size]
    for name, values in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:.1f}" for value in values) + " |")


def main():
    """Print a table: one row a stage, one column a size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, nargs="+", default=[25, 50, 100, 200])
    parser.add_argument("--sessions", type=int, default=1)
    parser.add_argument("--n-runs", type=int, default=2)
    parser.add_argument("--n-blocks", type=int, default=2)
    parser.add_argument("--trials-per-block", type=int, default=4)
    parser.add_argument("--n-frames", type=int, default=2)
    parser.add_argument("--clock", action="store_true", help="seconds a user waits")
    parser.add_argument("--no-untrained", action="store_true", help="without untrained copies")
    parser.add_argument("--keep", type=Path, help="folder for the model and the last dataset")
    arguments = parser.parse_args()
    check_positive(parser, arguments)
    names = ("n_runs", "n_blocks", "trials_per_block", "n_frames")
    design = {name: getattr(arguments, name) for name in names}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        scratch = arguments.keep or Path(folder)
        scratch.mkdir(parents=True, exist_ok=True)
        tiny.save(scratch / "model")
        results = []
        for n_tasks in arguments.tasks:
            result = one_size(
                n_tasks,
                arguments.sessions,
                design,
                scratch,
                untrained=not arguments.no_untrained,
                clock=arguments.clock,
            )
            results.append(result)
            print(n_tasks, dict(results[-1][0].most_common()), file=sys.stderr)
    print_section(arguments, results)
    print(f"\n{describe_machine(load)}")


if __name__ == "__main__":
    main()
