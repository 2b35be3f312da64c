"""Which weights belong to a unit? Its column in the projection, and the rows that feed it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from llm2nifti.geometry import ModelBrain, Site
from llm2nifti.hooks import NoSuchModuleError, Point, tap
from llm2nifti.models import LoadedModel
from llm2nifti.models.probing import evaluating
from llm2nifti.models.weights import widths
from llm2nifti.networks import Network

COMMAND = "llm2nifti run ds-units --sites heads,mlp_hidden"


class SurgeryError(ValueError):
    """Units own no weights, or not those of this model."""


def owning_sites(brain: ModelBrain) -> tuple[Site, ...]:
    """Sites whose units own weights: the inputs of projections.

    Units of ``heads`` and ``mlp_hidden`` (also ``cross_heads`` and ``mixer_hidden``) are each read
    by one column of a projection. What attention and MLP add to the stream, and the stream itself,
    are sums over all of them.
    """
    return tuple(site for site in brain.sites if site.where == "input" and not site.part)


def owning(network: Network) -> Network:
    """Units of a network that own weights; SurgeryError where none were recorded."""
    names = dict.fromkeys(site.name for site in owning_sites(network.brain))
    if names:
        return network.at(*names)
    raise SurgeryError(
        f"network {network.name!r} is of {', '.join(without_weights(network))} units, which own no "
        f"weights; units that do are recorded by: {COMMAND}"
    )


def without_weights(network: Network) -> dict[str, int]:
    """Number of a network's units at each site whose units own no weights, by the site's name."""
    owners = owning_sites(network.brain)
    profile = network.profile()[[site not in owners for site in network.brain.sites]]
    return profile.groupby("site", sort=False)["n_active"].sum().to_dict()


def joined(networks: Network | Sequence[Network]) -> Network:
    """All units of some networks, with the sums of their strengths.

    SurgeryError unless there are any, all of one space, and every unit owns weights.
    """
    chosen = [networks] if isinstance(networks, Network) else list(networks)
    spaces = list(dict.fromkeys(network.brain.space for network in chosen))
    if len(spaces) != 1:
        raise SurgeryError(f"networks of one space are needed, got {', '.join(spaces) or 'none'}")
    for network in chosen:
        kept = owning(network)
        outside = ", ".join(f"{n} {name}" for name, n in without_weights(network).items() if n)
        if outside:
            sites = dict.fromkeys(repr(site.name) for site in owning_sites(kept.brain))
            raise SurgeryError(
                f"network {network.name!r} has units that own no weights ({outside}); keep the "
                f"others: network.at({', '.join(sites)})"
            )
    signs = np.any([network.units for network in chosen], axis=0).astype(np.int8)
    weights = np.sum([network.strengths for network in chosen], axis=0)
    return replace(chosen[0], signs=signs, weights=weights)


def check_fits(model: LoadedModel, sites: Sequence[Site], space: str) -> None:
    """Raise SurgeryError unless the model has the weights of these sites of a space."""
    for site in sites:
        try:
            n_units, _ = widths(model.module.get_submodule(site.module))
        except AttributeError:
            raise SurgeryError(
                f"the network is in space {space}, whose module {site.module!r} has no weight in "
                f"model {model.name!r}; use a network of the same model"
            ) from None
        if n_units != site.n_units:
            raise SurgeryError(
                f"{site.module!r} reads {n_units} units in this model and {site.n_units} in space "
                f"{space}; use a network of the same model"
            )


def out_in(layer: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """View of a layer's weight as (out, in), as of torch's Linear, or of such a one as it is kept.

    Conv1D of GPT-2 keeps it as (in, out).
    """
    return weight if isinstance(layer, nn.Linear) else weight.T


def block_of(model: LoadedModel, name: str) -> str:
    """Name of the block that a module lies in, or ``""``."""
    blocks = (block.name for stack in model.anatomy.stacks for block in stack.blocks)
    return next((block for block in blocks if name.startswith(block + ".")), "")


def feeders(model: LoadedModel, projection: str) -> list[str]:
    """Linear layers whose output rows become the input units of a projection, one to one.

    Of a gated MLP these are ``up_proj`` and ``gate_proj``; of attention ``v_proj``, unless several
    heads share its rows. There is none where rows and units are not one to one, as in fused
    projections.

    Raises
    ------
    llm2nifti.hooks.NoSuchModuleError
        If there is no such module.

    Examples
    --------
    >>> feeders(model, "model.layers.3.mlp.down_proj")  # doctest: +SKIP
    ['model.layers.3.mlp.gate_proj', 'model.layers.3.mlp.up_proj']
    """
    return all_feeders(model, [projection])[projection]


def all_feeders(model: LoadedModel, projections: Sequence[str]) -> dict[str, list[str]]:
    """Feeders of several projections by name, as of `feeders`, from one pass.

    Names differ between architectures, so a probe pass decides: half of a projection's input units,
    drawn at random, are differentiated by the outputs of the layers before it. A layer feeds the
    units one to one if the same half of its rows has a gradient and the other half has none.
    """
    beside = {p: _layers_beside(model, p) for p in projections}
    layers = dict.fromkeys(name for names in beside.values() for name in names)
    points = [*(Point(p, "input") for p in projections), *map(Point, layers)]
    seen: dict[Point, torch.Tensor] = {}

    def keep(point: Point, tensor: torch.Tensor) -> torch.Tensor | None:
        if point.where == "input":
            seen[point] = tensor
            return None
        seen[point] = tensor.detach().requires_grad_()  # what lies before does not count
        return seen[point].clone()  # Falcon adds to it in place

    feeding: dict[str, dict[str, None]] = {p: {} for p in projections}
    for one_pass in model.probe_passes():
        seen.clear()
        with evaluating(model.module, gradients=True), tap(model.module, points, keep):
            one_pass()
            for p in projections:
                units = seen.get(Point(p, "input"))
                rows = {name: seen.get(Point(name)) for name in beside[p]}
                feeding[p] |= {n: None for n, row in rows.items() if _feeds(row, units)}
    return {p: list(names) for p, names in feeding.items()}


def _layers_beside(model: LoadedModel, projection: str) -> list[str]:
    """Layers with a matrix of weights in the same block, without the projection itself."""
    modules = dict(model.module.named_modules())
    if projection not in modules:
        raise NoSuchModuleError(f"no module {projection!r} in this model")
    block = block_of(model, projection)
    inside = [n for n in modules if block and n.startswith(block + ".") and n != projection]
    return [n for n in inside if getattr(getattr(modules[n], "weight", None), "ndim", 0) == 2]


def _feeds(rows: torch.Tensor | None, units: torch.Tensor | None) -> bool:
    """Whether unit i depends on row i and on no other of a layer's output; both were seen."""
    if rows is None or units is None or not units.requires_grad:
        return False
    n_units = units.shape[-1]
    if rows.shape[-1] != n_units:
        return False
    order = torch.randperm(n_units, generator=torch.Generator().manual_seed(0)).to(units.device)
    half, rest = order[: n_units // 2], order[n_units // 2 :]
    signs = torch.randn(units[..., half].shape, generator=torch.Generator().manual_seed(1))
    total = (units[..., half] * signs.to(units)).sum()
    (gradient,) = torch.autograd.grad(total, rows, retain_graph=True, allow_unused=True)
    if gradient is None:
        return False
    return bool(gradient[..., half].any()) and not bool(gradient[..., rest].any())
