"""Where does a unit live? The model brain: a bijection between units and voxels.

Depth is up: ``z`` is the layer, the embedding at the bottom. Within a layer, sites tile the plane:
attention to the left (``x < 0``), the residual stream at the midline, MLP to the right (``x > 0``).
A tile holds the units of one site in row-major order. Neighbourhood inside a tile follows the
order of the units, which is arbitrary: do not smooth, do not count clusters.
"""

from __future__ import annotations

import hashlib
import math
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pandas as pd
from isal.isal_zlib import IsalError
from nibabel.affines import apply_affine
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

Side = Literal["left", "middle", "right"]

VOXEL_SIZE = 2.0  # mm by convention: a 135M model then has about the size of a small head
GAP = 2  # voxels between two tiles: the dark "tissue border"
MARGIN = 1  # empty voxels around the brain, so that viewers can draw its outline
MAX_PLANE = 900  # voxels along x; viewers get slow above 1,024

# What reading a damaged image raises, in nibabel and in what unpacks it.
UNREADABLE: tuple[Any, ...] = (OSError, EOFError, ValueError, zlib.error, IsalError)
UNREADABLE += (ImageFileError, HeaderDataError)


class UnreadableImageError(ValueError):
    """The file of an image is damaged."""


class SpaceError(ValueError):
    """An image does not live in the space of this model brain."""


class NoSuchUnitError(LookupError):
    """No unit at this voxel, or no voxel for this unit."""


@dataclass(frozen=True)
class Site:
    """One recordable tensor of one layer."""

    name: str  #: kind of site, the same in every layer: attn, resid, mlp, embed, ...
    layer: int  #: depth: 0 is the embedding, 1 the first block
    module: str  #: dotted name of the module in the user's own model
    n_units: int  #: length of the last axis of the tensor
    where: Literal["output", "input"] = "output"  #: the module's output, or its first input
    side: Side = "middle"  #: part of the floor plan
    part: str = ""  #: which units, such as ``q:contiguous`` of a fused projection; empty for all

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
    """The fixed volume in which a model's units live."""

    sites: tuple[Site, ...]  #: in the order in which their units are recorded
    shape: tuple[int, int, int]  #: voxels along x, y, z
    voxels: NDArray[np.int32]  #: (n_units, 3) voxel of each unit, in recording order
    voxel_size: float = VOXEL_SIZE  #: edge of a voxel in mm

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
    if not sites:
        raise ValueError("a model brain needs at least one site, got none")
    seen: set[tuple[int, str]] = set()
    for site in sites:
        if (site.layer, site.slot) in seen:
            raise ValueError(f"layer {site.layer} has two sites in tile {site.slot!r}; rename one")
        seen.add((site.layer, site.slot))
    starts, widths, plane = _floor_plan(sites)
    layers = [site.layer for site in sites]
    shape = (*plane, max(layers) - min(layers) + 1 + 2 * MARGIN)
    if max(shape) > 32767:
        raise ValueError(f"volume {shape} exceeds NIfTI's 32,767 voxels an axis; pick fewer sites")
    voxels = []
    for site in sites:
        y, x = np.divmod(np.arange(site.n_units, dtype=np.int32), widths[site.slot])
        z = np.full_like(x, site.layer - min(layers))
        voxels.append(np.stack([starts[site.slot] + x, MARGIN + y, MARGIN + z], axis=1))
    return ModelBrain(sites, shape, np.concatenate(voxels), voxel_size)


def _floor_plan(
    sites: Sequence[Site],
) -> tuple[dict[str, int], dict[str, int], tuple[int, int]]:
    """First x and width of each tile, and the size of the volume along x and y.

    All tiles have one height; that of the residual stream is near square and in the middle.
    """
    largest: dict[str, int] = {}
    for site in sites:
        largest[site.slot] = max(largest.get(site.slot, 0), site.n_units)
    stream = largest.get("resid", max(largest.values()))
    height = max(math.ceil(math.sqrt(stream)), math.ceil(sum(largest.values()) / MAX_PLANE))
    widths = {slot: math.ceil(n / height) for slot, n in largest.items()}
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
    x = wing if centre else wing + GAP
    for slot in centre + right:
        starts[slot] = x
        x += widths[slot] + GAP
    n_x = 2 * wing + sum(widths[slot] for slot in centre)
    return starts, widths, (n_x, height + 2 * MARGIN)


def to_volume(brain: ModelBrain, values: NDArray, *, fill: float = 0) -> NDArray:
    """Put (..., n_units) values into (nx, ny, nz, ...) voxels, `fill` where there is no unit.

    Leading axes become the trailing axes; Fortran order, as NIfTI stores it.
    """
    values = np.asarray(values)
    if values.shape[-1] != brain.n_units:
        raise ValueError(f"values have {values.shape[-1]} units, the brain has {brain.n_units}")
    volume = np.full(brain.shape + values.shape[:-1], fill, dtype=values.dtype, order="F")
    volume[tuple(brain.voxels.T)] = np.moveaxis(values, -1, 0)
    return volume


def to_img(brain: ModelBrain, values: NDArray, *, t_r: float | None = None) -> nib.Nifti1Image:
    """Make an image of (n_units,) or (n_frames, n_units) values in recording order.

    Booleans become uint8; a frame lasts `t_r` seconds. Units are mm and sec, and sform and qform
    are aligned.
    """
    values = np.asarray(values)
    if values.dtype == bool:
        values = values.astype(np.uint8)
    return set_header(nib.Nifti1Image(to_volume(brain, values), brain.affine), t_r=t_r)


def set_header(img: nib.Nifti1Image, *, t_r: float | None = None) -> nib.Nifti1Image:
    """Fill the header fields that tools read: units, form codes and the time step."""
    img.header.set_xyzt_units("mm", "sec")
    img.set_sform(img.affine, code="aligned")
    img.set_qform(img.affine, code="aligned")
    if t_r is not None:
        img.header["pixdim"][4] = t_r
    return img


def from_img(brain: ModelBrain, img: nib.Nifti1Image) -> NDArray:
    """Read (n_units,) or (n_frames, n_units) values from a 3D or 4D image in the brain's space.

    SpaceError if it has another shape or affine, as nothing is resampled; UnreadableImageError if
    the file is damaged.
    """
    check_space(brain, img)
    try:
        data = np.asanyarray(img.dataobj)
    except UNREADABLE as error:
        name = img.get_filename()
        raise UnreadableImageError(f"{name}: the file is damaged ({error}); restore it") from error
    return np.moveaxis(data[tuple(brain.voxels.T)], 0, -1)


def check_space(brain: ModelBrain, img: nib.Nifti1Image) -> None:
    """Raise SpaceError, naming both spaces, unless the image lives in the brain's volume."""
    name = img.get_filename() or "image"
    if tuple(img.shape[:3]) != brain.shape:
        raise SpaceError(
            f"{name} has shape {tuple(img.shape[:3])}, space {brain.space} has {brain.shape}; "
            "use an image made from the same model and sites"
        )
    if not np.allclose(img.affine, brain.affine, atol=1e-4):
        raise SpaceError(
            f"{name} has affine {img.affine.tolist()}, space {brain.space} has "
            f"{brain.affine.tolist()}; resampling would mix units, so it is not done"
        )


def mask_img(brain: ModelBrain) -> nib.Nifti1Image:
    """Binary image of all voxels that hold a unit."""
    return to_img(brain, np.ones(brain.n_units, np.uint8))


def dseg_img(brain: ModelBrain) -> nib.Nifti1Image:
    """Atlas: the 1-based index of the site in each voxel (int32)."""
    return to_img(brain, brain.labels.astype(np.int32))


def anatomy_img(brain: ModelBrain, norms: NDArray) -> nib.Nifti1Image:
    """Anatomical background: log norms scaled to 300..1000 inside the mask, borders dark.

    Of the (n_units,) norms of the weights that write into each unit, zeros and NaN count as the
    smallest norm.
    """
    norms = np.asarray(norms, float)
    good = np.isfinite(norms) & (norms > 0)
    logs = np.log(np.where(good, norms, 1))
    low, high = np.percentile(logs[good], [1, 99]) if good.any() else (0, 0)
    scaled = np.clip((np.where(good, logs, low) - low) / (high - low or 1.0), 0, 1)
    return to_img(brain, (300 + 700 * scaled).astype(np.float32))


@dataclass(frozen=True)
class UnitAddress:
    """One unit and its voxel."""

    site: Site
    unit: int
    voxel: tuple[int, ...]
    mm: tuple[float, ...]

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"{self.site.key}:{self.unit}  (layer {self.site.layer}, site {self.site.name}, "
            f"unit {self.unit} of {self.site.n_units})  voxel {self.voxel}  mm {self.mm}"
        )


def lut(brain: ModelBrain) -> pd.DataFrame:
    """Atlas table, one row a site: ``index``, ``name``, then the fields of `Site`.

    ``index`` and ``name`` serve nilearn's maskers; the rest rebuilds the geometry.
    """
    table = pd.DataFrame(map(asdict, brain.sites)).rename(columns={"name": "site"})
    names = [f"layer{site.layer:02d}_{site.name}" for site in brain.sites]
    table = table.assign(index=range(1, len(names) + 1), name=names)
    table["part"] = table["part"].replace("", "n/a")
    fields = ["site", "layer", "module", "where", "part", "side", "n_units"]
    return table[["index", "name", *fields]]


def units_table(brain: ModelBrain) -> pd.DataFrame:
    """One row a unit, in recording order: ``index, unit, i, j, k``.

    ``index`` is the atlas label (see `lut`), ``unit`` the position within the site and
    ``i, j, k`` the voxel.
    """
    unit = np.arange(brain.n_units) - brain.offsets[brain.labels - 1]
    table = pd.DataFrame({"index": brain.labels, "unit": unit})
    table[["i", "j", "k"]] = brain.voxels
    return table


def from_tables(
    lut_table: pd.DataFrame, units: pd.DataFrame, shape: Sequence[int], voxel_size: float
) -> ModelBrain:
    """Rebuild a model brain from a dataset alone: the inverse of `lut` and `units_table`."""
    columns = ["site", "layer", "module", "n_units", "where", "side", "part"]  # as in `Site`
    rows = lut_table[columns].astype({"layer": int, "n_units": int, "part": object})
    rows["part"] = rows["part"].fillna("").replace("n/a", "")
    sites = tuple(Site(*row) for row in rows.itertuples(index=False, name=None))
    nx, ny, nz = map(int, shape)
    return ModelBrain(sites, (nx, ny, nz), units[["i", "j", "k"]].to_numpy(np.int32), voxel_size)


def locate(brain: ModelBrain, point: Sequence[float], *, voxel: bool = False) -> UnitAddress:
    """Say which unit lives at a point: world coordinates in mm, or the index of a `voxel`.

    NoSuchUnitError if the point is outside the volume or between two tiles.
    """
    ijk = np.asarray(point, float)
    if ijk.shape != (3,) or not np.isfinite(ijk).all():
        raise NoSuchUnitError(f"{tuple(point)} is not a point; give three finite numbers")
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

    NoSuchUnitError if the module was not recorded or has fewer units.
    """
    key, _, number = name.rpartition(":")
    for i, site in enumerate(brain.sites):
        if site.key == key and re.fullmatch("[0-9]+", number) and int(number) < site.n_units:
            return _address(brain, int(brain.offsets[i]) + int(number))
    keys = [site.key for site in brain.sites]
    near = [k for k in keys if key and (key in k or k in key)] or keys
    raise NoSuchUnitError(
        f"no unit {name!r}; write MODULE:UNIT with a recorded module such as {', '.join(near[:5])}"
    )


def _address(brain: ModelBrain, index: int) -> UnitAddress:
    """Address of the unit at one position of the recording order."""
    i = int(brain.labels[index]) - 1
    voxel = tuple(brain.voxels[index].tolist())
    mm = tuple(apply_affine(brain.affine, voxel).tolist())
    return UnitAddress(brain.sites[i], index - int(brain.offsets[i]), voxel, mm)
