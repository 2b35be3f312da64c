"""Every architecture against a naive recorder: one prompt at a time, step by step, no cache."""

from __future__ import annotations

import inspect
from pathlib import Path

import architectures_table
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from llm2nifti import models, paradigm, scanner
from llm2nifti.hooks import Point
from llm2nifti.models import weights
from llm2nifti.models.points import tapped

KINDS = (*tiny.CONFIGS, *tiny.FURTHER)
GENERATING = [kind for kind in KINDS if kind not in ("bert", "vit", "xlnet", "clip")]
READING = [kind for kind in KINDS if kind not in ("vit", "llava")]  # CLIP's text tower, too
FINER = {
    "mixtral": "heads,q,k,v,norms,router",
    "mamba": "mixer_hidden,norms",
    "t5": "heads,mlp_hidden,cross_heads,q,k,v,norms",
    "falcon_h1": "heads,mlp_hidden,mixer_hidden,q,k,v,norms",
    "rwkv": "heads,norms",
    "gemma3n_text": "embed,resid,norms,norm",
    **dict.fromkeys(("gpt2", "gpt_neox", "falcon", "bloom"), "heads,mlp_hidden,norms"),
}


def scan(model, design, **settings):
    settings = scanner.Settings(**settings)
    return scanner.scan(model, design, settings=settings, on_trials=lambda _n: None)


def design_of(kind, image_table, **sizes):
    sizes = {"n_blocks": 1, "trials_per_block": 2, "n_frames": 3, **sizes}
    if kind in ("vit", "llava", "clip") and image_table is not None:
        return paradigm.blocks("discs", table=image_table, **sizes)
    return paradigm.blocks("pathology", **sizes)


def hooked(module, brain, run):
    """Tensors of all sites in one pass, with hooks written by hand."""
    seen, handles = {}, []
    names = dict(module.named_modules())
    for site in brain.sites:

        def keep(value, key=(site.module, site.where)):
            value = value[0] if isinstance(value, tuple) else value
            value = value.movedim(0, 2).flatten(2) if value.ndim == 4 else value  # copies first
            seen[key] = value.detach().float().clone()

        owner = names[site.module]
        if site.where == "input":
            handles.append(owner.register_forward_pre_hook(lambda _m, a, f=keep: f(a)))
        else:
            handles.append(owner.register_forward_hook(lambda _m, _a, out, f=keep: f(out)))
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return [(site, seen[site.module, site.where]) for site in brain.sites]


def alone(model, result, trial):
    """Inputs of one trial, batch of one, made by transformers' own objects."""
    images = result.paradigm.trials.get("image")
    if images is None:
        return model.tokenizer([result.rendered[trial]], return_tensors="pt")
    image = Image.open(images.iloc[trial]).convert("RGB")
    if model.kind == "vision" or not result.rendered[trial]:
        return model.processor(images=[image], return_tensors="pt")
    return model.processor(images=[image], text=[result.rendered[trial]], return_tensors="pt")


def naive_frame(model, result, trial, tokens):
    """(n_units,) last position of one pass over the prompt and the tokens so far."""
    inputs, given = dict(alone(model, result, trial)), torch.tensor([tokens], dtype=torch.int64)
    if model.kind == "seq2seq":
        inputs["decoder_input_ids"] = torch.cat([torch.zeros((1, 1), dtype=torch.int64), given], 1)
    else:
        inputs["input_ids"] = torch.cat([inputs["input_ids"], given], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs.pop("token_type_ids", None)
    frame = np.empty(result.brain.n_units, np.float32)
    for site, value in hooked(
        model.module, result.brain, lambda: model.module(**inputs, use_cache=False)
    ):
        frame[result.brain.slice_of(site)] = value.reshape(-1, site.n_units)[-1].numpy()
    return frame


def assert_equal_by_site(result, found, expected):
    """Per volume and site |d| / |ref| <= 1e-4."""
    for site in result.brain.sites:
        part = result.brain.slice_of(site)
        norm = np.maximum(np.linalg.norm(expected[..., part], axis=-1), 1e-3)
        error = np.linalg.norm(found[..., part] - expected[..., part], axis=-1) / norm
        assert error.max() <= 1e-4, site
    assert expected.std(axis=tuple(range(expected.ndim - 1))).max() > 0


@pytest.mark.parametrize("kind", GENERATING)
@pytest.mark.parametrize("sites", ["default", "all", "finer"])
def test_generating_equals_the_naive_recorder(tiny_models, image_table, kind, sites):
    model = tiny_models(kind)
    is_finer = sites == "finer" or (sites == "default" and kind in tiny.BY_NAME)
    spec = FINER.get(kind, "heads,mlp_hidden,q,k,v,norms") if is_finer else sites
    size = 1 if kind == "rwkv" else 3  # it reads padding
    result = scan(model, design_of(kind, image_table), sites=spec, batch_size=size)
    tokens = [list(t) for _, t in result.tokens.groupby("trial")["token_id"]]
    expected = np.stack(
        [
            [naive_frame(model, result, i, some[:t]) for t in range(len(some))]
            for i, some in enumerate(tokens)
        ]
    )
    assert_equal_by_site(result, result.by_trial(), expected)


@pytest.mark.parametrize("kind", [k for k in tiny.CONFIGS if k in GENERATING and k != "llama"])
def test_forcing_the_same_tokens_gives_the_same_values(tiny_models, image_table, kind):
    model, design = tiny_models(kind), design_of(kind, image_table)
    first = scan(model, design)
    tokens = [list(t) for _, t in first.tokens.groupby("trial")["token_id"]]
    again = scanner.scan(model, design, replay=tokens, on_trials=lambda _n: None)
    np.testing.assert_allclose(again.values, first.values, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", READING)
def test_reading_tokens_equals_one_pass_a_prompt(tiny_models, kind):
    model = tiny_models(kind)
    result = scan(model, design_of(kind, None), mode="read", frames="token", sites="all")
    run = model.module.get_encoder() if kind == "t5" else model.module
    run = run.text_model if kind == "clip" else run
    for trial, found in enumerate(result.trials()):
        inputs = alone(model, result, trial)
        inputs.pop("token_type_ids", None)
        expected = np.empty_like(found)
        for site, value in hooked(model.module, result.brain, lambda i=inputs: run(**i)):
            rows = value.reshape(-1, site.n_units).numpy()
            assert len(rows) == len(found)
            expected[:, result.brain.slice_of(site)] = rows
        assert_equal_by_site(result, found, expected)


@pytest.mark.parametrize("kind", ["vit", "llava"])
def test_reading_images_equals_one_pass_an_image(tiny_models, image_table, kind):
    model = tiny_models(kind)
    result = scan(model, design_of(kind, image_table), mode="read", sites="all", batch_size=3)
    assert {s.name for s in model.stacks("read", has_image=True)} == (
        {""} if kind == "vit" else {"vision_tower", "language_model"}
    )
    expected = np.empty_like(result.values)
    for trial in range(len(expected)):
        inputs = alone(model, result, trial)
        for site, value in hooked(model.module, result.brain, lambda i=inputs: model.module(**i)):
            mean = value.reshape(-1, site.n_units).mean(dim=0).numpy()
            expected[trial, result.brain.slice_of(site)] = mean
    assert_equal_by_site(result, result.values, expected)


@pytest.mark.parametrize("frames", ["trial", "last"])
@pytest.mark.parametrize("has_text", [True, False])
def test_both_towers_read_what_is_shown(tiny_models, image_table, has_text, frames):
    """CLIP: an image and its text side by side, texts of different lengths; or images alone."""
    model, table = tiny_models("clip"), image_table.copy()
    if has_text:
        table["prompt"] = [f"picture {'of this ' * (i % 4)}{i}" for i in range(len(table))]
    design = design_of("clip", table, trials_per_block=3)
    result = scan(model, design, mode="read", sites="all", frames=frames)
    towers = {site.module.split(".")[0] for site in result.brain.sites}
    assert towers == ({"vision_model", "text_model"} if has_text else {"vision_model"})
    run = model.module if has_text else model.module.get_image_features
    expected = np.empty_like(result.values)
    for trial in range(len(expected)):
        inputs = alone(model, result, trial)
        for site, value in hooked(model.module, result.brain, lambda i=inputs: run(**i)):
            rows = value.reshape(-1, site.n_units)
            row = rows[-1] if frames == "last" else rows.mean(dim=0)
            expected[trial, result.brain.slice_of(site)] = row
    assert_equal_by_site(result, result.values, expected)
    with pytest.raises(scanner.ScanError, match="generates nothing; use mode='read'"):
        scan(model, design, mode="generate")


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("bert", *tiny.BY_NAME)])
def test_parts_add_up_to_the_change_of_the_stream(tiny_models, kind):
    for stack in tiny_models(kind).anatomy.stacks:
        for block in stack.blocks:
            assert not block.problem
            assert block.parts
    model = tiny_models(kind)
    if kind in ("vit", "llava"):
        return
    mode = "generate" if "generate" in model.modes() else "read"
    result = scan(model, design_of(kind, None), mode=mode, batch_size=1)
    scales = model.stacks(mode)[-1].blocks[0].scales
    part = {
        (s.layer, s.name): result.values[:, result.brain.slice_of(s)] * scales.get(s.name, 1)
        for s in result.brain.sites
    }
    layers = range(2, len(model.stacks(mode)[-1].blocks) + 1)
    for layer in layers:
        added = sum(v for (n, name), v in part.items() if n == layer and name != "resid")
        change = part[layer, "resid"] - part[layer - 1, "resid"]
        np.testing.assert_allclose(added, change, rtol=1e-3, atol=2e-3)


def test_a_text_beside_an_image_that_is_too_long_is_refused(tiny_models, image_table):
    table = image_table.assign(prompt=[f"{'so ' * 200}{i}" for i in range(len(image_table))])
    with pytest.raises(scanner.ScanError, match="reads at most 128"):
        scan(tiny_models("clip"), design_of("clip", table))


def test_multipliers_are_those_of_the_config(tiny_models):
    for kind, expected in {
        "granite": {"attn": 0.22, "mlp": 0.22},
        "falcon_h1": {"attn": 0.7, "mixer": 1.3, "mlp": 1.0},
    }.items():
        for block in tiny_models(kind).anatomy.stacks[0].blocks:
            assert dict(block.scales) == pytest.approx(expected, abs=1e-4)
        assert tiny_models(kind).anatomy.stacks[0].blocks[0].projections.keys() == expected.keys()


def test_a_stream_with_the_tokens_first_comes_in_the_usual_order(tiny_models):
    """XLNet: batches of several trials, against one pass a prompt; and edits of one trial alone."""
    model = tiny_models("xlnet")
    assert model.modes() == ("read",)
    result = scan(
        model, design_of("xlnet", None), sites="regex:.*layer_1|.*layer.1", frames="trial"
    )
    expected = np.empty_like(result.values)
    for trial in range(len(expected)):
        inputs = alone(model, result, trial)
        for site, value in hooked(model.module, result.brain, lambda i=inputs: model.module(**i)):
            expected[trial, result.brain.slice_of(site)] = value[:, 0].mean(dim=0)
    assert_equal_by_site(result, result.values, expected)
    inputs = model.tokenizer(["one two", "one two"], return_tensors="pt")
    name = model.anatomy.stacks[0].blocks[0].name
    with (
        torch.no_grad(),
        tapped(model, [Point(name)], lambda _p, x: x * torch.tensor([0.0, 1.0])[:, None, None]),
    ):
        edited = model.module(**inputs).logits
    with torch.no_grad():
        plain = model.module(**inputs).logits
    torch.testing.assert_close(edited[1], plain[1])
    assert (edited[0] - plain[0]).abs().max() > 1e-3


def test_parts_of_a_post_norm_model_are_what_its_norms_read(tiny_models):
    model = tiny_models("bert")
    result = scan(model, design_of("bert", None), sites="default", frames="token")
    part = {
        (s.layer, s.name): result.values[:, result.brain.slice_of(s)] for s in result.brain.sites
    }
    block = model.module.encoder.layer[1]
    with torch.no_grad():
        stream = torch.from_numpy(part[1, "resid"])
        middle = block.attention.output.LayerNorm(stream + torch.from_numpy(part[2, "attn"]))
        end = block.output.LayerNorm(middle + torch.from_numpy(part[2, "mlp"]))
    np.testing.assert_allclose(end, part[2, "resid"], rtol=1e-3, atol=1e-4)


def test_single_experts_are_zero_where_a_token_was_not_routed(tiny_models):
    model = tiny_models("mixtral")
    before = model.module.config._experts_implementation
    result = scan(model, design_of("mixtral", None), mode="read", frames="token", sites="experts")
    assert model.module.config._experts_implementation == before
    assert not any(n.endswith("experts.units") for n, _ in model.module.named_modules())
    ids = model.tokenizer([result.rendered[0]], return_tensors="pt")
    found = next(result.trials())
    for layer, block in enumerate(model.module.model.layers):
        seen = []
        handle = block.mlp.register_forward_pre_hook(lambda _m, a: seen.append(a[0][0]))  # noqa: B023
        with torch.no_grad():
            model.module(**ids)
        handle.remove()
        experts, gate = block.mlp.experts, block.mlp.gate
        site = result.brain.sites[layer]
        units = found[:, result.brain.slice_of(site)].reshape(len(found), 4, 40)
        for token, x in enumerate(seen[0]):
            chosen = torch.topk(gate.weight @ x, 2).indices.tolist()
            for expert in range(4):
                a, b = (experts.gate_up_proj[expert] @ x).chunk(2)
                expected = torch.nn.functional.silu(a) * b if expert in chosen else torch.zeros(40)
                np.testing.assert_allclose(
                    units[token, expert], expected.detach(), rtol=1e-3, atol=1e-4
                )


@pytest.mark.parametrize(
    ("kind", "layout"),
    [("gpt2", "contiguous"), ("gpt_neox", "interleaved"), ("falcon", "contiguous")],
)
def test_declared_split_gives_what_attention_gets(tiny_models, monkeypatch, kind, layout):
    model, got = tiny_models(kind), []
    real = torch.nn.functional.scaled_dot_product_attention

    def spy(q, k, v, *args, **kwargs):
        got.append((q, k, v))
        return real(q, k, v, *args, **kwargs)

    result = scan(
        model, design_of(kind, None), mode="read", frames="token", sites="q,k,v", fused_qkv=layout
    )
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    with torch.no_grad():
        model.module(**model.tokenizer([result.rendered[0]], return_tensors="pt"))
    found = next(result.trials())
    names = "v" if kind != "gpt2" else "qkv"  # the others rotate queries and keys in between
    for name in names:
        sites = [site for site in result.brain.sites if site.name == name]
        for site, call in zip(sites, got, strict=True):
            expected = call["qkv".index(name)][0]
            expected = expected[: site.n_units // expected.shape[-1]]  # shared heads are repeated
            expected = expected.transpose(0, 1).flatten(1)
            np.testing.assert_allclose(
                found[:, result.brain.slice_of(site)], expected, rtol=1e-3, atol=1e-4
            )


def test_fused_projection_without_a_declared_layout_is_refused(tiny_models):
    with pytest.raises(models.NoSuchSiteError, match="fused_qkv='contiguous' or 'interleaved'"):
        tiny_models("bloom").sites("q")
    with pytest.raises(models.FusedError, match="layout is 'sideways'"):
        tiny_models("bloom").sites("q", fused_qkv="sideways")


def test_a_missing_site_is_named_with_those_that_are_there(tiny_models):
    with pytest.raises(models.NoSuchSiteError, match="no 'mlp'; its blocks have resid, mixer"):
        tiny_models("mamba").sites("mlp")
    with pytest.raises(models.NoSuchSiteError, match="no 'mlp_hidden'"):
        tiny_models("mixtral").sites("mlp_hidden")


@pytest.mark.parametrize("kind", ["mixtral", "gemma3_text", "bert", "t5"])
def test_weight_norms_of_what_is_added_are_those_of_the_projection(tiny_models, kind):
    model = tiny_models(kind)
    sites = model.sites("mlp", mode="read")
    block = model.stacks("read")[0].blocks[0]
    if kind == "mixtral":
        weight = model.module.model.layers[0].mlp.experts.down_proj.detach()
        expected = weight.pow(2).sum(dim=(0, 2)).sqrt()
    else:
        expected = model.module.get_submodule(block.projections["mlp"]).weight.detach().norm(dim=1)
    norms = weights.weight_norms(model.module, model.stacks("read"), sites[:1])
    np.testing.assert_allclose(norms, expected, rtol=1e-5)


def test_galactica_at_its_full_shape_has_the_measured_units():
    import transformers

    config = transformers.OPTConfig(
        num_hidden_layers=12,
        hidden_size=768,
        ffn_dim=3072,
        num_attention_heads=12,
        vocab_size=50000,
        word_embed_proj_dim=768,
    )
    with torch.device("meta"):
        shape = transformers.OPTForCausalLM(config)
    assert sum(p.numel() for p in shape.parameters()) > 120e6
    module = transformers.OPTForCausalLM(config).eval()
    anatomy = models.anatomy.dissect(module)
    found = models.sites.find_sites(module, anatomy.stacks, "resid")
    assert sum(site.n_units for site in found) == 9216
    leaves = models.sites.find_sites(module, anatomy.stacks, "all")
    assert sum(site.n_units for site in leaves if site.where == "output") == 140544
    assert "use_cache" in inspect.signature(module.forward).parameters


def test_the_page_of_architectures_is_what_the_code_finds():
    page = Path(__file__).parent.parent / "docs" / "architectures.md"
    assert page.read_text("utf-8") == architectures_table.page(), (
        "run: python tests/architectures_table.py > docs/architectures.md"
    )
