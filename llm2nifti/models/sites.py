"""Which tensors of this model can be recorded, and under which names?"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import nn

from llm2nifti.geometry import Side, Site
from llm2nifti.hooks import Point
from llm2nifti.models.anatomy import (
    ATTENTION,
    MLP,
    PROBE_SHAPE,
    Anatomy,
    Block,
    UnknownArchitectureError,
    write_norms,
)
from llm2nifti.models.cache import ModelError

NAMED = ("embed", "attn", "resid", "mlp", "norm", "heads", "mlp_hidden", "q", "k", "v", "norms")
DEFAULT = ("embed", "attn", "resid", "mlp", "norm")


class NoSuchSiteError(ModelError):
    """The model does not have a site that was asked for."""


def find_sites(model: nn.Module, anatomy: Anatomy, spec: str = "default") -> tuple[Site, ...]:
    """List the sites to record, from the embedding up.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    anatomy : Anatomy
        Its parts, from `dissect`.
    spec : str, default="default"
        ``default`` (embed, attn, resid, mlp, norm), ``all`` (every leaf module's output but the
        logits), ``regex:PATTERN`` (leaf and block modules whose whole name matches), or names
        separated by commas: embed, attn, resid, mlp, norm, heads, mlp_hidden, q, k, v, norms.

    Returns
    -------
    tuple of Site

    Raises
    ------
    NoSuchSiteError
        If a name is unknown or the model lacks it; the message lists what there is.
    """
    spec = spec.strip()
    if spec == "all":
        head = _head_name(model)
        return _leaf_sites(model, anatomy, lambda name: name != head)
    if spec.startswith("regex:"):
        try:
            pattern = re.compile(spec.removeprefix("regex:"))
        except re.error as error:
            raise NoSuchSiteError(f"{spec!r} is not a regular expression: {error}") from None
        leaves = _leaf_sites(model, anatomy, lambda name: bool(pattern.fullmatch(name)))
        blocks = [
            Site("resid", layer, block.name, anatomy.width)
            for layer, block in enumerate(anatomy.blocks, start=1)
            if pattern.fullmatch(block.name)
        ]
        sites = tuple(sorted([*leaves, *blocks], key=lambda site: site.layer))
        if not sites:
            names = ", ".join(leaf.name for leaf in anatomy.leaves[:6])
            raise NoSuchSiteError(
                f"no recordable module matches {spec!r}; modules are like {names}"
            )
        return sites
    wanted = DEFAULT if spec == "default" else tuple(n.strip() for n in spec.split(","))
    unknown = [name for name in wanted if name not in NAMED]
    if unknown:
        raise NoSuchSiteError(
            f"unknown site {unknown[0]!r}; use default, all, regex:PATTERN or any of "
            f"{', '.join(NAMED)}"
        )
    return _named_sites(model, anatomy, wanted)


def _named_sites(model: nn.Module, anatomy: Anatomy, names: tuple[str, ...]) -> tuple[Site, ...]:
    """Sites by role, layer by layer."""
    problem = next((block.problem for block in anatomy.blocks if block.problem), "")
    if problem and not {"resid", "embed", "norm", "norms"}.issuperset(names):
        raise UnknownArchitectureError(problem)
    sites: list[Site] = []
    if "embed" in names:
        units = _units_of(anatomy)[anatomy.embedding]
        sites.append(Site("embed", 0, anatomy.embedding, units))
    for layer, block in enumerate(anatomy.blocks, start=1):
        for name in ("attn", "heads", "q", "k", "v", "norms", "resid", "mlp_hidden", "mlp"):
            if name in names:
                sites += _BUILDERS[name](model, anatomy, block, layer)
    if "norm" in names and anatomy.final_norm:
        layer = len(anatomy.blocks) + 1
        sites.append(Site("norm", layer, anatomy.final_norm, anatomy.width))
    if not sites:
        raise NoSuchSiteError(f"this model has none of the sites {', '.join(names)}")
    return tuple(sites)


def _role(name: str, side: Side) -> Callable[..., list[Site]]:
    """Builder of a site that is the output of a block's part, as wide as the stream."""

    def build(_model: nn.Module, anatomy: Anatomy, block: Block, layer: int) -> list[Site]:
        module = block.name if name == "resid" else getattr(block, name)
        return [Site(name, layer, module, anatomy.width, side=side)]

    return build


def _projection_input(name: str, attribute: str, side: Side) -> Callable[..., list[Site]]:
    """Builder of a site that is the input of a projection."""

    def build(model: nn.Module, anatomy: Anatomy, block: Block, layer: int) -> list[Site]:
        module = getattr(block, attribute)
        shape: tuple[int, ...] = tuple(model.get_parameter(f"{module}.weight").shape)
        n_units = next((n for n in shape if n != anatomy.width), anatomy.width)
        return [Site(name, layer, module, n_units, where="input", side=side)]

    return build


def _qkv(name: str) -> Callable[..., list[Site]]:
    """Builder of the query, key or value projection's output."""
    words = {"q": "q_proj|query|q", "k": "k_proj|key|k", "v": "v_proj|value|v"}[name]

    def build(_model: nn.Module, anatomy: Anatomy, block: Block, layer: int) -> list[Site]:
        inside = [n for n in _units_of(anatomy) if n.startswith(block.attn + ".")]
        found = [n for n in inside if re.fullmatch(words, n.rpartition(".")[2])]
        if len(found) != 1:
            raise NoSuchSiteError(
                f"block {block.name!r} has no separate {name!r} projection; its attention has "
                f"{', '.join(inside)}. A fused projection is recorded with --sites 'regex:...'"
            )
        return [Site(name, layer, found[0], _units_of(anatomy)[found[0]], side="left")]

    return build


def _norms(model: nn.Module, anatomy: Anatomy, block: Block, layer: int) -> list[Site]:
    """Normalisation layers of a block."""
    units = _units_of(anatomy)
    names = [
        name
        for name in units
        if name.startswith(block.name + ".")
        and "norm" in type(model.get_submodule(name)).__name__.lower()
    ]
    return [Site(n.removeprefix(block.name + "."), layer, n, units[n]) for n in names]


_BUILDERS: dict[str, Callable[..., list[Site]]] = {
    "attn": _role("attn", "left"),
    "resid": _role("resid", "middle"),
    "mlp": _role("mlp", "right"),
    "heads": _projection_input("heads", "output_projection", "left"),
    "mlp_hidden": _projection_input("mlp_hidden", "down_projection", "right"),
    "q": _qkv("q"),
    "k": _qkv("k"),
    "v": _qkv("v"),
    "norms": _norms,
}


def skipped(model: nn.Module, anatomy: Anatomy) -> dict[str, str]:
    """Leaf modules that ``--sites all`` leaves out, each with its reason."""
    reasons = dict.fromkeys(anatomy.uncalled, "not called as a module in a forward pass")
    for leaf in anatomy.leaves:
        if _units(leaf.shape) is None:
            reasons[leaf.name] = f"output of shape {leaf.shape} is not (trials, tokens, units)"
        elif leaf.n_calls != 1:
            reasons[leaf.name] = f"called {leaf.n_calls} times in one pass"
        elif isinstance(model.get_submodule(leaf.name), (nn.Dropout, nn.Identity)):
            reasons[leaf.name] = "copies its input"
    reasons[_head_name(model)] = "logits; ask for them by name"
    return reasons


def _leaf_sites(
    model: nn.Module, anatomy: Anatomy, wanted: Callable[[str], bool]
) -> tuple[Site, ...]:
    """Sites at leaf modules, placed in the layer of their block."""
    head = _head_name(model)
    left_out = {name for name in skipped(model, anatomy) if name != head}
    sites = []
    layer = 0
    for leaf in anatomy.leaves:
        layer, name = _place(anatomy, leaf.name, layer)
        if leaf.name in left_out or not wanted(leaf.name):
            continue
        units = _units(leaf.shape)
        assert units is not None
        sites.append(Site(name, layer, leaf.name, units, side=_side(name)))
    return tuple(sorted(sites, key=lambda site: site.layer))


def _place(anatomy: Anatomy, module: str, last_layer: int) -> tuple[int, str]:
    """Layer and site name of a leaf module; outside the blocks by the order of calls."""
    for layer, block in enumerate(anatomy.blocks, start=1):
        if module.startswith(block.name + "."):
            return layer, module.removeprefix(block.name + ".")
    top = len(anatomy.blocks) + 1
    layer = 0 if last_layer == 0 else top
    roles = {anatomy.embedding: "embed", anatomy.final_norm: "norm"}
    return layer, roles.get(module) or module.rpartition(".")[2]


def _side(name: str) -> Side:
    """Part of the floor plan that a leaf module belongs to, by its path in the block."""
    if "norm" in name.lower():
        return "middle"
    if ATTENTION.search(name):
        return "left"
    return "right" if MLP.search(name) else "middle"


def _units(shape: tuple[int, ...]) -> int | None:
    """Units of an output, or None if its shape is not one vector a token."""
    trials, tokens = PROBE_SHAPE
    if len(shape) == 3 and shape[:2] == PROBE_SHAPE:
        return shape[2]
    if len(shape) == 2 and shape[0] == trials * tokens:  # OPT flattens
        return shape[1]
    return None


def _units_of(anatomy: Anatomy) -> dict[str, int]:
    """Units of every recordable leaf module."""
    sized = {leaf.name: _units(leaf.shape) for leaf in anatomy.leaves}
    return {name: n for name, n in sized.items() if n is not None}


def _head_name(model: nn.Module) -> str:
    """Name of the module that computes the logits."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return next((name for name, module in model.named_modules() if module is head), "")


def weight_norms(
    model: nn.Module, anatomy: Anatomy, sites: tuple[Site, ...]
) -> NDArray[np.float32]:
    """Norm of the weights that write into each unit, for the anatomical image.

    ``attn`` and ``mlp`` have the rows of their last projection, ``resid`` both of its block's,
    inputs of a projection the weights that read them.

    Returns
    -------
    (n_units,) float32 array
        In recording order; 0 where a module has no weights.
    """
    writers = {b.attn: b.output_projection for b in anatomy.blocks if not b.problem}
    writers |= {b.mlp: b.down_projection for b in anatomy.blocks if not b.problem}
    blocks = {block.name: block for block in anatomy.blocks if not block.problem}
    parts = []
    for site in sites:
        if site.module in blocks:
            block = blocks[site.module]
            pair = [
                write_norms(model, Point(name), site.n_units)
                for name in (block.output_projection, block.down_projection)
            ]
            parts.append((pair[0] ** 2 + pair[1] ** 2).sqrt())
        else:
            module = site.module if site.where == "input" else writers.get(site.module, site.module)
            parts.append(write_norms(model, Point(module, site.where), site.n_units))
    return np.concatenate([part.numpy() for part in parts]).astype(np.float32)
