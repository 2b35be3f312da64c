"""Which tensors does a block add to the stream? A sum that has to come out decides.

For pre-norm blocks ``resid_out - resid_in`` has to be the sum of one tensor a role, as it is or
times one number (Granite's ``residual_multiplier``). For post-norm blocks (BERT) each normalisation
layer has to read the stream plus one such tensor. Of all sums the closest counts: in bfloat16 a
large stream hides small tensors, and several sums would pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice, product

import torch
from torch import nn

from llm2nifti.models.hints import is_copy, is_norm, is_rowwise, role_of
from llm2nifti.models.probing import Probe

# Site name of the input of the projection that writes a role's tensor.
LEAST = 1e-3  # smaller multipliers are of tensors that are not added
N_SCALED = 2000  # sums with multipliers that are tried, from the outermost modules
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
    scales : mapping of str to float
        What a part is multiplied with before it is added, by role; 1 where a role is missing.
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
    scales: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""
    n_calls: int = 1


def find_block(model: nn.Module, name: str, probe: Probe) -> Block:
    """Establish the parts of one block from a probe pass."""
    n_calls = probe.calls[name]
    if n_calls > 1:
        problem = f"block {name!r} is called {n_calls} times in one pass: layers share its weights"
        return Block(name, problem=problem, n_calls=n_calls)
    if not probe.values[name].isfinite().all():
        problem = (
            f"block {name!r} puts out NaN or infinity: its weights are damaged, or too large for "
            "this dtype"
        )
        return Block(name, problem=problem)
    candidates = _candidates(model, name, probe)
    parts, scales = _added(model, name, candidates, probe)
    if not parts:
        children = ", ".join(
            f"{name}.{child}" for child, _ in model.get_submodule(name).named_children()
        )
        return Block(
            name,
            problem=(
                f"in block {name!r} no outputs of attention and MLP add up to the change of the "
                f"stream; its parts: {children}. Record sites='resid', or by name: sites='all' or "
                "'regex:...'"
            ),
        )
    by_role = {role: _projection(model, name, part, probe) for role, part in parts.items()}
    projections = {role: module for role, module in by_role.items() if module}
    return Block(name, parts, projections, scales)


def _added(
    model: nn.Module, block: str, candidates: dict[str, list[str]], probe: Probe
) -> tuple[dict[str, str], dict[str, float]]:
    """Parts of a block and what they are multiplied with, from the simplest sum that comes out."""
    before, after = probe.inputs[block], probe.values[block]
    parts = _pre_norm(before, after, candidates, probe) or _post_norm(
        model, block, candidates, probe
    )
    # RWKV's first block normalises the stream that it begins with.
    starts = [
        probe.values[name]
        for name, read in probe.inputs.items()
        if name.startswith(block + ".") and name in probe.values and _same(read, before)
    ]
    for start in starts:
        parts = parts or _pre_norm(start, after, candidates, probe)
    return (parts, {}) if parts else _scaled(before, after, candidates, probe)


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


def _pre_norm(
    before: torch.Tensor, after: torch.Tensor, candidates: dict[str, list[str]], probe: Probe
) -> dict[str, str]:
    """Parts that add up to the change of the stream, one a role."""
    if before.shape != after.shape:
        return {}
    called = {name: i for i, name in enumerate(probe.values)}

    def total(chosen: Sequence[str]) -> torch.Tensor:
        summed = before.clone()
        for part in sorted(chosen, key=called.__getitem__):  # rounded as the model does
            summed += probe.values[part].reshape(after.shape)
        return summed

    choices = list(_choices(candidates))
    sums = (_distance(total([*parts.values()]), after) for parts in choices)
    _, best = min(zip(sums, choices, strict=True), key=lambda pair: pair[0], default=(0.0, {}))
    return best if _is_close(total([*best.values()]), after, 1e-3, since=before) else {}


def _choices(candidates: dict[str, list[str]]) -> Iterator[dict[str, str]]:
    """One module a role, in every way; all roles and outer modules first."""
    for n_roles in range(len(candidates), 0, -1):  # a block of Mamba adds one part only
        for roles in combinations(candidates, n_roles):
            for chosen in product(*(candidates[role] for role in roles)):
                yield dict(zip(roles, chosen, strict=True))


def _scaled(
    before: torch.Tensor, after: torch.Tensor, candidates: dict[str, list[str]], probe: Probe
) -> tuple[dict[str, str], dict[str, float]]:
    """Parts that add up to the change of the stream when each is multiplied with one number."""
    if before.shape != after.shape:
        return {}, {}
    change = (after.double() - before.double()).flatten()
    sums = []
    for parts in islice(_choices(candidates), N_SCALED):
        columns = torch.stack([probe.values[n].double().flatten() for n in parts.values()], dim=1)
        if not columns.isfinite().all():
            continue
        scales = torch.linalg.lstsq(columns, change[:, None], driver="gelsd").solution[:, 0]
        added = columns @ scales
        if scales.abs().min() > LEAST and _is_close(
            before + added.view_as(before), after, 1e-4, since=before
        ):
            sums.append((_distance(added, change), parts, scales.tolist()))
    # A module and its last layer fit to rounding both: the outer one, which comes first.
    closest = min((error for error, *_ in sums), default=0.0)
    parts, scales = next(((p, s) for error, p, s in sums if error <= 2 * closest), ({}, []))
    return parts, dict(zip(parts, scales, strict=True))


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
        if not role or role in parts or not _is_close(sums[role, name], read, 1e-3, since=stream):
            return {}
        parts[role] = name
        stream = probe.values[norm].reshape(stream.shape)
    return parts if parts and torch.equal(stream, after) else {}


def _is_close(
    value: torch.Tensor, expected: torch.Tensor, limit: float, *, since: torch.Tensor
) -> bool:
    """Whether a sum comes out, up to the rounding of the stream that it was added to."""
    change = expected.float() - since.float()
    rounding = 4 * torch.finfo(expected.dtype).eps * expected.float().norm()
    is_near = _distance(value, expected) <= limit * change.norm() + rounding
    return bool(is_near) and bool(change.any())


def _is_multiple(target: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether a tensor is another one, or that times a number (Falcon-H1)."""
    if value.numel() != target.numel():
        return False
    a, b = target.flatten(), value.flatten()
    if torch.equal(a, b):
        return True
    a, b = a.double(), b.double()
    limit = 4 * torch.finfo(target.dtype).eps * a.norm()
    return bool((a - (a @ b) / (b @ b).clamp(min=1e-30) * b).norm() <= limit)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors hold the same values in the same shape."""
    return a.shape == b.shape and torch.equal(a, b)


def _distance(value: torch.Tensor, expected: torch.Tensor) -> float:
    """Euclidean distance of two tensors."""
    return float((value.float() - expected.float()).norm())


def _projection(model: nn.Module, block: str, part: str, probe: Probe) -> str:
    """Linear layer whose output, times a number, is a part's, or is what the part normalises."""
    target = probe.values[part]
    if is_norm(model.get_submodule(part)):
        target = probe.inputs[part]
    same = [
        name
        for name, value in probe.values.items()
        if name.startswith(block + ".")
        and getattr(getattr(model.get_submodule(name), "weight", None), "ndim", 0) == 2
        and _is_multiple(target, value)
    ]
    # The tensor-parallel plan's word comes first; then the innermost module.
    return max(same, key=lambda n: (is_rowwise(model, n), n.count(".")), default="")
