"""Steps of fixed shape, as a GPU takes them, on the CPU: the same tokens, values and measures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_scanner import check_against_naive, scan, small_design

from llm2nifti import models
from llm2nifti.scanner import prefill, stepping

STEPPED = ["llama", "gpt2", "opt", "gpt_neox", "qwen3", "phi", "mixtral", "falcon"]
MEASURES = ["log_probability", "entropy", "residual_norm"]


@pytest.fixture
def in_steps(monkeypatch):
    """Scans take steps on the CPU too."""
    monkeypatch.setattr(stepping, "is_used", stepping.can_step)


@pytest.mark.parametrize("frames", ["token", "trial"])
@pytest.mark.parametrize("kind", STEPPED)
def test_a_scan_in_steps_equals_one_by_generate(kind, frames, tiny_folders, monkeypatch):
    model = models.load(str(tiny_folders[kind]))
    model.module.generation_config.eos_token_id = [3, 5]
    design = small_design()
    plain = scan(model, design, frames=frames, batch_size=5)
    assert stepping.can_step(model)
    taken = []
    take = stepping.Steps.take
    monkeypatch.setattr(stepping.Steps, "take", lambda self: taken.append(1) or take(self))
    monkeypatch.setattr(stepping, "is_used", stepping.can_step)
    stepped = scan(model, design, frames=frames, batch_size=5)
    assert len(taken) == design.n_frames * -(-design.n_trials // 5)
    assert list(stepped.tokens["token_id"]) == list(plain.tokens["token_id"])
    assert not set(stepped.tokens["token_id"]) & {3, 5}
    error = np.linalg.norm(stepped.values - plain.values) / np.linalg.norm(plain.values)
    assert error < 1e-5
    both = [r.tokens[MEASURES].to_numpy(float) for r in (stepped, plain)]
    np.testing.assert_allclose(*both, rtol=1e-4, atol=1e-4)


def test_steps_equal_the_naive_recorder(in_steps, tiny_model):
    check_against_naive(tiny_model, scan(tiny_model, small_design()), is_chat=False)


@pytest.mark.real_model
def test_steps_of_the_real_model_equal_the_naive_recorder(in_steps, real_model):
    design = small_design(n_frames=2, trials_per_block=1)
    check_against_naive(real_model, scan(real_model, design), is_chat=True)


def test_draws_are_those_of_generate(in_steps, tiny_folders, monkeypatch):
    model = models.load(str(tiny_folders["llama"]))
    stepped = scan(model, small_design(), temperature=0.8, seed=3)
    monkeypatch.setattr(stepping, "is_used", lambda _model: False)
    plain = scan(model, small_design(), temperature=0.8, seed=3)
    assert list(stepped.tokens["token_id"]) == list(plain.tokens["token_id"])
    assert list(stepped.tokens["token_id"]) != list(scan(model, small_design()).tokens["token_id"])


@pytest.mark.parametrize("kind", ["mistral", "gemma3_text", "bloom", "mamba"])
def test_models_with_windows_or_other_memories_take_no_steps(kind, tiny_models):
    assert not stepping.can_step(tiny_models(kind))


def test_a_model_whose_steps_differ_takes_none(tiny_folders, monkeypatch):
    model = models.load(str(tiny_folders["llama"]))
    update = stepping.FixedLayer.update

    def shifted(self, key_states, value_states, *args, **kwargs):
        return update(self, key_states * 1.01, value_states, *args, **kwargs)

    monkeypatch.setattr(stepping.FixedLayer, "update", shifted)
    assert not stepping.can_step(model)


def test_no_step_depends_on_tensors_that_a_graph_could_not_see(tiny_model):
    """What a step reads and writes stays where it is: a replayed graph knows addresses alone."""
    ids, mask, cache = prefill.read_ahead(tiny_model, [[1, 2, 3], [4, 5], [6, 7, 8, 9]], 3)
    inputs = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}
    steps = stepping.Steps(tiny_model, inputs, 3)

    def addresses():
        tensors = [value for value in vars(steps).values() if isinstance(value, torch.Tensor)]
        layers = [x for layer in steps._cache.layers for x in (layer.keys, layer.values)]
        return [(x.data_ptr(), x.shape) for x in (*tensors, *layers)]

    before, n_used = addresses(), len(steps._cache.layers)
    with torch.no_grad():
        steps.run()
    assert addresses() == before
    assert len(steps._cache.layers) == n_used
    assert steps.frame.item() == 3
