"""Which unit is this voxel? Tables that rebuild a `brain`, and look-ups both ways."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from nibabel.affines import apply_affine

from llm2nifti.geometry.brain import ModelBrain, Site


class NoSuchUnitError(LookupError):
    """No unit at this voxel, or no voxel for this unit."""


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


def lut(brain: ModelBrain) -> pd.DataFrame:
    """Atlas table, one row a site: ``index``, ``name``, then the fields of `Site`.

    ``index`` and ``name`` serve nilearn's maskers; the rest rebuilds the geometry.
    """
    rows = [
        {
            "index": i,
            "name": f"layer{s.layer:02d}_{s.name}",
            "site": s.name,
            "layer": s.layer,
            "module": s.module,
            "where": s.where,
            "part": s.part or "n/a",
            "side": s.side,
            "n_units": s.n_units,
        }
        for i, s in enumerate(brain.sites, start=1)
    ]
    return pd.DataFrame(rows)


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
    sites = tuple(
        Site(
            row["site"],
            int(row["layer"]),
            row["module"],
            int(row["n_units"]),
            row["where"],
            row["side"],
            row["part"] if isinstance(row["part"], str) and row["part"] != "n/a" else "",
        )
        for row in lut_table.to_dict(orient="records")
    )
    nx, ny, nz = (int(n) for n in shape)
    return ModelBrain(sites, (nx, ny, nz), units[["i", "j", "k"]].to_numpy(np.int32), voxel_size)


def locate(brain: ModelBrain, point: Sequence[float], *, voxel: bool = False) -> UnitAddress:
    """Say which unit lives at a point.

    Parameters
    ----------
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

    Raises
    ------
    NoSuchUnitError
        If the module was not recorded or has fewer units.
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
    i = int(np.searchsorted(brain.offsets, index, side="right")) - 1
    voxel = tuple(int(n) for n in brain.voxels[index])
    mm = tuple(float(n) for n in apply_affine(brain.affine, voxel))
    return UnitAddress(brain.sites[i], index - int(brain.offsets[i]), voxel, mm)  # type: ignore[arg-type]
