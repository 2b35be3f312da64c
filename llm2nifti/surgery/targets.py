"""Which modules should be trained? Those whose weights belong to the network's units."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from llm2nifti.geometry import ModelBrain
from llm2nifti.models import LoadedModel
from llm2nifti.networks import Network
from llm2nifti.surgery.feeding import (
    SurgeryError,
    all_feeders,
    check_fits,
    check_owning,
    owning_sites,
)

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
    chosen = [networks] if isinstance(networks, Network) else list(networks)
    brain = common_brain(chosen)
    strengths = np.sum([network.strengths for network in chosen], axis=0)
    members = np.any([network.units for network in chosen], axis=0)
    sites = owning_sites(brain)
    slices = [brain.slice_of(site) for site in sites]
    n_owning = sum(site.n_units for site in sites)
    overall = sum(float(strengths[inside].sum()) for inside in slices) / n_owning
    if model:
        check_fits(model, sites, brain.space)
    feeding = all_feeders(model, [site.module for site in sites]) if model else {}
    rows = []
    for site, inside in zip(sites, slices, strict=True):
        n_units, mass = int(members[inside].sum()), float(strengths[inside].sum())
        enrichment = mass / site.n_units / overall if overall else 0.0
        numbers = (n_units, n_units / site.n_units, mass, enrichment)
        rows.append((site.module, site.layer, site.name, "columns", *numbers))
        for feeder in feeding.get(site.module, []):
            rows.append((feeder, site.layer, site.name, "rows", *numbers))
    table = pd.DataFrame(rows, columns=COLUMNS)
    order = ["mass", "enrichment"]
    return table.sort_values(order, ascending=False, kind="stable", ignore_index=True)


def common_brain(networks: Sequence[Network]) -> ModelBrain:
    """Geometry of some networks whose units all own weights.

    Raises
    ------
    SurgeryError
        If there is no network, the networks are of different spaces, or a unit owns no weights.
    """
    spaces = list(dict.fromkeys(network.brain.space for network in networks))
    if len(spaces) != 1:
        raise SurgeryError(f"networks of one space are needed, got {', '.join(spaces) or 'none'}")
    for network in networks:
        check_owning(network)
    return networks[0].brain


def default_top(targets: pd.DataFrame) -> int:
    """Modules to train where nothing else is said: a tenth of all, at least one."""
    return max(1, round(len(targets) / 10))
