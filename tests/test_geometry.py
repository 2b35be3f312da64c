"""Is the model brain a bijection that reads at a glance, and can a dataset alone undo it?"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nibabel.affines import apply_affine

from llm2nifti import geometry
from llm2nifti.geometry import GAP, MARGIN, MAX_PLANE, Site, find_unit, layout, locate

STREAM = ("embed", "resid", "norm")  # one tile: they continue each other
SIDES = {"attn": "left", "heads": "left", "mlp": "right", "mlp_hidden": "right"}
NORMS = {
    "zeros": [0.0],
    "constant": [3.0],
    "nan": [np.nan],
    "mixed": [0.0, np.nan, np.inf, -1.0, 2.0, 1e-30, 1e30],
}


def block(layer: int, **widths: int) -> list[Site]:
    """Sites of one layer; finer sites are inputs of their modules."""
    return [
        Site(
            name,
            layer,
            f"h.{layer}.{name}",
            n_units,
            where="input" if name in ("heads", "mlp_hidden") else "output",
            side=SIDES.get(name, "middle"),
        )
        for name, n_units in widths.items()
    ]


LAYOUTS = {
    "alike": [*block(0, embed=16), *block(1, attn=16, resid=16, mlp=16), *block(2, resid=16)],
    "ragged": [
        *block(0, embed=17),
        *block(1, mlp=17, attn=17, resid=17, heads=23),
        *block(2, resid=17, mlp=9, mlp_hidden=61, router=3),
        *block(5, attn=11, norm=17),
    ],
    "left_heavy": block(1, attn=40, heads=60, resid=9, mlp=3),
    "wings_only": [*block(3, attn=5), *block(4, mlp=90, attn=2)],
    "one_unit": block(7, mlp=1),
}


@pytest.fixture(params=LAYOUTS)
def brain(request: pytest.FixtureRequest) -> geometry.ModelBrain:
    return layout(LAYOUTS[request.param])


def data(img: nib.Nifti1Image) -> np.ndarray:
    return np.asanyarray(img.dataobj)


def voxels_of(brain: geometry.ModelBrain, *slots: str) -> np.ndarray:
    return np.concatenate([brain.voxels[brain.slice_of(s)] for s in brain.sites if s.slot in slots])


def test_every_unit_has_one_voxel_and_every_voxel_one_unit(brain):
    homes = {}
    for unit in range(brain.n_units):
        voxel = tuple(brain.voxels[unit].tolist())
        assert voxel not in homes
        assert all(MARGIN <= v < n - MARGIN for v, n in zip(voxel, brain.shape, strict=True))
        homes[voxel] = unit
    mask = data(geometry.mask_img(brain))
    assert homes.keys() == {tuple(v.tolist()) for v in np.argwhere(mask)}
    assert len(homes) == sum(site.n_units for site in brain.sites)
    assert f"{len(homes)} units" in repr(brain)


def test_units_fill_their_tile_row_by_row(brain):
    atlas = data(geometry.dseg_img(brain))
    for label, site in enumerate(brain.sites, start=1):
        naive = sorted(np.argwhere(atlas == label).tolist(), key=lambda v: (v[1], v[0]))
        assert brain.voxels[brain.slice_of(site)].tolist() == naive


def test_attention_is_left_and_mlp_is_right_of_the_midline(brain):
    for site in brain.sites:
        x = apply_affine(brain.affine, brain.voxels[brain.slice_of(site)])[:, 0]
        assert site.side != "left" or (x < 0).all()
        assert site.side != "right" or (x > 0).all()


@pytest.mark.parametrize("name", ["alike", "ragged", "left_heavy"])
def test_residual_stream_is_centred_on_the_midline(name):
    brain = layout(LAYOUTS[name])
    x = apply_affine(brain.affine, voxels_of(brain, "resid"))[:, 0]
    assert x.min() == -x.max()


def test_depth_is_up(brain):
    layers = [site.layer for site in brain.sites]
    for site in brain.sites:
        z = apply_affine(brain.affine, brain.voxels[brain.slice_of(site)])[:, 2]
        lowest = brain.affine[2, 3] + brain.voxel_size * MARGIN
        np.testing.assert_allclose(z, lowest + brain.voxel_size * (site.layer - min(layers)))


def test_every_layer_has_the_same_floor_plan(brain):
    plan = {}
    for site in brain.sites:
        here = brain.voxels[brain.slice_of(site)][:, :2]
        there = plan.setdefault("resid" if site.name in STREAM else site.name, here)
        n = min(len(here), len(there))
        np.testing.assert_array_equal(here[:n], there[:n])


def test_dark_borders_part_the_tiles(brain):
    slots = {site.slot for site in brain.sites}
    ranges = sorted((x.min(), x.max()) for x in (voxels_of(brain, slot)[:, 0] for slot in slots))
    assert all(right[0] - left[1] > GAP for left, right in pairwise(ranges))


@pytest.mark.parametrize("voxel_size", [0.5, 2.0])
def test_affine_is_isotropic_ras_with_its_origin_at_the_centre(voxel_size):
    brain = layout(LAYOUTS["ragged"], voxel_size=voxel_size)
    np.testing.assert_array_equal(brain.affine[:3, :3], voxel_size * np.eye(3))
    assert nib.aff2axcodes(brain.affine) == ("R", "A", "S")
    first, last = apply_affine(brain.affine, [(0, 0, 0), np.array(brain.shape) - 1])
    np.testing.assert_allclose(first + last, 0)


def test_volume_agrees_with_a_loop_over_units(brain):
    values = np.random.default_rng(0).normal(size=(3, brain.n_units))
    naive = np.full((*brain.shape, 3), -7.0)
    for frame in range(3):
        for unit, (i, j, k) in enumerate(brain.voxels):
            naive[i, j, k, frame] = values[frame, unit]
    np.testing.assert_array_equal(geometry.to_volume(brain, values, fill=-7), naive)
    with pytest.raises(ValueError, match=f"{brain.n_units + 1} units.*{brain.n_units}"):
        geometry.to_volume(brain, np.zeros(brain.n_units + 1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, bool, np.int16])
@pytest.mark.parametrize("frames", [(), (4,)], ids=["3D", "4D"])
def test_saved_nifti_gives_back_every_value(brain, dtype, frames, tmp_path):
    values = (1e3 * np.random.default_rng(1).normal(size=(*frames, brain.n_units))).astype(dtype)
    if values.dtype.kind == "f":
        values[..., 0] = np.nan
    nib.save(geometry.to_img(brain, values), tmp_path / "x.nii.gz")
    again = geometry.from_img(brain, nib.load(tmp_path / "x.nii.gz"))
    assert again.dtype == (np.uint8 if dtype is bool else dtype)
    np.testing.assert_array_equal(again, values)


def test_saved_header_says_mm_seconds_and_the_time_step(brain, tmp_path):
    img = geometry.to_img(brain, np.zeros((2, brain.n_units), np.float32), t_r=1.25)
    nib.save(img, tmp_path / "x.nii")
    header = nib.load(tmp_path / "x.nii").header
    assert header.get_xyzt_units() == ("mm", "sec")
    assert header.get_zooms() == (2.0, 2.0, 2.0, 1.25)
    for affine, code in (header.get_sform(coded=True), header.get_qform(coded=True)):
        np.testing.assert_allclose(affine, brain.affine)
        assert code == nib.nifti1.xform_codes["aligned"]


def test_image_of_another_space_is_refused_by_both_names(brain):
    wider = np.zeros((brain.shape[0] + 1, *brain.shape[1:]), np.float32)
    with pytest.raises(geometry.SpaceError) as error:
        geometry.from_img(brain, nib.Nifti1Image(wider, brain.affine))
    assert str(wider.shape) in str(error.value)
    assert str(brain.shape) in str(error.value)
    moved = brain.affine + np.diag([0, 0.01, 0, 0])
    with pytest.raises(geometry.SpaceError) as error:
        geometry.from_img(brain, nib.Nifti1Image(wider[1:], moved))
    assert str(moved.tolist()) in str(error.value)
    assert str(brain.affine.tolist()) in str(error.value)


def test_tables_on_disk_rebuild_the_geometry(brain, tmp_path):
    geometry.lut(brain).to_csv(tmp_path / "lut.tsv", sep="\t", index=False)
    geometry.units_table(brain).to_csv(tmp_path / "units.tsv", sep="\t", index=False)
    tables = [pd.read_csv(tmp_path / name, sep="\t") for name in ("lut.tsv", "units.tsv")]
    shape = data(geometry.mask_img(brain)).shape
    again = geometry.from_tables(*tables, shape, brain.voxel_size)
    assert (again.sites, again.shape, again.space) == (brain.sites, brain.shape, brain.space)
    np.testing.assert_array_equal(again.voxels, brain.voxels)
    np.testing.assert_array_equal(again.affine, brain.affine)


def test_atlas_and_tables_agree_unit_by_unit(brain):
    atlas, lut = data(geometry.dseg_img(brain)), geometry.lut(brain)
    table = geometry.units_table(brain)
    naive = [(n, u) for n, site in enumerate(brain.sites, 1) for u in range(site.n_units)]
    assert list(zip(table["index"], table["unit"], strict=True)) == naive
    for label, i, j, k in table[["index", "i", "j", "k"]].to_numpy():
        assert atlas[i, j, k] == label
    assert lut["index"].tolist() == sorted(set(atlas[atlas > 0].tolist()))
    assert lut["name"].is_unique
    assert lut["module"].tolist() == [site.module for site in brain.sites]


def test_locate_and_find_unit_are_inverse(brain):
    naive = [(site, unit) for site in brain.sites for unit in range(site.n_units)]
    rng = np.random.default_rng(2)
    for n in rng.integers(0, brain.n_units, 30):
        site, unit = naive[n]
        found = find_unit(brain, f"{site.key}:{unit}")
        assert (found.site, found.unit) == (site, unit)
        assert found.voxel == tuple(brain.voxels[n])
        assert locate(brain, found.voxel, voxel=True) == found
        assert locate(brain, np.add(found.mm, rng.uniform(-0.99, 0.99, 3))) == found
        assert find_unit(brain, str(found).split()[0]) == found


def test_point_without_a_unit_is_refused_with_the_size_of_the_volume(brain):
    dark = np.argwhere(data(geometry.mask_img(brain)) == 0)[0]
    for point, voxel in (
        (dark, True),
        (apply_affine(brain.affine, dark), False),
        ([1e6] * 3, False),
    ):
        with pytest.raises(geometry.NoSuchUnitError) as error:
            locate(brain, point, voxel=voxel)
        assert str(brain.shape) in str(error.value)
        assert "gaps between tiles are empty" in str(error.value)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("h.5.attn:11", "h.5.attn"),
        ("h.5.attn:-1", "h.5.attn"),
        ("h.5.attn:x", "h.5.attn"),
        ("h.5.attnx:0", "h.5.attn"),
        ("lm_head:0", "h.0.embed"),
    ],
)
def test_unknown_unit_is_refused_with_the_module_to_write(name, near):
    with pytest.raises(geometry.NoSuchUnitError, match=rf"write MODULE:UNIT .*{near}"):
        find_unit(layout(LAYOUTS["ragged"]), name)


@pytest.mark.parametrize("name", NORMS)
def test_anatomy_is_finite_and_dark_outside_the_mask(brain, name):
    norms = np.resize(NORMS[name], brain.n_units)
    anatomy, mask = geometry.anatomy_img(brain, norms).get_fdata(), data(geometry.mask_img(brain))
    assert np.isfinite(anatomy).all()
    assert (anatomy[mask == 0] == 0).all()
    assert anatomy[mask == 1].min() >= 300
    assert anatomy.max() <= 1000
    values = geometry.from_img(brain, geometry.anatomy_img(brain, norms))
    assert (values[~(np.isfinite(norms) & (norms > 0))] == values.min()).all()


def test_anatomy_keeps_the_order_of_the_norms(brain):
    norms = np.random.default_rng(3).lognormal(sigma=3, size=brain.n_units)
    values = geometry.from_img(brain, geometry.anatomy_img(brain, norms))
    assert (np.diff(values[np.argsort(norms)]) >= 0).all()
    assert brain.n_units == 1 or (values.min(), values.max()) == (300, 1000)


def test_space_label_follows_the_sites():
    sites = LAYOUTS["ragged"]
    labels = [layout(sites).space, layout(list(sites)).space]
    assert labels[0] == labels[1]
    first, *rest = sites
    changes = ({"n_units": 18}, {"name": "wte"}, {"module": "x"}, {"where": "input"})
    labels += [layout([replace(first, **change), *rest]).space for change in changes]
    assert len(set(labels[1:])) == len(changes) + 1
    assert all(label.isalnum() for label in labels)


@pytest.mark.parametrize("wide", [{"logits": 250_000}, {f"expert{i}": 16_384 for i in range(60)}])
def test_very_wide_layers_stay_small_enough_for_viewers(wide):
    brain = layout(block(1, resid=8192, mlp_hidden=28_672, **wide))
    n_tiles = len(brain.sites)
    assert brain.shape[0] <= 2 * (MAX_PLANE + n_tiles * (1 + GAP) + MARGIN)
    assert brain.shape[0] * brain.shape[1] < 4 * brain.n_units
    assert max(brain.shape) < 32_767


def test_sites_that_cannot_be_laid_out_are_refused():
    with pytest.raises(ValueError, match="32,767"):
        layout([*block(0, resid=1), *block(40_000, resid=1)])
    with pytest.raises(ValueError, match="at least one site"):
        layout([])
    for twice in ([*block(1, mlp=2), *block(1, mlp=3)], block(1, resid=2, norm=2)):
        with pytest.raises(ValueError, match="layer 1 has two sites"):
            layout(twice)
