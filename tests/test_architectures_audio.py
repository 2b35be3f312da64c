"""Whisper and wav2vec2 against a naive recorder: one sound at a time, plain transformers, hooks."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import transformers
from scipy.io import wavfile
from scipy.signal import resample_poly
from test_architectures import assert_equal_by_site, hooked, scan

from llm2nifti import bids, cli, geometry, models, paradigm, scanner, stimuli
from llm2nifti.recording import Recording

START = [1, 3, 5, 6]  # start, English, transcribe, no time stamps
KINDS = ("whisper", "wav2vec2")
READ = "heads,norms,q,k,v"


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Stimuli of tones and noise."""
    return stimuli.load(tiny.play_sounds(tmp_path_factory.mktemp("sounds"), n=12))


@pytest.fixture(scope="module")
def heard(tiny_folders, tmp_path_factory):
    """Folder and loaded model by kind, each once; ``large`` is wav2vec2 as its large models are."""
    base = tmp_path_factory.mktemp("heard")

    @cache
    def get(kind):
        folder = tiny_folders[kind] if kind in KINDS else base / kind
        if kind == "large":
            large = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
            tiny.save(folder, "wav2vec2", **large)
        if kind == "moonshine":
            save_moonshine(folder)
        return folder, models.load(str(folder))

    return get


def save_moonshine(folder):
    """A model of speech that pads no sound to a fixed length."""
    tiny._save_tokenizer(folder, "moonshine")
    parts = {f"{part}_num_hidden_layers": 2 for part in ("encoder", "decoder")}
    parts |= {f"{part}_num_attention_heads": 3 for part in ("encoder", "decoder")}
    ids = {"vocab_size": 400, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 0}
    config = transformers.MoonshineConfig(
        **parts, **ids, hidden_size=24, intermediate_size=40, decoder_start_token_id=1
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        transformers.MoonshineForConditionalGeneration(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)


@pytest.fixture
def design(sounds):
    return paradigm.blocks("tones", table=sounds, n_blocks=1, trials_per_block=4, n_frames=3)


def alone(model, result, trial):
    """Features of one sound, made by transformers' own extractor of the file itself."""
    rate, samples = wavfile.read(result.paradigm.trials["audio"].iloc[trial])
    samples = resample_poly(samples / 32_768, 16_000, rate).astype(np.float32)
    extracted = model.processor(samples, sampling_rate=16_000, return_tensors="pt")
    return extracted, len(samples)


def n_positions(kind, n_samples):
    """Tokens of a sound: strides of 2 of frames of 10 ms, or the strides of three convolutions."""
    if kind == "whisper":
        return (-(-n_samples // 160) - 1) // 2 + 1
    for kernel, stride in ((10, 5), (8, 4), (4, 4)):
        n_samples = (n_samples - kernel) // stride + 1
    return n_samples


def plain(kind, folder):
    """The model as transformers itself loads it."""
    name = "WhisperForConditionalGeneration" if kind == "whisper" else "Wav2Vec2Model"
    return getattr(transformers, name).from_pretrained(folder).eval()


@pytest.mark.parametrize("kind", [*KINDS, "large"])
@pytest.mark.parametrize(
    ("sites", "frames"), [("default", "trial"), ("all", "token"), (READ, "last"), ("all", "trial")]
)
def test_reading_sounds_equals_one_pass_a_sound(heard, design, kind, sites, frames):
    folder, model = heard(kind)
    module = plain(kind, folder)
    result = scan(model, design, mode="read", sites=sites, frames=frames, batch_size=8)
    run = module.get_encoder() if kind == "whisper" else module
    reduce = {"trial": lambda v: v.mean(0, keepdim=True), "last": lambda v: v[-1:]}
    for trial, found in enumerate(result.trials()):
        inputs, n_samples = alone(model, result, trial)
        expected = np.empty_like(found)
        for site, value in hooked(module, result.brain, lambda i=inputs: run(**i)):
            rows = value.reshape(-1, site.n_units)[: n_positions(kind, n_samples)]
            expected[:, result.brain.slice_of(site)] = reduce.get(frames, lambda v: v)(rows)
        for site in result.brain.sites:
            part = result.brain.slice_of(site)
            norm = np.maximum(np.linalg.norm(expected[:, part], axis=1), 1e-3)
            error = np.linalg.norm(found[:, part] - expected[:, part], axis=1) / norm
            assert error.max() <= 1e-4, site
    assert result.values.std(axis=0).max() > 0


@pytest.mark.parametrize("sites", ["default", "all", f"cross_heads,{READ}"])
def test_generating_from_sounds_equals_the_naive_recorder(tiny_folders, tiny_models, design, sites):
    model, module = tiny_models("whisper"), plain("whisper", tiny_folders["whisper"])
    result = scan(model, design, sites=sites, batch_size=4)
    assert {s.module.split(".")[1] for s in result.brain.sites} == {"decoder"}
    tokens = [list(t) for _, t in result.tokens.groupby("trial")["token_id"]]
    expected = np.empty((len(tokens), 3, result.brain.n_units), np.float32)
    for trial, given in enumerate(tokens):
        inputs, _ = alone(model, result, trial)
        for t in range(3):
            ids = torch.tensor([[*START, *given[:t]]])
            got = []

            def run(ids=ids, inputs=inputs, got=got):
                got.append(module(**inputs, decoder_input_ids=ids, use_cache=False).logits)

            for site, value in hooked(module, result.brain, run):
                part = result.brain.slice_of(site)
                expected[trial, t, part] = value.reshape(-1, site.n_units)[-1]
            logits = got[0][0, -1]
            assert logits[given[t]] > logits.max() - 1e-3  # rounding may decide between two
    assert_equal_by_site(result, result.by_trial(), expected)


def test_sounds_of_different_lengths_are_generated_from_alone(heard, design):
    model = heard("moonshine")[1]
    with pytest.raises(scanner.ScanError, match=r"of different shapes .* use batch_size=1"):
        scan(model, design)
    result = scan(model, design, batch_size=1)
    inputs, _ = alone(model, result, 0)
    given = list(result.tokens.loc[result.tokens["trial"] == 0, "token_id"])
    with torch.no_grad():
        ids = torch.tensor([[1, *given[:-1]]])
        logits = model.module(**inputs, decoder_input_ids=ids).logits[0]
    assert all(row[token] > row.max() - 1e-3 for row, token in zip(logits, given, strict=True))


def test_forcing_the_tokens_of_sounds_gives_the_same_values(tiny_models, design):
    model = tiny_models("whisper")
    first = scan(model, design)
    tokens = [list(t) for _, t in first.tokens.groupby("trial")["token_id"]]
    again = scanner.scan(model, design, replay=tokens, on_trials=lambda _n: None)
    np.testing.assert_allclose(again.values, first.values, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_blocks_that_hear_are_established(tiny_models, kind):
    for stack in tiny_models(kind).anatomy.stacks:
        for block in stack.blocks:
            roles = {"attn", "cross", "mlp"} if stack.name == "decoder" else {"attn", "mlp"}
            assert set(block.parts) == set(block.projections) == roles


def test_an_untrained_copy_begins_with_the_same_tokens(tiny_folders, tiny_models):
    untrained = models.load(str(tiny_folders["whisper"]), untrained=True)
    assert tiny_models("whisper").decoder_start() == untrained.decoder_start() == START


def test_language_and_task_are_those_of_the_generation_config(tiny_folders, tmp_path):
    shutil.copytree(tiny_folders["whisper"], tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({**kept, "language": "de", "task": "translate"}))
    assert models.load(str(tmp_path / "model")).decoder_start() == [1, 2, 4, 6]
    path.write_text(json.dumps({**kept, "language": "xx"}))
    with pytest.raises(models.ModelError, match=r"no language '<\|xx\|>'; use one of <\|de\|>"):
        models.load(str(tmp_path / "model")).decoder_start()


@pytest.mark.parametrize(
    ("kind", "seconds", "message"),
    [
        ("whisper", 1.5, r"'tones-000\d' lasts 1.50 s.*reads at most 1 s"),
        ("wav2vec2", 0.002, r"'tones-000\d' is too short .0.002 s"),
    ],
)
def test_sounds_that_do_not_fit_the_model_are_all_named(
    tiny_models, tmp_path, kind, seconds, message
):
    folder = tiny.play_sounds(tmp_path, n=4)
    for path in sorted(folder.glob("tone-*.wav")):
        wavfile.write(path, 16_000, np.ones(int(16_000 * seconds), np.int16))
    table = stimuli.load(folder)
    design = paradigm.blocks("tones", table=table, n_blocks=1, trials_per_block=2)
    with pytest.raises(scanner.ScanError, match=message) as error:
        scanner.check(tiny_models(kind), design, scanner.Settings(mode="read"))
    assert "2 sounds do not fit" in str(error.value)
    assert all(
        repr(name) in str(error.value) for name in design.trials["stim_id"] if "tone" in name
    )


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("llama", {}, "reads no sounds; show it prompts, or use an audio model"),
        ("vit", {}, "reads no sounds"),
        ("wav2vec2", {"mode": "generate"}, "generates nothing; use mode='read'"),
        ("wav2vec2", {"frames": "word"}, "sounds have no words"),
    ],
)
def test_sounds_that_cannot_be_shown_so_are_refused(tiny_models, design, kind, settings, message):
    with pytest.raises(scanner.ScanError, match=message):
        scan(tiny_models(kind), design, **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_sounds_read_no_prompts(tiny_models, kind):
    design = paradigm.blocks("pathology", n_blocks=1, trials_per_block=2)
    with pytest.raises(scanner.ScanError, match=r"reads sounds only; .*columns task and audio"):
        scan(tiny_models(kind), design)
    with pytest.raises(models.ModelError, match="reads sounds only, no text"):
        tiny_models(kind).encode(["a prompt"], rendered=False)


def test_images_are_refused_by_models_of_sounds(tiny_models, image_table):
    design = paradigm.blocks("discs", table=image_table, n_blocks=1, trials_per_block=2)
    with pytest.raises(scanner.ScanError, match="reads no images"):
        scan(tiny_models("whisper"), design)


@pytest.mark.parametrize("frames", ["trial", "token"])
@pytest.mark.parametrize("kind", KINDS)
def test_recorded_sounds_are_valid_bids_and_kept_with_the_dataset(
    tiny_models, design, tmp_path, validate, kind, frames
):
    recording = scan(tiny_models(kind), design, mode="read", frames=frames)
    assert isinstance(recording, Recording)
    bids.write(recording, tmp_path / "ds")
    validate(tmp_path / "ds")
    run = bids.read(tmp_path / "ds", task="tones")
    for name, sound in zip(run.events["stim_file"], design.trials["audio"], strict=True):
        assert (tmp_path / "ds" / "stimuli" / name).read_bytes() == Path(sound).read_bytes()
    assert run.sidecar["Stimuli"] == "sounds"
    assert "Blocks of sounds of tones" in run.sidecar["TaskDescription"]
    values = geometry.from_img(run.brain, run.img)
    np.testing.assert_allclose(values, recording.trial_means(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_run_works_from_a_folder_of_sounds_to_the_report(tiny_folders, tmp_path, validate, kind):
    folder, root = tiny.play_sounds(tmp_path / "sounds", n=40), tmp_path / "ds"
    size = ["--n-runs", "2", "--n-blocks", "2", "--trials-per-block", "4", "--n-frames", "2"]
    options = ["--model", str(tiny_folders[kind]), "--stimuli", str(folder), "--n-null", "20"]
    assert cli.main(["run", str(root), *options, *size, "--quiet"]) == 0
    validate(root)
    page = (root / bids.DERIVATIVES / "report.html").read_text("utf-8")
    assert "A model was shown sounds in a" in page
    assert "read sound." in page
