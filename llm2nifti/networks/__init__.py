"""Which set of units is it; how repeatable, how distinct; which task is this run?"""

from llm2nifti.networks.identification import (
    Identification,
    IdentificationError,
    TrialSet,
    name_prompts,
    name_runs,
    name_trials,
)
from llm2nifti.networks.matched import matched
from llm2nifti.networks.network import (
    Network,
    ThresholdError,
    chance_overlap,
    from_mask,
    largest,
    threshold,
    threshold_by_permutation,
)
from llm2nifti.networks.similarity import (
    TOP,
    Estimate,
    SimilarityError,
    corrected,
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
    "TOP",
    "Estimate",
    "Identification",
    "IdentificationError",
    "Network",
    "SimilarityError",
    "ThresholdError",
    "TrialSet",
    "chance_overlap",
    "corrected",
    "correlation",
    "dice",
    "from_mask",
    "jaccard",
    "jackknife",
    "largest",
    "matched",
    "matrix",
    "name_prompts",
    "name_runs",
    "name_trials",
    "same_and_cross",
    "tasks_of",
    "threshold",
    "threshold_by_permutation",
    "top_masks",
]
