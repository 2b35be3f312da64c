"""Which tensors of this model can be recorded, and under which names?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from llm2nifti.geometry import Side, Site
from llm2nifti.models import experts, fused
from llm2nifti.models.anatomy import Leaf, Stack, UnknownArchitectureError
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


class NoSuchSiteError(ModelError):
    """The model does not have a site that was asked for."""


def find_sites(
    model: nn.Module,
    stacks: Sequence[Stack],
    spec: str = "default",
    *,
    fused_qkv: str | None = None,
) -> tuple[Site, ...]:
    """List the sites to record, from the embedding up.

    Parameters
    ----------
    model, stacks
        The model, and its stacks to record: their layers are numbered one after another.
    spec : str, default="default"
        ``default`` (embed, attn, cross, mixer, resid, mlp, norm: those that the model has), ``all``
        (every leaf module's output but the logits, and what the projections to the stream read),
        ``regex:PATTERN`` (leaf and block modules whose whole name matches), or names separated by
        commas: those of the default, heads, mlp_hidden, q, k, v, norms, router, experts, and more.
        A NoSuchSiteError of an unknown name, or one that the model lacks, lists what there is.
    fused_qkv : {"contiguous", "interleaved"}, optional
        Layout of a fused query-key-value projection; see `llm2nifti.models.fused`.
    """
    select = _selector(spec.strip(), fused_qkv)
    sites: list[Site] = []
    base = 0
    for stack in stacks:
        sites += [replace(site, layer=site.layer + base) for site in select(model, stack)]
        base += len(stack.blocks) + 2
    if not sites:
        leaves = ", ".join(leaf.name for leaf in stacks[0].leaves[:6])
        raise NoSuchSiteError(f"no recordable module matches {spec!r}; modules are like {leaves}")
    return tuple(sites)


def _selector(spec: str, fused_qkv: str | None) -> Callable[[nn.Module, Stack], list[Site]]:
    """Function that lists the sites of one stack."""
    if spec == "all":
        return _all
    if spec.startswith("regex:"):
        try:
            pattern = re.compile(spec.removeprefix("regex:"))
        except re.error as error:
            raise NoSuchSiteError(f"{spec!r} is not a regular expression: {error}") from None
        return lambda _model, stack: _matching(stack, pattern)
    wanted = DEFAULT if spec == "default" else tuple(n.strip() for n in spec.split(","))
    for name in wanted:
        if name not in NAMED:
            choices = f"default, all, regex:PATTERN or any of {', '.join(NAMED)}"
            raise NoSuchSiteError(f"unknown site {name!r}; use {choices}")
    is_strict = spec != "default"
    return lambda model, stack: _Named(model, stack, fused_qkv).find(wanted, strict=is_strict)


@dataclass(frozen=True, eq=False)
class _Named:
    """Sites of one stack by role."""

    model: nn.Module
    stack: Stack
    fused_qkv: str | None

    def find(self, names: Sequence[str], *, strict: bool) -> list[Site]:
        """Sites of these names; with `strict`, a name that no block has raises."""
        stack = self.stack
        for block in stack.blocks:
            whole = () if block.n_calls > 1 else ("resid", "norms", "experts")
            if block.problem and not {"embed", "norm", *whole}.issuperset(names):
                raise UnknownArchitectureError(block.problem)
        sites: list[Site] = []
        if "embed" in names and stack.embedding:
            units = stack.units.get(stack.embedding, stack.width)
            sites.append(Site("embed", 0, stack.embedding, units))
        for layer, block in enumerate(stack.blocks, start=1):
            for name in names:
                if name not in ("embed", "norm"):
                    sites += [replace(s, layer=layer) for s in self._of_block(name, block)]
        if "norm" in names and stack.final_norm:
            sites.append(Site("norm", len(stack.blocks) + 1, stack.final_norm, stack.width))
        # Norms carry their own names.
        present = {"norms" if site.name not in NAMED else site.name for site in sites}
        lacking = [name for name in names if name not in present]
        if strict and lacking:
            where = f"stack {stack.name!r} of this model" if stack.name else "this model"
            first = stack.blocks[0]
            there = ", ".join([*first.parts, *(HIDDEN[role] for role in first.projections)])
            raise NoSuchSiteError(
                f"{where} has no {lacking[0]!r}; its blocks have resid, {there}. Others go by "
                "sites='regex:...'"
            )
        return sites

    def _of_block(self, name: str, block: Block) -> list[Site]:
        """Sites of one name in one block, without their layer."""
        if name in QKV:
            return [self._qkv(name, block)]
        if name in ("norms", "router", "experts"):
            return self._inner(name, block)
        if name == "resid" or name in block.parts:
            module, side = block.parts.get(name, block.name), SIDES.get(name, "middle")
            n_copies = self.stack.n_copies if name == "resid" else 1
            return [Site(name, 0, module, self.stack.width * n_copies, side=side)]
        roles = [role for role in block.projections if HIDDEN[role] == name]
        return [projection_input(self.model, block, role) for role in roles]

    def _units(self, block: Block) -> dict[str, int]:
        """Units of the leaves of one block that put out one vector a token."""
        within = f"{block.name}."
        return {name: n for name, n in self.stack.units.items() if name.startswith(within)}

    def _qkv(self, name: str, block: Block) -> Site:
        """Query, key or value projection of the self-attention."""
        units = self._units(block)
        inside = [n for n in units if not ROLES["cross"].search(n.removeprefix(block.name))]
        matching = [n for n in inside if re.fullmatch(QKV[name], n.rpartition(".")[2])]
        if len(matching) == 1:
            return Site(name, 0, matching[0], units[matching[0]], side="left")
        whole = [n for n in inside if FUSED.fullmatch(n.rpartition(".")[2])]
        if len(whole) != 1:
            there = ", ".join(n for n in inside if ROLES["attn"].search(n)) or "none"
            raise NoSuchSiteError(
                f"block {block.name!r} has no separate {name!r} projection; its attention has "
                f"{there}. Record by name with sites='regex:...'"
            )
        if self.fused_qkv is None:
            raise NoSuchSiteError(
                f"{whole[0]!r} computes queries, keys and values together; declare how with "
                f"fused_qkv={' or '.join(map(repr, fused.LAYOUTS))}, or record it whole: "
                "sites='regex:...'"
            )
        n = len(fused.indices(self.model.config, self.fused_qkv, name, units[whole[0]]))
        return Site(name, 0, whole[0], n, side="left", part=f"{name}:{self.fused_qkv}")

    def _inner(self, name: str, block: Block) -> list[Site]:
        """Normalisation layers of a block, what its router puts out first, or all its experts."""
        if name == "experts":
            owners = experts.experts_in(self.model, f"{block.name}.")
            units = {n: experts.n_units(self.model.get_submodule(n)) for n in owners}
            return [Site(name, 0, f"{n}.{experts.CHILD}", units[n], side="right") for n in units]
        units = self._units(block)
        if name == "norms":
            norms = [n for n in units if is_norm(self.model.get_submodule(n))]
            return [Site(_inner_name(block, n), 0, n, units[n]) for n in norms]
        routers = [
            n
            for n in units
            if "router" in type(self.model.get_submodule(n)).__name__.lower()
            or n.rpartition(".")[2] in ("gate", "router")
        ]
        return [Site(name, 0, n, units[n], side="right") for n in routers]


def projection_input(model: nn.Module, block: Block, role: str) -> Site:
    """Site at the input of the projection that writes a role's tensor to the stream."""
    module = block.projections[role]
    n_units, _ = fused.widths(model.get_submodule(module))
    return Site(HIDDEN[role], 0, module, n_units, where="input", side=SIDES[role])


def _all(model: nn.Module, stack: Stack) -> list[Site]:
    """Every leaf that can be recorded but the logits, and the inputs of the projections."""
    head = head_name(model)
    leaves = _leaf_sites(stack, lambda name: name != head)
    fed = {leaf.name: leaf.fed_by for leaf in stack.leaves}
    recorded = {site.module for site in leaves}
    inputs = [
        replace(projection_input(model, block, role), layer=layer)
        for layer, block in enumerate(stack.blocks, start=1)
        for role, module in block.projections.items()
        if fed.get(module) not in recorded  # what an activation puts out is there already
    ]
    return sorted([*leaves, *inputs], key=lambda site: site.layer)


def _matching(stack: Stack, pattern: re.Pattern[str]) -> list[Site]:
    """Leaves and blocks whose whole name matches."""
    leaves = _leaf_sites(stack, lambda name: bool(pattern.fullmatch(name)))
    blocks = [
        Site("resid", layer, block.name, stack.width * stack.n_copies)
        for layer, block in enumerate(stack.blocks, start=1)
        if pattern.fullmatch(block.name) and block.n_calls == 1
    ]
    return sorted([*leaves, *blocks], key=lambda site: site.layer)


def skipped(model: nn.Module, stacks: Sequence[Stack], uncalled: Sequence[str]) -> dict[str, str]:
    """Leaf modules that ``--sites all`` leaves out, each with its reason."""
    reasons = dict.fromkeys(uncalled, "not called as a module in a forward pass")
    for stack in stacks:
        told = {leaf.name: _reason(stack, leaf) for leaf in stack.leaves}
        reasons |= {name: reason for name, reason in told.items() if reason}
    if head := head_name(model):
        reasons[head] = "logits; ask for them by name"
    return reasons


def _reason(stack: Stack, leaf: Leaf) -> str:
    """Why a leaf cannot be recorded, or ``""``."""
    if leaf.is_copy:
        return "copies its input"
    if stack.n_units(leaf.shape) is None:
        return f"output of shape {leaf.shape} is not (trials, tokens, units)"
    return f"called {leaf.n_calls} times in one pass" if leaf.n_calls != 1 else ""


def _leaf_sites(stack: Stack, wanted: Callable[[str], bool]) -> list[Site]:
    """Sites at leaf modules, placed in the layer of their block."""
    sites = []
    units = stack.units
    layer = 0
    for leaf in stack.leaves:
        layer, name = _place(stack, leaf.name, layer)
        if wanted(leaf.name) and not _reason(stack, leaf):
            sites.append(Site(name, layer, leaf.name, units[leaf.name], side=_side(name)))
    n_alike = Counter((site.layer, site.name) for site in sites)  # wav2vec2 has two layer_norm
    sites = [replace(s, name=s.module) if n_alike[s.layer, s.name] > 1 else s for s in sites]
    return sorted(sites, key=lambda site: site.layer)


def _place(stack: Stack, module: str, last_layer: int) -> tuple[int, str]:
    """Layer and site name of a leaf module; outside the blocks by the order of calls."""
    for layer, block in enumerate(stack.blocks, start=1):
        if module.startswith(block.name + "."):
            return layer, _inner_name(block, module)
    layer = 0 if last_layer == 0 else len(stack.blocks) + 1
    roles = {stack.embedding: "embed", stack.final_norm: "norm"}
    return layer, roles.get(module) or module.rpartition(".")[2]


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


def head_name(model: nn.Module) -> str:
    """Name of the module that computes the logits, or ``""``."""
    head = embeddings(model, "output")
    return next((n for n, module in model.named_modules() if n and module is head), "")
