"""The monitor against recordings of the same prompts, planted units, and what it leaves behind."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import tiny
import torch

from llm2nifti import geometry, interventions, models, monitor, networks, paradigm, scanner
from llm2nifti.geometry import Site
from llm2nifti.monitor import Crossing, MonitorError, NetworkMonitor
from llm2nifti.networks import Controls, Network, Thresholds, calibrate
from llm2nifti.networks.readout import running_means

GENERATING = [kind for kind in tiny.CONFIGS if kind not in ("vit", "bert")]
N_TOKENS = 5


def some_networks(model, sites="default", n=3, **options):
    """Networks of random units of both signs, one of them weighted, and a random baseline."""
    brain = geometry.layout(model.sites(sites, **options))
    rng = np.random.default_rng(4)
    found = []
    for i in range(n):
        signs = np.where(rng.random(brain.n_units) < 0.3, rng.choice([-1, 1], brain.n_units), 0)
        weights = rng.random(brain.n_units) if i == 0 else None
        found.append(Network(f"net{i}", brain, signs.astype(np.int8), weights=weights))
    sd = np.where(rng.random(brain.n_units) < 0.1, 0, 0.2 + rng.random(brain.n_units))
    return found, Controls(brain, rng.normal(size=brain.n_units), sd)


def naive_scores(some, baseline, values):
    """(..., n_networks) by the definition, unit by unit."""
    out = []
    for network in some:
        total, n = np.zeros(values.shape[:-1]), 0
        for unit in np.flatnonzero(network.signs):
            if baseline.sd[unit] == 0:
                continue
            weight = 1 if network.weights is None else network.weights[unit]
            deviation = (values[..., unit] - baseline.mean[unit]) / baseline.sd[unit]
            total += network.signs[unit] * weight * deviation
            n += 1
        out.append(total / n)
    return np.stack(out, axis=-1)


def padded(model, prompts):
    """Prompts as a batch with the padding on the left."""
    encoded = model.encode(model.render(prompts), rendered=model.render(prompts) != prompts)
    length = max(map(len, encoded))
    ids = torch.tensor([[0] * (length - len(e)) + e for e in encoded])
    mask = torch.tensor([[0] * (length - len(e)) + [1] * len(e) for e in encoded])
    return {"input_ids": ids, "attention_mask": mask}


def generate(model, inputs, n_tokens=N_TOKENS, **options):
    fixed = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": n_tokens}
    options = {"min_new_tokens": n_tokens, **options}
    with torch.no_grad():
        return model.module.generate(**inputs, **fixed, **options)


def limits(some, value, n_tokens=1):
    """The same threshold for all networks."""
    shape = (n_tokens, len(some))
    return Thresholds(tuple(n.name for n in some), 0.05, np.full(shape, value), np.ones(shape))


@pytest.mark.parametrize("kind", GENERATING)
def test_scores_are_those_of_a_recording_of_the_same_prompts(tiny_models, kind):
    model = tiny_models(kind)
    some, baseline = some_networks(model)
    design = paradigm.blocks("pathology", n_blocks=1, trials_per_block=3, n_frames=N_TOKENS)
    # One by one: in a scan's batch, padding takes up places of a sliding window.
    recording = scanner.scan(model, design, settings=scanner.Settings(batch_size=1))
    assert recording.brain.space == baseline.brain.space
    expected = naive_scores(some, baseline, recording.by_trial())
    prompts = list(design.trials["prompt"])
    with NetworkMonitor(model, some, baseline) as watching:
        out = generate(model, padded(model, prompts))
    tokens = recording.tokens["token_id"].to_numpy().reshape(len(prompts), -1)
    assert out[:, -N_TOKENS:].tolist() == tokens.tolist()
    assert watching.scores.shape == expected.shape
    np.testing.assert_allclose(watching.scores, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "sites"),
    [
        ("llama", "heads,mlp_hidden,q"),
        ("mixtral", "heads,experts"),
        ("bloom", "q,k,mlp_hidden"),
        ("mamba", "mixer_hidden"),
        ("gemma3_text", "attn,mlp,norms"),  # two names for one tensor
    ],
)
def test_finer_units_are_scored_too(tiny_models, kind, sites):
    model = tiny_models(kind)
    fused = {"fused_qkv": "interleaved"} if kind == "bloom" else {}
    design = paradigm.blocks("pathology", n_blocks=1, trials_per_block=2, n_frames=N_TOKENS)
    settings = scanner.Settings(sites=sites, batch_size=1, **fused)
    recording = scanner.scan(model, design, settings=settings)
    some, baseline = some_networks(model, sites, **fused)
    with NetworkMonitor(model, some, baseline) as watching:
        generate(model, padded(model, list(design.trials["prompt"])))
    expected = naive_scores(some, baseline, recording.by_trial())
    np.testing.assert_allclose(watching.scores, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "mamba", "t5"])
@pytest.mark.parametrize("prompt", ["a", "What is a bone?"])
def test_without_a_cache_and_in_a_loop_of_ones_own_the_scores_are_the_same(
    tiny_models, kind, prompt
):
    model = tiny_models(kind)
    some, baseline = some_networks(model)
    inputs = padded(model, [prompt])
    with NetworkMonitor(model, some, baseline) as watching:
        generate(model, inputs)
        expected = watching.scores
        generate(model, inputs, use_cache=False)
        np.testing.assert_allclose(watching.scores, expected, atol=1e-4, rtol=1e-4)
        watching.reset()
        assert watching.scores.shape == (0, 0, 3)
        if kind == "llama":
            ids, cache, new = inputs["input_ids"], None, inputs["input_ids"]
            for _ in range(N_TOKENS):
                out = model.module(new, past_key_values=cache, use_cache=True)
                cache, new = out.past_key_values, out.logits[:, -1:].argmax(dim=-1)
                ids = torch.cat([ids, new], dim=1)
            np.testing.assert_allclose(watching.scores, expected, atol=1e-4, rtol=1e-4)
    assert expected.shape == (1, N_TOKENS, 3)


def planted(model):
    """Copy of a model in which one attention output unit is always 3; its network."""
    module = copy.deepcopy(model.module)
    projection = module.get_submodule("model.layers.1.self_attn.o_proj")
    projection.weight.data[7] = 0
    projection.bias = torch.nn.Parameter(torch.zeros(24))
    projection.bias.data[7] = 3
    changed = models.LoadedModel("planted", module, model.tokenizer, {}, model.kind)
    brain = geometry.layout([Site("attn", 2, "model.layers.1.self_attn", 24)])
    signs = np.zeros(24, np.int8)
    signs[7] = -1
    return (
        changed,
        Network("wired", brain, signs),
        Controls(brain, np.full(24, 1.0), np.full(24, 4.0)),
    )


def test_a_planted_unit_gives_the_score_computed_by_hand(tiny_model):
    model, network, baseline = planted(tiny_model)
    with NetworkMonitor(model, network, baseline, thresholds=limits([network], -0.6)) as watching:
        generate(model, padded(model, ["What is a bone?", "Why?"]))
    np.testing.assert_allclose(watching.scores, -(3 - 1) / 4)  # (x - mean) / sd, turned by the sign
    assert watching.top == ["wired", "wired"]
    table = watching.table()
    assert list(table) == ["sequence", "token", "network", "score", "mean", "threshold"]
    assert (table["mean"] == -0.5).all()
    assert table["token"].max() == N_TOKENS


def test_inside_a_lesion_the_monitor_sees_what_the_lesion_made(tiny_model):
    model, network, baseline = planted(tiny_model)
    inputs = padded(model, ["Why?"])
    with interventions.lesion(model, network), NetworkMonitor(model, network, baseline) as inner:
        generate(model, inputs)
    with NetworkMonitor(model, network, baseline) as outer, interventions.lesion(model, network):
        generate(model, inputs)
    np.testing.assert_allclose(inner.scores, -(0 - 1) / 4)
    np.testing.assert_allclose(outer.scores, -(3 - 1) / 4)


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_a_batch_gives_what_its_sequences_give_alone(tiny_models, kind):
    model = tiny_models(kind)
    some, baseline = some_networks(model)
    prompts = ["What is a bone?", "Why?", "How do you describe the oldest city that is known?"]
    alone = []
    with NetworkMonitor(model, some, baseline) as watching:
        for prompt in prompts:
            generate(model, padded(model, [prompt]))
            alone.append(watching.scores[0])
        generate(model, padded(model, prompts))
    np.testing.assert_allclose(watching.scores, np.stack(alone), atol=1e-4, rtol=1e-4)


def test_weights_outputs_and_hooks_are_as_before(tiny_model):
    some, baseline = some_networks(tiny_model)
    inputs = padded(tiny_model, ["What is a bone?"])
    weights = {name: p.clone() for name, p in tiny_model.module.named_parameters()}
    before = generate(tiny_model, inputs, output_logits=True, return_dict_in_generate=True)
    watching = NetworkMonitor(tiny_model, some, baseline)
    with watching:
        during = generate(tiny_model, inputs, output_logits=True, return_dict_in_generate=True)
    for module in tiny_model.module.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    for a, b in zip(before.logits, during.logits, strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(p, weights[n]) for n, p in tiny_model.module.named_parameters())
    n_seen = watching.scores.shape
    generate(tiny_model, inputs)
    assert watching.scores.shape == n_seen  # it has left


def test_generation_ends_at_the_token_whose_mean_is_above_the_threshold(tiny_model, monkeypatch):
    # As in Gemma, padding is no end token, so that it does not say itself that a sequence is over.
    monkeypatch.setattr(tiny_model.module.generation_config, "eos_token_id", 399)
    some, baseline = some_networks(tiny_model)
    prompts = ["What is a bone?", "Why?", "Where is Rome?"]
    with NetworkMonitor(tiny_model, some, baseline) as free:
        whole = generate(tiny_model, padded(tiny_model, prompts), n_tokens=9)
    means = running_means(free.scores)[..., 1]
    limit = float(np.median(means[:, 3:6].max(axis=1)))
    ends = [int(np.argmax(m > limit)) + 1 if (m > limit).any() else 9 for m in means]
    assert len(set(ends)) > 1  # sequences of one batch end at different tokens
    watching = NetworkMonitor(tiny_model, some, baseline, thresholds=limits(some, limit))
    with watching:
        stop = [watching.stop_when("net1")]
        out = generate(tiny_model, padded(tiny_model, prompts), 9, stopping_criteria=stop)
    n_prompt = whole.shape[1] - 9
    assert out.shape[1] == n_prompt + max(ends)
    for row, full, end in zip(out[:, n_prompt:], whole[:, n_prompt:], ends, strict=True):
        assert row[:end].tolist() == full[:end].tolist()
        assert not row[end:].any()  # padding
    assert (~np.isnan(watching.scores[..., 0])).sum(axis=1).tolist() == ends


def test_a_callback_comes_once_for_each_network_and_sequence(tiny_model):
    some, baseline = some_networks(tiny_model)
    inputs = padded(tiny_model, ["What is a bone?", "Why?"])
    with NetworkMonitor(tiny_model, some, baseline) as free:
        generate(tiny_model, inputs)
    means = running_means(free.scores)
    limit = float(np.median(means))
    expected = {
        (some[k].name, s, int(np.argmax(means[s, :, k] > limit)) + 1)
        for s in range(2)
        for k in range(3)
        if (means[s, :, k] > limit).any()
    }
    heard: list[Crossing] = []
    watching = NetworkMonitor(
        tiny_model, some, baseline, thresholds=limits(some, limit), on_crossing=heard.append
    )
    with watching:
        generate(tiny_model, inputs)
        assert {(c.network, c.sequence, c.n_tokens) for c in heard} == expected
        assert len(heard) == len(expected) > 0
        generate(tiny_model, inputs)  # new sequences cross anew
    assert len(heard) == 2 * len(expected)
    for crossing in heard:
        k = watching.names.index(crossing.network)
        at = means[crossing.sequence, crossing.n_tokens - 1, k]
        assert crossing.score == pytest.approx(at, abs=1e-5)
        assert crossing.threshold == limit < crossing.score


def test_tokens_after_the_end_of_a_sequence_are_not_scored(tiny_model):
    some, baseline = some_networks(tiny_model)
    inputs = padded(tiny_model, ["What is a bone?", "Where is Rome, and why?"])
    free = generate(tiny_model, inputs, 6)[:, -6:].tolist()
    end = next(t for t in free[0] if t not in free[1])  # some token of the first alone
    at = free[0].index(end) + 1
    own = tiny_model.module.generation_config.eos_token_id
    tiny_model.module.generation_config.eos_token_id = end
    try:
        with NetworkMonitor(tiny_model, some, baseline, thresholds=limits(some, 99)) as watching:
            generate(tiny_model, inputs, 6, min_new_tokens=0)
    finally:
        tiny_model.module.generation_config.eos_token_id = own
    known = ~np.isnan(watching.scores[..., 0])
    assert known.sum(axis=1).tolist() == [at, 6]
    assert len(watching.table()) == 3 * (at + 6)
    assert np.isfinite(watching.means).all()
    assert watching.top == [None, None]


def test_thresholds_let_the_rate_pass_and_networks_compare_in_their_own_spread():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(400, 6, 2)) * [1, 10]
    thresholds = calibrate(["small", "large"], scores, rate=0.1)
    for n in range(1, 7):
        above = scores[:, :n].mean(axis=1) > thresholds.at(n)
        assert above.mean(axis=0) == pytest.approx([0.1, 0.1], abs=1.01 / 400)
    assert (np.diff(thresholds.values, axis=0) < 0).all()  # means of more tokens vary less
    assert thresholds.at(50).tolist() == thresholds.values[-1].tolist()
    far = thresholds.values[2] + [2, 5]  # 2 and .5 of their SDs of one token
    assert thresholds.top(far, 3) == "small"
    assert thresholds.top(thresholds.values[2], 3) is None


def test_errors_say_what_to_do(tiny_models, tiny_model):
    some, baseline = some_networks(tiny_model)
    with pytest.raises(MonitorError, match="needs thresholds"):
        NetworkMonitor(tiny_model, some, baseline, on_crossing=print)
    watching = NetworkMonitor(tiny_model, some, baseline, thresholds=limits(some, 1))
    with pytest.raises(MonitorError, match=r"no network 'net9'; there are: net0"):
        watching.stop_when("net9")
    with pytest.raises(MonitorError, match="calibrate with the same"):
        NetworkMonitor(tiny_model, some[:2], baseline, thresholds=limits(some, 1))
    with pytest.raises(networks.ReadoutError, match="two networks are called 'net0'"):
        NetworkMonitor(tiny_model, [some[0], some[0]], baseline)
    with (
        pytest.raises(MonitorError, match="use the model that was scanned"),
        NetworkMonitor(tiny_models("gpt2"), some, baseline),
    ):
        pass
    assert not any(m._forward_pre_hooks for m in tiny_models("gpt2").module.modules())
    with pytest.raises(MonitorError, match="generates nothing"):
        NetworkMonitor(tiny_models("bert"), some, baseline)
    with pytest.raises(networks.ReadoutError, match="cannot show a rate"):
        calibrate(["a"], np.zeros((10, 2, 1)), rate=0.05)
    still = Controls(baseline.brain, baseline.mean, np.zeros_like(baseline.sd))
    with pytest.raises(networks.ReadoutError, match="no unit that varies"):
        NetworkMonitor(tiny_model, some, still)


def test_respond_answers_as_the_model_does_and_scores_the_answer(tiny_model):
    some, baseline = some_networks(tiny_model)
    with NetworkMonitor(tiny_model, some, baseline, thresholds=limits(some, -99)) as watching:
        answer = monitor.respond(tiny_model, watching, "Why?", n_tokens=4)
        short = monitor.respond(tiny_model, watching, "Why?", n_tokens=4, stop_when="net2")
        with pytest.raises(scanner.ScanError, match="reads at most 128"):
            monitor.respond(tiny_model, watching, "Why? " * 90, n_tokens=4)
    inputs = padded(tiny_model, ["Why?"])
    ids = generate(tiny_model, inputs, 4, min_new_tokens=0)[0, inputs["input_ids"].shape[1] :]
    assert answer.response == tiny_model.tokenizer.decode(ids, skip_special_tokens=True)
    assert set(answer.scores) == {"net0", "net1", "net2"}
    assert answer.top in answer.scores
    assert not answer.stopped
    assert short.stopped
    assert answer.response.startswith(short.response)


def test_a_monitor_is_entered_once_at_a_time(tiny_model):
    some, baseline = some_networks(tiny_model)
    watching = NetworkMonitor(tiny_model, some, baseline)
    with watching, pytest.raises(MonitorError, match="entered already"), watching:
        pass
    n_hooks = len(tiny_model.module._forward_pre_hooks)
    with watching:
        generate(tiny_model, padded(tiny_model, ["Why?"]))
    assert len(tiny_model.module._forward_pre_hooks) == n_hooks == 0
