"""Which weights are they? Prune, export, targets for training."""

from llm2nifti.surgery.export import check_free, save, weight_bytes
from llm2nifti.surgery.pruning import Pruned, PruneError, prunable, prune, to_remove
from llm2nifti.surgery.rivals import at_random, smallest
from llm2nifti.surgery.speed import compare_speed

__all__ = [
    "PruneError",
    "Pruned",
    "at_random",
    "check_free",
    "compare_speed",
    "prunable",
    "prune",
    "save",
    "smallest",
    "to_remove",
    "weight_bytes",
]
