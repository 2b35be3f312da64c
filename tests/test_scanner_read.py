"""Reading: what counts as a frame, and reduction of trials on the device."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import transformers
from PIL import Image

from llm2nifti import geometry, models, paradigm, scanner, stimuli
from llm2nifti.plans import PlanError


def small_design(n_frames=4):
    return paradigm.blocks("pathology", n_blocks=2, trials_per_block=2, n_frames=n_frames)


def scan(model, design, **settings):
    settings = scanner.Settings(**settings)
    return scanner.scan(model, design, settings=settings, on_trials=lambda _n: None)


def token_texts(model, text):
    """Texts of the tokens of a byte-level tokenizer, from its own vocabulary."""
    return model.tokenizer.convert_ids_to_tokens(model.tokenizer(text)["input_ids"])


def test_words_are_means_of_their_tokens(tiny_model):
    design = small_design()
    tokens = scan(tiny_model, design, mode="read", frames="token")
    words = scan(tiny_model, design, mode="read", frames="word")
    rows = zip(tokens.rendered, tokens.trials(), words.trials(), strict=True)
    for text, by_token, by_word in rows:
        pieces = token_texts(tiny_model, text)
        groups = np.cumsum([piece.startswith("Ġ") for piece in pieces])
        keep = np.array([piece.strip("Ġ") != "" for piece in pieces])  # lone spaces
        expected = [by_token[(groups == g) & keep].mean(axis=0) for g in np.unique(groups[keep])]
        assert len(by_word) == len(text.split())
        np.testing.assert_allclose(by_word, expected, rtol=1e-4, atol=1e-5)
    shown = words.tokens[words.tokens["trial"] == 0]["token"].str.strip()
    assert shown.tolist() == words.rendered[0].split()


def test_a_whole_stimulus_is_the_mean_or_the_last_of_its_tokens(tiny_model):
    design = small_design()
    tokens = scan(tiny_model, design, mode="read", frames="token")
    for frames, reduce in [("trial", lambda v: v.mean(axis=0)), ("last", lambda v: v[-1])]:
        whole = scan(tiny_model, design, mode="read", frames=frames)
        expected = [reduce(v) for v in tokens.trials()]
        np.testing.assert_allclose(whole.values, expected, rtol=1e-3, atol=1e-5)
        assert whole.paradigm.n_frames == 1
        assert (whole.paradigm.events["duration"] == 1).all()


def test_surprise_of_read_tokens_equals_that_of_the_logits(tiny_model):
    result = scan(tiny_model, small_design(), mode="read", frames="token")
    ids = tiny_model.tokenizer([result.rendered[1]], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        log_p = tiny_model.module(input_ids=ids).logits[0].double().log_softmax(-1)
    rows = result.tokens[result.tokens["trial"] == 1]
    assert rows["token_id"].tolist() == ids[0].tolist()
    assert np.isnan(rows["log_probability"].iloc[0])
    expected = log_p[:-1].gather(1, ids[0, 1:, None])[:, 0]
    np.testing.assert_allclose(rows["log_probability"].iloc[1:], expected, atol=1e-4)
    entropy = -(log_p.exp() * log_p).sum(-1)[:-1]
    np.testing.assert_allclose(rows["entropy"].iloc[1:], entropy, atol=1e-4)


def test_template_and_special_tokens_are_not_stimulus(real_model, tiny_folders):
    design = small_design()
    result = scan(real_model, design, mode="read", frames="word")
    first = result.tokens[result.tokens["trial"] == 0]["token"].str.strip()
    assert first.tolist() == design.trials["prompt"].iloc[0].split()
    assert "<|im_start|>" in result.rendered[0]
    model = models.load(str(tiny_folders["bert"]))
    from tokenizers.processors import TemplateProcessing

    wrap = TemplateProcessing(single="<end> $A <end>", special_tokens=[("<end>", 0)])
    model.tokenizer.backend_tokenizer.post_processor = wrap
    tokens = scan(model, design, mode="read", frames="token").tokens
    assert 0 not in set(tokens["token_id"])


def test_generated_trials_reduce_to_their_means(tiny_model):
    design = small_design()
    whole, reduced = scan(tiny_model, design), scan(tiny_model, design, frames="trial")
    np.testing.assert_allclose(reduced.values, whole.trial_means(), rtol=1e-4, atol=1e-5)
    assert reduced.t_r == 4 * whole.t_r
    assert len(reduced.values) == design.n_trials
    assert reduced.tokens.equals(whole.tokens)
    tokens = [list(t) for _, t in whole.tokens.groupby("trial")["token_id"]]
    settings = scanner.Settings(frames="trial")
    again = scanner.scan(
        tiny_model, design, settings=settings, replay=tokens, on_trials=lambda _n: None
    )
    np.testing.assert_allclose(again.values, reduced.values, rtol=1e-4, atol=1e-5)


def test_batches_and_their_order_do_not_change_what_is_read(tiny_model):
    design = small_design()
    for frames in ("word", "trial"):
        a = scan(tiny_model, design, mode="read", frames=frames, batch_size=64)
        b = scan(tiny_model, design, mode="read", frames=frames, batch_size=3)
        np.testing.assert_allclose(b.values, a.values, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("bert", {"mode": "generate"}, "generates nothing; use mode='read'"),
        ("vit", {}, "reads images only"),
        ("llama", {"mode": "dream"}, "mode is 'dream'"),
        ("llama", {"frames": "word", "mode": "generate"}, "frames is 'word'; in mode generate"),
        ("llama", {"frames": "word"}, "frames is 'word'"),
    ],
)
def test_what_cannot_be_shown_so_is_refused(tiny_folders, kind, settings, message):
    with pytest.raises((scanner.ScanError, PlanError), match=message):
        scan(models.load(str(tiny_folders[kind])), small_design(), **settings)


def test_images_are_refused_by_models_that_read_none(tiny_model, tmp_path):
    table = stimuli.load(tiny.draw_images(tmp_path, n=8))
    design = paradigm.blocks("discs", table=table, n_blocks=1, trials_per_block=2)
    with pytest.raises(scanner.ScanError, match="reads no images"):
        scan(tiny_model, design)


def test_patches_of_an_image_can_be_frames(tiny_folders, tmp_path):
    model = models.load(str(tiny_folders["vit"]))
    table = stimuli.load(tiny.draw_images(tmp_path, n=8))
    design = paradigm.blocks("discs", table=table, n_blocks=1, trials_per_block=2)
    tokens, whole = scan(model, design, frames="token"), scan(model, design)
    assert (tokens.counts == 17).all()  # 16 patches and one class token
    np.testing.assert_allclose(tokens.trial_means(), whole.values, rtol=1e-4, atol=1e-5)
    with pytest.raises(scanner.ScanError, match="images have no words"):
        scan(model, design, frames="word")


def test_an_image_has_as_many_patches_as_its_processor_leaves(tmp_path):
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=56, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "model")
    crop = {"height": 28, "width": 28}
    processor = transformers.BitImageProcessorPil(size={"shortest_edge": 28}, crop_size=crop)
    processor.save_pretrained(tmp_path / "model")
    table = stimuli.load(tiny.draw_images(tmp_path / "images", n=8))
    design = paradigm.blocks("discs", table=table, n_blocks=1, trials_per_block=2)
    result = scan(models.load(str(tmp_path / "model")), design, frames="token")
    assert (result.counts == 5).all()  # 4 patches and one class token


@pytest.fixture
def tiling_model(tiny_folders, tmp_path):
    """LLaVA-NeXT, which cuts an image into as many tiles as its shape asks for."""
    llava = transformers.LlavaConfig.from_pretrained(tiny_folders["llava"])
    grid = {"image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]]}
    parts = {"text_config": llava.text_config, "vision_config": llava.vision_config}
    config = transformers.LlavaNextConfig(
        **parts, image_token_index=llava.image_token_index, **grid
    )
    transformers.LlavaNextForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    crop = {"height": 32, "width": 32}
    images = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size=crop, **grid
    )
    transformers.LlavaNextProcessor(
        image_processor=images,
        tokenizer=transformers.AutoTokenizer.from_pretrained(tiny_folders["llava"]),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=tiny.IMAGE,
    ).save_pretrained(tmp_path / "model")
    return models.load(str(tmp_path / "model"))


def test_images_of_different_shapes_are_not_mixed_in_a_batch(tiling_model, tmp_path):
    table = stimuli.load(tiny.draw_images(tmp_path / "images", n=8))
    for i, image in enumerate(table["image"]):
        Image.open(image).resize([(60, 60), (60, 30), (30, 60)][i % 3]).save(image)
    design = paradigm.blocks("discs", table=table, n_blocks=1, trials_per_block=4)
    alone = scan(tiling_model, design, mode="read", batch_size=1)
    together = scan(tiling_model, design, mode="read")
    np.testing.assert_allclose(together.values, alone.values, rtol=1e-3, atol=1e-5)


def test_image_tables_are_checked(tmp_path):
    folder = tiny.draw_images(tmp_path / "images", n=4)
    table = stimuli.load(folder)
    assert set(table["task"]) == {"discs", "control"}
    assert (table["prompt"] == "").all()
    rows = pd.read_csv(folder / "stimuli.tsv", sep="\t")
    rows.loc[1, "image"] = "nowhere.png"
    rows.to_csv(folder / "stimuli.tsv", sep="\t", index=False)
    with pytest.raises(stimuli.StimulusError, match=r"row 3, 'nowhere\.png': no such file"):
        stimuli.load(folder)
    rows[rows["task"] == "discs"].to_csv(folder / "stimuli.tsv", sep="\t", index=False)
    with pytest.raises(stimuli.StimulusError):
        stimuli.load(folder)


def test_empty_prompt_has_nothing_to_read(tiny_model):
    design = small_design()
    trials = design.trials.copy()
    trials.loc[2, "prompt"] = "\u2003"
    with pytest.raises(scanner.ScanError, match="has no word to read"):
        scan(tiny_model, dataclasses.replace(design, trials=trials), mode="read", frames="word")


def test_the_head_is_read_where_it_is_asked_for(tiny_model):
    design = small_design()
    tokens = scan(tiny_model, design, mode="read", frames="token", sites="regex:lm_head")
    whole = scan(tiny_model, design, mode="read", frames="trial", sites="regex:lm_head")
    np.testing.assert_allclose(whole.values, tokens.trial_means(), rtol=1e-4, atol=1e-5)
    assert np.abs(whole.values).max() > 0


def test_a_site_that_is_not_called_is_an_error_and_not_zeros(tiny_model):
    out = np.zeros((1, 24), np.float32)
    site = geometry.Site("resid", 1, "model.layers.0", 24)
    sink = scanner.generating.Sink(tiny_model, geometry.layout([site]), [out])
    with pytest.raises(scanner.ScanError, match=r"'model.layers.0' was not called"):
        sink.finish()


@pytest.mark.parametrize("prompt", ["ant", "a", "user", " a dog "])
def test_a_prompt_is_found_where_the_template_puts_it(tiny_model, monkeypatch, prompt):
    template = "user: {{ messages[0]['content'] | trim }} <a>assistant"
    monkeypatch.setattr(tiny_model.tokenizer, "chat_template", template)
    design = small_design()
    design = dataclasses.replace(design, trials=design.trials.assign(prompt=prompt))
    stimulus = scanner.prepare(tiny_model, design, scanner.Settings(mode="read", frames="token"))
    encoded = tiny_model.tokenizer(stimulus.rendered[0], return_offsets_mapping=True)
    start = len("user: ")
    shown = range(start, start + len(prompt.strip()))
    expected = [
        [i] for i, (a, b) in enumerate(encoded["offset_mapping"]) if set(range(a, b)) & set(shown)
    ]
    assert stimulus.frames[0] == expected


@pytest.mark.parametrize("number", [1, 3])
def test_a_word_of_the_prompt_is_the_mean_of_its_tokens(tiny_model, number):
    design = small_design()
    words = scan(tiny_model, design, mode="read", frames="word")
    one = scan(tiny_model, design, at=f"word:{number}")
    expected = [trial[number - 1] for trial in words.trials()]
    np.testing.assert_allclose(one.values, expected, rtol=1e-4, atol=1e-5)
    assert one.info["Settings"]["at"] == f"word:{number}"
    assert one.info["Settings"]["mode"] == "read"


def test_a_marked_span_is_the_mean_of_its_tokens(tiny_model):
    design = small_design()
    prompts = design.trials["prompt"]
    spans = [" ".join(prompt.split()[1:3]) for prompt in prompts]
    marked = dataclasses.replace(design, trials=design.trials.assign(span=spans))
    tokens = scan(tiny_model, design, mode="read", frames="token")
    at_span = scan(tiny_model, marked, at="span")
    for trial, (values, text) in enumerate(zip(tokens.trials(), tokens.rendered, strict=True)):
        offsets = tiny_model.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        start = text.index(spans[trial])
        end = start + len(spans[trial])
        inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
        expected = values[inside].mean(axis=0)
        np.testing.assert_allclose(at_span.values[trial], expected, rtol=1e-4, atol=1e-5)


def test_the_last_token_can_be_asked_for_by_its_place(tiny_model):
    last, also = scanner.Settings(at="last"), scanner.Settings(mode="read", frames="last")
    assert last == also


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"at": "word:0"}, "must be last, span or word:N"),
        ({"at": "first"}, "must be last, span or word:N"),
        ({"at": "last", "mode": "generate"}, "needs mode read"),
        ({"at": "span", "frames": "token"}, "leave out frames"),
    ],
)
def test_parts_of_prompts_that_are_none_are_refused(settings, said):
    with pytest.raises(PlanError, match=said):
        scanner.Settings(**settings)


def test_parts_that_a_prompt_lacks_are_named(tiny_model):
    design = small_design()
    with pytest.raises(scanner.ScanError, match=r"word:99.*words; take another one"):
        scan(tiny_model, design, at="word:99")
    with pytest.raises(scanner.ScanError, match="needs a column span"):
        scan(tiny_model, design, at="span")
    marked = dataclasses.replace(design, trials=design.trials.assign(span="zebra"))
    with pytest.raises(scanner.ScanError, match="span 'zebra' is not in the prompt"):
        scan(tiny_model, marked, at="span")
