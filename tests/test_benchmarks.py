"""Do the benchmarks measure what they say? Their arithmetic, and each script once, tiny."""

from __future__ import annotations

import importlib
import runpy
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import planted
import pytest
import torch
from scipy.stats import binom
from tests_support import make_dataset

from llm2nifti import bids, study

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"

pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="benchmarks are not in the package")


@pytest.fixture
def bench(monkeypatch):
    """Import a module of the benchmarks as the scripts do."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a script in this process, which has imported torch already; what it prints."""

    def printed(script, *options):
        monkeypatch.setattr(sys, "argv", [str(FOLDER / script), *options])
        monkeypatch.syspath_prepend(FOLDER)
        monkeypatch.chdir(FOLDER.parent)
        n_threads, code = torch.get_num_threads(), None
        capsys.readouterr()
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as ended:
            code = ended.code
        finally:
            torch.set_num_threads(n_threads)
        assert not code, code
        return capsys.readouterr().out

    return printed


@pytest.mark.parametrize("n", [6, 20, 33])
def test_the_interval_covers_the_median_as_often_as_it_says(bench, n):
    values = np.random.default_rng(n).normal(size=n)
    middle, low, high = bench("timing").median_interval(values)
    ordered = np.sort(values)
    below, above = np.searchsorted(ordered, low), n - 1 - np.searchsorted(ordered, high)
    outside = [binom.cdf(k, n, 0.5) for k in (below, above)]
    assert middle == np.median(values)
    assert max(outside) <= 0.025 < binom.cdf(below + 1, n, 0.5)


def test_few_pairs_give_no_verdict(bench):
    timing = bench("timing")
    _, low, high = timing.median_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert timing.judge(low, high, 1, True) == "too few pairs"


@pytest.mark.parametrize(
    ("low", "high", "at_least", "verdict"),
    [
        (1.0, 2.0, True, "met by the whole interval"),
        (0.9, 1.1, True, "met: not excluded"),
        (0.8, 0.9, True, "not met"),
        (0.8, 1.0, False, "met by the whole interval"),
        (1.1, 1.2, False, "not met"),
    ],
)
def test_a_target_is_missed_when_the_interval_excludes_it(bench, low, high, at_least, verdict):
    assert bench("timing").judge(low, high, 1.0, at_least) == verdict


def test_every_other_pair_is_run_in_reverse(bench):
    calls = []

    def way(name):
        return lambda pair: (calls.append(name + str(pair)) or 1, None)

    seconds = bench("timing").race("x", way("a"), way("b"), 3, before=lambda: calls.append("-"))
    assert calls == ["-", "a0", "-", "b0", "-", "b1", "-", "a1", "-", "a2", "-", "b2"]
    assert seconds.shape == (3, 2)
    assert (seconds > 0).all()


def test_values_are_found_in_either_shape(bench):
    cube = np.zeros((2, 3, 4))
    flat = SimpleNamespace(values=cube.reshape(6, 4), by_trial=lambda: cube)
    for recording in (SimpleNamespace(values=cube), flat):
        assert bench("timing").by_trial(recording) is cube


@pytest.mark.parametrize(("growth", "verdict"), [(0.06, "not flat"), (0.04, "flat")])
def test_memory_that_grows_by_a_frame_a_frame_is_not_flat(bench, growth, verdict):
    sizes = {"units": 1 << 18, "written": 0, "before": 0, "seconds": 0}  # a frame has 1 MiB
    results = [{**sizes, "frames": n, "anonymous": n * growth, "peak": 0} for n in (10, 20, 40)]
    _, (told,) = bench("memory").describe("x", results)
    assert told.startswith(f"x: RssAnon {verdict}")
    assert "VmHWM flat (+0.0 KiB" in told


def test_the_recorders_agree_with_a_scan_and_an_error_is_found(bench, tiny_model):
    recorders, timing, peers = bench("recorders"), bench("timing"), bench("peers")
    design = timing.draw_design(5, 3)
    recording = recorders.scan(tiny_model, design, sites=peers.SITES)[1]
    ((rival,),) = peers.rivals("naive", tiny_model, design, [2])
    tokens, values = rival.read(rival.run(list(design.trials["prompt"]))[1])
    assert tokens == timing.tokens_of(recording)
    assert timing.worst_error(recording, values, recording.brain.sites) < 1e-5
    values[recording.brain.sites[-1].module][7] *= 1.001
    with pytest.raises(SystemExit, match="disagree"):
        timing.worst_error(recording, values, recording.brain.sites)


def test_needed_work_is_that_of_the_prompts_and_the_tokens_that_are_read(bench, tiny_model):
    design = bench("timing").draw_design(4, 3)
    texts = tiny_model.render(list(design.trials["prompt"]))
    encoded = [tiny_model.tokenizer(text)["input_ids"] for text in texts]
    whole = bench("limit").needed(tiny_model, design, shared=False)
    once = bench("limit").needed(tiny_model, design, shared=True)
    assert (whole.prompt, whole.decoded, whole.heads) == (sum(map(len, encoded)), 8, 12)
    branches: dict = {}  # a tree of tokens: as many nodes as tokens are read once
    n_nodes = 0
    for ids in encoded:
        node = branches
        for token in ids:
            n_nodes += token not in node
            node = node.setdefault(token, {})
    assert once.prompt == n_nodes
    assert once.tokens == n_nodes + 8


def test_linear_layers_are_what_torch_counts(bench, tiny_model):
    limit = bench("limit")
    blocks, head = limit.linear_weights(tiny_model)
    n = 6
    with torch.no_grad():
        counted = limit.count_operations(
            lambda: tiny_model.module(input_ids=torch.arange(n)[None], use_cache=False)
        )
    assert counted == limit.operations(blocks, n) + limit.operations(head, n)


@pytest.mark.parametrize(
    ("script", "options", "expected"),
    [
        ("writing.py", "--pairs 1 --trials 2 --frames 2 --layers 2 --width 16", "| 1 |"),
        ("glm.py", "--pairs 1 --units 300 --frames 80", "| speed, FirstLevelModel"),
        (
            "gpu.py",
            "--device cpu --tiny --models 7b --pairs 1 --trials 2 --frames 2",
            "`tiny-7b` | 256 |",
        ),
        ("curves.py", "--tiny --rounds 1 --model TINY", "| prompts, 8 frames each | 2: "),
        ("memory.py", "--tiny --lengths 20", "| every frame | 20 | "),
        (
            "analysis.py",
            "--pairs 1 --units 300 --runs 2 --pseudo-tasks 3",
            "| token-level null of a run | 1 |",
        ),
        ("load.py", "--tasks 2 --no-untrained", "| seconds | 2 tasks |"),
        (
            "batches.py",
            "--pairs 1 --runs 3 --blocks 2 --trials 2 --frames 2 --no-peaks --model TINY",
            "| 3 | 30 | 1 |",
        ),
        (
            "precision.py",
            "--pairs 1 --runs 2 --blocks 2 --trials 3 --frames 2 --model TINY",
            "Maps of pathology over 2 runs: r = 0.99",
        ),
        ("monitor.py", "--pairs 1 --tokens 2 --model TINY", "| monitored / bare `generate` | 1 |"),
    ],
)
def test_a_script_prints_its_section(script, options, expected, tiny_folders, run):
    if script == "memory.py" and not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    told = run(script, *options.replace("TINY", str(tiny_folders["llama"])).split())
    assert told.startswith("## ")
    assert expected in told


def test_peers_compares_every_way_that_is_installed(tiny_folders, run):
    options = "--pairs 1 --trials 3 --frames 2 --batches 1,2 --ways naive,hidden,bare,limit --model"
    told = run("peers.py", *options.split(), str(tiny_folders["llama"]))
    rows = [line for line in told.splitlines() if line.startswith("| ")]
    titles = [row.split("|")[1].strip() for row in rows]
    assert titles[1:4] == [
        "naive hooks",
        "`output_hidden_states=True`",
        "bare `generate`, nothing recorded",
    ]
    assert "counted in a scan" in titles


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_gpu_says_so(run):
    assert run("gpu.py").startswith("No CUDA device here")


def test_halves_share_no_topic_and_are_printed(bench, capsys, tmp_path):
    halves = bench("halves")
    events = pd.DataFrame({"trial_type": ["control", "x", "x", "x"] * 4})
    events["topic"] = [f"topic {i % 5}" for i in range(16)]
    first, second = (halves.part(events, which) for which in (0, 1))
    is_on = (events["trial_type"] == "x").to_numpy()
    assert (first | second).all()
    assert not (first & second).any()
    assert set(events["topic"][first & is_on]).isdisjoint(events["topic"][second & is_on])
    halves.main(str(make_dataset(tmp_path / "ds")))
    assert capsys.readouterr().out.splitlines()[-1].startswith("| mean | ")


def test_page_of_results_tells_both_datasets(bench, tmp_path):
    root = make_dataset(tmp_path / "ds")
    study.analyse(bids.session(root), n_null=2, verbose=0)
    text = bench("results").page(str(root), str(root))
    lines = text.splitlines()
    assert lines[0].startswith("# What `llm2nifti run ds` finds")
    for heading in ("The result in short", "Where?", "What does any coherent domain show?"):
        assert any(line.endswith(f"# {heading}") for line in lines)
    tables = [line for line in lines if line.startswith("| ")]
    assert len({row.count("|") for row in tables}) > 1
    for before, after in pairwise(lines):  # a table has as many cells a row
        if before.startswith("| ") and after.startswith("| "):
            assert before.count("|") == after.count("|")


def test_ways_of_naming_are_chosen_inside_the_other_runs(bench, capsys, tmp_path):
    rng = np.random.default_rng(0)
    patterns = {task: rng.normal(size=60) for task in ("pain", "tone")}
    for task, pattern in patterns.items():
        for run in (1, 2, 3):
            table = planted.trials(task, n_on=8, n_off=10)
            values = rng.normal(size=(len(table), 1, 60))
            values[(table["trial_type"] == task).to_numpy(), 0] += pattern
            planted.dataset_run(tmp_path, table, values, task=task, number=run)
    bench("naming").main(str(tmp_path))
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    means = {name: float(row[-1]) for name, *row in rows[2:]}
    assert means["ridge, penalty 0.1"] > 0.9
    assert means["templates"] > 0.9
    nested = rows[-1]
    assert nested[0] == "chosen by the inner folds"
    chosen = [cell.partition(" (")[2].rstrip(")") for cell in nested[1:-1]]
    assert set(chosen) <= set(means)
