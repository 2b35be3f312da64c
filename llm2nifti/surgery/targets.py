"""Which modules should be trained, and how with few weights? Those of the network's units; LoRA."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from llm2nifti import bids
from llm2nifti.hooks import resolve
from llm2nifti.models import LoadedModel
from llm2nifti.networks import Network
from llm2nifti.surgery.feeding import (
    SurgeryError,
    all_feeders,
    check_fits,
    check_owning,
    owning_sites,
)

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
    chosen = of_one_space(networks)
    brain = chosen[0].brain
    strengths = np.sum([network.strengths for network in chosen], axis=0)
    members = np.any([network.units for network in chosen], axis=0)
    sites = owning_sites(brain)
    slices = [brain.slice_of(site) for site in sites]
    n_owning = sum(site.n_units for site in sites)
    overall = sum(float(strengths[inside].sum()) for inside in slices) / n_owning
    feeding: dict[str, list[str]] = {}
    if model:
        check_fits(model, sites, brain.space)
        feeding = all_feeders(model, [site.module for site in sites])
    rows = []
    for site, inside in zip(sites, slices, strict=True):
        n_units, mass = int(members[inside].sum()), float(strengths[inside].sum())
        enrichment = mass / site.n_units / overall if overall else 0.0
        numbers = (n_units, n_units / site.n_units, mass, enrichment)
        rows.append((site.module, site.layer, site.name, "columns", *numbers))
        for feeder in feeding.get(site.module, []):
            rows.append((feeder, site.layer, site.name, "rows", *numbers))
    return pd.DataFrame(rows, columns=COLUMNS).sort_values(
        ["mass", "enrichment"], ascending=False, kind="stable", ignore_index=True
    )


def of_one_space(networks: Network | Sequence[Network]) -> list[Network]:
    """Networks as a list; SurgeryError unless there are any, of one space, that own weights."""
    chosen = [networks] if isinstance(networks, Network) else list(networks)
    spaces = list(dict.fromkeys(network.brain.space for network in chosen))
    if len(spaces) != 1:
        raise SurgeryError(f"networks of one space are needed, got {', '.join(spaces) or 'none'}")
    for network in chosen:
        check_owning(network)
    return chosen


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
    """Make a peft configuration that trains low-rank updates of some modules.

    Parameters
    ----------
    modules : iterable of str
        Full names, such as the first rows of ``target_modules(network)["module"]``.
    r : int, default=8
        Rank of the updates.
    alpha : float, default=16
        The update is scaled by ``alpha / r``.
    model : LoadedModel, optional
        To check the names, and to say where weights are stored as (in, out), as in GPT-2.
    **options : dict
        More of ``peft.LoraConfig``, such as ``lora_dropout``.

    Returns
    -------
    peft.LoraConfig

    Raises
    ------
    SurgeryError
        If no module is given, or peft is not installed.
    llm2nifti.hooks.NoSuchModuleError
        If the model has no such module.

    Notes
    -----
    Hu et al. (2022), LoRA: low-rank adaptation of large language models.

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

    Parameters
    ----------
    config : peft.PeftConfig
        From `lora_config`.
    folder : Path
        Made if it is not there.
    overwrite : bool, default=False
        Replace a file that is there.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    llm2nifti.bids.ExistsError
        If the file is there already.
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
