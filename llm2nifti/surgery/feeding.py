"""Which weights belong to a unit? Its column in the projection, and the rows that feed it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from llm2nifti.geometry import ModelBrain, Site
from llm2nifti.hooks import NoSuchModuleError, Point, tap
from llm2nifti.models import LoadedModel
from llm2nifti.models.probing import evaluating
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


def owns_weights(brain: ModelBrain) -> NDArray[np.bool_]:
    """(n_units,) whether each unit owns weights."""
    owning = owning_sites(brain)
    return np.repeat([site in owning for site in brain.sites], np.diff(brain.offsets))


def without_weights(network: Network) -> dict[str, int]:
    """Number of a network's units at each site whose units own no weights, by the site's name."""
    owning = owning_sites(network.brain)
    profile = network.profile()[[site not in owning for site in network.brain.sites]]
    return profile.groupby("site", sort=False)["n_active"].sum().to_dict()


def check_owning(network: Network) -> None:
    """Raise SurgeryError unless every unit of a network owns weights."""
    counts = without_weights(network)
    owning = dict.fromkeys(repr(site.name) for site in owning_sites(network.brain))
    if not owning:
        raise SurgeryError(
            f"network {network.name!r} is of {', '.join(counts)} units, which own no weights; "
            f"units that do are recorded by: {COMMAND}"
        )
    outside = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
    if outside:
        raise SurgeryError(
            f"network {network.name!r} has units that own no weights ({outside}); keep the others: "
            f"network.at({', '.join(owning)})"
        )


def column_axis(module: nn.Module, projection: str) -> int:
    """Axis of a projection's weight that runs over the units which it reads."""
    # torch's Linear stores (out, in), Conv1D of GPT-2 (in, out).
    return 1 if isinstance(module.get_submodule(projection), nn.Linear) else 0


def check_fits(model: LoadedModel, sites: Sequence[Site], space: str) -> None:
    """Raise SurgeryError unless the model has the weights of these sites of a space."""
    for site in sites:
        try:
            weight = model.module.get_parameter(f"{site.module}.weight")
        except AttributeError:
            raise SurgeryError(
                f"the network is in space {space}, whose module {site.module!r} has no weight in "
                f"model {model.name!r}; use a network of the same model"
            ) from None
        n_units = weight.shape[column_axis(model.module, site.module)]
        if n_units != site.n_units:
            raise SurgeryError(
                f"{site.module!r} reads {n_units} units in this model and {site.n_units} in space "
                f"{space}; use a network of the same model"
            )


def block_of(model: LoadedModel, name: str) -> str:
    """Name of the block that a module lies in, or ``""``."""
    blocks = (block.name for stack in model.anatomy.stacks for block in stack.blocks)
    return next((block for block in blocks if name.startswith(block + ".")), "")


def feeders(model: LoadedModel, projection: str) -> list[str]:
    """Linear layers whose output rows become the input units of a projection, one to one.

    Parameters
    ----------
    model : LoadedModel
        The model.
    projection : str
        Name of the module, such as ``model.layers.3.mlp.down_proj``.

    Returns
    -------
    list of str
        ``up_proj`` and ``gate_proj`` of a gated MLP; of attention ``v_proj``, unless several
        heads share its rows. Empty where rows and units are not one to one, as in fused
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
    module = model.module
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
        with evaluating(module, gradients=True), tap(module, points, keep):
            one_pass()
            for p in projections:
                for name in beside[p]:
                    if _feeds(seen.get(Point(name)), seen.get(Point(p, "input"))):
                        feeding[p][name] = None
    return {p: list(names) for p, names in feeding.items()}


def _layers_beside(model: LoadedModel, projection: str) -> list[str]:
    """Layers with a matrix of weights in the same block, without the projection itself."""
    modules = dict(model.module.named_modules())
    if projection not in modules:
        raise NoSuchModuleError(f"no module {projection!r} in this model")
    block = block_of(model, projection)
    return [
        name
        for name, layer in modules.items()
        if block
        and name.startswith(block + ".")
        and name != projection
        and getattr(getattr(layer, "weight", None), "ndim", 0) == 2
    ]


def _feeds(rows: torch.Tensor | None, units: torch.Tensor | None) -> bool:
    """Whether unit i depends on row i and on no other of a layer's output; both were seen."""
    if rows is None or units is None or not units.requires_grad:
        return False
    n_units = units.shape[-1]
    if rows.shape[-1] != n_units:
        return False
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(n_units, generator=generator).to(units.device)
    half, rest = order[: n_units // 2], order[n_units // 2 :]
    signs = torch.randn(units[..., half].shape, generator=torch.Generator().manual_seed(1))
    total = (units[..., half] * signs.to(units)).sum()
    (gradient,) = torch.autograd.grad(total, rows, retain_graph=True, allow_unused=True)
    if gradient is None:
        return False
    return bool(gradient[..., half].any()) and not bool(gradient[..., rest].any())
