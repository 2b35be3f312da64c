"""Which set of units is it; how repeatable, how distinct; which task is this run?"""

from llm2nifti.networks.identification import (
    Identification,
    IdentificationError,
    TrialSet,
    name_prompts,
    name_runs,
    name_trials,
)
from llm2nifti.networks.network import Network, ThresholdError, from_mask, matched
from llm2nifti.networks.readout import (
    RATE,
    SHARE,
    Controls,
    Readout,
    ReadoutError,
    Thresholds,
    calibrate,
    read_out,
)
from llm2nifti.networks.select import Rule, ranked, select
from llm2nifti.networks.similarity import (
    SimilarityError,
    correlation,
    dice,
    jaccard,
    jackknife,
    matrix,
    same_and_cross,
    tasks_of,
    top_masks,
)

__all__ = [
    "RATE",
    "SHARE",
    "Controls",
    "Identification",
    "IdentificationError",
    "Network",
    "Readout",
    "ReadoutError",
    "Rule",
    "SimilarityError",
    "ThresholdError",
    "Thresholds",
    "TrialSet",
    "calibrate",
    "correlation",
    "dice",
    "from_mask",
    "jaccard",
    "jackknife",
    "matched",
    "matrix",
    "name_prompts",
    "name_runs",
    "name_trials",
    "ranked",
    "read_out",
    "same_and_cross",
    "select",
    "tasks_of",
    "top_masks",
]
