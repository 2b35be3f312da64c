"""Several runs in one batch: each gets its values, as if it had been recorded alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny import draw_images

from llm2nifti import models, paradigm, scanner, stimuli
from llm2nifti.defaults import BATCH_SIZE
from llm2nifti.plans import Design, ModelChoice, ScanPlan, Settings
from llm2nifti.recording import RecordingError
from llm2nifti.scanner import Shown, batches, scan_together
from llm2nifti.scanner.stimulus import resolved
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


def test_values_are_in_memory_or_beyond_a_size_in_a_file(tiny_model, tmp_path, monkeypatch):
    design, settings = designs()[0], Settings(batch_size=3)
    inside = scanner.scan(tiny_model, design, settings=settings)
    kept = scanner.scan(tiny_model, design, settings=settings, folder=tmp_path)
    monkeypatch.setattr(scanner, "IN_MEMORY", inside.values.nbytes - 1)
    large = scanner.scan(tiny_model, design, settings=settings)
    assert not isinstance(inside.values, np.memmap)
    for recording in (kept, large):
        assert isinstance(recording.values, np.memmap)
        assert np.array_equal(recording.values, inside.values)
        assert recording.tokens.equals(inside.tokens)
    assert (tmp_path / "values.f32").stat().st_size == inside.values.nbytes


def test_what_is_not_a_number_is_refused_in_memory_too(tiny_folders):
    model = models.load(str(tiny_folders["llama"]))
    assert model.anatomy  # from probes, which find such weights too
    with torch.no_grad():
        model.module.model.layers[-1].mlp.down_proj.weight[:] = torch.nan
    with pytest.raises(RecordingError, match=r"trial 0 has NaN or infinite activations"):
        record(model, list(map(Shown, designs())))


def test_a_model_that_reads_padding_gets_one_run_after_the_other(tiny_folders):
    model = models.load(str(tiny_folders["rwkv"]))
    shown = [Shown(design) for design in designs()]
    both = record(model, shown, batch_size=1)
    for one, recording in zip(shown, both, strict=True):
        assert np.array_equal(recording.values, record(model, [one], batch_size=1)[0].values)
    with pytest.raises(scanner.ScanError, match="use batch_size=1"):
        record(model, shown)


@pytest.mark.parametrize(("budget", "expected"), [(2**30, 128), (300_000, None), (1, 1)])
def test_batches_are_as_large_as_the_memory_allows(tiny_model, monkeypatch, budget, expected):
    design, settings = designs()[0], resolved(Settings(), tiny_model)
    monkeypatch.setattr(batches, "BUDGET", budget)
    size = scanner.check(tiny_model, design, settings)
    recording = scanner.scan(tiny_model, design, on_trials=lambda _n: None)
    assert recording.info["Settings"]["batch_size"] == size
    config, embed = tiny_model.module.config, tiny_model.module.get_input_embeddings()
    n_tokens = 3 + max(len(tiny_model.tokenizer(text).input_ids) for text in recording.rendered)
    kept = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * n_tokens
    of_trial = 4 * (kept + 3 * (embed.num_embeddings + recording.brain.n_units))
    if expected is None:
        assert size * of_trial <= budget < 2 * size * of_trial
    else:
        assert size == expected


def test_a_batch_size_that_is_asked_for_is_taken_and_files_have_their_own(tiny_models, image_table):
    model = tiny_models("llama")
    assert scanner.check(model, designs()[0], Settings(batch_size=999)) == 999
    assert scanner.check(model, designs()[0], Settings(mode="read")) == BATCH_SIZE
    images = paradigm.blocks("discs", table=image_table, n_blocks=1, trials_per_block=2)
    assert scanner.check(tiny_models("vit"), images, Settings()) == BATCH_SIZE


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
