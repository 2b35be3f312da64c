"""What happens without it, or with more of it? Lesion, scale or steer the units of a network.

Every intervention is a context manager. Hooks edit the tensors in which the units are; weights are
never touched, and nothing is left behind. Nested interventions apply in the order in which they
were entered: the inner one gets what the outer one made.
"""

from llm2nifti.interventions.acts import InterventionError, control_trials, lesion, scale, steer

__all__ = ["InterventionError", "control_trials", "lesion", "scale", "steer"]
