"""Models whose files are damaged, incomplete or do not belong together; the hash of weights."""

from __future__ import annotations

import json
import re
import shutil

import gguf
import numpy as np
import pytest
import transformers
from safetensors.torch import load_file, save_file

from llm2nifti import cli, models
from llm2nifti.models import cache, loading


def altered(folder, target, **changes):
    """Copy of a model's folder with another config."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changes}))
    return target


def with_weights(folder, target, change):
    """Copy of a model's folder whose weights went through `change`, a function of their dict."""
    shutil.copytree(folder, target)
    state = change(load_file(target / "model.safetensors"))
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("llama", "layers.1.mlp"),
        ("bert", "layer.1.output"),
        ("t5", "decoder.block.1"),
        ("vit", "layers.0|layer.0"),
        ("llava", "vision"),
    ],
)
def test_missing_weights_are_refused_by_name(tiny_folders, tmp_path, kind, pattern):
    dropped = []

    def drop(state):
        dropped.extend(name for name in state if re.search(pattern, name))
        return {name: weight for name, weight in state.items() if name not in dropped}

    folder = with_weights(tiny_folders[kind], tmp_path / "halved", drop)
    with pytest.raises(
        models.IncompleteModelError, match=f"{len(dropped)} weights of halved"
    ) as info:
        models.load(str(folder))
    assert "\n" not in str(info.value)
    assert re.search(pattern, str(info.value))


def test_a_config_with_more_or_larger_layers_than_the_weights_is_refused(tiny_folders, tmp_path):
    deep = altered(tiny_folders["llama"], tmp_path / "deep", num_hidden_layers=5)
    with pytest.raises(models.IncompleteModelError, match=r"18 weights of deep .*model\.layers\.3"):
        models.load(str(deep))
    wide = altered(tiny_folders["llama"], tmp_path / "wide", intermediate_size=44)
    with pytest.raises(models.IncompleteModelError, match=r"9 weights of wide .*mlp\.down_proj"):
        models.load(str(wide))


def test_models_saved_without_the_head_that_nothing_needs_are_read(tiny_folders, tmp_path):
    """A trunk, an encoder of an encoder-decoder, a classifier and a masked model are whole."""
    for kind, part in {
        "llama": lambda m: m.model,
        "t5": lambda m: transformers.T5EncoderModel(m.config),
        "gpt2": lambda m: transformers.GPT2ForSequenceClassification(m.config),
        "bert": lambda m: transformers.BertForMaskedLM(m.config),
        "vit": lambda m: transformers.ViTForImageClassification(m.config),
    }.items():
        folder = tmp_path / kind
        shutil.copytree(tiny_folders[kind], folder)
        (folder / "model.safetensors").unlink()
        part(models.load(str(tiny_folders[kind])).module).save_pretrained(folder)
        a, b = models.load(str(folder)), models.load(str(folder))
        assert a.source["WeightsHash"] == b.source["WeightsHash"]
        assert a.sites(mode="read")
        assert a.modes() == (("generate", "read") if kind == "gpt2" else ("read",))


def test_a_head_that_the_config_names_must_be_there(tiny_folders, tmp_path):
    def drop(state):
        state.pop("lm_head.weight")
        return state

    folder = with_weights(tiny_folders["llama"], tmp_path / "headless", drop)
    with pytest.raises(models.IncompleteModelError, match=r"lm_head\.weight"):
        models.load(str(folder))


def test_the_hash_is_that_of_the_weights_in_memory(tiny_folders, tmp_path):
    first = models.load(str(tiny_folders["llama"]))
    again = models.load(str(tiny_folders["llama"]), device="auto")
    assert first.source["WeightsHash"] == again.source["WeightsHash"]

    def nudge(state):
        state["model.layers.0.mlp.up_proj.weight"][0, 0] += 1e-3
        return state

    other = models.load(str(with_weights(tiny_folders["llama"], tmp_path / "nudged", nudge)))
    assert other.source["WeightsHash"] != first.source["WeightsHash"]
    rounded = models.load(str(tiny_folders["llama"]), dtype="bfloat16")
    assert rounded.source["WeightsHash"] != first.source["WeightsHash"]


def test_the_hash_of_files_in_an_older_dataset_still_counts(tiny_folders, tmp_path):
    model = models.load(str(tiny_folders["llama"]))
    assert models.has_weights(model, cache.sha256(tiny_folders["llama"] / "model.safetensors"))
    assert models.has_weights(model, model.source["WeightsHash"])
    assert not models.has_weights(model, "0" * 64)
    untrained = models.load(str(tiny_folders["llama"]), untrained=True)
    assert not models.has_weights(untrained, model.source["WeightsHash"])


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(tiny_folders, tmp_path, value):
    def spoil(state):
        state["model.layers.1.mlp.up_proj.weight"][3, 4] = value
        return state

    folder = with_weights(tiny_folders["llama"], tmp_path / "spoilt", spoil)
    with pytest.raises(
        models.IncompleteModelError, match=r"spoilt hold NaN .*layers\.1\.mlp\.up_proj"
    ):
        models.load(str(folder))


def test_weights_that_overflow_are_the_cause_that_is_told(tiny_folders, tmp_path):
    def grow(state):
        state["model.layers.1.mlp.up_proj.weight"] *= 1e20
        state["model.layers.1.mlp.down_proj.weight"] *= 1e20
        return state

    folder = with_weights(tiny_folders["llama"], tmp_path / "huge", grow)
    with pytest.raises(
        models.UnknownArchitectureError, match=r"layers\.1' puts out NaN or infinity"
    ):
        models.load(str(folder)).sites()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("share", [0.0, 0.6])
def test_a_damaged_file_of_a_model_is_named(tiny_folders, tmp_path, name, share):
    folder = shutil.copytree(tiny_folders["llama"], tmp_path / "damaged")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(models.ModelError, match=f"{name} is damaged or incomplete") as info:
        models.load(str(folder))
    assert str(folder) in str(info.value)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}", r"fails \(.*end of template"),
        ("{{ raise_exception('no user may speak') }}", r"fails \(no user may speak\)"),
        ("{{ messages[0].content + 1 }}", r"fails \("),
        ("{{ eos_token }}assistant:", "drops the user's message"),
    ],
)
def test_a_broken_chat_template_is_one_line(tiny_folders, tmp_path, capsys, template, message):
    folder = shutil.copytree(tiny_folders["llama"], tmp_path / "talker")
    (folder / "chat_template.jinja").write_text(template)
    command = ["scan", str(tmp_path / "ds"), "--task", "pathology", "--model", str(folder)]
    assert cli.main(command) == 2
    printed = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(f"chat template of model 'talker' in {folder} {message}", printed)


@pytest.mark.parametrize(("n_layers", "n_lacking"), [(3, 0), (2, 9)])
def test_weights_that_a_gguf_file_lacks_are_known(tmp_path, n_layers, n_lacking):
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    numbers = {"block_count": 3, "context_length": 64, "embedding_length": 8, "vocab_size": 32}
    numbers |= {"feed_forward_length": 16, "attention.head_count": 2, "attention.head_count_kv": 2}
    for key, value in numbers.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    square = {f"attn_{name}": (8, 8) for name in ("q", "k", "v", "output")}
    norms = {"attn_norm": (8,), "ffn_norm": (8,)}
    layer = {**square, **norms, "ffn_gate": (16, 8), "ffn_up": (16, 8), "ffn_down": (8, 16)}
    shapes = {"token_embd": (32, 8), "output_norm": (8,), "output": (32, 8)}
    shapes |= {f"blk.{i}.{name}": shape for i in range(n_layers) for name, shape in layer.items()}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with loading.quiet():
        auto = transformers.AutoModelForCausalLM
        _, lacking = loading.read(auto, str(tmp_path), gguf_file="tiny.gguf")
    assert len(lacking) == n_lacking
    assert all(name.startswith("model.layers.2.") for name in lacking)
