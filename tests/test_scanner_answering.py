"""Answers against transformers' own greedy generation."""

from __future__ import annotations

import pytest
import torch

from llm2nifti import models
from llm2nifti.scanner import ScanError
from llm2nifti.scanner.answering import answer


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
