"""Which voxel for which unit? Sites, floor plan and the bijection."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Side = Literal["left", "middle", "right"]

VOXEL_SIZE = 2.0  # mm by convention: a 135M model then has about the size of a small head
GAP = 2  # voxels between two tiles: the dark "tissue border"
MARGIN = 1  # empty voxels around the brain, so that viewers can draw its outline
MAX_PLANE = 900  # voxels along x; viewers get slow above 1,024


@dataclass(frozen=True)
class Site:
    """One recordable tensor of one layer.

    Attributes
    ----------
    name : str
        Kind of site, the same in every layer: ``attn``, ``resid``, ``mlp``, ``embed``, ...
    layer : int
        Depth: 0 is the embedding, 1 the first block.
    module : str
        Dotted name of the module in the user's own model.
    n_units : int
        Length of the last axis of the tensor.
    where : {"output", "input"}
        Whether the tensor is the module's output or its first input.
    side : {"left", "middle", "right"}
        Part of the floor plan.
    part : str
        Which units of the tensor, such as ``q:contiguous`` of a fused projection; empty for all.
    """

    name: str
    layer: int
    module: str
    n_units: int
    where: Literal["output", "input"] = "output"
    side: Side = "middle"
    part: str = ""

    @property
    def key(self) -> str:
        """Unique name: the module, with ``@input`` when its input is meant, and the part."""
        name = self.module if self.where == "output" else f"{self.module}@input"
        return f"{name}[{self.part}]" if self.part else name

    @property
    def slot(self) -> str:
        """Tile of the floor plan; the embedding and the final norm continue the stream."""
        return "resid" if self.name in ("embed", "resid", "norm") else self.name


@dataclass(frozen=True, eq=False)
class ModelBrain:
    """The fixed volume in which a model's units live.

    Attributes
    ----------
    sites : tuple of Site
        Sites in the order in which their units are recorded.
    shape : tuple of int
        Voxels along x, y, z.
    voxels : (n_units, 3) int array
        Voxel of each unit, in recording order.
    voxel_size : float
        Edge of a voxel in mm.
    """

    sites: tuple[Site, ...]
    shape: tuple[int, int, int]
    voxels: NDArray[np.int32]
    voxel_size: float = VOXEL_SIZE

    @property
    def n_units(self) -> int:
        """Number of units, which is the number of voxels inside the mask."""
        return len(self.voxels)

    @cached_property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4) diagonal RAS affine with its origin at the centre of the volume."""
        affine = np.diag([self.voxel_size] * 3 + [1.0])
        affine[:3, 3] = -self.voxel_size * (np.array(self.shape) - 1) / 2
        return affine

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """(n_sites + 1,) first unit of each site, then the number of units."""
        return np.cumsum([0, *(site.n_units for site in self.sites)])

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(n_units,) 1-based number of each unit's site."""
        return np.repeat(np.arange(1, len(self.sites) + 1), np.diff(self.offsets))

    @cached_property
    def space(self) -> str:
        """BIDS space label: a hash of the geometry, equal for equal architectures and sites."""
        text = repr([(s.name, s.layer, s.key, s.n_units) for s in self.sites])
        text += repr((self.shape, float(self.voxel_size)))
        digest = hashlib.sha256(text.encode() + self.voxels.astype("<i4").tobytes())
        return "mb" + digest.hexdigest()[:8]

    def slice_of(self, site: Site) -> slice:
        """Units of one site as a slice of the recording order."""
        i = self.sites.index(site)
        return slice(int(self.offsets[i]), int(self.offsets[i + 1]))

    def __repr__(self) -> str:
        """Say how many units the brain has, of which sites, in which volume."""
        names = ", ".join(dict.fromkeys(site.name for site in self.sites))
        n_layers = len({site.layer for site in self.sites})
        shape = " x ".join(map(str, self.shape))
        return f"ModelBrain: {self.n_units} units of {names} in {n_layers} layers, {shape} voxels"


def layout(sites: Iterable[Site], *, voxel_size: float = VOXEL_SIZE) -> ModelBrain:
    """Give every unit a voxel.

    Parameters
    ----------
    sites : iterable of Site
        What is recorded. Two sites of one layer need different names.
    voxel_size : float, default=2.0
        Edge of a voxel in mm.

    Returns
    -------
    ModelBrain

    Raises
    ------
    ValueError
        If there is no site, a name is used twice in a layer, or the volume would be too large.

    Examples
    --------
    >>> brain = layout([Site("embed", 0, "wte", 4), Site("mlp", 1, "h.0.mlp", 6, side="right")])
    >>> brain.n_units, brain.affine[0, 0]
    (10, np.float64(2.0))
    """
    sites = tuple(sites)
    seen: set[tuple[int, str]] = set()
    for site in sites:
        if (site.layer, site.slot) in seen:
            raise ValueError(f"layer {site.layer} has two sites in tile {site.slot!r}; rename one")
        seen.add((site.layer, site.slot))
    if not sites:
        raise ValueError("a model brain needs at least one site, got none")
    widths, height = _tile_sizes(sites)
    starts, nx = _tile_starts(sites, widths)
    layers = [site.layer for site in sites]
    shape = (nx, height + 2 * MARGIN, max(layers) - min(layers) + 1 + 2 * MARGIN)
    if max(shape) > 32767:
        raise ValueError(f"volume {shape} exceeds NIfTI's 32,767 voxels an axis; pick fewer sites")
    voxels = []
    for site in sites:
        y, x = np.divmod(np.arange(site.n_units, dtype=np.int32), widths[site.slot])
        z = np.full_like(x, site.layer - min(layers))
        voxels.append(np.stack([starts[site.slot] + x, MARGIN + y, MARGIN + z], axis=1))
    return ModelBrain(sites, shape, np.concatenate(voxels), voxel_size)


def _tile_sizes(sites: Sequence[Site]) -> tuple[dict[str, int], int]:
    """Width of each tile and their common height, near square for the residual stream."""
    largest: dict[str, int] = {}
    for site in sites:
        largest[site.slot] = max(largest.get(site.slot, 0), site.n_units)
    stream = largest.get("resid", max(largest.values()))
    height = max(math.ceil(math.sqrt(stream)), math.ceil(sum(largest.values()) / MAX_PLANE))
    return {slot: math.ceil(n / height) for slot, n in largest.items()}, height


def _tile_starts(sites: Sequence[Site], widths: dict[str, int]) -> tuple[dict[str, int], int]:
    """First x of each tile, and the volume's x size: the midline tile is centred."""
    left, middle, right = (
        list(dict.fromkeys(site.slot for site in sites if site.side == side))
        for side in ("left", "middle", "right")
    )
    middle.sort(key=lambda slot: slot != "resid")
    # From the midline outwards; other middle sites (norms) lie next to the stream on the left.
    centre, left = middle[:1], middle[1:] + left
    wing = MARGIN + max(sum(widths[slot] + GAP for slot in side) for side in (left, right))
    starts, x = {}, wing
    for slot in left:
        x -= GAP + widths[slot]
        starts[slot] = x
    x = wing
    for slot in centre:
        starts[slot] = x
        x += widths[slot]
    for slot in right:
        starts[slot] = x + GAP
        x += GAP + widths[slot]
    return starts, 2 * wing + sum(widths[slot] for slot in centre)
