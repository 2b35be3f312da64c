"""Which weights are they? Prune, export, targets for training."""

from llm2nifti.surgery.feeding import SurgeryError, feeders
from llm2nifti.surgery.finetuning import Recipe, fine_tuned
from llm2nifti.surgery.gradients import GradientMask, gradient_mask, network_weights
from llm2nifti.surgery.lora import lora_config, write_config
from llm2nifti.surgery.targets import default_top, target_modules

__all__ = [
    "GradientMask",
    "Recipe",
    "SurgeryError",
    "default_top",
    "feeders",
    "fine_tuned",
    "gradient_mask",
    "lora_config",
    "network_weights",
    "target_modules",
    "write_config",
]
