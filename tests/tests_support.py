"""Datasets of random values, made without any model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from llm2nifti import bids, geometry, paradigm
from llm2nifti.geometry import Site
from llm2nifti.recording import TOKEN_COLUMNS, Recording


def make_recording(
    task="pathology", run=1, *, seed=0, responses=None, name="tiny/Model-1", **model
):
    """A recording of random values: 5 sites of 7 units, 3 frames a trial."""
    sites = [Site("embed", 0, "wte", 7)]
    for layer in (1, 2):
        sites += [Site("attn", layer, f"h.{layer}.attn", 7, side="left")]
        sites += [Site("mlp", layer, f"h.{layer}.mlp", 7, side="right")]
    brain = geometry.layout(sites)
    designs = paradigm.experiment(
        ["pathology", "archeology"], n_runs=2, n_blocks=2, trials_per_block=8, n_frames=3
    )
    design = next(d for d in designs if (d.task, d.run) == (task, run))
    rng = np.random.default_rng(seed)
    n = design.n_trials
    values = rng.normal(size=(n * 3, brain.n_units)).astype(np.float32)
    tokens = pd.DataFrame({column: np.zeros(n * 3) for column in TOKEN_COLUMNS})
    tokens["trial"], tokens["token"] = np.repeat(np.arange(n), 3), ["x"] * (n * 3)
    info = {
        "Model": {"Subject": name, "Name": name, "WeightsHash": "abc", "Parameters": 3, **model},
        "Settings": {"seed": seed},
        "Decoding": "greedy",
        "ChatTemplate": False,
        "Threads": 2,
        "Versions": {},
    }
    responses = responses or [f"answer {i}" for i in range(n)]
    norms = rng.random(brain.n_units).astype(np.float32)
    return Recording(values, design, brain, tokens, responses, ["p"] * n, info, norms)


def make_dataset(root: Path, *, seed=0, **model) -> Path:
    """Two tasks of two runs."""
    for i, (task, run) in enumerate((t, r) for t in ("pathology", "archeology") for r in (1, 2)):
        bids.write(make_recording(task, run, seed=seed + i, **model), root)
    bids.writing.clear_work(root)
    return root


def contents(root: Path) -> dict[str, bytes]:
    """Every file of a folder, by its relative path."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def assert_same(root: Path, expected: dict[str, bytes]) -> None:
    """A folder holds these files, byte by byte, and no other."""
    found = contents(root)
    assert [name for name in expected if found.get(name) != expected[name]] == []
    assert set(found) == set(expected)


def count_calls(function: Callable[[], object]) -> int:
    """Calls of functions, Python's and C's, that a function makes: work that is not a matter of
    the machine's speed, but for what a single call does."""
    n_calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal n_calls
        n_calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(before)
    return n_calls
