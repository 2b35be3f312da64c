"""How is training kept to the weights of a network? Masked gradients, and a guard at each step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from llm2nifti.hooks import resolve
from llm2nifti.models import LoadedModel
from llm2nifti.networks import Network
from llm2nifti.surgery.feeding import all_feeders, check_fits, owning_sites
from llm2nifti.surgery.targets import common_brain


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
    chosen = [networks] if isinstance(networks, Network) else list(networks)
    brain = common_brain(chosen)
    members = np.any([network.units for network in chosen], axis=0)
    sites = [s for s in owning_sites(brain) if members[brain.slice_of(s)].any()]
    check_fits(model, sites, brain.space)
    feeding = all_feeders(model, [site.module for site in sites])
    masks: dict[str, torch.Tensor] = {}
    for site in sites:
        units = torch.from_numpy(members[brain.slice_of(site)])
        _add(masks, model.module, site.module, units, axis=1)
        for name in feeding[site.module]:
            _add(masks, model.module, name, units, axis=0)
    return masks


def _add(
    masks: dict[str, torch.Tensor], module: nn.Module, name: str, units: torch.Tensor, *, axis: int
) -> None:
    """Mark rows (axis 0) or columns (axis 1) of a layer's weights, and the bias of rows."""
    layer = resolve(module, name)
    parameters = dict(layer.named_parameters(recurse=False))
    along = axis if isinstance(layer, nn.Linear) else 1 - axis  # GPT-2 keeps (in, out)
    marks = {"weight": units[:, None] if along == 0 else units[None, :]}
    if axis == 0 and "bias" in parameters:
        marks["bias"] = units
    for kind, mark in marks.items():
        key, here = f"{name}.{kind}", mark.to(parameters[kind].device)
        masks[key] = masks[key] | here if key in masks else here


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
    trained = _by_parameter(parameters, masks)
    n_weights = sum(int(mask.expand_as(p).sum()) for p, mask, _ in trained.values())
    with ExitStack() as stack:
        stack.callback(model.module.zero_grad, set_to_none=True)
        model.module.zero_grad(set_to_none=True)
        for key, parameter in {id(p): p for p in parameters.values()}.items():
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(key in trained)
        for parameter, mask, _ in trained.values():
            handle = parameter.register_hook(lambda g, mask=mask: torch.where(mask, g, 0))
            stack.callback(handle.remove)

        def guard(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            _put_back([trained[key] for key in held & trained.keys()])

        stack.callback(_put_back, list(trained.values()))  # of optimizers that torch does not know
        stack.callback(register_optimizer_step_post_hook(guard).remove)
        yield GradientMask(masks, n_weights)


Trained = tuple[nn.Parameter, torch.Tensor, torch.Tensor]


def _by_parameter(
    parameters: Mapping[str, nn.Parameter], masks: Mapping[str, torch.Tensor]
) -> dict[int, Trained]:
    """Each parameter with its mask and a copy; one that goes by several names has all marks."""
    by_id: dict[int, Trained] = {}
    for name, mask in masks.items():
        parameter = parameters[name]
        if id(parameter) in by_id:
            _, other, copy = by_id[id(parameter)]
            by_id[id(parameter)] = (parameter, other | mask, copy)
        else:
            by_id[id(parameter)] = (parameter, mask, parameter.detach().clone())
    return by_id


@torch.no_grad()
def _put_back(trained: Sequence[Trained]) -> None:
    """Give the weights outside the masks the values that they had."""
    for parameter, mask, before in trained:
        parameter.copy_(torch.where(mask, parameter, before))
