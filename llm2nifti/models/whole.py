"""Is what came into memory the whole model, and which weights are they?

transformers fills what a checkpoint lacks with random numbers and goes on. Here it is refused,
unless nothing that can be recorded depends on it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device

from llm2nifti.hooks import Point, tap
from llm2nifti.models.cache import ModelError
from llm2nifti.models.loaded import LoadedModel
from llm2nifti.models.probing import evaluating
from llm2nifti.models.sites import find_sites, head_name

N_NAMED = 3  # weights that a message names


class IncompleteModelError(ModelError):
    """Weights are missing, have another shape than the config says, or are no numbers."""


def check_weights(model: LoadedModel, lacking: Iterable[str]) -> None:
    """Raise unless every weight that matters came from the checkpoint and is a finite number.

    Parameters
    ----------
    model : LoadedModel
        A model from a checkpoint. Weights that it lacks and that change nothing that can be
        recorded, such as a pooler's, become 0.
    lacking : iterable of str
        Names of weights that the checkpoint lacks or has in another shape.

    Raises
    ------
    IncompleteModelError
        If weights are missing or no numbers.
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


N_DIGITS = 48  # unlike the 64 of the hashes of files that older datasets hold


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
    _fill(state, names, float("nan"))
    with (
        evaluating(model.module),
        tap(
            model.module, points, lambda point, x: spoilt.append(point) if x.isnan().any() else None
        ),
    ):
        for one_pass in model.probe_passes():
            one_pass()
    _fill(state, names, 0.0)
    return bool(spoilt) or any(state[name].is_meta for name in names)


def _fill(state: dict[str, torch.Tensor], names: list[str], value: float) -> None:
    """Set weights to one value."""
    for name in names:
        state[name].fill_(value)


def _held(module: torch.nn.Module, *, buffers: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights with their names; those that accelerate keeps elsewhere are brought back."""
    for owner, part in module.named_modules():
        with align_module_device(part):
            held: dict[str, Any] = dict(part.named_parameters(recurse=False))
            if buffers:
                away = part._non_persistent_buffers_set
                held |= {n: b for n, b in part.named_buffers(recurse=False) if n not in away}
            yield from ((f"{owner}.{name}", weight) for name, weight in held.items())


def _listed(names: list[str]) -> str:
    """The first few names."""
    return ", ".join(names[:N_NAMED]) + (", ..." if len(names) > N_NAMED else "")
