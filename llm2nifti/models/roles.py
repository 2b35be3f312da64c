"""Which tensors does a block add to the stream? A sum that has to come out decides.

For pre-norm blocks ``resid_out - resid_in`` has to be the sum of one tensor a role, as it is or
times one number (Granite's ``residual_multiplier``). For post-norm blocks (BERT) each normalisation
layer has to read the stream plus one such tensor. Of all sums the closest counts: in bfloat16 a
large stream hides small tensors, and several sums would pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations, islice, product

import torch
from torch import nn

from llm2nifti.models.probing import ROLES, Probe, is_copy, is_norm, is_same, recordable

LEAST = 1e-3  # smaller multipliers are of tensors that are not added
N_SCALED = 2000  # sums with multipliers that are tried, from the outermost modules
# Site name of the input of the projection that writes a role's tensor.
HIDDEN = {"attn": "heads", "cross": "cross_heads", "mixer": "mixer_hidden", "mlp": "mlp_hidden"}


@dataclass(frozen=True)
class Block:
    """One block of a stack: its parts by role, ``attn``, ``mlp``, ``cross`` or ``mixer``.

    ``cross`` is cross attention, ``mixer`` a state space. A block whose parts could not be
    established can still be recorded by module names.
    """

    name: str
    #: Module whose output is added to the stream; the linear layer that writes it, if there is one
    #: (experts have none); what it is multiplied with before, 1 where a role is missing.
    parts: Mapping[str, str] = field(default_factory=dict)
    projections: Mapping[str, str] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""  #: why the parts could not be established
    n_calls: int = 1  #: in one pass: those of a block called again (ALBERT) cannot be told apart


def find_block(model: nn.Module, name: str, probe: Probe) -> Block:
    """Establish the parts of one block from a probe pass."""
    n_calls = probe.calls[name]
    if n_calls > 1:
        problem = f"block {name!r} is called {n_calls} times in one pass: layers share its weights"
    elif not probe.values[name].isfinite().all():
        problem = (
            f"block {name!r} puts out NaN or infinity: its weights are damaged, or too large for "
            "this dtype"
        )
    else:
        search = _Search(model, name, probe)
        parts, scales = search.find()
        if parts:
            written = {role: search.projection(part) for role, part in parts.items()}
            projections = {role: module for role, module in written.items() if module}
            return Block(name, parts, projections, scales)
        children = [f"{name}.{child}" for child, _ in model.get_submodule(name).named_children()]
        problem = (
            f"in block {name!r} no outputs of attention and MLP add up to the change of the "
            f"stream; its parts: {', '.join(children)}. Record sites='resid', or by name: "
            "sites='all' or 'regex:...'"
        )
    return Block(name, problem=problem, n_calls=n_calls)


class _Search:
    """What a probe pass saw of one block, and which sums of it come out."""

    def __init__(self, model: nn.Module, block: str, probe: Probe) -> None:
        self.model = model
        self.before, self.after = probe.inputs[block], probe.values[block]

        def inside(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            """Those in the block that are as large as the stream, in its shape."""
            return {
                name: tensor.reshape(self.after.shape)
                for name, tensor in tensors.items()
                if name.startswith(f"{block}.") and tensor.numel() == self.after.numel()
            }

        self.values, self.inputs = inside(probe.values), inside(probe.inputs)
        attention = tuple(recordable(model, "attentions"))
        # Modules whose output may be added, by possible role. Outer modules come first, so that
        # ``mlp`` is preferred to its last layer.
        self.candidates: dict[str, list[str]] = {}
        for name in sorted(self.values, key=lambda n: n.count(".")):
            module, path = model.get_submodule(name), name.removeprefix(f"{block}.")
            if probe.calls[name] == 1 and not is_copy(module):
                otherwise = "attn" if isinstance(module, attention) else "mlp"
                role = next((r for r, words in ROLES.items() if words.search(path)), otherwise)
                self.candidates.setdefault(role, []).append(name)

    def find(self) -> tuple[dict[str, str], dict[str, float]]:
        """Parts and what they are multiplied with, from the simplest sum that comes out."""
        if self.before.shape != self.after.shape:
            return {}, {}
        parts = self._pre_norm(self.before) or self._post_norm()
        # RWKV's first block normalises the stream that it begins with.
        for name, read in self.inputs.items():
            if not parts and name in self.values and is_same(read, self.before):
                parts = self._pre_norm(self.values[name])
        return (parts, {}) if parts else self._scaled()

    def _choices(self) -> Iterator[dict[str, str]]:
        """One module a role, in every way; all roles and outer modules first."""
        for n_roles in range(len(self.candidates), 0, -1):  # a block of Mamba adds one part only
            for roles in combinations(self.candidates, n_roles):
                for chosen in product(*(self.candidates[role] for role in roles)):
                    yield dict(zip(roles, chosen, strict=True))

    def _pre_norm(self, before: torch.Tensor) -> dict[str, str]:
        """Parts that add up to the change of the stream, one a role."""

        def total(parts: dict[str, str]) -> torch.Tensor:
            summed = before.clone()
            for name, value in self.values.items():  # as they are called: rounded as the model does
                if name in parts.values():
                    summed += value
            return summed

        best = min(self._choices(), key=lambda p: _distance(total(p), self.after), default={})
        return best if _is_close(total(best), self.after, 1e-3, since=before) else {}

    def _scaled(self) -> tuple[dict[str, str], dict[str, float]]:
        """Parts that add up to the change of the stream when each is multiplied with one number."""
        before, after = self.before, self.after
        change = (after.double() - before.double()).flatten()
        sums = []
        for parts in islice(self._choices(), N_SCALED):
            columns = torch.stack([self.values[n].double().flatten() for n in parts.values()], 1)
            if not columns.isfinite().all():
                continue
            scales = torch.linalg.lstsq(columns, change[:, None], driver="gelsd").solution[:, 0]
            added = columns @ scales
            value = before + added.view_as(before)
            if scales.abs().min() > LEAST and _is_close(value, after, 1e-4, since=before):
                sums.append((_distance(added, change), parts, scales.tolist()))
        # A module and its last layer fit to rounding both: the outer one, which comes first.
        closest = min((error for error, *_ in sums), default=0.0)
        parts, scales = next(((p, s) for error, p, s in sums if error <= 2 * closest), ({}, []))
        return parts, dict(zip(parts, scales, strict=True))

    def _post_norm(self) -> dict[str, str]:
        """Parts that normalisation layers read together with the stream, one a role."""
        stream = self.before
        parts: dict[str, str] = {}
        for norm, read in self.inputs.items():
            if norm not in self.values or not is_norm(self.model.get_submodule(norm)):
                continue
            sums = {
                (role, name): stream + self.values[name]
                for role, names in self.candidates.items()
                for name in names
            }
            key = min(sums, key=lambda k: _distance(sums[k], read), default=None)
            if key is None or key[0] in parts or not _is_close(sums[key], read, 1e-3, since=stream):
                return {}
            parts[key[0]] = key[1]
            stream = self.values[norm]
        return parts if parts and torch.equal(stream, self.after) else {}

    def projection(self, part: str) -> str:
        """Linear layer that puts out a part, or what it normalises, up to a number; or ``""``."""
        is_normalised = is_norm(self.model.get_submodule(part))
        target = self.inputs[part] if is_normalised else self.values[part]
        same = [
            name
            for name, value in self.values.items()
            if getattr(getattr(self.model.get_submodule(name), "weight", None), "ndim", 0) == 2
            and _is_multiple(target, value)
        ]
        plan = getattr(self.model, "_tp_plan", None) or {}

        def rank(name: str) -> tuple[bool, int]:
            """Whether the tensor-parallel plan splits it by rows; then the innermost module."""
            split = str(plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", name), ""))
            return split.startswith("rowwise"), name.count(".")

        return max(same, key=rank, default="")


def _distance(value: torch.Tensor, expected: torch.Tensor) -> float:
    """Euclidean distance of two tensors."""
    return float((value.float() - expected.float()).norm())


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
    if torch.equal(target, value):
        return True
    a, b = target.double().flatten(), value.double().flatten()
    limit = 4 * torch.finfo(target.dtype).eps * a.norm()
    return bool((a - (a @ b) / (b @ b).clamp(min=1e-30) * b).norm() <= limit)
