"""Which weights are they? Prune, export, targets for training."""

from llm2nifti.surgery.comparing import at_random, compare_speed, smallest
from llm2nifti.surgery.export import check_free, read_record, save, weight_bytes
from llm2nifti.surgery.feeding import SurgeryError, feeders, owning_sites
from llm2nifti.surgery.finetuning import Recipe, fine_tuned
from llm2nifti.surgery.gradients import GradientMask, gradient_mask, network_weights
from llm2nifti.surgery.pruning import Pruned, PruneError, prune, to_remove
from llm2nifti.surgery.targets import default_top, lora_config, target_modules, write_config

__all__ = [
    "GradientMask",
    "PruneError",
    "Pruned",
    "Recipe",
    "SurgeryError",
    "at_random",
    "check_free",
    "compare_speed",
    "default_top",
    "feeders",
    "fine_tuned",
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
    "weight_bytes",
    "write_config",
]
