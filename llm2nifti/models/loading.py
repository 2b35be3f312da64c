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
# Medium that a kind reads, of `llm2nifti.media.MEDIA`; the others read text alone.
READS = {
    "imagetext": "image",
    "vision": "image",
    "dual": "image",
    "speech": "audio",
    "audio": "audio",
}


@dataclass(frozen=True)
class Checkpoint:
    """What `from_pretrained` is called with.

    Attributes
    ----------
    name : str
        Folder or Hugging Face id.
    gguf_file, revision : str or None
        A file in the folder; a branch, tag or commit on the hub.
    trust_remote_code : bool
        Run code that the model's repository brings along.
    device_map : str, dict or None
        How accelerate spreads the weights, such as ``auto``.
    offload_folder : str or None
        Where accelerate keeps weights that fit neither GPU nor memory.
    """

    name: str
    gguf_file: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    device_map: Any = None
    offload_folder: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Arguments that every ``from_pretrained`` takes."""
        options: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        if self.gguf_file:
            options["gguf_file"] = self.gguf_file
        if self.revision:
            options["revision"] = self.revision
        return options


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model and what it reads with; see `llm2nifti.models.LoadedModel`.

    Attributes
    ----------
    lacking : tuple of str
        Weights that the checkpoint lacks or has in another shape.
    """

    kind: str
    module: Any
    tokenizer: Any = None
    processor: Any = None
    lacking: tuple[str, ...] = ()


def from_pretrained(source: Checkpoint, dtype: torch.dtype, seed: int | None) -> Loaded:
    """Load a model of whatever kind its config says.

    Parameters
    ----------
    source : Checkpoint
        Where from.
    dtype : torch.dtype
        Type of the weights.
    seed : int or None
        With a seed, the model gets random weights.
    """
    import transformers

    with quiet():
        config = transformers.AutoConfig.from_pretrained(source.name, **source.options)
        kind = kind_of(config)
        is_half = kind == "encoder" and _is_half(config)  # T5's encoder, saved without its decoder
        auto = getattr(transformers, "AutoModelForTextEncoding" if is_half else KINDS[kind])
        processor = _processor(source, kind) if kind in READS else None
        has_text = kind not in ("vision", "audio")
        tokenizer = getattr(processor, "tokenizer", None) if has_text else None
        if tokenizer is None and has_text:
            tokenizer = transformers.AutoTokenizer.from_pretrained(source.name, **source.options)
        if seed is None:
            extra: dict[str, Any] = {} if source.gguf_file else {"use_safetensors": True}
            if source.device_map is not None:
                extra["device_map"] = source.device_map
                extra["offload_folder"] = source.offload_folder
            module, lacking = read(auto, source.name, dtype=dtype, **source.options, **extra)
            kind, module, lacking = _without_head(kind, module, lacking)
            return Loaded(kind, module, tokenizer, processor, lacking)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            trust = {"trust_remote_code": source.trust_remote_code}
            module = auto.from_config(config, dtype=dtype, **trust)
        if kind == "speech":  # it says what the decoder begins with
            with suppress(OSError):
                module.generation_config = transformers.GenerationConfig.from_pretrained(
                    source.name, **source.options
                )
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
    """Kind of a model, by the classes that transformers has for its config.

    Returns
    -------
    {"causal", "seq2seq", "imagetext", "encoder", "vision", "dual", "speech", "audio"}
    """
    from transformers.models.auto import modeling_auto as auto

    def has(mapping: Any) -> bool:
        return config.model_type in mapping

    if has(auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) and hasattr(config, "vision_config"):
        return "imagetext"
    if hasattr(config, "vision_config") and hasattr(config, "text_config"):
        return "dual"
    if getattr(config, "is_encoder_decoder", False) and not _is_half(config):
        return "speech" if has(auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES) else "seq2seq"
    names = getattr(config, "architectures", None) or []
    is_masked = has(auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES)  # BERT has a causal class, too
    is_causal = has(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) or "AutoModelForCausalLM" in (
        getattr(config, "auto_map", None) or {}
    )
    says_causal = any(name.endswith(("CausalLM", "LMHeadModel")) for name in names)
    if is_causal and (says_causal or not is_masked):
        return "causal"
    hears = has(auto.MODEL_FOR_CTC_MAPPING_NAMES) or has(
        auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES
    )
    sees = hasattr(config, "image_size") or has(auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)
    return "audio" if hears else "vision" if sees else "encoder"


def _is_half(config: Any) -> bool:
    """Whether a config is of an encoder alone whose family has decoders."""
    return any(n.endswith("EncoderModel") for n in getattr(config, "architectures", None) or [])


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
