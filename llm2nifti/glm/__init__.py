"""Which units respond? nilearn's GLM on prompt-level runs, and what nothing looks like."""

from llm2nifti.glm.designs import CONTROL, DesignError, contrast_vector, design_matrix, nuisance
from llm2nifti.glm.fitting import (
    FittedRuns,
    Frames,
    RunLike,
    constant_units,
    delete_block_maps,
    delete_block_masks,
    fit,
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
    shuffled_maps,
    t_of_labels,
    token_level,
)
from llm2nifti.glm.slabs import FittedSlabs, Mapper, fit_slabs

__all__ = [
    "CONTROL",
    "N_RELABELLINGS",
    "DesignError",
    "FittedRuns",
    "FittedSlabs",
    "Frames",
    "Mapper",
    "NullRates",
    "RunLike",
    "StatMaps",
    "check_count",
    "constant_units",
    "contrast_vector",
    "delete_block_maps",
    "delete_block_masks",
    "design_matrix",
    "fit",
    "fit_slabs",
    "nuisance",
    "pseudo_tasks",
    "relabelled",
    "run_contrast",
    "shuffled_maps",
    "t_map",
    "t_of_labels",
    "token_level",
    "welch_disagreement",
]
