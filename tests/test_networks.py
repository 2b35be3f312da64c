from itertools import pairwise, product

import numpy as np
import planted
import pytest
from planted import some_maps
from scipy import stats
from tests_support import count_calls

from llm2nifti import geometry, networks
from llm2nifti.networks.network import largest
from llm2nifti.networks.similarity import corrected, noise_ceilings


def test_mask_image_round_trip():
    network = networks.select(some_maps(), networks.Rule("top", share=0.1))
    again = networks.from_mask(network.brain, network.mask_img(), name="again")
    np.testing.assert_array_equal(again.units, network.units)
    img = geometry.to_img(network.brain, network.signs.astype(np.float32))
    np.testing.assert_array_equal(networks.from_mask(network.brain, img).signs, network.signs)
    assert network.mask_img().get_fdata().sum() == network.n_units
    with pytest.raises(geometry.SpaceError):
        networks.from_mask(planted.brain(900), network.mask_img())


def test_profile_sums_to_the_network_and_repr_names_its_size():
    network = networks.select(some_maps(), networks.Rule("top", share=0.1))
    profile = network.profile()
    assert profile["n_units"].sum() == 600
    assert profile["n_active"].sum() == network.n_units == 60
    starts = np.cumsum([0, *profile["n_units"]])
    for row, (start, stop) in zip(profile.itertuples(), pairwise(starts), strict=True):
        assert row.n_active == np.count_nonzero(network.signs[start:stop])
        assert row.share == row.n_active / row.n_units
    text = repr(network)
    assert "60 of 600 units (10.0%)" in text
    for site, count in profile.groupby("site")["n_active"].sum().items():
        assert f"{site} {count}" in text
    n_up = (network.signs == 1).sum()
    assert f"higher {n_up}, lower {60 - n_up}" in text


def test_dice_jaccard_and_correlation_equal_loops():
    rng = np.random.default_rng(4)
    for _ in range(5):
        a, b = rng.random((2, 40)) < 0.4
        both = sum(x and y for x, y in zip(a, b, strict=True))
        either = sum(x or y for x, y in zip(a, b, strict=True))
        assert networks.dice(a, b) == pytest.approx(2 * both / (sum(a) + sum(b)))
        assert networks.jaccard(a, b) == pytest.approx(both / either)
        x, y = rng.normal(size=(2, 40)) + 3
        assert networks.correlation(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)
    masks, values = rng.random((3, 40)) < 0.4, rng.normal(size=(3, 40))
    for measure, rows in (
        (networks.dice, masks),
        (networks.jaccard, masks),
        (networks.correlation, values),
    ):
        stacked = [[measure(a, b) for b in rows] for a in rows[:2]]
        np.testing.assert_allclose(measure(rows[:2], rows), stacked)
    assert np.isnan(networks.correlation(values[0], np.ones(40)))
    empty = np.zeros(40, bool)
    assert networks.dice(empty, empty) == networks.jaccard(empty, empty) == 0


@pytest.mark.parametrize("measure", [networks.correlation, networks.dice])
def test_matrix_is_the_mean_over_pairs_of_different_runs(measure):
    rng = np.random.default_rng(5)
    keys = [(t, r) for r in (1, 2, 3) for t in ("z", "a", "m") if (t, r) != ("a", 2)]
    maps = values = {key: rng.normal(size=80) for key in keys}
    if measure is networks.dice:
        maps = networks.top_masks(values, 0.2)
        for key, mask in maps.items():
            np.testing.assert_array_equal(mask, stats.rankdata(-np.abs(values[key])) <= 16)
    got = networks.matrix(maps, measure)
    tasks = networks.tasks_of(maps)
    assert tasks == ["z", "a", "m"]
    for (i, a), (j, b) in product(enumerate(tasks), repeat=2):
        cells = []
        for r, s in product((1, 2, 3), repeat=2):
            if r != s and {(a, r), (b, s)} <= set(maps):
                cells.append(measure(maps[a, r], maps[b, s]))
        assert got[i, j] == pytest.approx(np.mean(cells))
    np.testing.assert_allclose(got, got.T)
    diagonal, rest = np.trace(got) / 3, (got[0, 1] + got[0, 2] + got[1, 2]) / 3
    assert networks.same_and_cross(got) == pytest.approx((diagonal, rest))


def test_matrix_of_one_run_raises():
    with pytest.raises(networks.SimilarityError, match="at least 2 runs"):
        networks.matrix({("a", 1): np.arange(4.0), ("b", 1): np.arange(4.0)})


@pytest.mark.parametrize(("signal", "of_topics"), [(1.0, 0.0), (0.3, 0.0), (0.0, 0.0), (1.0, 1.0)])
def test_noise_ceiling_is_the_r_of_runs_that_only_the_draw_of_prompts_tells_apart(
    signal, of_topics
):
    rng = np.random.default_rng(0)
    df, shared = 50, rng.normal(0, signal, 30000)
    maps = {}
    for run in (1, 2, 3):
        effects = shared + rng.normal(0, of_topics, len(shared))  # topics of the run alone
        t = (effects + rng.normal(size=len(shared))) / np.sqrt(rng.chisquare(df, len(shared)) / df)
        maps["pain", run] = t
    ceiling = noise_ceilings(maps, dict.fromkeys(maps, df))["pain"]
    reached = networks.matrix(maps)[0, 0]
    total = signal**2 + of_topics**2
    assert ceiling == pytest.approx(total / (total + 1), abs=0.03)
    if of_topics:
        assert reached < ceiling - 0.2
    else:
        assert reached == pytest.approx(ceiling, abs=0.03)


def test_corrected_divides_by_reliability():
    r = np.array([[0.64, 0.3, 0.1], [0.3, 0.25, 0.2], [0.1, 0.2, -0.1]])
    got = corrected(r)
    assert got[0, 1] == got[1, 0] == pytest.approx(0.3 / (0.8 * 0.5))
    np.testing.assert_allclose(np.diag(got)[:2], 1)
    assert np.isnan(got[2]).all()
    assert np.isnan(got[:, 2]).all()


def test_largest_marks_the_share_and_breaks_ties_by_position():
    scores = np.tile([1.0, 0.0], 400)
    assert np.flatnonzero(largest(scores, 0.1)).tolist() == list(range(0, 160, 2))
    assert largest(scores, 0.001).sum() == 1
    rng = np.random.default_rng(12)
    for share in (0.003, 0.1, 0.5, 1):
        scores = rng.integers(0, 9, 300).astype(float)
        first = sorted(range(300), key=lambda i: (-scores[i], i))[: max(1, round(share * 300))]
        assert np.flatnonzero(largest(scores, share)).tolist() == sorted(first)
    scores[5] = np.nan
    assert np.flatnonzero(~largest(scores, 299 / 300)).tolist() == [5]


def figures_of(maps):
    r = networks.matrix(maps)
    same, cross = networks.same_and_cross(r)
    return np.array([*np.diag(r), same, cross, same - cross])


def test_jackknife_intervals_cover_and_the_plain_bootstrap_excludes_its_own_estimate():
    experiments = planted.Experiments(np.random.default_rng(7))
    rows, below = [], 0
    for i in range(200):
        data = experiments.draw()
        maps = experiments.maps(data)
        without = experiments.without_block(data)
        names = [("x", "x"), ("y", "y"), "same", "cross", "same - cross"]
        found = networks.jackknife(maps, without)
        figures = [found[name] for name in names]
        rows.append([(f.value, f.low, f.high) for f in figures])
        if i < 30:
            resampled = [figures_of(experiments.resampled_maps(data)) for _ in range(60)]
            upper = np.percentile(np.array(resampled)[:, 2], 97.5)
            below += upper < figures[2].value < figures[2].high
    value, low, high = np.moveaxis(np.array(rows), -1, 0)
    expectation = value.mean(axis=0)
    coverage = ((low <= expectation) & (expectation <= high)).mean(axis=0)
    assert ((coverage > 0.85) & (coverage <= 1)).all(), coverage
    assert ((high - low).mean(axis=0) < 8 * value.std(axis=0)).all()
    assert below > 24


@pytest.mark.parametrize("measure", [networks.correlation, networks.dice])
def test_jackknife_equals_the_matrix_computed_again_without_each_block(measure):
    rng = np.random.default_rng(8)
    n_blocks = {("b", 1): 3, ("a", 1): 2, ("a", 2): 4, ("b", 2): 2, ("c", 2): 3, ("b", 3): 2}
    maps = {key: rng.normal(size=40) for key in n_blocks}
    without = {key: rng.normal(size=(n, 40)) for key, n in n_blocks.items()}
    if measure is networks.dice:
        maps, without = networks.top_masks(maps, 0.2), networks.top_masks(without, 0.2)
        assert all((mask.sum(axis=-1) == 8).all() for mask in (*maps.values(), *without.values()))
    del maps["c", 2], without["c", 2]  # c would have no pair of runs
    tasks = ["b", "a"]
    names = ["same", "cross", "same - cross", ("b", "b"), ("a", "b"), ("a", "a")]

    def figures(some):
        r = networks.matrix(some, measure)
        same, cross = networks.same_and_cross(r)
        return np.array([same, cross, same - cross, r[0, 0], r[1, 0], r[1, 1]])

    variance, df = 0, 0
    for key, left_out in without.items():
        n = len(left_out)
        deleted = np.stack([figures({**maps, key: m}) for m in left_out])
        variance = variance + (n - 1) * deleted.var(axis=0)
        df += n - 1
    half = stats.t.ppf(0.95, df) * np.sqrt(variance)
    found = networks.jackknife(maps, without, measure, level=0.9)
    assert networks.tasks_of(maps) == tasks
    assert list(found) == names
    for name, value, width in zip(names, figures(maps), half, strict=True):
        limits = pytest.approx((value, value - width, value + width))
        assert (found[name].value, found[name].low, found[name].high) == limits
    with pytest.raises(networks.SimilarityError, match="2 on-blocks"):
        networks.jackknife(maps, {("a", 1): rng.normal(size=(1, 40))})


def test_similarity_of_many_tasks_is_a_few_products_and_no_loop_over_pairs():
    rng, calls = np.random.default_rng(11), []
    for n in (10, 20, 40):
        maps = {(f"task{i}", run): rng.normal(size=30) for i in range(n) for run in (1, 2)}
        without = {key: rng.normal(size=(2, 30)) for key in maps}
        calls.append(count_calls(lambda m=maps, w=without: networks.jackknife(m, w).keys()))
    estimates = [n * (n + 1) / 2 for n in (10, 20, 40)]  # one call each: the output
    work = np.subtract(calls, estimates)
    assert work[2] < 4.2 * work[0]
