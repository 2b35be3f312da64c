"""Which units are a network: every rule against statsmodels, numpy or its own definition."""

from dataclasses import replace
from itertools import product

import numpy as np
import planted
import pytest
from planted import noise, some_maps
from scipy import stats
from statsmodels.stats.multitest import multipletests

from llm2nifti import geometry, glm, networks
from llm2nifti.geometry import Site
from llm2nifti.networks import Rule
from llm2nifti.networks.network import permutation


@pytest.mark.parametrize(("method", "reference"), [("fdr", "fdr_bh"), ("bonferroni",) * 2])
@pytest.mark.parametrize("two_sided", [True, False])
@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.2])
def test_select_equals_statsmodels(method, reference, two_sided, alpha):
    for seed in range(3):
        maps = some_maps(seed=seed)
        z = maps.z[maps.analysed]
        p = 2 * stats.norm.sf(np.abs(z)) if two_sided else stats.norm.sf(z)
        network = networks.select(maps, Rule(method, alpha, two_sided=two_sided))
        expected = np.zeros(600)
        expected[maps.analysed] = np.sign(z) * multipletests(p, alpha, method=reference)[0]
        np.testing.assert_array_equal(network.signs, expected)
        assert network.n_units > 3


@pytest.mark.parametrize("two_sided", [True, False])
def test_uncorrected_threshold_compares_p(two_sided):
    maps = some_maps()
    p = 2 * stats.norm.sf(np.abs(maps.z)) if two_sided else stats.norm.sf(maps.z)
    network = networks.select(maps, Rule("fpr", 0.02, two_sided=two_sided))
    np.testing.assert_array_equal(network.signs, np.sign(maps.z) * (p < 0.02))
    assert (network.signs == -1).any() == two_sided


@pytest.mark.parametrize("share", [0.001, 0.0149, 0.05, 0.333])
def test_top_keeps_the_share_with_the_largest_t_where_z_saturates(share):
    rng = np.random.default_rng(1)
    t = rng.permutation(np.linspace(40, 90, 601)) * rng.choice([-1, 1], 601)
    maps = planted.Maps(planted.brain(601), np.clip(t, -37, 37), t, np.ones(601, bool))
    both = networks.select(maps, Rule("top", share=share))
    assert both.n_units == max(1, round(share * 601))
    assert np.abs(t[both.units]).min() > np.abs(t[~both.units]).max()
    np.testing.assert_array_equal(both.signs[both.units], np.sign(t[both.units]))
    up = networks.select(maps, Rule("top", share=share, two_sided=False))
    assert up.n_units == both.n_units
    assert t[up.units].min() > t[~up.units].max()
    bottom = networks.select(maps, Rule("bottom", share=share))
    assert bottom.n_units == both.n_units
    assert np.abs(t[bottom.units]).max() < np.abs(t[~bottom.units]).min()


@pytest.mark.parametrize("control", ["fdr", "top", "bottom"])
def test_sites_restrict_every_rule_and_shares_are_of_their_units(control):
    kinds = [("attn", "left"), ("mlp", "right")]
    sites = [Site(name, i, f"{name}.{i}", 50, side=side) for i in (1, 2) for name, side in kinds]
    brain = geometry.layout(sites)
    t = np.random.default_rng(2).normal(size=200) * 4
    maps = planted.Maps(brain, t, t, np.ones(200, bool))
    is_mlp = np.repeat([s.name == "mlp" for s in brain.sites], 50)
    network = networks.select(maps, Rule(control, share=0.1, sites=("mlp",)))
    assert network.n_units > 5
    assert not network.units[~is_mlp].any()
    if control == "fdr":  # the level is that of all units
        whole = networks.select(maps).units
        np.testing.assert_array_equal(network.units, whole & is_mlp)
    else:
        assert network.n_units == 10
    with pytest.raises(networks.ThresholdError, match=r"no site 'norm'.*attn, mlp"):
        networks.select(maps, Rule(control, sites=("norm",)))


@pytest.mark.parametrize(
    "options", [{"alpha": 0}, {"alpha": 1.0}, {"share": 0}, {"share": 2}, {"height_control": "max"}]
)
def test_impossible_rules_raise(options):
    with pytest.raises(networks.ThresholdError, match=next(iter(options))):
        Rule(**options)


def test_rules_have_labels_and_words_that_tell_them_apart():
    controls, sides, where = ("fdr", "bonferroni", "top"), (True, False), ((), ("attn",))
    rules = [Rule(c, two_sided=side, sites=at) for c, side, at in product(controls, sides, where)]
    rules += [Rule(alpha=0.01), Rule("top", share=0.02), Rule("bottom")]
    assert Rule().label == ""
    assert Rule(share=0.2).label == ""  # no share is used, so the network is the same
    assert Rule(alpha=0.01).label == "fdr0p01"
    assert Rule("top", two_sided=False, sites=("mlp_hidden",)).label == "top0p01onesidedmlphidden"
    assert len({rule.label for rule in rules}) == len({str(rule) for rule in rules}) == len(rules)
    assert str(Rule("top", sites=("attn", "mlp"))) == "top 1% of attn, mlp by t, two-sided"


def test_pure_noise_gives_an_empty_network():
    network = networks.select(some_maps(n_signal=0), Rule("bonferroni", 0.001))
    assert repr(network).startswith("Network 'pain - control': 0 of 600 units (0.0%)")


def test_permutation_holds_the_family_wise_error_rate_and_finds_a_planted_effect():
    rng = np.random.default_rng(2)
    is_task, none = np.arange(24) % 2 == 0, np.empty((24, 0))
    errors = 0
    for _ in range(150):
        values = rng.normal(size=(24, 50))
        errors += permutation(values, is_task, none, Rule(), n_perm=100).any()
    assert 0.005 < errors / 150 < 0.12
    values[is_task, :3] += 4
    values[:, 40] = 2.5
    passes = permutation(values, is_task, none, Rule(), n_perm=200)
    assert passes[:3].all()
    assert passes.sum() <= 5
    assert not passes[40]
    with pytest.raises(networks.ThresholdError, match="at least 20"):
        permutation(values, is_task, none, Rule(), n_perm=18)


def test_permutation_needs_run_columns_where_run_means_differ():
    rng = np.random.default_rng(3)
    runs = (np.arange(40) >= 20).astype(float)[:, None]
    values = rng.normal(size=(40, 50)) + 20 * runs
    balanced = np.arange(40) % 2 == 0
    values[balanced, 0] += 3
    unbalanced = np.arange(40) % 20 < 5 + 10 * runs[:, 0]
    passing = [
        permutation(values, is_task, confounds, Rule(), n_perm=200)
        for is_task in (balanced, unbalanced)
        for confounds in (runs, runs[:, :0])
    ]
    assert np.flatnonzero(passing[0]).tolist() == [0]
    assert not passing[1].any()
    assert not passing[2].any()
    assert passing[3].all()


@pytest.mark.parametrize("two_sided", [True, False])
def test_select_by_permutation_takes_trials_runs_and_question_frames(two_sided):
    table = planted.trials(n_on=20, n_off=20)
    is_on = (table["trial_type"] == "pain").to_numpy()
    runs = []
    for i in range(2):
        values = noise(table, n_units=40, seed=i)[:, 0] + 50 * i
        values -= values.mean(axis=0)
        values /= values.std(axis=0)
        values[is_on, 0] += 4
        values[is_on, 1] -= 4
        runs.append(planted.run(table, values + 50 * i))
    maps = glm.fit(runs, verbose=0).contrast("pain - control")
    network = networks.select(maps, Rule("permutation", two_sided=two_sided), runs=runs)
    assert network.signs[:2].tolist() == [1, -1 if two_sided else 0]
    assert network.n_units <= 4
    with pytest.raises(networks.ThresholdError, match=r"needs the trials: runs=\.\.\."):
        networks.select(maps, Rule("permutation"))
    with pytest.raises(networks.ThresholdError, match="frames='trial'"):
        networks.select(replace(maps, note="tokens"), Rule("permutation"), runs=runs)
