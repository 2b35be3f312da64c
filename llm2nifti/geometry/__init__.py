"""Where does a unit live? The model brain: a bijection between units and voxels.

Depth is up: ``z`` is the layer, the embedding at the bottom. Within a layer, sites tile the plane:
attention to the left (``x < 0``), the residual stream at the midline, MLP to the right (``x > 0``).
A tile holds the units of one site in row-major order. Neighbourhood inside a tile follows the
order of the units, which is arbitrary: do not smooth, do not count clusters.
"""

from llm2nifti.geometry.brain import (
    GAP,
    MARGIN,
    MAX_PLANE,
    VOXEL_SIZE,
    ModelBrain,
    Side,
    Site,
    layout,
)
from llm2nifti.geometry.images import (
    UNREADABLE,
    SpaceError,
    UnreadableImageError,
    anatomy_img,
    check_space,
    dseg_img,
    from_img,
    mask_img,
    set_header,
    to_img,
    to_volume,
)
from llm2nifti.geometry.lookup import (
    NoSuchUnitError,
    UnitAddress,
    find_unit,
    from_tables,
    locate,
    lut,
    units_table,
)

__all__ = [
    "GAP",
    "MARGIN",
    "MAX_PLANE",
    "UNREADABLE",
    "VOXEL_SIZE",
    "ModelBrain",
    "NoSuchUnitError",
    "Side",
    "Site",
    "SpaceError",
    "UnitAddress",
    "UnreadableImageError",
    "anatomy_img",
    "check_space",
    "dseg_img",
    "find_unit",
    "from_img",
    "from_tables",
    "layout",
    "locate",
    "lut",
    "mask_img",
    "set_header",
    "to_img",
    "to_volume",
    "units_table",
]
