"""Which weights are they? Prune, export, targets for training."""

from llm2nifti.surgery.comparing import at_random, compare_speed, smallest
from llm2nifti.surgery.feeding import SurgeryError, feeders, owning_sites
from llm2nifti.surgery.pruning import (
    Pruned,
    PruneError,
    check_free,
    prune,
    read_record,
    save,
    to_remove,
)
from llm2nifti.surgery.targets import (
    GradientMask,
    default_top,
    gradient_mask,
    lora_config,
    network_weights,
    target_modules,
    write_config,
)

__all__ = [
    "GradientMask",
    "PruneError",
    "Pruned",
    "SurgeryError",
    "at_random",
    "check_free",
    "compare_speed",
    "default_top",
    "feeders",
    "gradient_mask",
    "lora_config",
    "network_weights",
    "owning_sites",
    "prune",
    "read_record",
    "save",
    "smallest",
    "target_modules",
    "to_remove",
    "write_config",
]
