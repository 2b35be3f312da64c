"""Which model, which sites does it have?"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from llm2nifti.defaults import DEFAULT_MODEL
from llm2nifti.geometry import Site
from llm2nifti.models.anatomy import Anatomy, UnknownArchitectureError, dissect
from llm2nifti.models.cache import (
    BUNDLED,
    DamagedFileError,
    ModelError,
    cache_folder,
    fetch,
    is_cached,
    sha256,
    weights_hash,
)
from llm2nifti.models.sites import NoSuchSiteError, find_sites, skipped, weight_norms

__all__ = [
    "DEFAULT_MODEL",
    "DamagedFileError",
    "LoadedModel",
    "ModelError",
    "NoSuchSiteError",
    "UnknownArchitectureError",
    "known",
    "load",
    "short_name",
]

TEMPLATES = ("auto", "chat", "none")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A loaded model with its tokenizer and where it came from.

    Attributes
    ----------
    name : str
        What the user asked for; ``-untrained`` is appended for random weights.
    module : torch.nn.Module
        The transformers model itself, unchanged, in eval mode.
    tokenizer : transformers.PreTrainedTokenizerBase
        Its tokenizer.
    source : dict
        Provenance for sidecars: ``Name``, ``Revision``, ``WeightsHash``, ``DType`` and more.
    """

    name: str
    module: Any
    tokenizer: Any
    source: dict[str, Any]

    @cached_property
    def anatomy(self) -> Anatomy:
        """Blocks, embedding and final norm, established by a probe pass."""
        return dissect(self.module)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    @property
    def context(self) -> int | None:
        """Most tokens that the model can read, where its config says so."""
        config = self.module.config
        for name in ("max_position_embeddings", "n_positions", "n_ctx"):
            if getattr(config, name, None):
                return int(getattr(config, name))
        return None

    def sites(self, spec: str = "default") -> tuple[Site, ...]:
        """Sites to record; see `llm2nifti.models.sites.find_sites` for the words of `spec`."""
        return find_sites(self.module, self.anatomy, spec)

    def skipped(self) -> dict[str, str]:
        """Leaf modules that ``--sites all`` leaves out, with the reason."""
        return skipped(self.module, self.anatomy)

    def weight_norms(self, sites: tuple[Site, ...]) -> NDArray[np.float32]:
        """(n_units,) norms of the weights that write into each unit."""
        return weight_norms(self.module, self.anatomy, sites)

    def render(self, prompts: Sequence[str], template: str = "auto") -> list[str]:
        """Wrap prompts in the model's chat template.

        Parameters
        ----------
        prompts : sequence of str
            Bare prompts.
        template : {"auto", "chat", "none"}
            ``auto`` uses the chat template where the model has one.

        Returns
        -------
        list of str

        Raises
        ------
        ModelError
            If ``chat`` is asked of a model that has no template.
        """
        if template not in TEMPLATES:
            raise ModelError(f"template is {template!r}; use one of {', '.join(TEMPLATES)}")
        has_template = bool(getattr(self.tokenizer, "chat_template", None))
        if template == "chat" and not has_template:
            raise ModelError(f"model {self.name!r} has no chat template; use --template none")
        if template == "none" or not has_template:
            return list(prompts)
        return [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            for prompt in prompts
        ]

    def encode(self, texts: Sequence[str], *, rendered: bool) -> list[list[int]]:
        """Token ids of each text; special tokens are added only to bare prompts."""
        encoded = self.tokenizer(list(texts), add_special_tokens=not rendered)
        return [list(ids) for ids in encoded["input_ids"]]


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
    """Load a language model from safetensors or GGUF.

    Parameters
    ----------
    name : str, default="smollm2-135m"
        A bundled name, a local folder, a ``.gguf`` file or a Hugging Face id.
    untrained : bool, default=False
        The same architecture with random weights: a null model.
    seed : int, default=0
        Seed of the random weights.
    device : str, default="cpu"
        A torch device.
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
        If the model can't be found or read.

    Examples
    --------
    >>> from llm2nifti import models
    >>> model = models.load("smollm2-135m")  # doctest: +SKIP
    """
    if dtype not in DTYPES:
        raise ModelError(f"dtype is {dtype!r}; use one of {', '.join(DTYPES)}")
    folder = fetch(name) if name in BUNDLED else Path(name)
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(folder)}
    if folder.suffix == ".gguf":
        source = {"pretrained_model_name_or_path": str(folder.parent), "gguf_file": folder.name}
    if not folder.exists():
        source = {"pretrained_model_name_or_path": name, "revision": revision}
    source["trust_remote_code"] = trust_remote_code
    try:
        module, tokenizer = _from_pretrained(source, DTYPES[dtype], seed if untrained else None)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(_explain(name, folder, error)) from error
    try:
        module = module.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {device!r} cannot be used: {_first_line(error)}") from error
    title = short_name(name)
    provenance = {
        "Name": title,
        "Revision": getattr(module.config, "_commit_hash", None) or revision or "n/a",
        "WeightsHash": f"random weights, seed {seed}" if untrained else _hash(folder, module),
        "Architecture": type(module).__name__,
        "Parameters": sum(p.numel() for p in module.parameters()),
        "DType": dtype,
        "Device": str(device).split(":", maxsplit=1)[0],
    }
    return LoadedModel(f"{title}-untrained" if untrained else title, module, tokenizer, provenance)


def short_name(name: str) -> str:
    """Name to call a model by: of a local folder or file, only its own name."""
    path = Path(name)
    if name in BUNDLED or not path.exists():
        return name
    return path.resolve().stem if path.is_file() else path.resolve().name


def _from_pretrained(source: dict, dtype: torch.dtype, seed: int | None) -> tuple[Any, Any]:
    """Model and tokenizer; with a seed, the model gets random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    bars_were_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # a one-second load needs no bar of its own
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenizer = AutoTokenizer.from_pretrained(**source)
            if seed is None:
                extra = {} if "gguf_file" in source else {"use_safetensors": True}
                return AutoModelForCausalLM.from_pretrained(
                    **source, dtype=dtype, **extra
                ), tokenizer
            config = AutoConfig.from_pretrained(**source)
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model = AutoModelForCausalLM.from_config(
                    config, dtype=dtype, trust_remote_code=source["trust_remote_code"]
                )
                return model, tokenizer
    finally:
        if bars_were_on:
            logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    """First line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _explain(name: str, folder: Path, error: BaseException) -> str:
    """Say in one line why a model did not load and what to do."""
    if folder.exists():
        return (
            f"cannot load a causal language model from {folder}: {_first_line(error)}. It needs "
            "config.json, a tokenizer, and weights as .safetensors or .gguf (pickled .bin files "
            "are not read; convert them with save_pretrained)"
        )
    return (
        f"cannot load {name!r}: it is not a bundled model ({', '.join(BUNDLED)}), not a local "
        f"folder, and the Hugging Face hub or its local cache did not give it "
        f"({_first_line(error)}). Check the name and the network, or give a folder"
    )


def _hash(folder: Path, module: Any) -> str:
    """Hash of the weight files, or of the commit that the hub names."""
    if folder.is_dir():
        return weights_hash(folder)
    if folder.is_file():
        return sha256(folder)
    return f"hub commit {getattr(module.config, '_commit_hash', None) or 'unknown'}"


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
        repos = sorted(scan_cache_dir().repos, key=lambda repo: repo.repo_id)
        rows += [(r.repo_id, "yes", "see its card", "Hugging Face cache") for r in repos]
    except CacheNotFound:
        pass
    return pd.DataFrame(rows, columns=["name", "cached", "licence", "source"])


def cache_location() -> Path:
    """Folder in which bundled models are kept."""
    return cache_folder()
