"""Which model came into memory, where is it from, and is it the whole model?

transformers fills what a checkpoint lacks with random numbers and goes on. Here it is refused,
unless nothing that can be recorded depends on it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device

from llm2nifti.hooks import Point, tap
from llm2nifti.models.cache import BUNDLED, ModelError, weights_hash
from llm2nifti.models.loaded import LoadedModel
from llm2nifti.models.probing import evaluating
from llm2nifti.models.sites import find_sites, head_name
from llm2nifti.plans import Json

N_NAMED = 3  # weights that a message names
N_DIGITS = 48  # of a hash; unlike the 64 of the hashes of files that older datasets hold
# Names of folders that say nothing of the model inside; a commit is 40 digits.
GENERIC = re.compile(
    r"(model|checkpoint|snapshot|weight|output|result|pretrained|export|final|best|last|main|hf)s?"
    r"([-_.]?\d+)?|[0-9a-f]{40}",
    re.IGNORECASE,
)


class IncompleteModelError(ModelError):
    """Weights are missing, have another shape than the config says, or are no numbers."""


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


def describe(title: str, module: Any, tokenizer: Any) -> Json:
    """What the config says of a model, for sidecars and participants.tsv."""
    text = module.config.get_text_config()
    kind = type(tokenizer).__name__
    return {
        "Name": title,
        "Architecture": type(module).__name__,
        "Layers": getattr(text, "num_hidden_layers", None) or "n/a",
        "Width": getattr(text, "hidden_size", None) or "n/a",
        "Parameters": sum(p.numel() for p in module.parameters()),
        "Tokenizer": "n/a" if tokenizer is None else f"{kind}, {len(tokenizer)} tokens",
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
    if folder.exists():
        return recorded == weights_hash(folder)
    return recorded == f"hub commit {getattr(model.module.config, '_commit_hash', None)}"


def check_weights(model: LoadedModel, lacking: Iterable[str]) -> None:
    """Raise unless every weight that matters came from the checkpoint and is a finite number.

    Weights that the checkpoint lacks or has in another shape, and that change nothing that can be
    recorded, such as a pooler's, become 0.
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


def hash_memory(module: torch.nn.Module) -> str:
    """SHA-256 over the weights in memory: parameters and what else is saved, with their names."""
    digest = hashlib.sha256()
    for name, weight in _held(module, buffers=True):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)};".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:N_DIGITS]


def damaged_file(folder: Path) -> str:
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


def _depends_on(model: LoadedModel, names: list[str]) -> bool:
    """Whether logits or sites depend on these weights: with NaN there, they are NaN."""
    state = model.module.state_dict()
    stacks = model.anatomy.stacks
    points = {Point(s.module, s.where) for s in find_sites(model.module, stacks, "all")}
    points |= {Point(block.name) for stack in stacks for block in stack.blocks}
    points |= {Point(name) for name in [head_name(model.module)] if name}
    if not all(name in state and state[name].is_floating_point() for name in names):
        return True
    spoilt = []

    def note(point: Point, tensor: torch.Tensor) -> None:
        if tensor.isnan().any():
            spoilt.append(point)

    for name in names:
        state[name].fill_(float("nan"))
    with evaluating(model.module), tap(model.module, points, note):
        for one_pass in model.probe_passes():
            one_pass()
    for name in names:
        state[name].fill_(0.0)
    return bool(spoilt) or any(state[name].is_meta for name in names)


def _held(module: torch.nn.Module, *, buffers: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights with their names; those that accelerate keeps elsewhere are brought back."""
    for owner, part in module.named_modules():
        with align_module_device(part):
            away = part._non_persistent_buffers_set
            saved = part.named_buffers(recurse=False) if buffers else ()
            for name, weight in chain(part.named_parameters(recurse=False), saved):
                if name not in away:
                    yield f"{owner}.{name}", weight


def _listed(names: list[str]) -> str:
    """The first few names."""
    return ", ".join(names[:N_NAMED]) + (", ..." if len(names) > N_NAMED else "")
