"""Pruning against the zero lesion, against weights cut by hand, and against plain transformers."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from llm2nifti import geometry, interventions, models, networks, surgery
from llm2nifti.surgery import PruneError, SurgeryError, pruning

SITES = {"mamba": "mixer_hidden", "mixtral": "heads", "t5": "heads,cross_heads,mlp_hidden"}
KINDS = [kind for kind in tiny.CONFIGS if kind not in ("vit", "llava")]
IDS = torch.tensor([[5, 9, 30, 7, 2, 6, 1, 17], [8, 3, 3, 11, 40, 2, 90, 4]])
# Families whose heads can go: their config holds the size of a head, or takes it.
LOSES_HEADS = {"llama", "qwen3", "gemma3_text", "mistral", "mixtral", "phi"}
# BLOOM's width is fixed, and the decoder of T5 shares it with the encoder.
KEEPS_MLP = {"bloom", "t5"}


def brain_of(model, sites="heads,mlp_hidden"):
    return geometry.layout(model.sites(sites))


def some_units(brain, choose):
    """Network of the units that `choose(site)` marks, as positions."""
    signs = np.zeros(brain.n_units, np.int8)
    for site in brain.sites:
        signs[brain.slice_of(site)][choose(site)] = 1
    return networks.Network("some", brain, signs)


def two_thirds(seed=0):
    """Most heads whole, and random hidden units: other ones, and as many as it comes, a layer."""
    rng = np.random.default_rng(seed)

    def choose(site):
        if site.name == "heads":  # of 3 heads 2, of 4 heads with a group of 2 one group, and a bit
            return np.arange(site.n_units) < {3: 2 / 3}.get(site.n_units // 8, 0.5) * site.n_units
        return rng.random(site.n_units) < 0.6

    return choose


def answers(model, module=None):
    """Logits, or the last hidden state of a model without any; not the tokens of the probe."""
    inputs = {"input_ids": IDS}
    if model.kind == "seq2seq":
        inputs["decoder_input_ids"] = IDS
    with torch.no_grad():
        out = (module or model.module)(**inputs)
    return out.logits if "logits" in out else out.last_hidden_state


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [False, True])
def test_pruned_model_computes_what_the_lesioned_one_does(tiny_models, kind, keep):
    model = tiny_models(kind)
    network = some_units(brain_of(model, SITES.get(kind, "heads,mlp_hidden")), two_thirds())
    rest = replace(network, signs=(~network.units).astype(np.int8))
    before = answers(model)
    with interventions.lesion(model, rest if keep else network, "zero"):
        expected = answers(model)
    pruned = surgery.prune(model, network, keep=keep)
    found = answers(pruned.model)
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * scale)
    assert (expected - before).abs().max() > 1e-3 * scale
    assert torch.equal(answers(model), before)
    assert pruned.removed.n_units == (rest if keep else network).n_units


@pytest.mark.parametrize("kind", KINDS)
def test_families_get_smaller_where_their_config_allows_it(tiny_models, kind):
    model = tiny_models(kind)
    network = some_units(brain_of(model, SITES.get(kind, "heads,mlp_hidden")), two_thirds())
    pruned = surgery.prune(model, network)
    notes = {note.split(":")[0]: note for note in pruned.notes}
    if "heads" in notes:
        assert ("smaller (" in notes["heads"]) == (kind in LOSES_HEADS), notes["heads"]
    if "mlp_hidden" in notes:
        assert ("smaller (" in notes["mlp_hidden"]) == (kind not in KEEPS_MLP), notes["mlp_hidden"]
    n_before, n_after = (
        sum(p.numel() for p in m.module.parameters()) for m in (model, pruned.model)
    )
    assert pruned.n_parameters == (n_before, n_after)
    assert (n_after < n_before) == any("smaller (" in note for note in pruned.notes)


def test_weights_that_remain_are_those_of_the_units_that_remain(tiny_models):
    """Numbers and weights by hand: 3 layers, of 40 hidden units 30, 25 and 28 remain."""
    model = tiny_models("llama")
    n_gone = {1: 10, 2: 15, 3: 12}
    gone = {layer: np.random.default_rng(layer).permutation(40)[:n] for layer, n in n_gone.items()}
    network = some_units(brain_of(model, "mlp_hidden"), lambda site: gone[site.layer])
    pruned = surgery.prune(model, network)
    assert pruned.settings == {"intermediate_size": (40, 30)}
    assert pruned.model.module.config.intermediate_size == 30
    assert pruned.n_parameters[0] - pruned.n_parameters[1] == 3 * 3 * 24 * 10
    old, new = (m.module.model.layers[0].mlp for m in (model, pruned.model))
    stays = np.setdiff1d(np.arange(40), gone[1])
    for name in ("gate_proj", "up_proj"):
        assert torch.equal(getattr(new, name).weight, getattr(old, name).weight[stays])
    assert torch.equal(new.down_proj.weight, old.down_proj.weight[:, stays])
    padding = (pruned.model.module.model.layers[1].mlp.down_proj.weight == 0).all(dim=0)
    assert int(padding.sum()) == 30 - 25


def test_whole_key_value_groups_go(tiny_models):
    """The first layer loses its second group, the others their first; one unit more has to stay."""
    model = tiny_models("llama")  # 4 heads of 6 units share 2 keys and values
    groups = {1: slice(12, 24), 2: slice(0, 13), 3: slice(0, 12)}
    network = some_units(brain_of(model), lambda s: groups[s.layer] if s.name == "heads" else [])
    pruned = surgery.prune(model, network)
    assert pruned.settings == {"num_attention_heads": (4, 2), "num_key_value_heads": (2, 1)}
    old, new = ([layer.self_attn for layer in m.module.model.layers] for m in (model, pruned.model))
    assert torch.equal(new[0].q_proj.weight, old[0].q_proj.weight[:12])
    assert torch.equal(new[1].k_proj.weight, old[1].k_proj.weight[6:])
    assert torch.equal(new[2].o_proj.weight, old[2].o_proj.weight[:, 12:])
    assert (new[1].o_proj.weight[:, 0] == 0).all()
    half = some_units(brain_of(model), lambda s: slice(0, 6) if s.name == "heads" else [])
    kept = surgery.prune(model, half)  # one head of a group, no group
    assert kept.settings == {}
    assert kept.n_parameters[0] == kept.n_parameters[1]
    assert "one layer keeps every key-value group" in kept.notes[0]


def test_what_shapes_allow_but_logits_deny_keeps_its_zeros(tmp_path, monkeypatch):
    """OLMo 2 normalises the queries of all heads together: fewer heads compute something else."""
    monkeypatch.setitem(tiny.CONFIGS, "olmo2", tiny.SHARED)
    model = models.load(str(tiny.save(tmp_path / "olmo2", "olmo2")))
    network = some_units(brain_of(model), two_thirds())
    pruned = surgery.prune(model, network)
    assert "computes something else" in pruned.notes[0]
    assert set(pruned.settings) == {"intermediate_size"}
    with interventions.lesion(model, network):
        expected = answers(model)
    torch.testing.assert_close(answers(pruned.model), expected, rtol=1e-4, atol=1e-4)


def test_fused_projections_are_cut_too(tmp_path, monkeypatch):
    """Phi-3 computes queries, keys and values in one layer, gate and up in another."""
    monkeypatch.setitem(tiny.CONFIGS, "phi3", tiny.SHARED)
    model = models.load(str(tiny.save(tmp_path / "phi3", "phi3")))
    pruned = surgery.prune(model, some_units(brain_of(model), two_thirds()))
    assert pruned.settings["num_key_value_heads"] == (2, 1)
    layer = pruned.model.module.model.layers[0]
    assert layer.self_attn.qkv_proj.weight.shape == (12 + 2 * 6, 24)
    assert len(layer.mlp.gate_up_proj.weight) == 2 * pruned.settings["intermediate_size"][1]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_kept(tiny_folders, dtype):
    model = models.load(str(tiny_folders["llama"]), dtype=dtype)
    network = some_units(brain_of(model), two_thirds())
    weights = copy.deepcopy(model.module.state_dict())
    pruned = surgery.prune(model, network)
    assert {p.dtype for p in pruned.model.module.parameters()} == {getattr(torch, dtype)}
    assert "intermediate_size" in pruned.settings
    with interventions.lesion(model, network):
        expected = answers(model).float()
    np.testing.assert_allclose(answers(pruned.model).float(), expected, atol=0.02 * expected.max())
    after = model.module.state_dict()
    assert all(torch.equal(weights[n], after[n]) for n in weights)
    assert {n: t.dtype for n, t in after.items()} == {n: t.dtype for n, t in weights.items()}


def test_half_precision_hides_no_wrong_cut(tiny_folders):
    """What bfloat16 would round away is seen: the check computes in float32."""
    model = models.load(str(tiny_folders["llama"]), dtype="bfloat16")
    layer = model.module.model.layers[0].mlp.down_proj

    def leak(module, _args, out):
        return out + 2e-3 * module.weight.abs().sum(dim=1)

    layer.register_forward_hook(leak)
    network = some_units(brain_of(model, "mlp_hidden"), lambda _site: [0, 1, 2])
    with pytest.raises(PruneError, match="used elsewhere"):
        surgery.prune(model, network)


@pytest.mark.parametrize("kind", ["vit", "llava"])
def test_models_of_images_are_pruned(tiny_models, kind):
    model = tiny_models(kind)
    brain = brain_of(model, "mlp_hidden")
    pruned = surgery.prune(model, some_units(brain, lambda _site: [0, 3]))
    assert pruned.error < 1e-5


def test_a_model_in_training_is_pruned_and_goes_on_training(tiny_models):
    model = tiny_models("gpt2")
    module = copy.deepcopy(model.module).train()
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.5
    module.transformer.h[1].eval()
    modes = [part.training for part in module.modules()]
    model = replace(model, module=module)
    surgery.prune(model, some_units(brain_of(model, "mlp_hidden"), lambda _site: [0]))
    assert [part.training for part in module.modules()] == modes
    surgery.feeders(model, "transformer.h.0.mlp.c_proj")
    assert [part.training for part in module.modules()] == modes


def test_a_planted_unit_is_gone(tiny_folders):
    """One hidden unit writes one token; without it another token comes, with it alone it does."""
    model = models.load(str(tiny_folders["llama"]))
    mlp, head = model.module.model.layers[-1].mlp, model.module.lm_head
    with torch.no_grad():
        mlp.gate_proj.weight[3] = mlp.up_proj.weight[3]  # x * silu(x): hardly ever negative
        mlp.down_proj.weight[:, 3] = 1000 * head.weight[42] / head.weight[42].norm()
    last = {"mlp_hidden": [3]}
    network = some_units(
        brain_of(model), lambda site: last.get(site.name, []) if site.layer == 3 else []
    )
    assert network.n_units == 1
    assert (answers(model).argmax(-1) == 42).sum() > 8
    pruned = surgery.prune(model, network)
    assert not (answers(pruned.model).argmax(-1) == 42).any()
    kept = surgery.prune(model, network, keep=True)
    assert (answers(kept.model).argmax(-1) == 42).sum() > 8
    assert kept.settings["intermediate_size"] == (40, 1)


def test_the_model_before_shares_nothing_with_the_one_after(tiny_models):
    model = tiny_models("gpt2")
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    pruned = surgery.prune(model, some_units(brain_of(model), two_thirds()))
    with torch.no_grad():
        for parameter in pruned.model.module.parameters():
            parameter.fill_(9)
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert model.module.config.n_inner is None
    assert pruned.model.source["WeightsHash"] != model.source["WeightsHash"]


def test_units_without_weights_are_refused(tiny_models):
    model = tiny_models("llama")
    for sites in ("attn,mlp", "resid", "heads,mlp"):
        network = some_units(brain_of(model, sites), lambda _site: [0])
        with pytest.raises(PruneError, match=r"own no weights.*--sites heads,mlp_hidden") as caught:
            surgery.prune(model, network)
        assert "\n" not in str(caught.value)
    both = some_units(brain_of(model, "heads,mlp"), lambda s: [0] if s.name == "heads" else [])
    assert surgery.prune(model, both).removed.n_units == 3  # units of the other site are none of it


def test_other_models_and_empty_networks_are_refused(tiny_models):
    model = tiny_models("llama")
    network = some_units(brain_of(tiny_models("opt"), "mlp_hidden"), lambda _site: [0])
    with pytest.raises(SurgeryError, match="no weight in model"):
        surgery.prune(model, network)
    wide = geometry.Site("mlp_hidden", 1, "model.layers.0.mlp.down_proj", 41, where="input")
    with pytest.raises(SurgeryError, match="reads 40 units in this model and 41"):
        surgery.prune(model, some_units(geometry.layout([wide]), lambda _site: [0]))
    brain = brain_of(model)
    with pytest.raises(PruneError, match="nothing to prune"):
        surgery.prune(model, some_units(brain, lambda _site: []))
    with pytest.raises(PruneError, match="nothing to prune"):
        surgery.prune(model, some_units(brain, lambda _site: slice(None)), keep=True)


def test_weights_that_are_used_elsewhere_are_noticed(tiny_models):
    """A projection that reads more than its input sees: the columns alone do not decide."""
    model = replace(tiny_models("llama"), module=copy.deepcopy(tiny_models("llama").module))
    layer = model.module.model.layers[0].mlp
    layer.down_proj.register_forward_hook(
        lambda module, _args, out: out + module.weight.abs().sum(dim=1)
    )
    network = some_units(brain_of(model, "mlp_hidden"), lambda _site: [0, 1, 2])
    with pytest.raises(PruneError, match="used elsewhere"):
        surgery.prune(model, network)


def test_the_check_computes_in_float32(tiny_folders):
    model = models.load(str(tiny_folders["llama"]), dtype="bfloat16")
    exact = models.load(str(tiny_folders["llama"]), dtype="bfloat16").module.float()
    (found,), (expected,) = (pruning.outputs(m) for m in (model, replace(model, module=exact)))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert next(model.module.parameters()).dtype == torch.bfloat16
