"""Which model, which sites does it have?"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from llm2nifti.defaults import DEFAULT_MODEL
from llm2nifti.models.anatomy import UnknownArchitectureError
from llm2nifti.models.cache import (
    BUNDLED,
    DamagedModelError,
    ModelError,
    cache_folder,
    fetch,
    is_cached,
)
from llm2nifti.models.fused import FusedError
from llm2nifti.models.loaded import LoadedModel, Mode
from llm2nifti.models.loading import Checkpoint, from_pretrained
from llm2nifti.models.provenance import (
    IncompleteModelError,
    check_weights,
    damaged_file,
    describe,
    has_weights,
    hash_memory,
    licence,
    short_name,
)
from llm2nifti.models.sites import NoSuchSiteError

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
    "has_weights",
    "known",
    "load",
    "short_name",
]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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

    Returns
    -------
    LoadedModel

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
    folder = fetch(name) if name in BUNDLED else Path(name)
    source = _source(name, folder, revision, trust_remote_code=trust_remote_code)
    if device == "auto" and not untrained:
        offload = tempfile.mkdtemp(prefix="llm2nifti-offload-")
        atexit.register(shutil.rmtree, offload, ignore_errors=True)
        source = replace(source, device_map="auto", offload_folder=offload)
    try:
        loaded = from_pretrained(source, DTYPES[dtype], seed if untrained else None)
    except ModelError:
        raise
    except Exception as error:  # the libraries behind have error classes of their own
        raise ModelError(_explain(name, folder, error)) from error
    module = loaded.module.eval()
    if device != "auto":
        module = _moved(module, device)
    title = short_name(name)
    provenance = describe(title, module, loaded.tokenizer) | {
        "Revision": getattr(module.config, "_commit_hash", None) or revision or "n/a",
        "Licence": licence(name, folder),
        "WeightsHash": f"random weights, seed {seed}",
        "DType": dtype,
        "Device": "cpu" if device == "auto" and untrained else device.partition(":")[0],
    }
    title = f"{title}-untrained" if untrained else title
    model = LoadedModel(
        title, module, loaded.tokenizer, provenance, loaded.kind, loaded.processor, folder
    )
    if not untrained:
        check_weights(model, loaded.lacking)
        provenance["WeightsHash"] = hash_memory(module)
    return model


def _source(
    name: str, folder: Path, revision: str | None, *, trust_remote_code: bool
) -> Checkpoint:
    """Where transformers finds the model."""
    if folder.suffix == ".gguf":
        return Checkpoint(str(folder.parent), folder.name, None, trust_remote_code)
    if folder.exists():
        return Checkpoint(str(folder), None, None, trust_remote_code)
    return Checkpoint(name, None, revision, trust_remote_code)


def _moved(module: Any, device: str) -> Any:
    """Move a model to a device, or say why not."""
    try:
        return module.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {device!r} cannot be used: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    """First line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _explain(name: str, folder: Path, error: BaseException) -> str:
    """Say in one line why a model did not load and what to do."""
    if folder.exists():
        damage = damaged_file(folder)
        if damage:
            return f"cannot load a model from {folder}: {damage}; copy or download it again"
        return (
            f"cannot load a model from {folder}: {_first_line(error)}. It needs "
            "config.json, a tokenizer, and weights as .safetensors or .gguf (pickled .bin files "
            "are not read; convert them with save_pretrained)"
        )
    return (
        f"cannot load {name!r}: it is not a bundled model ({', '.join(BUNDLED)}), not a local "
        f"folder, and the Hugging Face hub or its local cache did not give it "
        f"({_first_line(error)}). Check the name and the network, or give a folder"
    )


def known() -> pd.DataFrame:
    """Models that can be loaded by name: bundled ones and those in the Hugging Face cache.

    Returns
    -------
    DataFrame
        Columns ``name, cached, licence, source``.
    """
    rows = [
        (m.name, "yes" if is_cached(m.name) else "no", m.licence, f"{m.title}; {m.requirement}")
        for m in BUNDLED.values()
    ]
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cached = [repo for repo in scan_cache_dir().repos if repo.repo_type == "model"]
        repos = sorted(cached, key=lambda repo: repo.repo_id)
        rows += [(r.repo_id, "yes", "see its card", "Hugging Face cache") for r in repos]
    except CacheNotFound:
        pass
    return pd.DataFrame(rows, columns=["name", "cached", "licence", "source"])


def cache_location() -> Path:
    """Folder in which bundled models are kept."""
    return cache_folder()
