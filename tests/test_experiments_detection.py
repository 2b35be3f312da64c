"""Detection from a dataset with planted networks: held out, timed, with its nulls."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re

import numpy as np
import planted
import pytest
import tests_support
from test_networks_detection import by_pairs

from llm2nifti import bids, cli, experiments, glm, report, study
from llm2nifti.experiments.detection import measure as measuring
from llm2nifti.experiments.detection.measure import evaluate
from llm2nifti.experiments.detection.plan import DetectPlan
from llm2nifti.experiments.nulls.plan import NullPlan
from llm2nifti.experiments.results import plain
from llm2nifti.networks.detection import DetectionError
from llm2nifti.tell import as_text

TASKS = ("pain", "joy")
N_UNITS, N_FRAMES = 60, 4
EFFECT = slice(0, 5)  # attn units of layer 1 that answer to pain, from its second frame


def plant(root, n_runs=3, effect=2.0):
    """Runs of two tasks; pain moves five units after the first frame, joy moves nothing."""
    found = []
    for number in range(1, n_runs + 1):
        for task in TASKS:
            table = planted.trials(task)
            table["prompt"] = [f"{p} {number} {i}" for i, p in enumerate(table["prompt"])]
            seed = 10 * number + (task == "joy")
            rng = np.random.default_rng(0)
            scale, mean = np.exp(rng.normal(size=N_UNITS)), 5 * rng.normal(size=N_UNITS)
            rng = np.random.default_rng(seed)
            values = rng.normal(size=(len(table), 1, N_UNITS))
            values = values + rng.normal(size=(len(table), N_FRAMES, N_UNITS))
            is_pain = (table["trial_type"] == "pain").to_numpy()
            values[is_pain, 1:, EFFECT] += effect
            found.append(
                planted.dataset_run(root, table, values * scale + mean, task=task, number=number)
            )
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return plant(tmp_path_factory.mktemp("detection") / "ds")


@pytest.fixture(scope="module")
def content(runs):
    plan = DetectPlan(share=0.25, threshold=0.1, n_boot=200)
    return plain(evaluate(runs, plan, verbose=0))


def detect(root, *, subject=None, **changes):
    """Content of the result of a dataset."""
    session = bids.session(root, subject=subject)
    return experiments.measure(session, DetectPlan(**changes), verbose=0).content()


def by_hand(runs, held, task):
    """(n_trials, n_frames) scores of one held-out run by the networks of the others, naively."""
    others = [r for r in runs if r.run != held.run]
    t = glm.t_map(
        [
            glm.run_contrast(r.values(), r.events, f"{task} - control")
            for r in others
            if r.task == task
        ]
    )
    names = np.repeat([s.name for s in held.brain.sites], np.diff(held.brain.offsets))
    inside = np.flatnonzero(np.isin(names, ["attn", "mlp"]))
    best = inside[np.argsort(-np.abs(t[inside]), kind="stable")[: round(0.25 * len(inside))]]
    control = np.concatenate([r.values()[r.events["trial_type"] == "control"] for r in others])
    frames = held.frame_values().reshape(len(held.events), N_FRAMES, -1)
    z = (frames - control.mean(axis=0)) / control.std(axis=0, ddof=1)
    scores = (z[..., best] * np.sign(t[best])).mean(axis=2)
    return np.stack([scores[:, : n + 1].mean(axis=1) for n in range(N_FRAMES)], axis=1)


def test_held_out_scores_are_those_computed_by_hand(runs, content):
    held = {task: np.concatenate([by_hand(runs, run, task) for run in runs]) for task in TASKS}
    kind = np.concatenate([run.events["trial_type"].to_numpy(str) for run in runs])
    fold = np.concatenate([np.full(len(run.events), run.run) for run in runs])
    for task in TASKS:
        for comparison, off in (("control", "control"), ("others", TASKS[task == "pain"])):
            rows = (kind == task) | (kind == off)
            found = content["auc"]["network"][comparison]["tasks"][task]
            for n in range(N_FRAMES):
                on = kind[rows] == task
                expected = by_pairs(held[task][rows, n], on, fold[rows])
                assert found[n]["value"] == pytest.approx(expected, abs=2e-3)


def test_what_was_planted_is_detected_when_it_comes_and_nothing_else(content):
    pain = [p["value"] for p in content["auc"]["network"]["control"]["tasks"]["pain"]]
    joy = content["auc"]["network"]["control"]["tasks"]["joy"]
    assert pain[0] < 0.65  # nothing was planted in the first frame
    assert pain[-1] > 0.9
    assert all(0.3 < p["value"] < 0.7 for p in joy)
    assert content["auc"]["probe"]["control"]["tasks"]["pain"][-1]["value"] > 0.85
    assert content["shuffled"]["n"] == 20
    assert content["shuffled"]["mean"][-1] == pytest.approx(0.5, abs=0.08)
    assert content["shuffled"]["low"][-1] < 0.5 < content["shuffled"]["high"][-1]
    for row in content["auc"]["network"]["control"]["tasks"]["pain"]:
        assert row["low"] <= row["value"] <= row["high"]
    json.dumps(content, allow_nan=False)


def test_thresholds_let_about_the_rate_of_new_control_prompts_pass(content):
    found = content["thresholds"]
    assert found["other_runs"]
    alarms = [rate for rates in found["false_alarms"].values() for rate in rates]
    assert 0.03 < np.mean(alarms) < 0.2  # 10 % of 96 prompts
    assert found["hits"]["pain"][-1] > 0.7
    assert found["named_right"]["pain"][-1] > 0.7
    assert max(found["control_named"]) <= found["ever_false_alarm"]


def test_runs_that_do_not_fit_are_refused(runs, tmp_path):
    with pytest.raises(DetectionError, match="at least 2 runs of at least 2 tasks"):
        evaluate([r for r in runs if r.task == "pain"], DetectPlan(), verbose=0)
    with pytest.raises(DetectionError, match="every task needs the same runs"):
        evaluate(runs[:-1], DetectPlan(), verbose=0)


def test_two_runs_are_enough_but_say_where_thresholds_come_from(runs):
    two = [run for run in runs if run.run < 3]
    plan = DetectPlan(share=0.25, threshold=0.1, n_boot=20)
    content = evaluate(two, plan, n_shuffles=0, verbose=0)
    assert not content["thresholds"].other_runs
    assert content["shuffled"] is None


def test_command_table_and_report(tmp_path, capsys):
    root = tests_support.make_dataset(tmp_path / "ds")
    assert cli.main(["detect", str(root), "--n-boot", "20", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "AUC after all tokens" in printed
    assert re.search(r"archeology\s+0\.\d{2} \[", printed)
    written = json.loads((root / bids.DERIVATIVES / "detection.json").read_text("utf-8"))
    assert written["tasks"] == ["archeology", "pathology"]
    study.analyse(bids.session(root), n_null=3, verbose=0)
    page = report.write(root, verbose=0).read_text("utf-8")
    assert "Do the networks know what a prompt is about?" in page
    assert 'href="#detection"' in page
    value = written["auc"]["network"]["control"]["tasks"]["pathology"][-1]["value"]
    assert f"{value:.2f} [" in page
    (root / bids.DERIVATIVES / "detection.json").unlink()
    assert "Do the networks know" not in report.write(root, verbose=0).read_text("utf-8")
    assert cli.main(["detect", str(root), "--share", "2", "--quiet"]) == 2
    assert "--share is '2'; it must be a number above 0 and at most 1" in capsys.readouterr().err


def test_what_did_not_change_is_not_measured_again_but_on_demand(tmp_path, monkeypatch):
    root = tests_support.make_dataset(tmp_path / "ds")
    path, calls, real = root / bids.DERIVATIVES / "detection.json", [], measuring.evaluate

    def counted(*args, **options):
        calls.append(args)
        return real(*args, **options)

    monkeypatch.setattr(measuring, "evaluate", counted)
    first, written = detect(root, n_boot=10), path.stat().st_mtime_ns
    assert detect(root, n_boot=10) == first
    assert (len(calls), path.stat().st_mtime_ns) == (1, written)
    other = detect(root, n_boot=11)
    assert other != first
    assert (len(calls), path.stat().st_mtime_ns > written) == (2, True)
    assert detect(root, n_boot=11, redo=True) == other
    assert len(calls) == 3


def test_the_untrained_copy_is_evaluated_too(tmp_path):
    root = tests_support.make_dataset(tmp_path / "ds", name="tiny")
    for run in (1, 2):
        for task in ("pathology", "archeology"):
            recording = tests_support.make_recording(
                task, run, seed=run + 50, name="tiny-untrained"
            )
            bids.write(recording, root)
    content = detect(root, subject="tiny", n_boot=10)
    assert content["untrained"]["subject"] == "tinyuntrained"
    assert set(content["untrained"]["auc"]) == {"network", "probe", "words"}


def test_a_copy_without_tokens_has_one_value_after_all_of_them(tmp_path):
    root = tests_support.make_dataset(tmp_path / "ds", name="tiny")
    for run, task in itertools.product((1, 2), ("pathology", "archeology")):
        random = {"name": "tiny-untrained", "WeightsHash": "random weights, seed 0"}
        recording = tests_support.make_recording(task, run, seed=run + 50, **random)
        means = recording.trial_means()
        bids.write(dataclasses.replace(recording, values=means, frames="trial"), root)
    study.analyse_all(root, measured=[NullPlan(n=2)], verbose=0)
    result = experiments.measure(bids.session(root), DetectPlan(n_boot=10), verbose=0)
    content = result.content()
    assert (content["n_tokens"], content["untrained"]["n_tokens"]) == (3, 1)
    auc = content["untrained"]["auc"]["network"]["control"]["mean"]
    assert len(auc) == 1
    text = " ".join(as_text(*result.sections()).split())
    assert f"untrained copy reach {auc[0]['value']:.2f}" in text
    assert "after all tokens: it keeps one volume a prompt" in text
    page = report.write(root, verbose=0).read_text("utf-8")
    assert "after all tokens: it keeps one volume a prompt" in page
    assert "the untrained copy keeps one volume a prompt, so it has one value" in page
