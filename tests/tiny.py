"""Tiny random models of every family that has to record, built from transformers' configs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm2nifti import stimuli

COMMON = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
SHARED = {**COMMON, "num_key_value_heads": 2}
WINDOWED = {"sliding_window": 8, "head_dim": 8}
TEXT = {**SHARED, "model_type": "llama"}
VISION = {**COMMON, "model_type": "clip_vision_model", "image_size": 32, "patch_size": 8}
BY_NAME = ("gemma3n_text", "xlnet")  # their blocks add nothing up: no roles
IMAGE = "<image>"  # where a model of images and text puts an image

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**SHARED, "num_hidden_layers": 3},
    "gpt2": {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 128},
    "opt": {
        "hidden_size": 24,
        "word_embed_proj_dim": 24,
        "ffn_dim": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": 128,
    },
    "gpt_neox": COMMON,
    "qwen3": {**SHARED, "head_dim": 8},
    "gemma3_text": {
        **SHARED,
        **WINDOWED,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "mistral": {**SHARED, "sliding_window": 8},
    "mixtral": {**SHARED, "num_local_experts": 4},
    "phi": {**COMMON, "num_attention_heads": 3},
    "falcon": {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3},
    "bloom": {"hidden_size": 24, "n_layer": 2, "n_head": 3},
    "mamba": {"hidden_size": 24, "num_hidden_layers": 2, "state_size": 4},
    "t5": {
        "d_model": 24,
        "d_kv": 8,
        "d_ff": 40,
        "num_layers": 2,
        "num_heads": 3,
        "decoder_start_token_id": 0,
    },
    "bert": COMMON,
    "vit": {**COMMON, "image_size": 32, "patch_size": 8},
    "llava": {"text_config": TEXT, "vision_config": VISION},
}
# Models of sounds: a second at most for Whisper, 200 tokens a second for wav2vec2.
AUDIO: dict[str, dict[str, Any]] = {
    "whisper": {
        "d_model": 24,
        **{f"{part}_layers": 2 for part in ("encoder", "decoder")},
        **{f"{part}_attention_heads": 4 for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": 40 for part in ("encoder", "decoder")},
        "num_mel_bins": 8,
        "max_source_positions": 50,
        "max_target_positions": 64,
        "decoder_start_token_id": 1,
    },
    "wav2vec2": {
        **COMMON,
        "conv_dim": (8, 8, 8),
        "conv_kernel": (10, 8, 4),
        "conv_stride": (5, 4, 4),
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 4,
    },
}
WHISPER_START = {
    "_from_model_config": False,  # else it is made anew of the config
    "lang_to_id": {"<|de|>": 2, "<|en|>": 3},
    "task_to_id": {"translate": 4, "transcribe": 5},
    "no_timestamps_token_id": 6,
}
# What every recorder has to read; the tests of surgery and interventions take the families above.
FURTHER: dict[str, dict[str, Any]] = {
    "granite": {**SHARED, "residual_multiplier": 0.22, "embedding_multiplier": 6.0},
    "falcon_h1": {
        **SHARED,
        "mamba_d_ssm": 48,
        "mamba_n_heads": 6,
        "mamba_d_head": 8,
        "mamba_n_groups": 1,
        "mamba_d_state": 8,
        "attention_out_multiplier": 0.7,
        "ssm_out_multiplier": 1.3,
        "mlp_multipliers": [0.8, 0.6],
    },
    "rwkv": {"hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 40},
    "gemma3n_text": {
        **SHARED,
        **WINDOWED,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 400,
        "num_kv_shared_layers": 0,
        "laurel_rank": 4,
        "layer_types": ["sliding_attention", "full_attention"],
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "xlnet": {"d_model": 24, "n_layer": 2, "n_head": 3, "d_inner": 40},
    "clip": {"text_config": COMMON, "vision_config": VISION, "projection_dim": 16},
}
NAMES = {
    "whisper": "Whisper",
    "wav2vec2": "wav2vec2",
    "llama": "Llama, SmolLM2",
    "gpt2": "GPT-2",
    "opt": "OPT, Galactica",
    "gpt_neox": "GPT-NeoX, Pythia",
    "qwen3": "Qwen3",
    "gemma3_text": "Gemma 3",
    "mistral": "Mistral",
    "mixtral": "Mixtral",
    "phi": "Phi",
    "falcon": "Falcon",
    "bloom": "BLOOM",
    "granite": "Granite",
    "falcon_h1": "Falcon-H1",
    "mamba": "Mamba",
    "rwkv": "RWKV",
    "gemma3n_text": "Gemma 3n",
    "xlnet": "XLNet",
    "t5": "T5",
    "bert": "BERT",
    "vit": "ViT",
    "llava": "LLaVA (CLIP and Llama)",
    "clip": "CLIP",
}


def save(folder: Path, kind: str = "llama", *, dtype: str = "float32", **changes: object) -> Path:
    """Save a tiny random model with all it reads by; the weights follow from a seed."""
    import torch
    import transformers

    from llm2nifti.models.loading import KINDS, kind_of

    settings = {**{**CONFIGS, **FURTHER, **AUDIO}[kind], **changes}
    if kind not in ("vit", "wav2vec2"):
        tokenizer = _save_tokenizer(folder, kind)
        ids = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0}
        if kind == "llava":
            settings["text_config"] = {**TEXT, **ids}
            settings["image_token_index"] = tokenizer.convert_tokens_to_ids(IMAGE)
        elif kind == "clip":
            settings["text_config"] = {**COMMON, **ids, "pad_token_id": 0}
        else:
            settings = {**settings, "pad_token_id": 0, **ids, **changes}
    _save_processor(folder, kind)
    config = transformers.AutoConfig.for_model(kind, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = getattr(transformers, KINDS[kind_of(config)]).from_config(config)
        for parameter in model.parameters():  # larger than the initial .02: distinct activations
            parameter.data += 0.2 * torch.randn_like(parameter)
        if kind == "whisper":
            vars(model.generation_config).update(WHISPER_START)
        model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def _save_tokenizer(folder: Path, kind: str) -> Any:
    """Byte-level tokenizer of a few hundred tokens."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers import models as tokenizer_models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(tokenizer_models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<end>", IMAGE] if kind == "llava" else ["<end>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    core.train_from_iterator(stimuli.load()["prompt"].head(500), trainer)
    extra = {"pad_token": "<end>"} if kind in ("llava", "clip") else {}
    extra |= {"additional_special_tokens": [IMAGE]} if kind == "llava" else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", **extra)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _save_processor(folder: Path, kind: str) -> None:
    """Processor of a model that sees or hears, and what joins it to a tokenizer."""
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessorPil,
        CLIPProcessor,
        LlavaProcessor,
        ViTImageProcessorPil,
        Wav2Vec2FeatureExtractor,
        WhisperFeatureExtractor,
    )

    if kind == "whisper":
        WhisperFeatureExtractor(feature_size=8, chunk_length=1).save_pretrained(folder)
    if kind == "wav2vec2":
        Wav2Vec2FeatureExtractor().save_pretrained(folder)
    if kind == "vit":
        ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    if kind not in ("llava", "clip"):
        return
    square = {"height": 32, "width": 32}
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if kind == "clip":
        CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    else:
        LlavaProcessor(
            image_processor=images,
            tokenizer=tokenizer,
            patch_size=8,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            image_token=IMAGE,
        ).save_pretrained(folder)


def draw_images(folder: Path, n: int = 60, seed: int = 0) -> Path:
    """Draw discs (task), bars (control) of random place, size and shade; write their TSV."""
    import numpy as np
    import pandas as pd
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(2 * n + n // 2):
        is_disc = i % 5 in (0, 1)
        image = Image.new("RGB", (48, 48), tuple(int(v) for v in rng.integers(0, 60, 3)))
        shade = tuple(int(v) for v in rng.integers(150, 255, 3))
        x, y, size = (int(v) for v in rng.integers([4, 4, 12], [20, 20, 24]))
        draw = ImageDraw.Draw(image)
        if is_disc:
            draw.ellipse((x, y, x + size, y + size), fill=shade)
        else:
            for offset in range(0, size, 6):
                draw.rectangle((x, y + offset, x + size, y + offset + 2), fill=shade)
        name = f"{'disc' if is_disc else 'bars'}-{i:03d}.png"
        image.save(folder / name)
        rows.append(("discs" if is_disc else "control", name))
    table = pd.DataFrame(rows, columns=["task", "image"])
    table.to_csv(folder / "stimuli.tsv", sep="\t", index=False)
    return folder


def play_sounds(folder: Path, n: int = 60, seed: int = 0) -> Path:
    """Make tones (task) and noise (control) of random pitch, length and rate; write their TSV."""
    import numpy as np
    import pandas as pd
    from scipy.io import wavfile

    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(2 * n + n // 2):
        is_tone = i % 5 in (0, 1)
        rate = (8_000, 16_000, 22_050)[i % 3]
        time = np.arange(int(rate * (0.1, 0.15, 0.3)[i // 5 % 3])) / rate
        tone = np.sin(2 * np.pi * rng.uniform(200, 2_000) * time)
        samples = rng.uniform(0.2, 0.9) * (tone if is_tone else rng.uniform(-1, 1, len(time)))
        name = f"{'tone' if is_tone else 'noise'}-{i:03d}.wav"
        wavfile.write(folder / name, rate, (samples * 32_767).astype(np.int16))
        rows.append(("tones" if is_tone else "control", name))
    table = pd.DataFrame(rows, columns=["task", "audio"])
    table.to_csv(folder / "stimuli.tsv", sep="\t", index=False)
    return folder
