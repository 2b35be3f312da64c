"""Components of planted sources, their nulls, and what a rotation of units leaves as it is."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import planted
import pytest
from scipy import stats

from llm2nifti import geometry
from llm2nifti.networks import components
from llm2nifti.networks.components import Parts, pair_up

N_UNITS = 300


def sources(rng, n=3, n_units=N_UNITS):
    """Maps with heavy tails, as spatial ICA wants them, of mean 0 and SD 1 in each of 6 sites."""
    maps = rng.laplace(size=(n, 6, n_units // 6)) ** 3
    maps -= maps.mean(axis=2, keepdims=True)
    return (maps / maps.std(axis=2, keepdims=True)).reshape(n, -1)


def mixed_run(rng, maps, *, noise=0.3, task="pain", number=1):
    """Run in memory of random mixtures of maps, with a mean and question frames of their own."""
    table = planted.trials(task)
    strengths = rng.normal(size=(len(table), len(maps)))
    values = strengths @ maps + noise * rng.normal(size=(len(table), maps.shape[1]))
    values += 5 * (table["question_frame"] == "b").to_numpy()[:, None] * rng.normal(size=N_UNITS)
    run = planted.run(table, values + 9 * rng.normal(size=N_UNITS), task)
    object.__setattr__(run, "run", number)
    return run, strengths


@pytest.mark.parametrize(("method", "least"), [("canica", 0.9), ("dictlearning", 0.85)])
def test_planted_sources_and_their_time_courses_are_recovered(method, least):
    rng = np.random.default_rng(0)
    maps = sources(rng)
    runs, strengths = zip(*(mixed_run(rng, maps, number=i) for i in (1, 2, 3)), strict=True)
    imgs = [components.cleaned(run) for run in runs]
    parts = components.decompose(imgs, runs[0], method=method, n_components=3, n_parcels=4)
    partner, r = pair_up(np.corrcoef(maps, parts.maps)[:3, 3:])
    assert (r > least).all()
    assert set(parts.parcels) == {1, 2, 3, 4}
    courses = parts.courses(imgs[0], runs[0], 4)
    basis = components.confounds(runs[0])
    for source, place in enumerate(partner):
        true = strengths[0][:, source] - basis @ (basis.T @ strengths[0][:, source])
        assert abs(np.corrcoef(true, courses[:, place])[0, 1]) > 0.95
    values = geometry.from_img(runs[0].brain, imgs[0])
    assert courses[:, 3] == pytest.approx(values[:, parts.parcels == 1].mean(axis=1), abs=1e-5)


def test_cleaning_takes_out_mean_and_frames_and_gives_every_site_the_same_variance():
    run, _ = mixed_run(np.random.default_rng(1), sources(np.random.default_rng(1)))
    run.array[:, :, run.brain.slice_of(run.brain.sites[0])] = 7.5  # a constant site
    values = geometry.from_img(run.brain, components.cleaned(run))
    frames = (run.events["question_frame"] == "b").to_numpy()
    assert np.abs(values.mean(axis=0)).max() < 1e-5
    assert np.abs(values[frames].mean(axis=0)).max() < 1e-5
    power = [np.mean(values[:, run.brain.slice_of(site)] ** 2) for site in run.brain.sites]
    assert power[0] == 0
    assert power[1:] == pytest.approx([1] * 5, rel=1e-4)


def test_a_rotation_of_units_keeps_the_space_of_time_courses_and_changes_maps():
    rng = np.random.default_rng(2)
    run, _ = mixed_run(rng, sources(rng))
    turned = planted.run(run.table, run.values().copy())
    for site in run.brain.sites:
        part = turned.array[:, 0, run.brain.slice_of(site)]
        part[:] = part @ stats.ortho_group.rvs(site.n_units, random_state=rng)
    imgs = [components.cleaned(each) for each in (run, turned)]
    before, after = (geometry.from_img(run.brain, img).astype(float) for img in imgs)
    assert after @ after.T == pytest.approx(before @ before.T, abs=0.05)  # of sums near 300
    how = {"method": "canica", "n_components": 3, "n_parcels": 2}
    maps = [components.decompose([img], run, **how).maps for img in imgs]
    assert pair_up(np.corrcoef(*maps)[:3, 3:])[1].max() < 0.5


def test_pairs_are_the_best_of_all_permutations():
    r = np.random.default_rng(3).uniform(-1, 1, size=(4, 5))
    r[0, 0] = np.nan  # of an empty map
    partner, sizes = pair_up(r)
    best = max(
        sum(np.nan_to_num(abs(r[i, j])) for i, j in enumerate(order))
        for order in permutations(range(5), 4)
    )
    assert sizes.sum() == pytest.approx(best)
    assert np.abs(r[range(4), partner]).sum() == pytest.approx(best)


def evaluated(runs, **changes):
    how = {"method": "canica", "n_components": 3, "n_parcels": 3, "n": 60, "verbose": 0}
    return components.evaluate(runs, runs, **{**how, **changes})


def test_shared_sources_are_reproducible_and_others_are_not():
    rng = np.random.default_rng(4)
    maps = sources(rng)
    shared, parts, courses = evaluated([mixed_run(rng, maps, number=i)[0] for i in (1, 2, 3)])
    r = shared.maps
    assert r["between runs"].low > 0.9
    assert r["shuffled units"].high < r["random directions"].low
    assert r["random directions"].high < r["between runs"].value
    assert shared.n_reproducible == 3
    ordered = [each.between_runs for each in shared.components]
    assert ordered == sorted(ordered, reverse=True)
    assert np.abs(np.corrcoef(maps, parts.maps)[:3, 3:]).max(axis=1).min() > 0.9
    assert [each.shape for each in courses] == [(28, 6)] * 3
    other, _, _ = evaluated([mixed_run(rng, sources(rng), number=i)[0] for i in (1, 2, 3)])
    by_chance = other.maps["random directions"].value
    assert other.maps["between runs"].value == pytest.approx(by_chance, abs=0.15)
    assert other.maps["between runs"].value < 0.3
    assert other.parcels["between runs"].value < 0.3 < shared.parcels["between runs"].value


def test_carriers_of_a_map_are_counted():
    rng = np.random.default_rng(5)
    maps = np.tile([1, -1, 1, -1, *np.zeros(46)], 6)[None]  # 4 units of each site
    runs = [mixed_run(rng, maps, noise=0.01, number=i)[0] for i in (1, 2)]
    numbers, _, _ = evaluated(runs, n_components=1)
    assert numbers.components[0].n_units == pytest.approx(24, abs=1)


def test_units_are_shuffled_within_their_labels():
    labels = np.array([1, 2, 1, 2, 2, 1] * 20)
    parts = Parts(labels[None].astype(float), labels)
    moved = components._shuffled_units(
        Parts(np.arange(120.0)[None], labels), labels, np.random.default_rng(0)
    )
    assert np.array_equal(labels[moved.maps[0].astype(int)], parts.parcels)
    assert not np.array_equal(moved.maps[0], np.arange(120))
    assert sorted(moved.maps[0]) == list(range(120))


def coloured(rng, *, effect=0.0):
    """Two tasks of noise that a few directions dominate, and unit vectors along these."""
    loadings = rng.normal(size=(8, 60))
    runs = []
    for task in ("joy", "pain"):
        table = planted.trials(task)
        is_task = (table["trial_type"] == task).to_numpy()
        strengths = rng.normal(size=(len(table), 8))
        strengths[:, 0] += effect * is_task * (task == "pain")
        values = 3 * strengths @ loadings + rng.normal(size=(len(table), 60))
        runs.append(planted.run(table, values, task))
    return runs, loadings


def p_values(rng, **how):
    runs, maps = coloured(rng, **how)
    return components._beyond_chance(components.with_tasks(runs, maps, n=49))[1]


def test_likeness_to_tasks_is_calibrated_for_all_maps_and_tasks_together():
    rng = np.random.default_rng(6)
    hits = sum(min(p_values(rng).values()) <= 0.05 for _ in range(80))
    assert 0 <= hits <= 10  # 4 are expected, more than 10 in 1 of 400 times
    found = [p_values(rng, effect=4.0) for _ in range(5)]
    assert all(p["pain"] == pytest.approx(1 / 50) for p in found)
    assert np.mean([p["joy"] for p in found]) > 0.1


def test_t_maps_of_labels_are_sums_over_runs():
    rng = np.random.default_rng(7)
    runs = [mixed_run(rng, sources(rng), number=i)[0] for i in (1, 2)]
    maps = rng.normal(size=(2, N_UNITS))
    r = components.with_tasks(runs, maps, n=5)["pain"]
    t = sum(planted.lstsq_t(run.table, run.values()) for run in runs)
    assert r.shape == (2, 6)
    assert r[:, 0] == pytest.approx([np.corrcoef(one, t)[0, 1] for one in maps])
