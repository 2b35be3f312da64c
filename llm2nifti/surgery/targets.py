"""What should be trained? Modules that carry a network, by LoRA; or its own weights alone."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from llm2nifti import bids
from llm2nifti.hooks import resolve
from llm2nifti.interventions.reloading import read_network
from llm2nifti.models import LoadedModel
from llm2nifti.networks import Network
from llm2nifti.surgery import feeding
from llm2nifti.surgery.feeding import SurgeryError

CONFIG = "adapter_config.json"  # the name that peft looks for
COLUMNS = ["module", "layer", "site", "weights", "n_units", "share", "mass", "enrichment"]


def target_modules(
    networks: Network | Sequence[Network], *, model: LoadedModel | None = None
) -> pd.DataFrame:
    """Rank modules by how much of a network their weights carry.

    Parameters
    ----------
    networks : Network or sequence of Network
        Of ``heads`` and ``mlp_hidden`` units; those of several networks add up.
    model : LoadedModel, optional
        With the model, also the layers that write the units; without, the projections that read
        them.

    Returns
    -------
    DataFrame
        One row a module, the most mass first. ``module, layer, site``; ``weights``: ``columns`` of
        a projection that reads the units, ``rows`` of a layer that writes them; ``n_units`` of the
        networks and their ``share`` of the module's units; ``mass``, the sum of the units'
        strengths; ``enrichment``, mass a unit of this module over mass a unit of all of them.

    Raises
    ------
    SurgeryError
        If the networks are of different spaces, of another model, or of units that own no weights.

    Notes
    -----
    Mass grows with the width of a module: ``mlp_hidden`` has more units than ``heads``. Enrichment
    does not; sort by it to find where a network is dense.

    Examples
    --------
    >>> target_modules(network, model=model).head(3)  # doctest: +SKIP
    """
    network = feeding.joined(networks)
    brain = network.brain
    sites = feeding.owning_sites(brain)
    written_by: dict[str, list[str]] = {}
    if model:
        feeding.check_fits(model, sites, brain.space)
        written_by = feeding.all_feeders(model, [site.module for site in sites])
    units, strengths = network.units, network.strengths
    masses = [float(strengths[brain.slice_of(site)].sum()) for site in sites]
    overall = sum(masses) / sum(site.n_units for site in sites)
    rows = []
    for site, mass in zip(sites, masses, strict=True):
        n_units = int(units[brain.slice_of(site)].sum())
        enrichment = mass / site.n_units / overall if overall else 0.0
        numbers = (n_units, n_units / site.n_units, mass, enrichment)
        rows.append((site.module, site.layer, site.name, "columns", *numbers))
        for name in written_by.get(site.module, []):
            rows.append((name, site.layer, site.name, "rows", *numbers))
    return pd.DataFrame(rows, columns=COLUMNS).sort_values(
        ["mass", "enrichment"], ascending=False, kind="stable", ignore_index=True
    )


def rank_modules(session: bids.Session, network: str, *, model: LoadedModel) -> pd.DataFrame:
    """Targets of a task, or of a mask by its path; units that own no weights are left out."""
    return target_modules(feeding.owning(read_network(session, network)), model=model)


def default_top(targets: pd.DataFrame) -> int:
    """Modules to train where nothing else is said: a tenth of all, at least one."""
    return max(1, round(len(targets) / 10))


def lora_config(
    modules: Iterable[str],
    *,
    r: int = 8,
    alpha: float = 16,
    model: LoadedModel | None = None,
    **options: Any,
) -> Any:
    """Make a ``peft.LoraConfig`` that trains low-rank updates of some modules (Hu et al. 2022).

    Parameters
    ----------
    modules : iterable of str
        Full names, such as the first rows of ``target_modules(network)["module"]``.
    r, alpha : int, float
        Rank of the updates, which are scaled by ``alpha / r``.
    model : LoadedModel, optional
        To check the names, and to say where weights are stored as (in, out), as in GPT-2.
    **options : dict
        More of ``peft.LoraConfig``, such as ``lora_dropout``.

    Raises
    ------
    SurgeryError
        If no module is given, or peft is not installed.
    llm2nifti.hooks.NoSuchModuleError
        If the model has no such module.

    Examples
    --------
    >>> lora_config(target_modules(network)["module"].head(12))  # doctest: +SKIP
    """
    names = sorted(set(modules))
    if not names:
        raise SurgeryError("no module to train: the network is empty")
    try:
        from peft import LoraConfig
    except ImportError:
        raise SurgeryError(
            'peft is not installed; install it with: pip install "llm2nifti[train]"'
        ) from None
    if model is not None:
        layers = [resolve(model.module, name) for name in names]
        options.setdefault("fan_in_fan_out", not isinstance(layers[0], nn.Linear))
        if model.kind == "causal":
            options.setdefault("task_type", "CAUSAL_LM")
    return LoraConfig(r=r, lora_alpha=alpha, target_modules=names, **options)


def write_config(config: Any, folder: Path, *, overwrite: bool = False) -> Path:
    """Write ``adapter_config.json``, which ``peft.PeftConfig.from_pretrained(folder)`` reads.

    `config` is from `lora_config`; the folder is made if it is not there.

    Raises
    ------
    llm2nifti.bids.ExistsError
        If the file is there already, and `overwrite` does not allow to replace it.
    """
    path = folder / CONFIG
    if path.exists() and not overwrite:
        raise bids.ExistsError(f"{path} is there already; replace it with overwrite=True")
    with tempfile.TemporaryDirectory() as temporary:
        config.save_pretrained(temporary)
        content = json.loads((Path(temporary) / CONFIG).read_text("utf-8"))
    content["target_modules"] = sorted(content["target_modules"])  # peft keeps them as a set
    bids.write_json(path, folder, content)
    return path


@dataclass(frozen=True, eq=False)
class GradientMask:
    """Which weights train."""

    #: masks, n_weights: by the name of the parameter, of its shape or broadcast to it; and how many
    #: weights train. Parameters that are not named do not train at all.
    masks: Mapping[str, torch.Tensor]
    n_weights: int

    def __repr__(self) -> str:
        """Say how many weights train."""
        return f"GradientMask: {self.n_weights} weights in {len(self.masks)} parameters train"


def network_weights(
    model: LoadedModel, networks: Network | Sequence[Network]
) -> dict[str, torch.Tensor]:
    """Find the weights that belong to the ``heads`` and ``mlp_hidden`` units of some networks.

    A unit owns the column of the projection that reads it, and in every layer that feeds it alone
    (`llm2nifti.surgery.feeding.feeders`) its row and its bias. Where heads share keys and values,
    the rows that write them belong to several units and are left out. The tensors are bool, by the
    name of the parameter, of its shape or broadcast to it.

    Raises
    ------
    SurgeryError
        If the networks are of another model, or of units that own no weights.
    """
    network = feeding.joined(networks)
    brain, units = network.brain, network.units
    members = {site: units[brain.slice_of(site)] for site in feeding.owning_sites(brain)}
    sites = [site for site, inside in members.items() if inside.any()]
    feeding.check_fits(model, sites, brain.space)
    written_by = feeding.all_feeders(model, [site.module for site in sites])
    masks: dict[str, torch.Tensor] = {}
    for site in sites:
        inside = torch.from_numpy(members[site])
        reader = model.module.get_submodule(site.module)
        marks = {f"{site.module}.weight": feeding.out_in(reader, inside[None, :])}
        for name in written_by[site.module]:
            writer = model.module.get_submodule(name)
            marks[f"{name}.weight"] = feeding.out_in(writer, inside[:, None])
            if getattr(writer, "bias", None) is not None:
                marks[f"{name}.bias"] = inside
        for name, mark in marks.items():
            here = mark.to(model.module.get_parameter(name).device)
            masks[name] = here | masks.get(name, here)
    return masks


@contextmanager
def gradient_mask(
    model: LoadedModel, networks: Network | Sequence[Network]
) -> Iterator[GradientMask]:
    """Keep full fine-tuning to the weights of some networks.

    Inside, every other weight of the model stays as it was, bit by bit: gradients are zero there,
    and after every step of any optimizer of `torch.optim` what weight decay, momentum or an
    optimizer that is older than the mask changed there is put back. Weight decay works on the
    network's own weights as usual. See `network_weights` for what these are, and for errors.

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
    trained: dict[nn.Parameter, torch.Tensor] = {}  # one that goes by several names has all marks
    for name, mask in masks.items():
        parameter = model.module.get_parameter(name)
        trained[parameter] = mask | trained.get(parameter, mask)
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
