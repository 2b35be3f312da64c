"""How is training kept to the weights of a network? Masked gradients, and a guard at each step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from llm2nifti.models import LoadedModel
from llm2nifti.networks import Network
from llm2nifti.surgery.feeding import all_feeders, check_fits, column_axis, owning_sites
from llm2nifti.surgery.targets import of_one_space


@dataclass(frozen=True, eq=False)
class GradientMask:
    """Which weights train.

    Attributes
    ----------
    masks : mapping of str to bool tensor
        By the name of the parameter; of its shape, or broadcast to it. Parameters that are not
        named do not train at all.
    n_weights : int
        Weights that train.
    """

    masks: Mapping[str, torch.Tensor]
    n_weights: int

    def __repr__(self) -> str:
        """Say how many weights train."""
        return f"GradientMask: {self.n_weights} weights in {len(self.masks)} parameters train"


def network_weights(
    model: LoadedModel, networks: Network | Sequence[Network]
) -> dict[str, torch.Tensor]:
    """Find the weights that belong to the units of some networks.

    A unit owns the column of the projection that reads it, and in every layer that feeds it alone
    (`llm2nifti.surgery.feeding.feeders`) its row and its bias. Where heads share keys and values,
    the rows that write them belong to several units and are left out.

    Parameters
    ----------
    model : LoadedModel
        The model.
    networks : Network or sequence of Network
        Of ``heads`` and ``mlp_hidden`` units.

    Returns
    -------
    dict
        Bool tensor by the name of the parameter, of its shape or broadcast to it.

    Raises
    ------
    SurgeryError
        If the networks are of another model, or of units that own no weights.
    """
    chosen = of_one_space(networks)
    brain = chosen[0].brain
    members = np.any([network.units for network in chosen], axis=0)
    sites = [s for s in owning_sites(brain) if members[brain.slice_of(s)].any()]
    check_fits(model, sites, brain.space)
    feeding = all_feeders(model, [site.module for site in sites])
    parameters = dict(model.module.named_parameters(remove_duplicate=False))
    masks: dict[str, torch.Tensor] = {}
    for site in sites:
        units = torch.from_numpy(members[brain.slice_of(site)])
        marks = {f"{site.module}.weight": _along(model.module, site.module, units, reads=True)}
        for name in feeding[site.module]:
            marks[f"{name}.weight"] = _along(model.module, name, units, reads=False)
            if f"{name}.bias" in parameters:
                marks[f"{name}.bias"] = units
        for name, mark in marks.items():
            here = mark.to(parameters[name].device)
            masks[name] = masks[name] | here if name in masks else here
    return masks


def _along(module: nn.Module, name: str, units: torch.Tensor, *, reads: bool) -> torch.Tensor:
    """Marks of the units that a layer reads, or writes, broadcast to its weight."""
    is_last = (column_axis(module, name) == 1) == reads
    return units[None, :] if is_last else units[:, None]


@contextmanager
def gradient_mask(
    model: LoadedModel, networks: Network | Sequence[Network]
) -> Iterator[GradientMask]:
    """Keep full fine-tuning to the weights of some networks.

    Inside, every other weight of the model stays as it was, bit by bit: gradients are zero there,
    and after every step of any optimizer of `torch.optim` what weight decay, momentum or an
    optimizer that is older than the mask changed there is put back. Weight decay works on the
    network's own weights as usual.

    Parameters
    ----------
    model : LoadedModel
        The model.
    networks : Network or sequence of Network
        Of ``heads`` and ``mlp_hidden`` units; see `network_weights` for what belongs to them.

    Yields
    ------
    GradientMask

    Raises
    ------
    SurgeryError
        See `network_weights`.

    Notes
    -----
    All gradients are cleared when it begins and ends, and ``requires_grad`` of every parameter is
    put back. A copy of the parameters that hold network weights is kept meanwhile.

    Examples
    --------
    >>> with gradient_mask(model, network):  # doctest: +SKIP
    ...     optimizer = torch.optim.AdamW(model.module.parameters())
    ...     model.module(**batch, labels=labels).loss.backward()
    ...     optimizer.step()
    """
    masks = network_weights(model, networks)
    parameters = dict(model.module.named_parameters(remove_duplicate=False))
    trained: dict[nn.Parameter, torch.Tensor] = {}  # one that goes by several names has all marks
    for name, mask in masks.items():
        parameter = parameters[name]
        trained[parameter] = trained[parameter] | mask if parameter in trained else mask
    before = {parameter: parameter.detach().clone() for parameter in trained}

    @torch.no_grad()
    def put_back(held: Iterable[nn.Parameter]) -> None:
        for parameter in held:
            parameter.copy_(torch.where(trained[parameter], parameter, before[parameter]))

    def guard(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        held = [p for group in optimizer.param_groups for p in group["params"]]
        put_back(p for p in held if p in trained)

    with ExitStack() as stack:
        stack.callback(model.module.zero_grad, set_to_none=True)
        model.module.zero_grad(set_to_none=True)
        for parameter in model.module.parameters():
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(parameter in trained)
        for parameter, mask in trained.items():
            handle = parameter.register_hook(lambda g, mask=mask: torch.where(mask, g, 0))
            stack.callback(handle.remove)
        stack.callback(put_back, trained)  # of optimizers that torch does not know
        stack.callback(register_optimizer_step_post_hook(guard).remove)
        n_weights = sum(int(mask.expand_as(p).sum()) for p, mask in trained.items())
        yield GradientMask(masks, n_weights)
