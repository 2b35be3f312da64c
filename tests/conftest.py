"""Shared fixtures: tiny random models, the official BIDS validator, one real run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Before transformers is imported: a test never waits for a hub.
os.environ["HF_HUB_OFFLINE"] = "1"

from llm2nifti import bids, cli, models, stimuli

TINY_CONFIGS = {
    "llama": {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    },
    "gpt2": {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 128},
    "opt": {
        "hidden_size": 24,
        "word_embed_proj_dim": 24,
        "ffn_dim": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": 128,
    },
}


def make_tiny(folder: Path, kind: str = "llama", **changes: object) -> Path:
    """Save a tiny random model with a byte-level tokenizer; the weights follow from a seed."""
    import torch
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers import models as tokenizer_models
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(tokenizer_models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<end>"], show_progress=False
    )
    core.train_from_iterator(stimuli.load()["prompt"].head(500), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")
    tokenizer.save_pretrained(folder)
    settings = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0}
    config = AutoConfig.for_model(kind, **{**TINY_CONFIGS[kind], **settings, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():  # larger than the initial .02: distinct activations
            parameter.data += 0.2 * torch.randn_like(parameter)
        model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory):
    """Folders of tiny models, by kind."""
    base = tmp_path_factory.mktemp("tiny")
    return {kind: make_tiny(base / f"tiny-{kind}", kind) for kind in TINY_CONFIGS}


@pytest.fixture(scope="session")
def tiny_model(tiny_folders):
    """A tiny Llama, loaded."""
    return models.load(str(tiny_folders["llama"]))


@pytest.fixture(scope="session")
def real_model():
    """The default model."""
    return models.load()


@pytest.fixture(scope="session")
def validate():
    """Call the official validator on both datasets: no errors, and no warnings with our config."""
    program = Path(sys.executable).with_name("bids-validator-deno")
    if not program.exists():
        found = shutil.which("bids-validator-deno")
        assert found, "bids-validator-deno is missing: pip install '.[test]'"
        program = Path(found)

    def issues(folder: Path, *options: str) -> list[dict]:
        done = subprocess.run(
            [program, folder, "--format", "json", *options],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in (0, 16), done.stderr
        return json.loads(done.stdout)["issues"]["issues"]

    def check(root: Path) -> None:
        for folder in (root, root / bids.DERIVATIVES):
            plain = issues(folder)
            assert not [i for i in plain if i["severity"] == "error"], plain
            configured = issues(folder, "--config", str(folder / bids.VALIDATOR_CONFIG))
            assert not [i for i in configured if i["severity"] in ("error", "warning")], configured

    return check


@pytest.fixture(scope="session")
def real_dataset(tmp_path_factory, capfd_session):
    """The dataset that `llm2nifti run ds` makes with its defaults, and what it printed."""
    root = tmp_path_factory.mktemp("real") / "ds"
    with capfd_session() as printed:
        code = cli.main(["run", str(root), "--quiet"])
    assert code == 0
    return root, printed[0]


@pytest.fixture(scope="session")
def capfd_session():
    """Capture standard output in a session fixture."""
    import contextlib
    import io

    @contextlib.contextmanager
    def capture():
        buffer, result = io.StringIO(), [""]
        with contextlib.redirect_stdout(buffer):
            yield result
        result[0] = buffer.getvalue()

    return capture
