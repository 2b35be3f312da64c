"""The scanner against a naive recorder: one prompt at a time, step by step, no cache."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from llm2nifti import models, paradigm, recording, scanner
from llm2nifti.plans import PlanError

SPECS = ["default", "all", "heads,mlp_hidden"]


def small_design(n_frames=4, **sizes):
    return paradigm.blocks(
        "pathology", **{"n_blocks": 2, "trials_per_block": 2, **sizes}, n_frames=n_frames
    )


def scan(model, design, folder=None, replay=None, **settings):
    return scanner.scan(
        model,
        design,
        settings=scanner.Settings(**settings),
        folder=folder,
        replay=replay,
        on_trials=lambda _n: None,
    )


def naive(model, rendered, tokens, brain, *, is_chat):
    """Frames of one prompt: a fresh full pass for each token, with hooks written by hand."""
    ids = model.tokenizer(rendered, add_special_tokens=not is_chat)["input_ids"]
    frames = np.zeros((len(tokens), brain.n_units), np.float32)
    modules = dict(model.module.named_modules())
    for t in range(len(tokens)):
        handles = []
        for site in brain.sites:

            def keep(value, site=site, t=t):
                value = value[0] if isinstance(value, tuple) else value
                last = value.detach().reshape(-1, site.n_units)[-1]
                frames[t, brain.slice_of(site)] = last.numpy().copy()

            module = modules[site.module]
            if site.where == "input":
                hook = module.register_forward_pre_hook(lambda _m, args, f=keep: f(args))
            else:
                hook = module.register_forward_hook(lambda _m, _a, out, f=keep: f(out))
            handles.append(hook)
        with torch.no_grad():
            model.module(input_ids=torch.tensor([ids + list(tokens[:t])]), use_cache=False)
        for handle in handles:
            handle.remove()
    return frames


def check_against_naive(model, result, *, is_chat):
    """Per trial, frame and site |d| / |ref| <= 1e-4; per unit |d| <= 1e-3 SD over trials."""
    tokens = result.tokens.groupby("trial")["token_id"].apply(list)
    expected = np.stack(
        [
            naive(model, text, tokens[i], result.brain, is_chat=is_chat)
            for i, text in enumerate(result.rendered)
        ]
    )
    for site in result.brain.sites:
        part = result.brain.slice_of(site)
        d, ref = result.by_trial()[:, :, part] - expected[:, :, part], expected[:, :, part]
        norm = np.maximum(np.linalg.norm(ref, axis=-1), 1e-12)
        assert (np.linalg.norm(d, axis=-1) / norm).max() <= 1e-4, site
    spread = expected.std(axis=0)
    assert (np.abs(result.by_trial() - expected) <= 1e-3 * spread + 1e-6).mean() > 0.9999
    assert spread.max() > 0


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize(("sites", "batch_size"), [("default", 3), ("all", 64), (SPECS[2], 1)])
def test_recording_equals_naive_recorder(tiny_folders, kind, sites, batch_size):
    model = models.load(str(tiny_folders[kind]))
    result = scan(model, small_design(), sites=sites, batch_size=batch_size)
    check_against_naive(model, result, is_chat=False)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "mistral", "gemma3_text"])
def test_shared_beginning_is_read_once_and_changes_nothing(tiny_folders, kind):
    model = models.load(str(tiny_folders[kind]))
    design = small_design()
    prompts = "Please answer the following question in short: " + design.trials["prompt"]
    result = scan(model, dataclasses.replace(design, trials=design.trials.assign(prompt=prompts)))
    assert scanner.prefill.can_continue(model)
    check_against_naive(model, result, is_chat=False)
    tokens = [list(ids) for _, ids in result.tokens.groupby("trial")["token_id"]]
    design = dataclasses.replace(design, trials=design.trials.assign(prompt=prompts))
    again = scan(model, design, replay=tokens)
    np.testing.assert_allclose(again.by_trial(), result.by_trial(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "encoded",
    [
        [[1, 2, 3, 4, 5], [1, 2, 3, 9, 8, 7], [1, 2, 6], [1, 2, 3, 4, 4, 4, 4]],
        [[1, 2, 3], [4, 5, 6, 7], [8, 9]],
        [[1, 2, 3]] * 5,
        [[7], [7, 8, 9], [5]],
        [[7], [8]],
    ],
)
def test_reading_ahead_gives_the_cache_of_every_prompt_alone(tiny_model, encoded):
    prompts = scanner.prefill.read_ahead(tiny_model, encoded, 0)
    for row, tokens in enumerate(encoded):
        kept = prompts.mask[row].bool()
        assert prompts.ids[row][kept].tolist() == tokens
        if len(tokens) == 1:
            continue
        with torch.no_grad():
            alone = tiny_model.module(input_ids=torch.tensor([tokens[:-1]])).past_key_values
        for ours, theirs in zip(prompts.cache.layers, alone.layers, strict=True):
            for name in ("keys", "values"):
                found = getattr(ours, name)[row][:, kept[:-1]]
                torch.testing.assert_close(found, getattr(theirs, name)[0], rtol=1e-4, atol=1e-5)


def test_what_groups_of_prompts_share_is_read_once(tiny_model, monkeypatch):
    n_tokens = []
    decoder = tiny_model.module.get_decoder()
    forward = decoder.forward

    def counting(input_ids, **inputs):
        n_tokens.append(input_ids.numel())
        return forward(input_ids=input_ids, **inputs)

    counting.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(decoder, "forward", counting)
    template, groups = list(range(1, 21)), [[30, 31, 32], [40, 41, 42]]
    encoded = [template + groups[i % 2] + [50 + i, 99] for i in range(8)]
    scanner.prefill.read_ahead(tiny_model, encoded, 0)
    assert sum(n_tokens) == 20 + 2 * 3 + 8


@pytest.mark.real_model
def test_real_model_equals_naive_recorder(real_model):
    result = scan(real_model, small_design(), batch_size=5)
    assert len(result.by_trial()) >= 8
    check_against_naive(real_model, result, is_chat=True)


def test_replay_equals_generation(tiny_model):
    design = small_design()
    first = scan(tiny_model, design)
    tokens = [list(ids) for _, ids in first.tokens.groupby("trial")["token_id"]]
    again = scan(tiny_model, design, replay=tokens)
    np.testing.assert_allclose(again.by_trial(), first.by_trial(), rtol=1e-4, atol=1e-5)
    for column in ("log_probability", "entropy", "residual_norm"):
        np.testing.assert_allclose(again.tokens[column], first.tokens[column], rtol=1e-4, atol=1e-5)


def test_attn_and_mlp_add_up_to_the_change_of_the_stream(tiny_folders):
    for kind in ("llama", "gpt2", "opt"):
        model = models.load(str(tiny_folders[kind]))
        result = scan(model, small_design(n_frames=2))
        site = {(s.layer, s.name): result.brain.slice_of(s) for s in result.brain.sites}
        for layer in range(2, len(model.anatomy.stacks[0].blocks) + 1):
            values = result.by_trial()
            change = values[..., site[layer, "resid"]] - values[..., site[layer - 1, "resid"]]
            parts = values[..., site[layer, "attn"]] + values[..., site[layer, "mlp"]]
            np.testing.assert_allclose(change, parts, rtol=1e-3, atol=1e-4)


def test_log_probability_and_entropy_equal_those_of_the_logits(tiny_model):
    result = scan(tiny_model, small_design(n_frames=3), temperature=2.0)
    ids = tiny_model.tokenizer(result.rendered[0])["input_ids"]
    for _, row in result.tokens[:3].iterrows():
        with torch.no_grad():
            p = tiny_model.module(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1)
        assert row["log_probability"] == pytest.approx(float(p[row["token_id"]].log()), abs=1e-4)
        assert row["entropy"] == pytest.approx(float(-(p * p.log()).sum()), abs=1e-4)
        ids = [*ids, row["token_id"]]


def test_every_trial_has_exactly_n_frames_where_the_model_would_stop(tiny_folders):
    model = models.load(str(tiny_folders["llama"]))
    first = scan(model, small_design())
    favourite = int(first.tokens["token_id"].iloc[0])
    model.module.generation_config.eos_token_id = favourite
    result = scan(model, small_design())
    assert (result.tokens.groupby("trial").size() == 4).all()
    assert favourite not in set(result.tokens["token_id"])


def test_order_of_trials_changes_no_volume(tiny_model):
    design = small_design()
    order = np.random.default_rng(0).permutation(design.n_trials)
    shuffled = dataclasses.replace(design, trials=design.trials.iloc[order].reset_index(drop=True))
    a, b = scan(tiny_model, design), scan(tiny_model, shuffled)
    np.testing.assert_allclose(b.by_trial(), a.by_trial()[order], rtol=1e-3, atol=1e-4)


def test_sampling_depends_on_seed_and_trial_but_not_on_the_batch(tiny_model):
    design = small_design()
    runs = {
        (seed, size): scan(tiny_model, design, temperature=1.0, seed=seed, batch_size=size)
        for seed, size in [(1, 8), (1, 3), (2, 8)]
    }
    ids = {key: result.tokens["token_id"].to_list() for key, result in runs.items()}
    assert ids[1, 8] == ids[1, 3]
    assert ids[1, 8] != ids[2, 8]


def test_sampled_tokens_follow_the_softmax():
    logits = torch.tensor([[2.0, 1.0, 0.0]]).repeat(4000, 1)
    sampler = scanner.choosing.OwnGenerators(
        temperature=1.0, seed=0, stim_ids=[f"s{i}" for i in range(4000)]
    )
    share = torch.bincount(sampler(None, logits).argmax(-1), minlength=3) / 4000
    np.testing.assert_allclose(share, logits[0].softmax(-1), atol=0.03)


def test_interrupted_scan_resumes_to_the_same_bytes(tiny_model, tmp_path):
    design = small_design()
    whole = scan(tiny_model, design, tmp_path / "whole", batch_size=3)

    def stop_after_two(_n, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    settings = scanner.Settings(batch_size=3)
    options = {"settings": settings, "folder": tmp_path / "cut"}
    with pytest.raises(KeyboardInterrupt):
        scanner.scan(tiny_model, design, on_trials=stop_after_two, **options)
    resumed = scanner.scan(tiny_model, design, on_trials=lambda _n: None, **options)
    assert np.array_equal(resumed.by_trial(), whole.by_trial())
    assert resumed.tokens.equals(whole.tokens)
    assert resumed.responses == whole.responses


def test_resuming_with_other_settings_is_refused(tiny_model, tmp_path):
    scan(tiny_model, small_design(), tmp_path / "a", batch_size=3)
    with pytest.raises(recording.RecordingError, match="other settings"):
        scan(tiny_model, small_design(), tmp_path / "a", batch_size=4)


def test_no_hook_is_left_behind(tiny_model):
    scan(tiny_model, small_design())
    for module in tiny_model.module.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_infinite_activations_are_refused(tiny_folders, tmp_path):
    model = models.load(str(tiny_folders["llama"]))
    with torch.no_grad():
        model.module.model.layers[1].mlp.down_proj.weight[0, 0] = float("inf")
    with pytest.raises((recording.RecordingError, models.UnknownArchitectureError)):
        scan(model, small_design(), Path(tmp_path))


def test_prompt_longer_than_the_context_is_named(tiny_model):
    design = small_design()
    trials = design.trials.copy()
    trials.loc[3, "prompt"] = "word " * 300
    with pytest.raises(scanner.ScanError, match=trials.loc[3, "stim_id"]):
        scan(tiny_model, dataclasses.replace(design, trials=trials))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"batch_size": 0}, "batch_size is 0"), ({"temperature": -1.0}, "temperature is -1")],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(PlanError, match=message):
        scanner.Settings(**settings)


def test_replay_of_another_size_is_refused(tiny_model):
    with pytest.raises(scanner.ScanError, match="replay has 1 trials"):
        scan(tiny_model, small_design(), replay=[[1, 2]])


def test_decoding_options_of_the_model_itself_are_put_aside(tiny_folders):
    model = models.load(str(tiny_folders["llama"]))
    plain = scan(model, small_design())
    own = model.module.generation_config
    own.repetition_penalty, own.no_repeat_ngram_size = 5.0, 1
    again = scan(model, small_design())
    assert list(again.tokens["token_id"]) == list(plain.tokens["token_id"])
    assert model.module.generation_config is own


def test_runs_sample_independently_of_each_other(tiny_model):
    designs = paradigm.experiment(
        ["pathology"], n_runs=2, n_blocks=2, trials_per_block=2, n_frames=4
    )
    prompt = designs[0].trials["prompt"].iloc[0]
    same = [dataclasses.replace(d, trials=d.trials.assign(prompt=prompt)) for d in designs]
    runs = [scan(tiny_model, design, temperature=2.0) for design in same]
    assert list(runs[0].tokens["token_id"]) != list(runs[1].tokens["token_id"])


def test_regex_records_blocks_and_leaves_by_their_whole_name(tiny_model):
    result = scan(
        tiny_model, small_design(n_frames=1), sites=r"regex:model\.layers\.1(\.mlp\.up_proj)?"
    )
    assert [s.module for s in result.brain.sites] == [
        "model.layers.1.mlp.up_proj",
        "model.layers.1",
    ]
    check_against_naive(tiny_model, result, is_chat=False)


def test_check_names_the_prompt_without_recording(tiny_model):
    design = small_design()
    scanner.check(tiny_model, design, scanner.Settings())
    trials = design.trials.assign(prompt="word " * 300)
    with pytest.raises(scanner.ScanError, match="reads at most 128"):
        scanner.check(tiny_model, dataclasses.replace(design, trials=trials), scanner.Settings())


def test_entropy_takes_tokens_that_are_ruled_out():
    logits = torch.tensor([[[1.0, 2.0, float("-inf")], [0.0, 0.0, 0.0]]])
    log_p, entropy = scanner.choosing.measure(logits, torch.tensor([[1, 0]]))
    p = np.exp([1.0, 2.0]) / np.exp([1.0, 2.0]).sum()
    np.testing.assert_allclose(entropy[0], [-(p * np.log(p)).sum(), np.log(3)], rtol=1e-5)
    np.testing.assert_allclose(log_p[0], [np.log(p[1]), -np.log(3)], rtol=1e-5)


@pytest.mark.parametrize("room", [0, 2, 5])
def test_keys_with_room_equal_transformers_own_beyond_the_room_too(room):
    from transformers.cache_utils import DynamicLayer

    from llm2nifti.scanner.prefill import RoomyLayer

    start = torch.randn(2, 2, 3, 3, 4)
    buffers = torch.zeros(2, 2, 3, 3 + room, 4)
    buffers[:, :, :, :3] = start
    ours, theirs = RoomyLayer(*buffers, 3), DynamicLayer()
    theirs.update(*start)
    for _ in range(3):
        new = torch.randn(2, 2, 3, 1, 4)
        for found, expected in zip(ours.update(*new), theirs.update(*new), strict=True):
            assert torch.equal(found, expected)
    assert ours.get_seq_length() == 6
    assert (ours.keys.data_ptr() == buffers[0].data_ptr()) == (room == 5)


def test_a_model_that_reads_padding_is_scanned_one_by_one(tiny_model, tmp_path):
    config = transformers.RwkvConfig(
        vocab_size=len(tiny_model.tokenizer), hidden_size=24, num_hidden_layers=2, context_length=64
    )
    module = transformers.AutoModelForCausalLM.from_config(config).eval()
    model = dataclasses.replace(tiny_model, module=module)
    with pytest.raises(scanner.ScanError, match=r"reads padding as text.*batch_size=1"):
        scan(model, small_design(), sites="resid", folder=tmp_path)
    result = scan(model, small_design(), sites="resid", batch_size=1, folder=tmp_path)
    check_against_naive(model, result, is_chat=False)


def test_a_negative_seed_is_refused():
    with pytest.raises(PlanError, match="seed is -1"):
        scanner.Settings(seed=-1)
