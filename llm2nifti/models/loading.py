"""How does a model come into memory, and is it the whole model?

transformers fills what a checkpoint lacks with random numbers and goes on. Here it is refused,
unless nothing that can be recorded depends on it.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
import transformers
from accelerate.utils import align_module_device
from transformers.utils import is_torchvision_available, logging

from llm2nifti.hooks import Point, tap
from llm2nifti.models.cache import ModelError, weights_hash
from llm2nifti.models.loaded import READS, LoadedModel
from llm2nifti.models.probing import evaluating
from llm2nifti.models.sites import find_sites, head_name
from llm2nifti.plans import Json

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
N_NAMED = 3  # weights that a message names
N_DIGITS = 48  # of a hash; unlike the 64 of the hashes of files that older datasets hold


class IncompleteModelError(ModelError):
    """Weights are missing, have another shape than the config says, or are no numbers."""


def from_pretrained(
    name: str, seed: int | None, options: Json, weights: Json
) -> tuple[LoadedModel, Sequence[str]]:
    """Load a model of whatever kind its config says; with a seed, it gets random weights.

    It comes with the names of the weights that the checkpoint lacks or has in another shape.
    `options` are given to every ``from_pretrained``; `weights` say of which type the weights are
    and where they go.
    """
    with quiet():
        config = transformers.AutoConfig.from_pretrained(name, **options)
        kind = kind_of(config)
        # T5's encoder may be saved without its decoder.
        is_half = kind == "encoder" and _says(config, HALF)
        auto = getattr(transformers, "AutoModelForTextEncoding" if is_half else KINDS[kind])
        processor = _processor(kind, name, options) if kind in READS else None
        has_text = kind not in ("vision", "audio")
        tokenizer = getattr(processor, "tokenizer", None) if has_text else None
        if tokenizer is None and has_text:
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, **options)
        if seed is None:
            is_safe = None if "gguf_file" in options else True
            module, lacking = read(auto, name, use_safetensors=is_safe, **weights, **options)
            kind, module, lacking = _without_head(kind, module, lacking)
        else:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                trust = {"trust_remote_code": options["trust_remote_code"]}
                module, lacking = auto.from_config(config, **weights, **trust), ()
            if kind == "speech":  # it says what the decoder begins with
                generation = transformers.GenerationConfig
                with suppress(OSError):
                    module.generation_config = generation.from_pretrained(name, **options)
    return LoadedModel(name, module.eval(), tokenizer, {}, kind, processor), lacking


def tokenizer_of(name: str, options: Json) -> Any:
    """Tokenizer of a model, or None where it reads no text."""
    with quiet():
        kind = kind_of(transformers.AutoConfig.from_pretrained(name, **options))
        if kind in ("vision", "audio"):
            return None
        return transformers.AutoTokenizer.from_pretrained(name, **options)


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
    trunk.config.is_encoder_decoder = False
    inside = next((f"{name}." for name, part in module.named_modules() if part is trunk), "")
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


def _processor(kind: str, name: str, options: Json) -> Any:
    """Processor of sounds, of images, or of images and text; few of them need torchvision."""
    if READS[kind] == "audio":
        return transformers.AutoFeatureExtractor.from_pretrained(name, **options)
    # A vision model's folder may hold a tokenizer as well, which AutoProcessor would take.
    auto = transformers.AutoImageProcessor if kind == "vision" else transformers.AutoProcessor
    try:
        return auto.from_pretrained(name, backend="pil", **options)
    except (ImportError, ValueError) as error:
        if is_torchvision_available() or "torchvision" not in str(error).lower():
            raise
        raise ModelError(
            f"{name} prepares its images with torchvision, which is not installed: "
            'pip install "llm2nifti[vision]"'
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no bars of transformers, for work of a second."""
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


def has_weights(model: LoadedModel, recorded: str) -> bool:
    """Whether a model has the weights of a recorded hash.

    A hash is that of the weights in memory; older datasets hold that of the files, or the commit
    that the hub names.
    """
    held, folder = str(model.source["WeightsHash"]), model.folder
    if recorded == held or held.startswith("random weights") or folder is None:
        return recorded == held
    if folder.exists():
        return recorded == weights_hash(folder)
    return recorded == f"hub commit {getattr(model.module.config, '_commit_hash', None)}"


def hash_weights(model: LoadedModel, lacking: Sequence[str]) -> str:
    """SHA-256 over the weights in memory: parameters and what else is saved, with their names.

    Raises unless every weight that matters came from the checkpoint and is a finite number. Weights
    that the checkpoint lacks or has in another shape, and that change nothing that can be recorded,
    such as a pooler's, become 0.
    """
    names = sorted(lacking)
    if names and _depends_on(model, names):
        raise IncompleteModelError(
            f"{len(names)} weights of {model.name} are missing or have another shape than its "
            f"config says ({_listed(names)}): config and weights do not belong together, or a file "
            "is incomplete. Copy or download the model again"
        )
    broken = sorted(
        name
        for name, weight in _held(model.module)
        if weight.is_floating_point()
        and weight.numel()
        and not all(map(torch.isfinite, weight.aminmax()))
    )
    if broken:
        raise IncompleteModelError(
            f"{len(broken)} weights of {model.name} hold NaN or infinity ({_listed(broken)}): its "
            "files are damaged or its training diverged. Copy the model again, or use another one"
        )
    digest = hashlib.sha256()
    for name, weight in _held(model.module, buffers=True):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)};".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:N_DIGITS]


def _depends_on(model: LoadedModel, names: list[str]) -> bool:
    """Whether logits or sites depend on these weights: with NaN there, they are NaN."""
    state = model.module.state_dict()
    stacks = model.anatomy.stacks
    points = {Point(s.module, s.where) for s in find_sites(model.module, stacks, "all")}
    outputs = [head_name(model.module), *(b.name for stack in stacks for b in stack.blocks)]
    points |= {Point(name) for name in outputs if name}
    if not all(name in state and state[name].is_floating_point() for name in names):
        return True
    spoilt: list[bool] = []
    for name in names:
        state[name].fill_(float("nan"))
    with (
        evaluating(model.module),
        tap(model.module, points, lambda _point, tensor: spoilt.append(bool(tensor.isnan().any()))),
    ):
        for one_pass in model.probe_passes():
            one_pass()
    for name in names:
        state[name].fill_(0.0)
    return any(spoilt) or any(state[name].is_meta for name in names)


def _held(module: torch.nn.Module, *, buffers: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights with their names; those that accelerate keeps elsewhere are brought back."""
    for owner, part in module.named_modules():
        with align_module_device(part):
            away = part._non_persistent_buffers_set
            saved = part.named_buffers(recurse=False) if buffers else ()
            for name, weight in (*part.named_parameters(recurse=False), *saved):
                if name not in away:
                    yield f"{owner}.{name}", weight


def _listed(names: list[str]) -> str:
    """The first few names."""
    return ", ".join(names[:N_NAMED]) + (", ..." if len(names) > N_NAMED else "")
