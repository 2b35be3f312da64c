"""Which units respond? nilearn's GLM on prompt-level runs, and what nothing looks like."""

from llm2nifti.glm.designs import CONTROL, DesignError, contrast_vector, design_matrix, nuisance
from llm2nifti.glm.fitting import (
    Fit,
    Frames,
    Mapper,
    RunLike,
    contrasts_of,
    fit,
    pool,
    run_contrast,
    t_map,
    welch_disagreement,
)
from llm2nifti.glm.maps import StatMaps
from llm2nifti.glm.nulls import (
    N_RELABELLINGS,
    NullRates,
    check_count,
    pseudo_tasks,
    relabelled,
    token_level,
)
from llm2nifti.glm.relabelling import (
    Labels,
    delete_block_masks,
    shuffled,
    t_of_labels,
    without_blocks,
)

__all__ = [
    "CONTROL",
    "N_RELABELLINGS",
    "DesignError",
    "Fit",
    "Frames",
    "Labels",
    "Mapper",
    "NullRates",
    "RunLike",
    "StatMaps",
    "check_count",
    "contrast_vector",
    "contrasts_of",
    "delete_block_masks",
    "design_matrix",
    "fit",
    "nuisance",
    "pool",
    "pseudo_tasks",
    "relabelled",
    "run_contrast",
    "shuffled",
    "t_map",
    "t_of_labels",
    "token_level",
    "welch_disagreement",
    "without_blocks",
]
