"""Which units respond? nilearn's GLM on prompt-level runs, and what nothing looks like."""

from llm2nifti.glm.conditions import CONTROL, is_on, kinds, task_contrast
from llm2nifti.glm.designs import DesignError, contrast_vector, design_matrix, nuisance
from llm2nifti.glm.fitting import (
    Fit,
    RunLike,
    contrasts_of,
    fit,
    run_contrast,
    welch_disagreement,
)
from llm2nifti.glm.maps import StatMaps, pool, t_map
from llm2nifti.glm.relabelling import (
    Labels,
    NullRates,
    delete_masks,
    pseudo_tasks,
    random_factor,
    rates_of,
    relabelled,
    shuffled,
    t_of_labels,
    token_level,
    without,
)

__all__ = [
    "CONTROL",
    "DesignError",
    "Fit",
    "Labels",
    "NullRates",
    "RunLike",
    "StatMaps",
    "contrast_vector",
    "contrasts_of",
    "delete_masks",
    "design_matrix",
    "fit",
    "is_on",
    "kinds",
    "nuisance",
    "pool",
    "pseudo_tasks",
    "random_factor",
    "rates_of",
    "relabelled",
    "run_contrast",
    "shuffled",
    "t_map",
    "t_of_labels",
    "task_contrast",
    "token_level",
    "welch_disagreement",
    "without",
]
