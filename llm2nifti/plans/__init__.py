"""What is asked for: frozen plans, whose fields, defaults, bounds and words are the only ones.

The command line with its help and the keys of study files are made from these classes, so this
package imports nothing heavy.
"""

from llm2nifti.plans.fields import (
    AnyCount,
    Count,
    Json,
    Level,
    Names,
    OfTasks,
    OnWorkers,
    Plan,
    PlanError,
    Positive,
    Seed,
    Share,
    WithModel,
    checked,
    hints_of,
    how,
    unknown,
    words,
)
from llm2nifti.plans.scans import (
    FRAMES,
    Attribution,
    Design,
    ModelChoice,
    ScanPlan,
    Settings,
    Template,
)

__all__ = [
    "FRAMES",
    "AnyCount",
    "Attribution",
    "Count",
    "Design",
    "Json",
    "Level",
    "ModelChoice",
    "Names",
    "OfTasks",
    "OnWorkers",
    "Plan",
    "PlanError",
    "Positive",
    "ScanPlan",
    "Seed",
    "Settings",
    "Share",
    "Template",
    "WithModel",
    "checked",
    "hints_of",
    "how",
    "unknown",
    "words",
]
