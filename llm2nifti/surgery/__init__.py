"""Which weights are they? Prune, export, targets for training."""
