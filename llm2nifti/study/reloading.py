"""Which model does a dataset come from? Load it again, and make sure that it is the same."""

from __future__ import annotations

import warnings
from typing import Any

from llm2nifti import models
from llm2nifti.bids import Run
from llm2nifti.models import LoadedModel
from llm2nifti.study.errors import StudyError


def reload(
    run: Run,
    *,
    name: str | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
    other_weights: bool = False,
) -> LoadedModel:
    """Load the model of a run.

    Parameters
    ----------
    run : Run
        Any run of the model, or of its untrained copy.
    name : str, optional
        Where the model is, if the dataset does not say it: a folder or file is known to it only by
        its own name.
    device, trust_remote_code
        See `llm2nifti.models.load`.
    other_weights : bool, default=False
        Only warn where the weights are not those that were scanned.

    Returns
    -------
    LoadedModel

    Raises
    ------
    StudyError
        If its weights are not those that were scanned.
    llm2nifti.models.ModelError
        If it can't be found.
    """
    scanned: dict[str, Any] = run.sidecar["Model"]
    untrained = str(scanned["WeightsHash"]).startswith("random weights")
    revision = str(scanned.get("Revision", "n/a"))
    try:
        model = models.load(
            name or str(scanned["Name"]),
            untrained=untrained,
            device=device,
            trust_remote_code=trust_remote_code,
            dtype=str(scanned["DType"]),
            revision=None if revision == "n/a" else revision,
        )
    except models.ModelError as error:
        hint = "" if name else "; say where it is with model=..."
        raise models.ModelError(f"{error}{hint}") from error
    loaded, expected = model.source["WeightsHash"], scanned["WeightsHash"]
    if not models.has_weights(model, expected):
        message = (
            f"model {model.name!r} has other weights ({loaded}) than those that sub-{run.subject} "
            f"was scanned with ({expected})"
        )
        if not other_weights:
            raise StudyError(f"{message}; give the scanned model with model=...")
        warnings.warn(message, stacklevel=2)
    return model
