"""Targets for training against planted networks, naive loops and peft itself."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import tiny
import torch

from llm2nifti import bids, geometry, models, networks, surgery
from llm2nifti.hooks import NoSuchModuleError
from llm2nifti.surgery import SurgeryError, gradient_mask, lora_config, target_modules
from llm2nifti.surgery.feeding import all_feeders
from llm2nifti.surgery.finetuning import (
    Recipe,
    Text,
    concept_texts,
    fine_tuned,
    n_trained,
    text_losses,
)

FEEDERS = {  # by the names that each architecture gives them, first block
    "llama": {"self_attn.o_proj": [], "mlp.down_proj": ["mlp.gate_proj", "mlp.up_proj"]},
    "gpt2": {"attn.c_proj": [], "mlp.c_proj": ["mlp.c_fc"]},
    "opt": {"self_attn.out_proj": ["self_attn.v_proj"], "fc2": ["fc1"]},
    "falcon": {"self_attention.dense": [], "mlp.dense_4h_to_h": ["mlp.dense_h_to_4h"]},
    "mixtral": {"self_attn.o_proj": []},
    "mamba": {"mixer.out_proj": []},
}
IDS = torch.tensor([[5, 9, 30, 7, 2, 11], [8, 3, 3, 11, 40, 6]])


@pytest.fixture
def model(tiny_folders):
    """A tiny Llama that a test may spoil."""
    return models.load(str(tiny_folders["llama"]))


def brain_of(model, sites="heads,mlp_hidden"):
    return geometry.layout(model.sites(sites))


def planted(model, counts, *, sites="heads,mlp_hidden", seed=0, name="planted"):
    """Network of random units: so many at each ``(site, layer)``."""
    brain = brain_of(model, sites)
    rng = np.random.default_rng(seed)
    signs = np.zeros(brain.n_units, np.int8)
    for site in brain.sites:
        n = counts.get((site.name, site.layer), 0)
        signs[brain.slice_of(site)][rng.permutation(site.n_units)[:n]] = rng.choice([-1, 1], n)
    return networks.Network(name, brain, signs)


def train(module, optimizer, n_steps=3, after_backward=lambda: None):
    """Steps of language modelling on fixed tokens."""
    for _ in range(n_steps):
        optimizer.zero_grad()
        module(input_ids=IDS, labels=IDS).loss.backward()
        after_backward()
        optimizer.step()


@pytest.mark.parametrize("kind", FEEDERS)
def test_feeders_are_the_layers_that_transformers_feeds_units_with(kind, tiny_folders):
    model = models.load(str(tiny_folders[kind]))
    block = model.stacks()[-1].blocks[0].name
    expected = {f"{block}.{p}": [f"{block}.{n}" for n in f] for p, f in FEEDERS[kind].items()}
    model.module.requires_grad_(False)  # a frozen model has the same wiring
    assert all_feeders(model, list(expected)) == expected
    assert all(parameter.grad is None for parameter in model.module.parameters())


def test_feeders_of_an_unknown_module_raise(tiny_model):
    with pytest.raises(NoSuchModuleError, match="nowhere"):
        surgery.feeders(tiny_model, "model.layers.0.nowhere")


def test_planted_module_ranks_first_with_its_numbers(tiny_model):
    network = planted(tiny_model, {("mlp_hidden", 2): 20, ("heads", 1): 6})
    table = target_modules(network, model=tiny_model)
    assert set(table["module"].head(3)) == {
        f"model.layers.1.mlp.{name}_proj" for name in ("down", "gate", "up")
    }
    assert len(table) == 3 * 4  # every module that owns weights, also those without a unit
    first = table.iloc[0]
    assert (first["layer"], first["site"], first["n_units"], first["mass"]) == (
        2,
        "mlp_hidden",
        20,
        20.0,
    )
    assert first["share"] == 20 / 40
    assert first["enrichment"] == pytest.approx((20 / 40) / (26 / (3 * 64)))
    heads = table[table["module"] == "model.layers.0.self_attn.o_proj"].iloc[0]
    assert (heads["weights"], heads["n_units"], heads["share"]) == ("columns", 6, 6 / 24)
    assert list(target_modules(network)["weights"].unique()) == ["columns"]


def test_masses_of_weighted_networks_add_up(tiny_model):
    one = planted(tiny_model, {("heads", 3): 10}, seed=1)
    weights = np.random.default_rng(2).random(one.brain.n_units)
    weighted = networks.Network("w", one.brain, one.signs, "map", weights)
    table = target_modules([one, weighted]).set_index("module")
    row = table.loc["model.layers.2.self_attn.o_proj"]
    assert row["mass"] == pytest.approx(10 + weights[one.units].sum())
    assert row["n_units"] == 10
    assert table.drop(row.name)["mass"].sum() == 0


def test_units_that_own_no_weights_are_refused_in_one_line(tiny_model):
    stream = planted(tiny_model, {("attn", 1): 3}, sites="attn,mlp,resid")
    with pytest.raises(SurgeryError, match="run ds-units --sites heads,mlp_hidden") as error:
        target_modules(stream)
    assert "\n" not in str(error.value)
    mixed = planted(tiny_model, {("attn", 1): 3, ("heads", 1): 2}, sites="attn,heads")
    with pytest.raises(SurgeryError, match=r"3 attn.*network.at\('heads'\)"):
        target_modules(mixed)
    assert target_modules(mixed.at("heads"))["mass"].iloc[0] == 2
    with pytest.raises(SurgeryError, match="one space"):
        target_modules([mixed.at("heads"), planted(tiny_model, {("heads", 1): 1})])


def by_hand(model, network):
    """Whether each weight belongs to the network, by the names of Llama's layers."""
    masks = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    for site in network.brain.sites:
        for unit in np.flatnonzero(network.units[network.brain.slice_of(site)]):
            masks[f"{site.module}.weight"][:, unit] = True
            if site.name == "mlp_hidden":
                block = site.module.removesuffix("down_proj")
                masks[f"{block}up_proj.weight"][unit] = True
                masks[f"{block}gate_proj.weight"][unit] = True
    return masks


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_masked_training_equals_gradients_zeroed_by_hand(model, optimizer):
    network = planted(model, {("mlp_hidden", 1): 7, ("heads", 2): 5, ("heads", 3): 1})
    make = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0),
    }[optimizer]
    naive = copy.deepcopy(model.module)
    masks = by_hand(naive, network)

    def zero_the_rest():
        for name, parameter in naive.named_parameters():
            parameter.grad *= masks[name]

    train(naive, make(naive.parameters()), after_backward=zero_the_rest)
    before = copy.deepcopy(model.module.state_dict())
    with gradient_mask(model, network) as mask:
        train(model.module, make(model.module.parameters()))
        for name, parameter in model.module.named_parameters():  # so that clipping is right
            assert parameter.grad is None or not parameter.grad[~masks[name]].any(), name
    assert mask.n_weights == sum(int(m.sum()) for m in masks.values())
    for name, parameter in model.module.named_parameters():
        assert torch.equal(parameter, naive.get_parameter(name)), name
        if masks[name].any():
            assert (parameter != before[name])[masks[name]].float().mean() > 0.9


def outside_is_untouched(model, before, network):
    masks = by_hand(model.module, network)
    return [
        name
        for name, parameter in model.module.named_parameters()
        if not torch.equal(parameter[~masks[name]], before[name][~masks[name]])
    ]


def test_weights_outside_stay_bit_identical_under_decay_and_old_momentum(model):
    network = planted(model, {("mlp_hidden", 1): 7, ("heads", 2): 5})
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=0.01, weight_decay=0.5)
    train(model.module, optimizer)  # its state knows every weight
    before = copy.deepcopy(model.module.state_dict())
    with gradient_mask(model, network):
        train(model.module, optimizer)
        assert outside_is_untouched(model, before, network) == []
    assert outside_is_untouched(model, before, network) == []
    train(model.module, optimizer, n_steps=1)  # nothing of the mask is left
    assert len(outside_is_untouched(model, before, network)) > 20


def test_own_weights_decay_and_requires_grad_and_gradients_are_put_back(model):
    network = planted(model, {("mlp_hidden", 1): 7})
    model.module.model.norm.weight.requires_grad_(False)
    before = copy.deepcopy(model.module.state_dict())
    flags = {name: p.requires_grad for name, p in model.module.named_parameters()}
    decayed = {}
    with gradient_mask(model, network):
        for decay in (0.0, 0.5):
            model.module.load_state_dict(before)
            parameters = [p for p in model.module.parameters() if p.requires_grad]
            assert len(parameters) == 3
            train(model.module, torch.optim.AdamW(parameters, lr=0.01, weight_decay=decay))
            own = by_hand(model.module, network)["model.layers.0.mlp.up_proj.weight"]
            decayed[decay] = model.module.model.layers[0].mlp.up_proj.weight.detach()[own].clone()
    assert decayed[0.5].norm() < decayed[0.0].norm()
    assert {name: p.requires_grad for name, p in model.module.named_parameters()} == flags
    assert all(p.grad is None for p in model.module.parameters())


def test_mask_of_biases_and_of_weights_stored_the_other_way(tiny_folders):
    model = models.load(str(tiny_folders["gpt2"]))
    network = planted(model, {("mlp_hidden", 1): 3})
    units = np.flatnonzero(network.units[network.brain.slice_of(network.brain.sites[1])])
    masks = surgery.network_weights(model, network)
    assert {n.removeprefix("transformer.h.0.mlp.") for n in masks} == {
        "c_proj.weight",
        "c_fc.weight",
        "c_fc.bias",
    }
    whole = {n: m.expand_as(model.module.get_parameter(n)) for n, m in masks.items()}
    assert whole["transformer.h.0.mlp.c_fc.weight"].sum() == 3 * 24  # (in, out)
    assert whole["transformer.h.0.mlp.c_fc.weight"][:, units].all()
    assert whole["transformer.h.0.mlp.c_proj.weight"][units].all()
    assert np.flatnonzero(whole["transformer.h.0.mlp.c_fc.bias"]).tolist() == units.tolist()


def test_a_network_of_another_model_is_refused(tiny_folders, tiny_model):
    other = models.load(str(tiny_folders["gpt2"]))
    with (
        pytest.raises(SurgeryError, match="use a network of the same model"),
        gradient_mask(other, planted(tiny_model, {("heads", 1): 2})),
    ):
        pass
    assert all(p.requires_grad for p in other.module.parameters())


def test_config_is_what_peft_loads_and_trains(model, tmp_path):
    from peft import PeftConfig, get_peft_model

    network = planted(model, {("mlp_hidden", 2): 20, ("heads", 1): 6})
    names = target_modules(network, model=model)["module"].head(4).tolist()
    path = surgery.write_config(lora_config(names, r=4, alpha=9, model=model), tmp_path / "adapter")
    assert path.name == "adapter_config.json"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    adapted = get_peft_model(model.module, PeftConfig.from_pretrained(path.parent))
    trained = {n for n, p in adapted.named_parameters() if p.requires_grad}
    expected = {f"base_model.model.{n}.lora_{ab}.default.weight" for n in names for ab in "AB"}
    assert trained == expected
    assert (json.loads(path.read_text())["r"], json.loads(path.read_text())["lora_alpha"]) == (4, 9)
    sizes = [p.numel() for p in adapted.parameters() if p.requires_grad]
    assert sum(sizes) == 4 * (24 + 24) + 3 * 4 * (24 + 40)


def test_config_is_not_overwritten_and_checks_names(tiny_model, tmp_path):
    config = lora_config(["model.layers.0.mlp.up_proj"])
    surgery.write_config(config, tmp_path)
    with pytest.raises(bids.ExistsError, match="overwrite=True"):
        surgery.write_config(config, tmp_path)
    surgery.write_config(config, tmp_path, overwrite=True)
    with pytest.raises(NoSuchModuleError, match="up_projj"):
        lora_config(["model.layers.0.mlp.up_projj"], model=tiny_model)
    with pytest.raises(SurgeryError, match="no module"):
        lora_config([])


def test_without_peft_one_line_says_what_to_install():
    code = (
        "import sys; sys.modules['peft'] = None\n"
        "from llm2nifti import surgery\n"
        "try: surgery.lora_config(['a'])\n"
        "except surgery.SurgeryError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == 'peft is not installed; install it with: pip install "llm2nifti[train]"\n'


def plain_losses(model, texts):
    """One text at a time, by transformers alone."""
    losses = []
    for text in texts:
        with torch.no_grad():
            logits = model.module(input_ids=torch.tensor([text.ids])).logits[0]
        chosen = logits.log_softmax(-1)
        losses.append(-np.mean([float(chosen[i - 1, text.ids[i]]) for i in text.scored]))
    return np.array(losses)


TEXTS = [Text((5, 9, 30, 7, 2, 11), (3, 4)), Text((5, 9, 3, 11), (3,)), Text((5, 9, 30, 8), (2, 3))]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mamba"])
def test_losses_equal_those_of_single_texts(kind, tiny_folders):
    model = models.load(str(tiny_folders[kind]))
    found = text_losses(model, TEXTS)  # Llama reads the common beginning once, Mamba cannot
    np.testing.assert_allclose(found, plain_losses(model, TEXTS), rtol=1e-4)


def test_fine_tuning_learns_and_leaves_nothing_behind(model):
    before = copy.deepcopy(model.module.state_dict())
    losses = text_losses(model, TEXTS)
    names = [f"model.layers.{i}.mlp.down_proj" for i in (0, 2)]
    steps = []
    with fine_tuned(model, names, TEXTS, Recipe(rate=0.02, epochs=30), on_step=steps.append) as e:
        assert text_losses(model, TEXTS).mean() < 0.5 * losses.mean()
        assert e[-1] < 0.5 * e[0]
        trained = [p for p in model.module.parameters() if p.requires_grad]
        assert sum(p.numel() for p in trained) == n_trained(model, names, 8)
    assert len(steps) == 30
    after = model.module.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(p.requires_grad for p in model.module.parameters())
    assert not hasattr(model.module, "peft_config")
    np.testing.assert_array_equal(text_losses(model, TEXTS), losses)


def test_gradients_flow_through_what_all_texts_share(model, monkeypatch):
    from llm2nifti.surgery import finetuning

    names, recipe = ["model.layers.0.mlp.down_proj"], Recipe(rate=0.01, epochs=5)
    with fine_tuned(model, names, TEXTS, recipe) as shared:
        pass
    monkeypatch.setattr(finetuning, "_n_shared", lambda model, texts: 0)
    with fine_tuned(model, names, TEXTS, recipe) as whole:
        pass
    np.testing.assert_allclose(shared, whole, rtol=1e-4)


def test_the_same_seed_trains_the_same(model):
    names, recipe = ["model.layers.0.mlp.down_proj"], Recipe(rate=0.01, epochs=3, batch_size=2)
    random_state = torch.get_rng_state()
    runs = []
    for seed in (1, 1, 2):
        with fine_tuned(model, names, TEXTS, recipe, seed=seed):
            runs.append(text_losses(model, TEXTS))
            np.testing.assert_allclose(runs[-1], plain_losses(model, TEXTS), rtol=1e-4)
    assert torch.equal(torch.get_rng_state(), random_state)
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_modules_that_peft_refuses_leave_nothing_behind(model):
    names = ["model.layers.0.mlp.down_proj", "model.layers.1.input_layernorm"]
    before = copy.deepcopy(model.module.state_dict())
    losses = text_losses(model, TEXTS)
    with (
        pytest.raises(SurgeryError, match="peft cannot train these modules"),
        fine_tuned(model, names, TEXTS, Recipe()),
    ):
        pass
    after = model.module.state_dict()
    assert list(after) == list(before)
    assert all(p.requires_grad for p in model.module.parameters())
    np.testing.assert_array_equal(text_losses(model, TEXTS), losses)


def test_concepts_are_found_where_the_template_trims_or_repeats_them(model, monkeypatch):
    template = (
        "{% for m in messages %}ant {{ m.role }}: {{ m.content | trim }}\n{% endfor %}assistant:"
    )
    monkeypatch.setattr(model.tokenizer, "chat_template", template, raising=False)
    (text,) = concept_texts(model, [" What is an ant "], ["ant"])
    assert model.tokenizer.decode([text.ids[i] for i in text.scored]).strip() == "ant"
    before = model.tokenizer.decode(text.ids[: text.scored[0]])
    assert before.endswith("What is an")


@pytest.mark.parametrize(("name", "value"), [("rate", 0.0), ("epochs", 0), ("r", -1)])
def test_recipes_that_cannot_be_are_refused(tiny_model, name, value):
    recipe = Recipe(**{name: value})
    with (
        pytest.raises(SurgeryError, match=f"{name} is {value}"),
        fine_tuned(tiny_model, ["model.layers.0.mlp.down_proj"], TEXTS, recipe),
    ):
        pass


def test_every_tiny_decoder_has_targets(tiny_folders):
    for kind in (k for k in tiny.CONFIGS if k not in ("vit", "llava", "bert", "t5", "mamba")):
        model = models.load(str(tiny_folders[kind]))
        network = planted(model, {("heads", 1): 2}, sites="heads")
        assert target_modules(network, model=model)["mass"].iloc[0] == 2
