"""How does a model come into memory? Which of transformers' classes, and with what to read by."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import is_torchvision_available

from llm2nifti.models.cache import ModelError

KINDS = {
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "imagetext": "AutoModelForImageTextToText",
    "encoder": "AutoModel",
    "vision": "AutoModel",
    "dual": "AutoModel",
    "speech": "AutoModelForSpeechSeq2Seq",
    "audio": "AutoModel",
}
HALF = "EncoderModel"  # ends the class of an encoder alone whose family has decoders
# Medium that a kind reads, of `llm2nifti.media.MEDIA`; the others read text alone.
READS = dict.fromkeys(("imagetext", "vision", "dual"), "image") | dict.fromkeys(
    ("speech", "audio"), "audio"
)


@dataclass(frozen=True)
class Checkpoint:
    """What `from_pretrained` is called with."""

    name: str  # folder or Hugging Face id
    gguf_file: str | None = None  # in the folder
    revision: str | None = None  # branch, tag or commit on the hub
    trust_remote_code: bool = False
    device_map: Any = None  # how accelerate spreads the weights, such as ``auto``
    offload_folder: str | None = None  # for weights that fit neither GPU nor memory

    @property
    def options(self) -> dict[str, Any]:
        """Arguments that every ``from_pretrained`` takes."""
        where = {"gguf_file": self.gguf_file, "revision": self.revision}
        given = {name: value for name, value in where.items() if value}
        return {"trust_remote_code": self.trust_remote_code, **given}


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model and what it reads with; see `llm2nifti.models.LoadedModel`."""

    kind: str
    module: Any
    tokenizer: Any = None
    processor: Any = None
    lacking: tuple[str, ...] = ()  # weights that the checkpoint lacks or has in another shape


def from_pretrained(source: Checkpoint, dtype: torch.dtype, seed: int | None) -> Loaded:
    """Load a model of whatever kind its config says; with a seed, it gets random weights."""
    import transformers

    with quiet():
        config = transformers.AutoConfig.from_pretrained(source.name, **source.options)
        kind = kind_of(config)
        # T5's encoder may be saved without its decoder.
        is_half = kind == "encoder" and _says(config, HALF)
        auto = getattr(transformers, "AutoModelForTextEncoding" if is_half else KINDS[kind])
        processor = _processor(source, kind) if kind in READS else None
        has_text = kind not in ("vision", "audio")
        tokenizer = getattr(processor, "tokenizer", None) if has_text else None
        if tokenizer is None and has_text:
            tokenizer = transformers.AutoTokenizer.from_pretrained(source.name, **source.options)
        if seed is None:
            module, lacking = read(
                auto,
                source.name,
                dtype=dtype,
                use_safetensors=None if source.gguf_file else True,
                device_map=source.device_map,
                offload_folder=source.offload_folder,
                **source.options,
            )
            kind, module, lacking = _without_head(kind, module, lacking)
            return Loaded(kind, module, tokenizer, processor, lacking)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            trust = {"trust_remote_code": source.trust_remote_code}
            module = auto.from_config(config, dtype=dtype, **trust)
        if kind == "speech":  # it says what the decoder begins with
            with suppress(OSError):
                generation = transformers.GenerationConfig
                module.generation_config = generation.from_pretrained(source.name, **source.options)
        return Loaded(kind, module, tokenizer, processor)


def read(auto: Any, name: str, **options: Any) -> tuple[Any, tuple[str, ...]]:
    """A model with the names of the weights that its checkpoint lacks or has in another shape."""
    module, info = auto.from_pretrained(
        name, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    return module, (*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"]))


def _without_head(
    kind: str, module: Any, lacking: tuple[str, ...]
) -> tuple[str, Any, tuple[str, ...]]:
    """What of a model its checkpoint has: a trunk saved without a head, or an encoder, reads."""
    says = getattr(module.config, "architectures", None) or [type(module).__name__]
    if not lacking or kind not in ("causal", "seq2seq") or type(module).__name__ in says:
        return kind, module, lacking
    trunk = module.get_encoder() if kind == "seq2seq" else module.base_model
    inside = next((f"{name}." for name, part in module.named_modules() if part is trunk), "")
    trunk.config.is_encoder_decoder = False
    inner = (name.removeprefix(inside) for name in lacking if name.startswith(inside))
    return "encoder", trunk, tuple(inner)


def kind_of(config: Any) -> str:
    """Kind of a model, of `KINDS`, by the classes that transformers has for its config."""
    from transformers.models.auto import modeling_auto as auto

    def has(task: str) -> bool:
        return config.model_type in getattr(auto, f"MODEL_FOR_{task}_MAPPING_NAMES")

    if has("IMAGE_TEXT_TO_TEXT") and hasattr(config, "vision_config"):
        return "imagetext"
    if hasattr(config, "vision_config") and hasattr(config, "text_config"):
        return "dual"
    if getattr(config, "is_encoder_decoder", False) and not _says(config, HALF):
        return "speech" if has("SPEECH_SEQ_2_SEQ") else "seq2seq"
    remote = getattr(config, "auto_map", None) or {}
    is_causal = has("CAUSAL_LM") or "AutoModelForCausalLM" in remote
    # BERT has a causal class, too.
    if is_causal and (_says(config, "CausalLM", "LMHeadModel") or not has("MASKED_LM")):
        return "causal"
    hears = has("CTC") or has("AUDIO_CLASSIFICATION")
    sees = hasattr(config, "image_size") or has("IMAGE_CLASSIFICATION")
    return "audio" if hears else "vision" if sees else "encoder"


def _says(config: Any, *endings: str) -> bool:
    """Whether a config names a class that ends like this."""
    return any(name.endswith(endings) for name in getattr(config, "architectures", None) or [])


def _processor(source: Checkpoint, kind: str) -> Any:
    """Processor of sounds, of images, or of images and text; few of them need torchvision."""
    import transformers

    if READS[kind] == "audio":
        return transformers.AutoFeatureExtractor.from_pretrained(source.name, **source.options)
    # A vision model's folder may hold a tokenizer as well, which AutoProcessor would take.
    auto = transformers.AutoImageProcessor if kind == "vision" else transformers.AutoProcessor
    try:
        return auto.from_pretrained(source.name, backend="pil", **source.options)
    except (ImportError, ValueError) as error:
        if is_torchvision_available() or "torchvision" not in str(error).lower():
            raise
        raise ModelError(
            f"{source.name} prepares its images with torchvision, which is not installed: "
            'pip install "llm2nifti[vision]"'
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no bars of transformers, for work of a second."""
    from transformers.utils import logging

    bars_were_on, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars_were_on:
            logging.enable_progress_bar()
