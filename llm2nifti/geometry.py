"""Where does a unit live? The model brain: a bijection between units and voxels.

Depth is up: ``z`` is the layer, the embedding at the bottom. Within a layer, sites tile the plane:
attention to the left (``x < 0``), the residual stream at the midline, MLP to the right (``x > 0``).
A tile holds the units of one site in row-major order. Neighbourhood inside a tile follows the
order of the units, which is arbitrary: do not smooth, do not count clusters.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.affines import apply_affine
from numpy.typing import NDArray

Side = Literal["left", "middle", "right"]

VOXEL_SIZE = 2.0  # mm by convention: a 135M model then has about the size of a small head
GAP = 2  # voxels between two tiles: the dark "tissue border"
MARGIN = 1  # empty voxels around the brain, so that viewers can draw its outline
MAX_PLANE = 900  # voxels along x; viewers get slow above 1,024


class SpaceError(ValueError):
    """An image does not live in the space of this model brain."""


class NoSuchUnitError(LookupError):
    """No unit at this voxel, or no voxel for this unit."""


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
    """

    name: str
    layer: int
    module: str
    n_units: int
    where: Literal["output", "input"] = "output"
    side: Side = "middle"

    @property
    def key(self) -> str:
        """Unique name: the module, with ``@input`` when its input is meant."""
        return self.module if self.where == "output" else f"{self.module}@input"

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
    def space(self) -> str:
        """BIDS space label: a hash of the geometry, equal for equal architectures and sites."""
        text = repr([(s.name, s.layer, s.key, s.n_units) for s in self.sites] + [self.shape])
        return "mb" + hashlib.sha256(text.encode()).hexdigest()[:8]

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


@dataclass(frozen=True)
class UnitAddress:
    """One unit and its voxel."""

    site: Site
    unit: int
    voxel: tuple[int, int, int]
    mm: tuple[float, float, float]

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"{self.site.key}:{self.unit}  (layer {self.site.layer}, site {self.site.name}, "
            f"unit {self.unit} of {self.site.n_units})  voxel {self.voxel}  mm {self.mm}"
        )


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
    voxels = np.empty((sum(site.n_units for site in sites), 3), np.int32)
    start = 0
    for site in sites:
        unit = np.arange(site.n_units)
        rows = voxels[start : start + site.n_units]
        rows[:, 0] = starts[site.slot] + unit % widths[site.slot]
        rows[:, 1] = MARGIN + unit // widths[site.slot]
        rows[:, 2] = MARGIN + site.layer - min(layers)
        start += site.n_units
    return ModelBrain(sites, shape, voxels, voxel_size)


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
    sides: dict[str, list[str]] = {"left": [], "middle": [], "right": []}
    for site in sites:
        if site.slot not in sides[site.side]:
            sides[site.side].append(site.slot)
    middle = sorted(sides["middle"], key=lambda slot: slot != "resid")
    centre = middle[0] if middle else None
    # From the midline outwards; other middle sites (norms) lie next to the stream on the left.
    left, right = middle[1:] + sides["left"], sides["right"]
    centre_width = widths[centre] if centre else 0
    left_width = sum(widths[slot] + GAP for slot in left)
    right_width = sum(widths[slot] + GAP for slot in right)
    wing = max(left_width, right_width) + MARGIN
    starts, x = {}, wing
    for slot in left:
        x -= GAP + widths[slot]
        starts[slot] = x
    if centre:
        starts[centre] = wing
    x = wing + centre_width
    for slot in right:
        starts[slot] = x + GAP
        x += GAP + widths[slot]
    return starts, 2 * wing + centre_width


def to_volume(brain: ModelBrain, values: NDArray, *, fill: float = 0) -> NDArray:
    """Put unit values into voxels.

    Parameters
    ----------
    brain : ModelBrain
        Geometry.
    values : (..., n_units) array
        Values in recording order.
    fill : float, default=0
        Value of voxels outside the mask.

    Returns
    -------
    (nx, ny, nz, ...) array of the same dtype
        Leading axes of `values` become the trailing axes; Fortran order, as NIfTI stores it.
    """
    values = np.asarray(values)
    if values.shape[-1] != brain.n_units:
        raise ValueError(f"values have {values.shape[-1]} units, the brain has {brain.n_units}")
    volume = np.full(brain.shape + values.shape[:-1], fill, dtype=values.dtype, order="F")
    x, y, z = brain.voxels.T
    volume[x, y, z] = np.moveaxis(values, -1, 0)
    return volume


def to_img(brain: ModelBrain, values: NDArray, *, t_r: float | None = None) -> nib.Nifti1Image:
    """Make a NIfTI image of unit values.

    Parameters
    ----------
    brain : ModelBrain
        Geometry.
    values : (n_units,) or (n_frames, n_units) array
        Values in recording order; booleans become uint8.
    t_r : float, optional
        Seconds a frame, for 4D images.

    Returns
    -------
    Nifti1Image
        3D or 4D, with mm (and sec) units and an aligned sform and qform.
    """
    values = np.asarray(values)
    if values.dtype == bool:
        values = values.astype(np.uint8)
    img = nib.Nifti1Image(to_volume(brain, values), brain.affine)
    return set_header(img, t_r=t_r)


def set_header(img: nib.Nifti1Image, *, t_r: float | None = None) -> nib.Nifti1Image:
    """Fill the header fields that tools read: units, form codes and the time step."""
    img.header.set_xyzt_units("mm", "sec")
    img.set_sform(img.affine, code="aligned")
    img.set_qform(img.affine, code="aligned")
    if t_r is not None:
        img.header["pixdim"][4] = t_r
    return img


def from_img(brain: ModelBrain, img: nib.Nifti1Image) -> NDArray:
    """Read unit values from an image in the brain's space.

    Parameters
    ----------
    brain : ModelBrain
        Geometry.
    img : Nifti1Image
        3D or 4D image; its shape and affine must be the brain's.

    Returns
    -------
    (n_units,) or (n_frames, n_units) array

    Raises
    ------
    SpaceError
        If the image has another shape or affine; nothing is resampled.
    """
    check_space(brain, img)
    x, y, z = brain.voxels.T
    return np.moveaxis(np.asanyarray(img.dataobj)[x, y, z], 0, -1)


def check_space(brain: ModelBrain, img: nib.Nifti1Image) -> None:
    """Raise SpaceError, naming both spaces, unless the image lives in the brain's volume."""
    if tuple(img.shape[:3]) != brain.shape:
        raise SpaceError(
            f"image has shape {tuple(img.shape[:3])}, space {brain.space} has {brain.shape}; "
            "use an image made from the same model and sites"
        )
    if not np.allclose(img.affine, brain.affine, atol=1e-4):
        raise SpaceError(
            f"image has affine {img.affine.tolist()}, space {brain.space} has "
            f"{brain.affine.tolist()}; resampling would mix units, so it is not done"
        )


def mask_img(brain: ModelBrain) -> nib.Nifti1Image:
    """Binary image of all voxels that hold a unit."""
    return to_img(brain, np.ones(brain.n_units, np.uint8))


def dseg_img(brain: ModelBrain) -> nib.Nifti1Image:
    """Atlas: the 1-based index of the site in each voxel (int32)."""
    labels = np.repeat(np.arange(1, len(brain.sites) + 1), [s.n_units for s in brain.sites])
    return to_img(brain, labels.astype(np.int32))


def anatomy_img(brain: ModelBrain, norms: NDArray) -> nib.Nifti1Image:
    """Anatomical background: log norms scaled to 300..1000 inside the mask, borders dark.

    Parameters
    ----------
    brain : ModelBrain
        Geometry.
    norms : (n_units,) array
        Norm of the weights that write into each unit; zeros and NaN count as the smallest norm.

    Returns
    -------
    Nifti1Image
        3D float32.
    """
    norms = np.asarray(norms, float)
    good = np.isfinite(norms) & (norms > 0)
    logs = np.zeros(brain.n_units)
    if good.any():
        logs[good] = np.log(norms[good])
        low, high = np.percentile(logs[good], [1, 99])
        logs[~good] = low
        span = high - low or 1.0
        logs = np.clip((logs - low) / span, 0, 1)
    return to_img(brain, (300 + 700 * logs).astype(np.float32))


def lut(brain: ModelBrain) -> pd.DataFrame:
    """Atlas table, one row a site: ``index, name, site, layer, module, where, side, n_units``.

    ``index`` and ``name`` serve nilearn's maskers; the rest rebuilds the geometry.
    """
    rows = [
        (i, f"layer{s.layer:02d}_{s.name}", s.name, s.layer, s.module, s.where, s.side, s.n_units)
        for i, s in enumerate(brain.sites, start=1)
    ]
    columns = ["index", "name", "site", "layer", "module", "where", "side", "n_units"]
    return pd.DataFrame(rows, columns=columns)


def units_table(brain: ModelBrain) -> pd.DataFrame:
    """One row a unit, in recording order: ``index, unit, i, j, k``.

    ``index`` is the atlas label (see `lut`), ``unit`` the position within the site and
    ``i, j, k`` the voxel.
    """
    index = np.repeat(np.arange(1, len(brain.sites) + 1), [s.n_units for s in brain.sites])
    unit = np.concatenate([np.arange(s.n_units) for s in brain.sites])
    table = pd.DataFrame({"index": index, "unit": unit})
    table[["i", "j", "k"]] = brain.voxels
    return table


def from_tables(
    lut_table: pd.DataFrame, units: pd.DataFrame, shape: Sequence[int], voxel_size: float
) -> ModelBrain:
    """Rebuild a model brain from a dataset alone: the inverse of `lut` and `units_table`."""
    sites = tuple(
        Site(row.site, int(row.layer), row.module, int(row.n_units), row.where, row.side)
        for row in lut_table.itertuples()
    )
    nx, ny, nz = (int(n) for n in shape)
    return ModelBrain(sites, (nx, ny, nz), units[["i", "j", "k"]].to_numpy(np.int32), voxel_size)


def locate(brain: ModelBrain, point: Sequence[float], *, voxel: bool = False) -> UnitAddress:
    """Say which unit lives at a point.

    Parameters
    ----------
    brain : ModelBrain
        Geometry.
    point : sequence of 3 float
        World coordinates in mm, or a voxel index when `voxel` is true.
    voxel : bool, default=False
        How to read `point`.

    Returns
    -------
    UnitAddress

    Raises
    ------
    NoSuchUnitError
        If the point is outside the volume or between two tiles.
    """
    ijk = np.asarray(point, float)
    if not voxel:
        ijk = apply_affine(np.linalg.inv(brain.affine), ijk)
    index = tuple(int(n) for n in np.rint(ijk))
    hits = np.flatnonzero((brain.voxels == index).all(axis=1))
    if not len(hits):
        kind = "voxel" if voxel else "mm"
        raise NoSuchUnitError(
            f"no unit at {kind} {tuple(point)} (voxel {index}); the volume has {brain.shape} "
            "voxels, and the gaps between tiles are empty"
        )
    return _address(brain, int(hits[0]))


def find_unit(brain: ModelBrain, name: str) -> UnitAddress:
    """Find the voxel of a unit written as ``module:unit``, such as ``model.layers.3.mlp:17``.

    Raises
    ------
    NoSuchUnitError
        If the module was not recorded or has fewer units.
    """
    key, _, number = name.rpartition(":")
    for i, site in enumerate(brain.sites):
        if site.key == key and number.isdigit() and int(number) < site.n_units:
            return _address(brain, int(brain.offsets[i]) + int(number))
    near = [s.key for s in brain.sites if key and (key in s.key or s.key in key)][:5]
    near = near or [s.key for s in brain.sites[:5]]
    raise NoSuchUnitError(
        f"no unit {name!r}; write MODULE:UNIT with a recorded module such as {', '.join(near)}"
    )


def _address(brain: ModelBrain, index: int) -> UnitAddress:
    """Address of the unit at one position of the recording order."""
    i = int(np.searchsorted(brain.offsets, index, side="right")) - 1
    voxel = tuple(int(n) for n in brain.voxels[index])
    mm = tuple(float(n) for n in apply_affine(brain.affine, voxel))
    return UnitAddress(brain.sites[i], index - int(brain.offsets[i]), voxel, mm)  # type: ignore[arg-type]
