"""Which tensors does a block add to the stream? A sum that has to come out decides.

For pre-norm blocks ``resid_out - resid_in`` has to be the sum of one tensor a role. For post-norm
blocks (BERT) each normalisation layer has to read the stream plus one such tensor. Of all sums the
closest counts: in bfloat16 a large stream hides small tensors, and several sums would pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product

import torch
from torch import nn

from llm2nifti.models.hints import is_copy, is_norm, is_rowwise, role_of
from llm2nifti.models.probing import Probe

# Site name of the input of the projection that writes a role's tensor.
HIDDEN = {"attn": "heads", "cross": "cross_heads", "mixer": "mixer_hidden", "mlp": "mlp_hidden"}


@dataclass(frozen=True)
class Block:
    """One block of a stack.

    Attributes
    ----------
    name : str
        Dotted name of the module.
    parts : mapping of str to str
        Module whose output is added to the stream, by role: ``attn``, ``mlp``, ``cross`` (cross
        attention) or ``mixer`` (state spaces).
    projections : mapping of str to str
        Linear layer that writes each part; a role without one (experts) is missing.
    problem : str
        Why the parts could not be established, or empty. The block can still be recorded by
        module names.
    n_calls : int
        Calls in one pass; those of a block that is called again (ALBERT shares its weights) cannot
        be told apart.
    """

    name: str
    parts: Mapping[str, str] = field(default_factory=dict)
    projections: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""
    n_calls: int = 1


def find_block(model: nn.Module, name: str, probe: Probe) -> Block:
    """Establish the parts of one block from a probe pass."""
    n_calls = probe.calls[name]
    if n_calls > 1:
        problem = f"block {name!r} is called {n_calls} times in one pass: layers share its weights"
        return Block(name, problem=problem, n_calls=n_calls)
    candidates = _candidates(model, name, probe)
    parts = _pre_norm(name, candidates, probe) or _post_norm(model, name, candidates, probe)
    if not parts:
        children = ", ".join(
            f"{name}.{child}" for child, _ in model.get_submodule(name).named_children()
        )
        return Block(
            name,
            problem=(
                f"in block {name!r} no outputs of attention and MLP add up to the change of the "
                f"stream; its parts: {children}. Record by name with sites='all' or 'regex:...'"
            ),
        )
    found = {role: _projection(model, name, part, probe) for role, part in parts.items()}
    return Block(name, parts, {role: module for role, module in found.items() if module})


def _candidates(model: nn.Module, block: str, probe: Probe) -> dict[str, list[str]]:
    """Modules inside a block whose output is as large as the stream, by possible role.

    Outer modules come first, so that ``mlp`` is preferred to its last layer.
    """
    size = probe.values[block].numel()
    inside = [
        name
        for name, value in probe.values.items()
        if name.startswith(block + ".")
        and value.numel() == size
        and probe.calls[name] == 1
        and not is_copy(model.get_submodule(name))
    ]
    candidates: dict[str, list[str]] = {}
    for name in sorted(inside, key=lambda n: n.count(".")):
        candidates.setdefault(role_of(model, block, name), []).append(name)
    return candidates


def _pre_norm(block: str, candidates: dict[str, list[str]], probe: Probe) -> dict[str, str]:
    """Parts that add up to the change of the stream, one a role."""
    before, after = probe.inputs[block], probe.values[block]
    if before.shape != after.shape:
        return {}
    called = {name: i for i, name in enumerate(probe.values)}

    def total(chosen: Sequence[str]) -> torch.Tensor:
        found = before.clone()
        for part in sorted(chosen, key=called.__getitem__):  # rounded as the model does
            found += probe.values[part].reshape(after.shape)
        return found

    choices = [
        dict(zip(roles, chosen, strict=True))
        for n_roles in range(len(candidates), 0, -1)  # a block of Mamba adds one part only
        for roles in combinations(candidates, n_roles)
        for chosen in product(*(candidates[role] for role in roles))
    ]
    sums = (_distance(total([*parts.values()]), after) for parts in choices)
    _, best = min(zip(sums, choices, strict=True), key=lambda pair: pair[0], default=(0.0, {}))
    return best if _is_close(total([*best.values()]), after, after - before) else {}


def _post_norm(
    model: nn.Module, block: str, candidates: dict[str, list[str]], probe: Probe
) -> dict[str, str]:
    """Parts that normalisation layers read together with the stream, one a role."""
    stream, after = probe.inputs[block], probe.values[block]
    parts: dict[str, str] = {}
    norms = [
        name
        for name in probe.inputs
        if name.startswith(block + ".") and is_norm(model.get_submodule(name))
    ]
    for norm in norms:
        read = probe.inputs[norm]
        if read.numel() != stream.numel() or norm not in probe.values:
            continue
        read = read.reshape(stream.shape)
        sums = {
            (role, name): stream + probe.values[name].reshape(stream.shape)
            for role, names in candidates.items()
            for name in names
        }
        role, name = min(sums, key=lambda key: _distance(sums[key], read), default=("", ""))
        if not role or role in parts or not _is_close(sums[role, name], read, read - stream):
            return {}
        parts[role] = name
        stream = probe.values[norm].reshape(stream.shape)
    return parts if parts and torch.equal(stream, after) else {}


def _is_close(found: torch.Tensor, expected: torch.Tensor, change: torch.Tensor) -> bool:
    """Whether a sum comes out, up to the rounding of the stream that it was added to."""
    error = _distance(found, expected)
    rounding = 4 * torch.finfo(expected.dtype).eps * expected.float().norm()
    return bool(error <= 1e-3 * change.float().norm() + rounding) and bool(change.any())


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Euclidean distance of two tensors."""
    return float((found.float() - expected.float()).norm())


def _projection(model: nn.Module, block: str, part: str, probe: Probe) -> str:
    """Linear layer whose output is a part's output, or is what the part normalises."""
    target = probe.values[part]
    if is_norm(model.get_submodule(part)):
        target = probe.inputs[part]
    same = [
        name
        for name, value in probe.values.items()
        if name.startswith(block + ".")
        and value.numel() == target.numel()
        and torch.equal(value.flatten(), target.flatten())
        and getattr(getattr(model.get_submodule(name), "weight", None), "ndim", 0) == 2
    ]
    # The tensor-parallel plan's word comes first; then the innermost module.
    return max(same, key=lambda n: (is_rowwise(model, n), n.count(".")), default="")
