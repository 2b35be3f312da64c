"""What does it look like? Figures of a model brain, as matplotlib Axes.

Nilearn draws the brains, always on the model's own anatomy. Every function draws into `ax`, or
else into a new figure, ``ax.figure``, that needs no display and that pyplot does not hold.
"""

from llm2nifti.plotting.brain import plot_atlas, plot_floor_plan, plot_map, view
from llm2nifti.plotting.charts import (
    plot_auc,
    plot_bars,
    plot_doses,
    plot_layer_profile,
    plot_lesions,
    plot_matrix,
    plot_roc,
    plot_shares,
    save,
)
from llm2nifti.plotting.designs import plot_design, plot_differences
from llm2nifti.plotting.graphs import (
    plot_beside,
    plot_cross,
    plot_depth,
    plot_graph,
    plot_over_frames,
    plot_profiles,
)

__all__ = [
    "plot_atlas",
    "plot_auc",
    "plot_bars",
    "plot_beside",
    "plot_cross",
    "plot_depth",
    "plot_design",
    "plot_differences",
    "plot_doses",
    "plot_floor_plan",
    "plot_graph",
    "plot_layer_profile",
    "plot_lesions",
    "plot_map",
    "plot_matrix",
    "plot_over_frames",
    "plot_profiles",
    "plot_roc",
    "plot_shares",
    "save",
    "view",
]
