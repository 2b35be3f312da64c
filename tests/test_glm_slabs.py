"""Large runs: the same maps as nilearn's FirstLevelModel, whatever the slabs, in less memory."""

from __future__ import annotations

import multiprocessing
import tempfile
import tracemalloc
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import planted
import pytest
from nilearn.glm.first_level import FirstLevelModel
from planted import dummy_design, lstsq_contrast, noise
from threadpoolctl import threadpool_info, threadpool_limits

from llm2nifti import geometry, glm
from llm2nifti.glm import slabs

CONTRAST = "pain - control"


@pytest.fixture
def fit_large(monkeypatch):
    """`glm.fit` in slabs of a few voxels."""
    monkeypatch.setattr(slabs, "MIN_VOXELS", 5)
    monkeypatch.setattr(slabs, "SLAB_VALUES", 5)

    def fit(runs, **options):
        fitted = glm.fit(runs, verbose=0, **options)
        assert len(fitted.parts) > 1
        return fitted

    return fit


def with_image(run, img):
    """What `glm.fit` needs of a run, with another image."""
    return SimpleNamespace(img=img, brain=run.brain, events=run.events, frames=run.frames)


def first_level_maps(runs, frames="trial", definition=CONTRAST):
    """The same contrast by nilearn's FirstLevelModel, of whole runs in memory."""
    is_token = frames == "token"
    imgs = [run.frames_img if is_token else run.img for run in runs]
    counts = [run.volume_counts if is_token else 1 for run in runs]
    designs = [glm.design_matrix(r.events, n_frames=n) for r, n in zip(runs, counts, strict=True)]
    brain = runs[0].brain
    values = [np.nan_to_num(geometry.from_img(brain, i), posinf=0, neginf=0) for i in imgs]
    varies = np.all([np.ptp(v, axis=0) > 0 for v in values], axis=0)
    model = FirstLevelModel(
        t_r=1,
        hrf_model=None,
        drift_model=None,
        signal_scaling=False,
        noise_model="ar1" if is_token else "ols",
        mask_img=geometry.to_img(brain, varies),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(imgs, design_matrices=designs)
        vectors = [glm.contrast_vector(design, definition) for design in designs]
        maps = model.compute_contrast(vectors, stat_type="t", output_type="all")
    return SimpleNamespace(
        name=definition,
        t_img=maps["stat"],
        z_img=maps["z_score"],
        effect_img=maps["effect_size"],
        mask_img=model.mask_img,
        df=sum(len(d) - np.linalg.matrix_rank(d.to_numpy()) for d in designs),
        n_constant=(~varies).sum(),
        note=glm.fitting.TOKEN_NOTE if is_token else "",
        t=lambda: geometry.from_img(brain, maps["stat"]),
    )


def some_run(root: Path, number: int = 1, *, n_frames: int = 2, compress: bool = False):
    """Run with some units that are constant, and some whose mean is far from 0."""
    table = planted.trials(n_on=9 + number, n_off=13, levels=("a", "b", "c"))
    values = noise(table, n_units=31, n_frames=n_frames, seed=number)
    values[..., 3:6] += 5000 * np.array([-1, 1, 20])
    values[..., [10, 20 + number]] = 0, -12.345
    return planted.dataset_run(root, table, values, number=number, compress=compress)


def assert_same(maps: glm.StatMaps, expected: glm.StatMaps, rtol: float = 1e-7) -> None:
    """All that two contrasts give is equal, to less than float32's rounding."""
    for name in ("t_img", "z_img", "effect_img"):
        got, wanted = (getattr(m, name) for m in (maps, expected))
        assert np.ptp(wanted.get_fdata()) > 1
        np.testing.assert_allclose(got.get_fdata(), wanted.get_fdata(), rtol, atol=1e-9)
        np.testing.assert_array_equal(got.affine, wanted.affine)
    np.testing.assert_array_equal(maps.mask_img.get_fdata(), expected.mask_img.get_fdata())
    same = ("name", "df", "n_constant", "note")
    assert [getattr(maps, n) for n in same] == [getattr(expected, n) for n in same]


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("frames", ["trial", "token"])
@pytest.mark.parametrize("n_runs", [1, 3])
def test_slabs_equal_first_level_model(tmp_path, fit_large, n_runs, frames, compress):
    runs = [some_run(tmp_path, i + 1, n_frames=4, compress=compress) for i in range(n_runs)]
    fitted = fit_large(runs, frames=frames)
    assert_same(fitted.contrast(CONTRAST), first_level_maps(runs, frames))
    assert fitted.n_constant == n_runs + 1
    assert ("not independent" in fitted.note) == (frames == "token")
    other = first_level_maps(runs, frames, "2 * pain - 2 * control")
    np.testing.assert_allclose(fitted.contrast(other.name).t(), other.t(), rtol=1e-7)
    for i, run in enumerate(runs):
        alone = fitted.of_run(i).contrast(CONTRAST)
        assert_same(alone, first_level_maps([run], frames))
        assert alone.n_constant == 2


@pytest.mark.parametrize("mean", [0, 1e3, 1e6])
def test_slabs_equal_lstsq_also_where_means_are_large(tmp_path, fit_large, mean):
    table = planted.trials()
    run = planted.dataset_run(tmp_path, table, noise(table, n_frames=2) + mean)
    maps = fit_large(run).contrast(CONTRAST)
    X, Y = dummy_design(table), run.values().astype(float)
    varies = np.ptp(Y, axis=0) > 0
    effect, variance, df = lstsq_contrast(X, np.eye(X.shape[1])[1], Y[:, varies])
    assert varies.sum() > 20
    # float64 has 16 digits, of which a mean of 1e6 takes 6, and squares of residuals twice that.
    np.testing.assert_allclose(maps.t()[varies], effect / np.sqrt(variance), rtol=1e-6, atol=1e-6)
    assert not maps.t()[~varies].any()
    assert maps.df == df


@pytest.mark.parametrize("frames", ["trial", "token"])
def test_any_slab_size_gives_the_same_maps(tmp_path, fit_large, monkeypatch, frames):
    runs = [some_run(tmp_path, number) for number in (1, 2)]
    expected = glm.fit(runs, frames=frames).contrast(CONTRAST)
    n_slabs = []
    for min_voxels, slab_values in ((1, 1), (13, 1), (1, 2500), (400, 1)):
        monkeypatch.setattr(slabs, "MIN_VOXELS", min_voxels)
        monkeypatch.setattr(slabs, "SLAB_VALUES", slab_values)
        fitted = fit_large(runs, frames=frames)
        assert_same(fitted.contrast(CONTRAST), expected)
        n_slabs.append(len(fitted.parts))
    assert n_slabs[0] == 2 * 31
    assert len(set(n_slabs)) == 4


def test_slabs_hold_every_unit_once_and_few_voxels():
    brain = planted.brain(3000)
    # The same units far apart: what is read has to stay small where the mask is sparse.
    sparse = replace(brain, shape=(brain.shape[0], 400, 40), voxels=brain.voxels * [1, 7, 8])
    design = glm.design_matrix(planted.trials())
    cut = slabs.cut(sparse, Path("x.nii"), design, run=0, noise_model="ols")
    assert np.concatenate([slab.units for slab in cut]).tolist() != list(range(3000))
    assert sorted(np.concatenate([slab.units for slab in cut])) == list(range(3000))
    step = max(slabs.MIN_VOXELS, slabs.SLAB_VALUES // len(design))
    assert all(0 <= np.ptp(slab.voxels) < step for slab in cut)
    for slab in cut:
        x, y, z = sparse.voxels[slab.units].T
        at = x + sparse.shape[0] * (y + sparse.shape[1] * z)
        np.testing.assert_array_equal(slab.voxels, at)
        assert (np.diff(slab.voxels) > 0).all()


def test_other_processes_can_fit_the_slabs_and_answer_in_any_order(tmp_path, fit_large):
    runs = [some_run(tmp_path, number) for number in (1, 2)]
    expected = glm.fit(runs).contrast(CONTRAST)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        assert_same(fit_large(runs, mapper=pool.map).contrast(CONTRAST), expected)

    def backwards(function, items):
        return reversed([function(item) for item in items])

    assert_same(fit_large(runs, mapper=backwards).contrast(CONTRAST), expected)


def test_threads_can_fit_the_slabs_and_the_threads_of_blas_are_put_back(tmp_path, fit_large):
    run = some_run(tmp_path)
    n_threads = []

    def mapper(function, items):
        n_threads.extend(blas_threads())
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(function, items))

    with threadpool_limits(limits=2, user_api="blas"):
        maps = fit_large(run, mapper=mapper).contrast(CONTRAST)
        assert set(blas_threads()) == {2}
    assert set(n_threads) == {1}
    assert_same(maps, glm.fit(run).contrast(CONTRAST))


def blas_threads() -> list[int]:
    """Threads of every linear algebra library of this process."""
    return [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]


@pytest.mark.parametrize("compress", [False, True])
def test_a_large_run_is_never_loaded(tmp_path, fit_large, monkeypatch, compress):
    table = planted.trials(n_on=120, n_off=160)
    run = planted.dataset_run(tmp_path, table, noise(table, n_units=6000), compress=compress)
    size = 4 * np.prod(run.img.shape)
    peaks = []
    for slab_values in (np.prod(run.img.shape), size // 200):
        monkeypatch.setattr(slabs, "SLAB_VALUES", slab_values)
        glm.fit(run).contrast(CONTRAST)  # what is loaded once does not count
        tracemalloc.start()
        try:
            glm.fit(run).contrast(CONTRAST)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[0] > 2 * size
    assert peaks[1] < size / 4


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<i2", ">i2", "u1"])
def test_read_slab_reads_every_type_as_nibabel_does(tmp_path, dtype):
    rng = np.random.default_rng(0)
    data = rng.integers(0, 200, (4, 5, 3, 6)).astype(dtype)
    header = nib.Nifti1Header(endianness=dtype[0] if dtype[0] == ">" else "<")
    header.set_data_dtype(data.dtype)
    img = nib.Nifti1Image(data, np.eye(4), header)
    for slope, inter in ((1, 0), (0.25, -3)):
        path = tmp_path / f"{slope}.nii"
        if slope != 1:
            img.header.set_slope_inter(slope, inter)
        img.to_filename(path)
        stored = nib.load(path)
        assert (stored.dataobj.slope, stored.dataobj.inter) == (slope, inter)
        wanted = stored.get_fdata().reshape((60, 6), order="F").T
        voxels = np.array([2, 3, 17, 41])
        np.testing.assert_array_equal(slabs.read_slab(path, voxels), wanted[:, voxels])


def test_values_that_are_not_finite_count_as_zero_as_in_nilearn(tmp_path, fit_large):
    run = some_run(tmp_path)
    path = run.paths.trial_bold
    data = run.img.get_fdata()
    for frame, (unit, value) in enumerate([(0, np.nan), (1, np.inf), (7, -np.inf)]):
        data[(*run.brain.voxels[unit], frame + 2)] = value
    nib.Nifti1Image(data, run.img.affine, run.img.header).to_filename(path)
    run = replace(run)
    maps = fit_large(run).contrast(CONTRAST)
    assert np.isfinite(maps.t()).all()
    assert_same(maps, first_level_maps([run]))


def test_images_in_memory_are_not_rounded_by_their_header(fit_large):
    table = planted.trials()
    run = planted.run(table, noise(table, n_frames=3))
    rounding = run.img
    rounding.set_data_dtype(np.int16)
    expected = first_level_maps([run])
    run = SimpleNamespace(
        img=rounding, **{n: getattr(run, n) for n in ("brain", "events", "frames")}
    )
    assert_same(fit_large(run).contrast(CONTRAST), expected)


@pytest.mark.parametrize(("compress", "damage"), [(False, False), (True, False), (True, True)])
def test_only_packed_runs_are_unpacked_and_nothing_temporary_stays(
    tmp_path, fit_large, monkeypatch, compress, damage
):
    run = some_run(tmp_path / "ds", compress=compress)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    seen = []

    def mapper(function, items):
        seen.extend((tmp_path / "tmp").rglob("*.nii"))
        if damage:
            seen[0].write_bytes(seen[0].read_bytes()[:-9000])
        return map(function, items)

    if damage:
        with pytest.raises(geometry.UnreadableImageError, match=r"\.nii ends within volume"):
            fit_large(run, mapper=mapper)
    else:
        assert fit_large(run, mapper=mapper).contrast(CONTRAST).t().any()
    assert len(seen) == compress
    assert list((tmp_path / "tmp").iterdir()) == []


def test_unfit_runs_raise():
    table = planted.trials()
    run = planted.run(table, noise(table))
    with pytest.raises(glm.DesignError, match="all of 24 units are constant"):
        glm.fit(planted.run(table, np.ones((len(table), 24))))
    with pytest.raises(glm.DesignError, match=r"pathology.*cannot be read"):
        glm.fit(run).contrast("pathology - control")
    short = replace(run, table=table.iloc[:-1])
    with pytest.raises(glm.DesignError, match="27 volumes"):
        glm.fit(short)
    other = planted.run(table, noise(table, n_units=30))
    with pytest.raises(geometry.SpaceError, match=f"space {other.brain.space} has"):
        glm.fit(with_image(other, run.img))
