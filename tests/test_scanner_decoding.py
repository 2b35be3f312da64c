"""Answers against transformers' own greedy generation."""

from __future__ import annotations

import pytest
import tiny
import torch
from test_scanner import scan, small_design

from llm2nifti import models, paradigm, stimuli
from llm2nifti.scanner import ScanError, answer
from llm2nifti.scanner.likelihood import dialogues


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mamba", "mixtral"])
def test_equals_the_argmax_step_by_step(tiny_folders, kind):
    model = models.load(str(tiny_folders[kind]))
    ids = model.tokenizer("What is an ant?")["input_ids"]
    n_prompt, end = len(ids), model.module.generation_config.eos_token_id
    for _ in range(6):
        with torch.no_grad():
            token = int(model.module(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token)
        if token == end:
            break
    expected = model.tokenizer.decode(ids[n_prompt:], skip_special_tokens=True)
    assert answer(model, "What is an ant?", n_tokens=6) == expected
    assert expected


def test_an_encoder_decoder_answers(tiny_folders):
    model = models.load(str(tiny_folders["t5"]))
    found = answer(model, "What is an ant?", n_tokens=4)
    inputs = model.tokenizer(["What is an ant?"], return_tensors="pt")
    out = model.module.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert found == model.tokenizer.decode(out[0], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("kind", "prompt", "n_tokens", "message"),
    [
        ("bert", "a", 3, "does not generate"),
        ("llama", "a", 0, "n-tokens is 0"),
        ("llama", "", 3, "has no token"),
        ("llama", "ant " * 200, 3, "reads at most 128"),
    ],
)
def test_what_cannot_be_answered_is_said(tiny_folders, kind, prompt, n_tokens, message):
    with pytest.raises(ScanError, match=message):
        answer(models.load(str(tiny_folders[kind])), prompt, n_tokens=n_tokens)


def begins_with(model, act):
    """Tokens that the decoder gets first in whatever is done."""
    seen = []
    assert model.anatomy  # from probes, ahead of what is done

    def note(_module, _args, kwargs):
        seen.append(kwargs["input_ids"][0].tolist())

    hook = model.module.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    act()
    hook.remove()
    return seen[0]


# What generation_config.json says, then the config, then the padding token, then the end token.
@pytest.mark.parametrize(
    ("said", "configured", "padding", "expected"),
    [(5, 6, 7, 5), (None, 6, 7, 6), (None, None, 7, 7), (None, None, None, 0)],
)
def test_a_decoder_begins_alike_in_scans_answers_and_likelihoods(
    tiny_folders, said, configured, padding, expected
):
    model = models.load(str(tiny_folders["t5"]))
    model.module.generation_config.decoder_start_token_id = said
    model.module.config.decoder_start_token_id = configured
    model.tokenizer.pad_token_id = padding
    design = small_design(n_frames=2)
    n_trials = len(design.trials)
    forced = [[9, 10]] * n_trials
    assert begins_with(model, lambda: scan(model, design)) == [expected]
    assert begins_with(model, lambda: scan(model, design, replay=forced)) == [expected, 9]
    assert begins_with(model, lambda: answer(model, "Hm", n_tokens=2)) == [expected]
    assert dialogues(model, ["Hm"], [[9, 10]])[0].ids == (expected, 9, 10)


def test_a_model_of_speech_begins_alike_when_it_generates_and_when_it_is_forced(
    tiny_models, tmp_path
):
    model, table = tiny_models("whisper"), stimuli.load(tiny.play_sounds(tmp_path, n=12))
    design = paradigm.blocks("tones", table=table, n_blocks=1, trials_per_block=2, n_frames=2)
    forced = [[9, 10]] * len(design.trials)
    assert begins_with(model, lambda: scan(model, design)) == [1, 3, 5, 6]
    assert begins_with(model, lambda: scan(model, design, replay=forced)) == [1, 3, 5, 6, 9]


def test_tokens_that_end_a_text_are_never_generated_in_a_scan(tiny_folders):
    model = models.load(str(tiny_folders["llama"]))
    design = small_design(n_frames=4)
    ends = sorted(set(scan(model, design).tokens["token_id"]))[:3]
    model.module.generation_config.eos_token_id = ends
    recording = scan(model, design)
    assert not set(recording.tokens["token_id"]) & set(ends)
    ids = model.tokenizer(recording.rendered[0], return_tensors="pt").input_ids
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    expected = model.module.generate(ids, **options)[0, ids.shape[1] :]
    found = recording.tokens["token_id"][recording.tokens["trial"] == 0]
    assert list(found) == expected.tolist()
