"""Pruned models on disk: plain transformers loads them; and what else could have been pruned."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from test_surgery import IDS, answers, brain_of, some_units, two_thirds

from llm2nifti import models, surgery
from llm2nifti.surgery import PruneError

AUTO = {"bert": "AutoModel", "t5": "AutoModelForSeq2SeqLM"}
FAMILIES = ["llama", "gpt2", "opt", "gpt_neox", "qwen3", "gemma3_text", "phi", "falcon", "bloom"]


@pytest.fixture(scope="module")
def pruned_of(tiny_folders):
    """A pruned model by kind, and the model before."""
    found = {}

    def get(kind):
        if kind not in found:
            model = models.load(str(tiny_folders[kind]))
            found[kind] = model, surgery.prune(model, some_units(brain_of(model), two_thirds()))
        return found[kind]

    return get


def on_disk(folder):
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@pytest.mark.parametrize("kind", [*FAMILIES, "t5", "bert"])
def test_plain_transformers_loads_it(pruned_of, tiny_folders, tmp_path, kind):
    model, pruned = pruned_of(kind)
    folder = surgery.save(pruned, tmp_path / "small")
    auto = getattr(transformers, AUTO.get(kind, "AutoModelForCausalLM"))
    module, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(answers(model, module.eval()), answers(pruned.model))
    record = json.loads((folder / "prune.json").read_text("utf-8"))
    assert record["parameters"][1] == sum(p.numel() for p in module.parameters())
    for key, (_, after) in record["settings"].items():
        assert getattr(module.config, key) == after
    is_smaller = on_disk(folder) < on_disk(tiny_folders[kind])
    assert is_smaller == bool(pruned.settings)
    if kind in FAMILIES:
        made = module.generate(IDS, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        own = pruned.model.module.generate(IDS, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        assert torch.equal(made, own)
        assert made.shape == (2, 12)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "gemma3_text"])
def test_tied_embeddings_stay_tied(pruned_of, tmp_path, kind):
    model, pruned = pruned_of(kind)
    assert model.module.config.tie_word_embeddings
    folder = surgery.save(pruned, tmp_path / "small")
    for module in (
        pruned.model.module,
        transformers.AutoModelForCausalLM.from_pretrained(folder),
    ):
        head, embedding = module.get_output_embeddings(), module.get_input_embeddings()
        assert head.weight.data_ptr() == embedding.weight.data_ptr()


def test_it_can_be_scanned_again(pruned_of, tmp_path):
    _, pruned = pruned_of("llama")
    again = models.load(str(surgery.save(pruned, tmp_path / "small")))
    sizes = {site.name: site.n_units for site in again.sites("heads,mlp_hidden")}
    assert sizes["mlp_hidden"] == pruned.settings["intermediate_size"][1]
    assert again.tokenizer.get_vocab() == pruned.model.tokenizer.get_vocab()


def test_a_folder_that_is_there_stays(pruned_of, tmp_path):
    _, pruned = pruned_of("llama")
    folder = tmp_path / "small"
    folder.mkdir()
    surgery.save(pruned, folder)  # an empty folder is none
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(PruneError, match="is there already; use overwrite=True"):
        surgery.save(pruned, folder)
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("all of it")
    for overwrite in (False, True):
        with pytest.raises(PruneError, match="holds no pruned model"):
            surgery.save(pruned, other, overwrite=overwrite)
    with pytest.raises(ValueError, match="not JSON compliant"):
        surgery.save(pruned, folder, overwrite=True, record={"x": float("nan")})
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    surgery.save(pruned, folder, overwrite=True, record={"x": 1})
    assert json.loads((folder / "prune.json").read_text("utf-8"))["x"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "small"]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_rivals_remove_as_many_units_of_each_site(pruned_of, kind):
    model, pruned = pruned_of(kind)
    removed = pruned.removed
    counts = removed.profile()["n_active"].tolist()
    small = surgery.smallest(model, removed)
    draws = [surgery.at_random(removed, seed=seed) for seed in (0, 0, 1)]
    for rival in (small, *draws):
        assert rival.profile()["n_active"].tolist() == counts
    assert np.array_equal(draws[0].signs, draws[1].signs)
    assert not np.array_equal(draws[0].signs, draws[2].signs)
    for site in removed.brain.sites:  # columns of smallest norm, by sorting
        layer = model.module.get_submodule(site.module)
        is_linear = isinstance(layer, torch.nn.Linear)
        weight = (layer.weight if is_linear else layer.weight.T).detach().numpy()
        norms = np.linalg.norm(weight, axis=0)
        chosen = small.units[small.brain.slice_of(site)]
        assert norms[chosen].max() <= norms[~chosen].min()


def test_speed_is_compared_in_pairs(pruned_of):
    model, pruned = pruned_of("llama")
    speed = surgery.compare_speed(model, pruned.model, n_pairs=3, shape=(2, 16))
    assert set(speed) == {"prefill", "generate"}
    for numbers in speed.values():
        low, high = numbers["interval"]
        assert 0 < low <= numbers["ratio"] <= high
        assert numbers["n_pairs"] == 3
