"""Which model, which sites does it have?"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import pandas as pd
import torch

from llm2nifti.defaults import DEFAULT_MODEL
from llm2nifti.media import first_line
from llm2nifti.models.anatomy import UnknownArchitectureError
from llm2nifti.models.cache import BUNDLED, DamagedModelError, ModelError, fetch, is_cached
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
    where, file = (folder.parent, folder.name) if folder.suffix == ".gguf" else (folder, None)
    is_local = file is not None or folder.exists()
    spreads = device == "auto" and not untrained
    source = Checkpoint(
        name=str(where) if is_local else name,
        gguf_file=file,
        revision=None if is_local else revision,
        trust_remote_code=trust_remote_code,
        device_map="auto" if spreads else None,
        offload_folder=_temporary_folder() if spreads else None,
    )
    try:
        loaded = from_pretrained(source, DTYPES[dtype], seed if untrained else None)
    except ModelError:
        raise
    except Exception as error:  # the libraries behind have error classes of their own
        raise ModelError(_explain(name, folder, error)) from error
    module = loaded.module.eval()
    if device != "auto":
        try:
            module = module.to(device)
        except (RuntimeError, AssertionError) as error:
            reason = first_line(error)
            raise ModelError(f"device {device!r} cannot be used: {reason}") from error
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


def _temporary_folder() -> str:
    """Folder that is removed when the program ends."""
    folder = tempfile.mkdtemp(prefix="llm2nifti-offload-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _explain(name: str, folder: Path, error: BaseException) -> str:
    """Say in one line why a model did not load and what to do."""
    if not folder.exists():
        return (
            f"cannot load {name!r}: it is not a bundled model ({', '.join(BUNDLED)}), not a local "
            f"folder, and the Hugging Face hub or its local cache did not give it "
            f"({first_line(error)}). Check the name and the network, or give a folder"
        )
    damage = damaged_file(folder)
    if damage:
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
