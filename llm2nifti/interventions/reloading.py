"""Which model does a dataset come from? Load it again, and make sure that it is the same."""

from __future__ import annotations

import warnings

from llm2nifti import models
from llm2nifti.bids import Run
from llm2nifti.interventions.editing import InterventionError
from llm2nifti.models import LoadedModel
from llm2nifti.plans import WithModel


def reload(run: Run, plan: WithModel | None = None, *, other_weights: bool = False) -> LoadedModel:
    """Load the model of a run.

    Parameters
    ----------
    run : Run
        Any run of the model, or of its untrained copy.
    plan : WithModel, optional
        Where the model is, if the dataset does not say it (a folder or file is known to it only by
        its own name), and where to put it.
    other_weights : bool, default=False
        Only warn where the weights are not those that were scanned.

    Returns
    -------
    LoadedModel

    Raises
    ------
    InterventionError
        If its weights are not those that were scanned.
    llm2nifti.models.ModelError
        If it can't be found.
    """
    plan = plan or WithModel()
    scanned = run.sidecar["Model"]
    revision = str(scanned.get("Revision", "n/a"))
    try:
        model = models.load(
            plan.model or str(scanned["Name"]),
            untrained=str(scanned["WeightsHash"]).startswith("random weights"),
            device=plan.device,
            trust_remote_code=plan.trust_remote_code,
            dtype=str(scanned["DType"]),
            revision=None if revision == "n/a" else revision,
        )
    except models.ModelError as error:
        hint = "" if plan.model else "; say where it is with model=..."
        raise models.ModelError(f"{error}{hint}") from error
    loaded, expected = model.source["WeightsHash"], scanned["WeightsHash"]
    if not models.has_weights(model, expected):
        message = (
            f"model {model.name!r} has other weights ({loaded}) than those that sub-{run.subject} "
            f"was scanned with ({expected})"
        )
        if not other_weights:
            raise InterventionError(f"{message}; give the scanned model with model=...")
        warnings.warn(message, stacklevel=2)
    return model
