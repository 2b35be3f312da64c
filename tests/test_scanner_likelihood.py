"""Likelihoods against transformers' own loss, one text at a time."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from llm2nifti import geometry, interventions, models, networks
from llm2nifti.scanner import ScanError
from llm2nifti.scanner.likelihood import (
    Text,
    dialogues,
    log_likelihoods,
    read_beginning,
)

PROMPTS = ["What is an ant?", "Why is the sky blue, and what else is?", "Hm"]
ANSWERS = [[5, 6, 7], [9, 10, 11], [12, 13, 14]]


def by_loss(model, text):
    """Negative loss of transformers, with all labels but the scored ones ignored."""
    ids = torch.tensor([text.ids])
    labels = torch.full_like(ids, -100)
    scored = torch.tensor(text.scored)
    if model.kind == "seq2seq":  # transformers shifts the labels itself
        inputs = {"input_ids": torch.tensor([text.source])}
        labels = ids[:, 1:]
    else:
        inputs = {"input_ids": ids}
        labels[0, scored] = ids[0, scored]
    with torch.no_grad():
        return -float(model.module(**inputs, labels=labels).loss)


@pytest.mark.parametrize("kind", [k for k in tiny.CONFIGS if k not in ("bert", "vit")])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_equals_the_loss_of_transformers(tiny_folders, kind, batch_size):
    model = models.load(str(tiny_folders[kind]))
    texts = dialogues(model, PROMPTS, ANSWERS)
    found = log_likelihoods(model, texts, batch_size=batch_size)
    np.testing.assert_allclose(found, [by_loss(model, t) for t in texts], rtol=2e-4)
    assert len(set(found.round(3))) == 3


def test_prompt_and_answer_count_and_the_template_does_not(tiny_model, monkeypatch):
    template = "{% for m in messages %}<q>{{ m.content }}</q><a>{% endfor %}"
    monkeypatch.setattr(tiny_model.tokenizer, "chat_template", template, raising=False)
    text = dialogues(tiny_model, ["What is an ant?"], [[5, 6]])[0]
    decode = tiny_model.tokenizer.decode
    assert decode([text.ids[i] for i in text.scored[:-2]]).strip() == "What is an ant?"
    assert [text.ids[i] for i in text.scored[-2:]] == [5, 6]
    assert decode(text.ids[: text.scored[0]]).strip() == "<q>"
    found = log_likelihoods(tiny_model, [text, text])
    np.testing.assert_allclose(found, [by_loss(tiny_model, text)] * 2, rtol=1e-4)


def test_a_lesion_counts_also_in_what_is_read_once(tiny_model):
    brain = geometry.layout(tiny_model.sites("mlp"))
    network = networks.Network("all", brain, np.ones(brain.n_units, np.int8))
    texts = dialogues(tiny_model, [f"Long beginning {p}" for p in PROMPTS], ANSWERS)
    intact = log_likelihoods(tiny_model, texts)
    with interventions.lesion(tiny_model, network):
        found = log_likelihoods(tiny_model, texts)
        expected = [by_loss(tiny_model, text) for text in texts]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.abs(found - intact).min() > 1e-3
    np.testing.assert_array_equal(log_likelihoods(tiny_model, texts), intact)


def test_models_that_predict_nothing_are_refused(tiny_folders):
    with pytest.raises(ScanError, match="predicts no next token"):
        dialogues(models.load(str(tiny_folders["bert"])), PROMPTS, ANSWERS)


def test_texts_without_a_token_that_counts_are_refused(tiny_model):
    with pytest.raises(ScanError, match="text 1 has no token"):
        log_likelihoods(tiny_model, [Text((1, 2), (1,)), Text((1,), ())])


def test_what_is_read_outside_of_a_lesion_is_spared_by_it(tiny_model):
    """By hand: hooks that leave the first positions alone, one text at a time, without a cache."""
    brain = geometry.layout(tiny_model.sites("mlp"))
    network = networks.Network("all", brain, np.ones(brain.n_units, np.int8))
    texts = [Text((5, 9, 30, 7, 2, 11), (4, 5)), Text((5, 9, 30, 8, 12), (4,))]
    n_shared = 3
    before = read_beginning(tiny_model, texts)
    assert before.get_seq_length() == n_shared
    with interventions.lesion(tiny_model, network):
        spared = log_likelihoods(tiny_model, texts, beginning=before)
        whole = log_likelihoods(tiny_model, texts)

    def zero_rest(_module, _args, out):
        return torch.cat([out[:, :n_shared], torch.zeros_like(out[:, n_shared:])], dim=1)

    layers = [tiny_model.module.get_submodule(site.module) for site in brain.sites]
    handles = [layer.register_forward_hook(zero_rest) for layer in layers]
    expected = [by_loss(tiny_model, text) for text in texts]
    for handle in handles:
        handle.remove()
    np.testing.assert_allclose(spared, expected, rtol=1e-4)
    assert np.abs(spared - whole).min() > 1e-4
