"""Several runs in one batch: each gets its values, as if it had been recorded alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tiny import draw_images

from llm2nifti import models, paradigm, scanner, stimuli
from llm2nifti.plans import Design, ModelChoice, ScanPlan, Settings
from llm2nifti.scanner import Shown, scan_together
from llm2nifti.study import scanning
from llm2nifti.study.plans import paradigms

COLUMNS = ["log_probability", "entropy", "residual_norm"]


def designs(n_frames=3):
    """Two runs of different tasks and lengths."""
    sizes = {"n_blocks": 2, "n_frames": n_frames}
    return [
        paradigm.blocks("pathology", trials_per_block=2, **sizes),
        paradigm.blocks("archeology", trials_per_block=3, **sizes),
    ]


def record(model, shown, **settings):
    how = {"settings": Settings(**settings), "on_trials": lambda _n: None}
    return scan_together(model, shown, **how)


def assert_as_alone(model, shown, **settings):
    both = record(model, shown, **settings)
    for one, recording in zip(shown, both, strict=True):
        (alone,) = record(model, [one], **settings)
        assert recording.paradigm is not None
        assert list(recording.tokens["token_id"]) == list(alone.tokens["token_id"])
        assert recording.responses == alone.responses
        assert recording.rendered == alone.rendered
        assert recording.info == alone.info
        error = np.linalg.norm(recording.values - alone.values) / np.linalg.norm(alone.values)
        assert error < 1e-5
        columns = [table.tokens[COLUMNS].to_numpy(float) for table in (recording, alone)]
        np.testing.assert_allclose(*columns, rtol=1e-4, atol=1e-4)
    assert not np.allclose(both[0].values[:4], both[1].values[:4])


@pytest.mark.parametrize("frames", ["token", "trial"])
def test_runs_that_generate(tiny_model, frames):
    assert_as_alone(tiny_model, list(map(Shown, designs())), frames=frames)


def test_sampled_tokens_are_those_of_the_prompt(tiny_model):
    assert_as_alone(tiny_model, list(map(Shown, designs())), temperature=1.0)


@pytest.mark.parametrize("frames", ["trial", "token", "word"])
def test_runs_that_are_read(tiny_model, frames):
    assert_as_alone(tiny_model, list(map(Shown, designs())), mode="read", frames=frames)


@pytest.mark.parametrize("frames", ["token", "trial"])
def test_runs_that_are_replayed(tiny_model, frames):
    rng = np.random.default_rng(0)
    shown = [Shown(d, replay=rng.integers(5, 20, (d.n_trials, 3)).tolist()) for d in designs()]
    assert_as_alone(tiny_model, shown, frames=frames)


def test_a_run_that_nobody_wants_changes_no_other(tiny_model):
    shown = list(map(Shown, designs()))
    whole = record(tiny_model, shown)
    unwanted = [dataclasses.replace(shown[0], is_wanted=False), shown[1]]
    nothing, rest = record(tiny_model, unwanted)
    assert nothing is None
    assert np.array_equal(rest.values, whole[1].values)
    assert rest.tokens.equals(whole[1].tokens)


def test_an_interrupted_batch_of_runs_is_finished_to_the_same_bytes(tiny_model, tmp_path):
    shown = list(map(Shown, designs()))
    whole = record(tiny_model, shown)
    kept = [dataclasses.replace(s, folder=tmp_path / str(i)) for i, s in enumerate(shown)]
    record(tiny_model, kept)
    (tmp_path / "1" / "batches.jsonl").write_text("")  # the second run was not committed
    n_passes = []
    hook = tiny_model.module.register_forward_pre_hook(lambda *_: n_passes.append(1))
    again = record(tiny_model, kept)
    n_first = len(n_passes)
    record(tiny_model, kept)
    hook.remove()
    assert n_first > 0
    assert len(n_passes) - n_first < n_first  # only the probe passes that look at the model
    for recording, expected in zip(again, whole, strict=True):
        assert np.array_equal(recording.values, expected.values)
        assert recording.tokens.equals(expected.tokens)


def test_a_model_that_reads_padding_gets_one_run_after_the_other(tiny_folders):
    model = models.load(str(tiny_folders["rwkv"]))
    shown = [Shown(design) for design in designs()]
    both = record(model, shown, batch_size=1)
    for one, recording in zip(shown, both, strict=True):
        assert np.array_equal(recording.values, record(model, [one], batch_size=1)[0].values)
    with pytest.raises(scanner.ScanError, match="use batch_size=1"):
        record(model, shown)


def jobs(*, untrained=False, batch_size=64, **design):
    sizes = {"n_runs": 2, "n_blocks": 2, "trials_per_block": 4, "n_frames": 2}
    tasks = {} if "stimuli" in design else {"tasks": ("pathology", "archeology")}
    plan = ScanPlan(
        ModelChoice(name="m"),
        Design(**{**sizes, **tasks, **design}),
        Settings(batch_size=batch_size),
    )
    return [scanning.Job(plan, one, untrained) for one in paradigms(plan.design)]


def test_runs_share_a_batch_as_far_as_it_reaches():
    n = jobs()[0].design.n_trials
    for size, expected in (
        (4 * n, [4]),
        (4 * n - 1, [3, 1]),
        (2 * n, [2, 2]),
        (2 * n - 1, [1] * 4),
    ):
        groups = scanning.together(jobs(batch_size=size))
        assert [len(group) for group in groups] == expected
        assert [job.name for group in groups for job in group] == [job.name for job in jobs()]
    assert [len(group) for group in scanning.together(jobs(batch_size=1))] == [1] * 4


def test_rest_and_copies_are_batches_of_their_own():
    both = [*jobs(rest=4), *jobs(rest=4, untrained=True)]
    groups = scanning.together(both)
    assert [job for group in groups for job in group] == both
    for group in groups:
        assert len({(job.untrained, job.design.task == stimuli.REST) for job in group}) == 1
    assert len(groups) == 4


def test_files_come_one_run_at_a_time(tmp_path):
    table = draw_images(tmp_path)
    groups = scanning.together(jobs(stimuli=str(table)))
    assert all(len(group) == 1 for group in groups)
