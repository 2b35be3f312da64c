"""Where did a model come from, and what is it? For sidecars and participants.tsv."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from llm2nifti.models.cache import BUNDLED, sha256, weights_hash
from llm2nifti.models.loaded import LoadedModel

# Names of folders that say nothing of the model inside; a commit is 40 digits.
GENERIC = re.compile(
    r"(model|checkpoint|snapshot|weight|output|result|pretrained|export|final|best|last|main|hf)s?"
    r"([-_.]?\d+)?|[0-9a-f]{40}",
    re.IGNORECASE,
)


def short_name(name: str) -> str:
    """Name to call a model by: of a local folder or file, only its own name.

    A folder whose name says nothing (``model``, ``checkpoint-500``, a commit) goes by what its
    config says it came from, or by its type.
    """
    path = Path(name)
    if name in BUNDLED or not path.exists():
        return name
    path = path.resolve()
    title = path.stem if path.is_file() else path.name
    if not GENERIC.fullmatch(title) or path.is_file():
        return title
    try:
        config = json.loads((path / "config.json").read_text("utf-8"))
        origin = str(config.get("_name_or_path") or "").rstrip("/")
        last = origin.rpartition("/")[2]
        repository = path.parent.parent.name  # of the hub's cache: models--organisation--name
        cached = re.fullmatch(r"models--(.+)", repository)
        names = ("" if cached is None else cached[1].rpartition("--")[2], last)
        told = [told for told in names if told and not GENERIC.fullmatch(told)]
        return told[0] if told else str(config.get("model_type") or title)
    except (OSError, ValueError, AttributeError):
        return title


def describe(title: str, module: Any, tokenizer: Any) -> dict[str, Any]:
    """What the config says of a model."""
    config = module.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return {
        "Name": title,
        "Architecture": type(module).__name__,
        "Layers": getattr(text, "num_hidden_layers", None) or "n/a",
        "Width": getattr(text, "hidden_size", None) or "n/a",
        "Parameters": sum(p.numel() for p in module.parameters()),
        "Tokenizer": "n/a"
        if tokenizer is None
        else f"{type(tokenizer).__name__}, {len(tokenizer)} tokens",
    }


def licence(name: str, folder: Path) -> str:
    """Licence of a bundled model, or what the model card at hand says; else n/a."""
    from huggingface_hub import ModelCard, try_to_load_from_cache

    if name in BUNDLED:
        return BUNDLED[name].licence
    card: Any = (folder if folder.is_dir() else folder.parent) / "README.md"
    if not folder.exists():
        card = try_to_load_from_cache(name, "README.md")
    try:
        return str(ModelCard.load(card).data.license or "n/a")
    except Exception:  # no card, or one that cannot be read: nothing is known
        return "n/a"


def has_weights(model: LoadedModel, recorded: str) -> bool:
    """Whether a model has the weights of a recorded hash.

    A hash is that of the weights in memory; older datasets hold that of the files, or the commit
    that the hub names.
    """
    if recorded == model.source["WeightsHash"]:
        return True
    folder = model.folder
    if str(model.source["WeightsHash"]).startswith("random weights") or folder is None:
        return False
    if folder.is_dir():
        return recorded == weights_hash(folder)
    if folder.is_file():
        return recorded == sha256(folder)
    return recorded == f"hub commit {getattr(model.module.config, '_commit_hash', None)}"
