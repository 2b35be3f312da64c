"""Which tensors of this model can be recorded, and under which names?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from llm2nifti.geometry import Side, Site
from llm2nifti.models import weights
from llm2nifti.models.anatomy import Stack, UnknownArchitectureError
from llm2nifti.models.cache import ModelError
from llm2nifti.models.probing import ROLES, embeddings, is_norm
from llm2nifti.models.roles import HIDDEN, Block

MLP = re.compile(r"mlp|ffn|feed_forward|fc\d|dense_h|dense_4h|moe|act|expert", re.IGNORECASE)
SIDES: dict[str, Side] = {"attn": "left", "cross": "left", "mixer": "left", "mlp": "right"}
DEFAULT = ("embed", "attn", "cross", "mixer", "resid", "mlp", "norm")
FINER = (*HIDDEN.values(), "q", "k", "v", "norms", "router", "experts")
NAMED = (*DEFAULT, *FINER)
QKV = {"q": "q_proj|query|q", "k": "k_proj|key|k", "v": "v_proj|value|v"}
FUSED = re.compile(r"c_attn|.*qkv.*|query_key_value", re.IGNORECASE)
UNITS = "units"  # child of stacked experts that their hidden units pass, there while they are read


class NoSuchSiteError(ModelError):
    """The model does not have a site that was asked for."""


def find_sites(
    model: nn.Module,
    stacks: Sequence[Stack],
    spec: str = "default",
    *,
    fused_qkv: str | None = None,
) -> tuple[Site, ...]:
    """List the sites to record, from the embedding up; layers of stacks are numbered on and on.

    `spec` is ``default`` (embed, attn, cross, mixer, resid, mlp, norm: those that the model has),
    ``all`` (every leaf module's output but the logits, and what the projections to the stream
    read), ``regex:PATTERN`` (leaf and block modules whose whole name matches), or names separated
    by commas: those of the default, heads, mlp_hidden, q, k, v, norms, router, experts, and more. A
    NoSuchSiteError of an unknown name, or one that the model lacks, lists what there is.
    `fused_qkv` is the layout of a fused query-key-value projection; see `llm2nifti.models.weights`.
    """
    select = _selector(spec.strip())
    sites: list[Site] = []
    base = 0
    for stack in stacks:
        of_stack = sorted(select(_Finder(model, stack, fused_qkv)), key=lambda site: site.layer)
        sites += [replace(site, layer=site.layer + base) for site in of_stack]
        base += len(stack.blocks) + 2
    if not sites:
        leaves = ", ".join(leaf.name for leaf in stacks[0].leaves[:6])
        raise NoSuchSiteError(f"no recordable module matches {spec!r}; modules are like {leaves}")
    return tuple(sites)


def _selector(spec: str) -> Callable[[_Finder], list[Site]]:
    """Function that lists the sites of one stack."""
    if spec == "all":
        return _Finder.all
    if spec.startswith("regex:"):
        try:
            pattern = re.compile(spec.removeprefix("regex:"))
        except re.error as error:
            raise NoSuchSiteError(f"{spec!r} is not a regular expression: {error}") from None
        return lambda finder: finder.matching(pattern)
    names = DEFAULT if spec == "default" else tuple(n.strip() for n in spec.split(","))
    for name in names:
        if name not in NAMED:
            choices = f"default, all, regex:PATTERN or any of {', '.join(NAMED)}"
            raise NoSuchSiteError(f"unknown site {name!r}; use {choices}")
    return lambda finder: finder.named(names, strict=spec != "default")


@dataclass(frozen=True, eq=False)
class _Finder:
    """Sites of one stack."""

    model: nn.Module
    stack: Stack
    fused_qkv: str | None

    def all(self) -> list[Site]:
        """Every leaf that can be recorded but the logits, and the inputs of the projections."""
        head = head_name(self.model)
        leaves = self._leaves(lambda name: name != head)
        fed = {leaf.name: leaf.fed_by for leaf in self.stack.leaves}
        recorded = {site.module for site in leaves}  # what an activation puts out is there already
        return [*leaves, *(s for s in self._inputs() if fed.get(s.module) not in recorded)]

    def matching(self, pattern: re.Pattern[str]) -> list[Site]:
        """Leaves and blocks whose whole name matches."""
        once = {block.name for block in self.stack.blocks if block.n_calls == 1}
        blocks = [s for s in self._of_name("resid") if s.module in once]
        leaves = self._leaves(lambda name: bool(pattern.fullmatch(name)))
        return [*leaves, *(site for site in blocks if pattern.fullmatch(site.module))]

    def named(self, names: Sequence[str], *, strict: bool) -> list[Site]:
        """Sites of these names; with `strict`, a name that no block has raises."""
        for block in self.stack.blocks:
            whole = () if block.n_calls > 1 else ("resid", "norms", "experts")
            if block.problem and not {"embed", "norm", *whole}.issuperset(names):
                raise UnknownArchitectureError(block.problem)
        by_name = [self._of_name(name) for name in names]
        if strict and not all(by_name):
            lacking = names[by_name.index([])]
            stack, first = self.stack.name, self.stack.blocks[0]
            where = f"stack {stack!r} of this model" if stack else "this model"
            there = ", ".join([*first.parts, *(HIDDEN[role] for role in first.projections)])
            raise NoSuchSiteError(
                f"{where} has no {lacking!r}; its blocks have resid, {there}. Others go by "
                "sites='regex:...'"
            )
        return [site for sites in by_name for site in sites]

    def _of_name(self, name: str) -> list[Site]:
        """Sites of one name, from the bottom up."""
        stack, layers = self.stack, list(enumerate(self.stack.blocks, start=1))
        ends = {"embed": (0, stack.embedding), "norm": (len(layers) + 1, stack.final_norm)}
        if name in ends:
            layer, module = ends[name]
            units = {leaf.name: leaf.n_units for leaf in stack.leaves if leaf.n_units}
            return [Site(name, layer, module, units.get(module, stack.width))] if module else []
        if name == "resid":
            width = stack.width * stack.n_copies
            return [Site(name, layer, block.name, width) for layer, block in layers]
        if name in SIDES:
            parts = [(layer, block.parts.get(name)) for layer, block in layers]
            width, side = stack.width, SIDES[name]
            return [Site(name, layer, part, width, side=side) for layer, part in parts if part]
        if name in HIDDEN.values():
            return [site for site in self._inputs() if site.name == name]
        if name in QKV:
            return [self._qkv(name, layer) for layer, _ in layers]
        return [site for layer, _ in layers for site in self._inner(name, layer)]

    def _inputs(self) -> list[Site]:
        """What the projections read that write to the stream."""
        sites = []
        for layer, block in enumerate(self.stack.blocks, start=1):
            for role, module in block.projections.items():
                n_units, _ = weights.widths(self.model.get_submodule(module))
                side = SIDES[role]
                sites.append(Site(HIDDEN[role], layer, module, n_units, where="input", side=side))
        return sites

    def _units(self, layer: int) -> dict[str, int]:
        """Units of the leaves of one block that put out one vector a token."""
        leaves = (leaf for leaf in self.stack.leaves if leaf.layer == layer)
        return {leaf.name: leaf.n_units for leaf in leaves if leaf.n_units}

    def _qkv(self, name: str, layer: int) -> Site:
        """Query, key or value projection of the self-attention."""
        block, units = self.stack.blocks[layer - 1].name, self._units(layer)
        inside = [n for n in units if not ROLES["cross"].search(n.removeprefix(block))]
        matching = [n for n in inside if re.fullmatch(QKV[name], n.rpartition(".")[2])]
        if len(matching) == 1:
            return Site(name, layer, matching[0], units[matching[0]], side="left")
        whole = [n for n in inside if FUSED.fullmatch(n.rpartition(".")[2])]
        if len(whole) != 1:
            there = ", ".join(n for n in inside if ROLES["attn"].search(n)) or "none"
            raise NoSuchSiteError(
                f"block {block!r} has no separate {name!r} projection; its attention has "
                f"{there}. Record by name with sites='regex:...'"
            )
        if self.fused_qkv is None:
            raise NoSuchSiteError(
                f"{whole[0]!r} computes queries, keys and values together; declare how with "
                f"fused_qkv={' or '.join(map(repr, weights.LAYOUTS))}, or record it whole: "
                "sites='regex:...'"
            )
        n = len(weights.fused(self.model.config, self.fused_qkv, name, units[whole[0]]))
        return Site(name, layer, whole[0], n, side="left", part=f"{name}:{self.fused_qkv}")

    def _inner(self, name: str, layer: int) -> list[Site]:
        """Normalisation layers of a block, what its router puts out first, or all its experts."""
        block, units = self.stack.blocks[layer - 1], self._units(layer)
        if name == "norms":
            norms = [n for n in units if is_norm(self.model.get_submodule(n))]
            return [Site(_inner_name(block, n), layer, n, units[n]) for n in norms]
        if name == "router":
            units = {n: units[n] for n in units if _is_router(n, self.model.get_submodule(n))}
        else:
            inside = self.model.get_submodule(block.name).named_modules(prefix=block.name)
            held = {n: module.down_proj.shape for n, module in inside if _can_be_read(module)}
            units = {f"{n}.{UNITS}": shape[0] * shape[2] for n, shape in held.items()}
        return [Site(name, layer, n, units[n], side="right") for n in units]

    def _leaves(self, wanted: Callable[[str], bool]) -> list[Site]:
        """Sites at leaf modules, named by their path in the block, or by what they do outside."""
        stack = self.stack
        roles = {stack.embedding: "embed", stack.final_norm: "norm"}
        sites = []
        for leaf in stack.leaves:
            if wanted(leaf.name) and not leaf.problem:
                name = roles.get(leaf.name) or leaf.name.rpartition(".")[2]
                if 0 < leaf.layer <= len(stack.blocks):
                    name = _inner_name(stack.blocks[leaf.layer - 1], leaf.name)
                sites.append(Site(name, leaf.layer, leaf.name, leaf.n_units, side=_side(name)))
        n_alike = Counter((site.layer, site.name) for site in sites)  # wav2vec2 has two layer_norm
        return [replace(s, name=s.module) if n_alike[s.layer, s.name] > 1 else s for s in sites]


def _inner_name(block: Block, module: str) -> str:
    """Site name of a module by its path in the block; never one that means something else."""
    path = module.removeprefix(f"{block.name}.")
    return f"block.{path}" if path in NAMED else path


def _side(name: str) -> Side:
    """Part of the floor plan that a leaf module belongs to, by its path in the block."""
    if "norm" in name.lower():
        return "middle"
    if any(words.search(name) for words in ROLES.values()):
        return "left"
    return "right" if MLP.search(name) else "middle"


def _is_router(name: str, module: nn.Module) -> bool:
    """Whether a leaf chooses experts, by the name of its class or its own."""
    return "router" in type(module).__name__.lower() or name.endswith((".gate", ".router"))


def _can_be_read(module: Any) -> bool:
    """Whether a module holds stacked experts of a kind whose hidden units can be read.

    Before transformers 5.7 and 5.20, which name the last two, there were no others with a gate.
    """
    return (
        hasattr(module, "_apply_gate")
        and getattr(getattr(module, "down_proj", None), "ndim", 0) == 3
        and getattr(module, "has_gate", False)
        and not getattr(module, "is_transposed", True)
        and not getattr(module, "has_bias", True)
        and getattr(module, "is_concatenated", True)
        and not getattr(module, "has_post_expert_norm", False)
    )


def head_name(model: nn.Module) -> str:
    """Name of the module that computes the logits, or ``""``."""
    head = embeddings(model, "output")
    return next((n for n, module in model.named_modules() if n and module is head), "")
