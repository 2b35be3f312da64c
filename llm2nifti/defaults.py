"""Default sizes, in a module that imports nothing, so that ``--help`` can show them at once.

The sizes come from a sweep on the development split: docs/design-efficiency.md.
"""

DEFAULT_MODEL = "smollm2-135m"
N_RUNS = 3
N_BLOCKS = 4
TRIALS_PER_BLOCK = 6
N_FRAMES = 8
BATCH_SIZE = 64
N_RELABELLINGS = 200
# Sizes by name; how well halves of such datasets agree: docs/design-efficiency.md.
PRESETS: dict[str, dict[str, int]] = {"default": {}}
PRESETS["thorough"] = {"n_runs": 6, "trials_per_block": 8}
