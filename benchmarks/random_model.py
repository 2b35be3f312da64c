"""Which model can be made anywhere, of any shape? A Llama with random weights, and a tokenizer.

What it says means nothing; what it costs to run and to record is that of a trained one.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from llm2nifti import stimuli
from llm2nifti.models import LoadedModel

SEED = 7
VOCABULARY = 2000  # tokens of the tokenizer; the model may have more
N_TEXTS = 500
TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def train_tokenizer():
    """Byte-level tokenizer of the bundled prompts; like many, it has no chat template."""
    core = Tokenizer(tokenizer_models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<end>"],
        show_progress=False,
    )
    core.train_from_iterator(stimuli.load()["prompt"].head(N_TEXTS), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<end>")


def random_llama(name, *, device="cpu", dtype=torch.float32, **shape):
    """Llama of this shape with random weights, made on the device, as a loaded model."""
    tokenizer = train_tokenizer()
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = AutoConfig.for_model("llama", **{"vocab_size": len(tokenizer), **ends, **shape})
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(SEED)
        module = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    source = {
        "Name": name,
        "Revision": "n/a",
        "WeightsHash": f"random weights, seed {SEED}",
        "Architecture": type(module).__name__,
        "Parameters": sum(p.numel() for p in module.parameters()),
        "DType": str(dtype).removeprefix("torch."),
        "Device": str(device).split(":", maxsplit=1)[0],
    }
    return LoadedModel(name, module, tokenizer, source)
