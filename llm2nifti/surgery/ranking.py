"""Which modules hold most of a network?"""

from __future__ import annotations

import pandas as pd

from llm2nifti.bids import Session
from llm2nifti.interventions.masks import read_network
from llm2nifti.models import LoadedModel
from llm2nifti.networks import Network
from llm2nifti.surgery.feeding import check_owning, owning_sites
from llm2nifti.surgery.targets import target_modules


def owning(network: Network) -> Network:
    """Units of a network that own weights; all of it where none were recorded."""
    names = dict.fromkeys(site.name for site in owning_sites(network.brain))
    return network.at(*names) if names else network


def rank_modules(session: Session, network: str, *, model: LoadedModel) -> pd.DataFrame:
    """Rank the modules of a dataset's model by the mass of a network.

    Parameters
    ----------
    session : Session
        Runs of one model.
    network : str
        A task, or the path of a mask image; see `llm2nifti.interventions.masks.read_network`.
    model : LoadedModel
        The model of the runs.

    Returns
    -------
    DataFrame
        See `llm2nifti.surgery.target_modules`; units that own no weights are left out.
    """
    chosen = owning(read_network(session, network))
    check_owning(chosen)
    return target_modules(chosen, model=model)
