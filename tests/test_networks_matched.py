"""Matched random networks: equal in everything but membership."""

from __future__ import annotations

import numpy as np
import pytest

from llm2nifti import geometry, networks


@pytest.fixture
def brain():
    return geometry.layout(
        [
            geometry.Site(
                name, layer, f"{layer}.{name}", 200, side="middle" if name == "resid" else "left"
            )
            for layer in (1, 2)
            for name in ("attn", "resid")
        ]
    )


def network_of(brain, share=0.1, seed=0):
    signs = (np.random.default_rng(seed).random(brain.n_units) < share).astype(np.int8)
    return networks.Network("task", brain, signs)


def test_sizes_match_in_every_site_and_decile(brain):
    activity = np.random.default_rng(1).lognormal(size=brain.n_units)
    network = network_of(brain)
    drawn = networks.matched(network, activity, seed=3)
    assert not (drawn.units & network.units).any()
    for site in brain.sites:
        inside = brain.slice_of(site)
        cuts = np.quantile(activity[inside], np.linspace(0, 1, 11)[1:-1])
        deciles = np.digitize(activity[inside], cuts)
        counts = [np.bincount(deciles[n.units[inside]], minlength=10) for n in (network, drawn)]
        np.testing.assert_array_equal(*counts)


def test_seeds_draw_differently_and_repeatably(brain):
    activity, network = np.arange(brain.n_units, dtype=float), network_of(brain)
    first, again, other = (networks.matched(network, activity, seed=s).signs for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_where_a_decile_is_full_the_nearest_stand_in(brain):
    activity = np.tile(np.arange(200.0), 4)
    signs = np.zeros(brain.n_units, np.int8)
    signs[180:200] = 1  # the whole uppermost decile of the first site
    drawn = networks.matched(networks.Network("large", brain, signs), activity)
    np.testing.assert_array_equal(np.flatnonzero(drawn.units), np.arange(160, 180))


def test_more_than_half_of_a_site_has_no_control(brain):
    signs = np.zeros(brain.n_units, np.int8)
    signs[:101] = 1
    with pytest.raises(networks.ThresholdError, match="holds 101 of the 200 units"):
        networks.matched(networks.Network("all", brain, signs), np.ones(brain.n_units))


def test_at_keeps_the_named_sites(brain):
    network = network_of(brain)
    kept = network.at("resid")
    assert set(kept.profile().query("n_active > 0")["site"]) == {"resid"}
    assert kept.n_units == network.profile().query("site == 'resid'")["n_active"].sum()
    with pytest.raises(networks.ThresholdError, match=r"no site 'mlp'; .* attn, resid"):
        network.at("mlp")


@pytest.mark.parametrize(("values", "is_weighted"), [([1, 1], 0), ([1, 3], 0), ([1.5, -3], 1)])
def test_only_maps_weight_units(brain, values, is_weighted):
    image = np.zeros(brain.n_units)
    image[:2] = values
    network = networks.from_mask(brain, geometry.to_img(brain, image))
    assert (network.weights is not None) == bool(is_weighted)
    np.testing.assert_allclose(network.strengths[:3], [0.5, 1, 0] if is_weighted else [1, 1, 0])
    assert network.signs[:2].tolist() == np.sign(values).tolist()


def test_masks_without_units_or_with_volumes_are_refused(brain):
    with pytest.raises(networks.ThresholdError, match="marks no unit"):
        networks.from_mask(brain, geometry.to_img(brain, np.zeros(brain.n_units)))
    with pytest.raises(networks.ThresholdError, match="2 volumes"):
        networks.from_mask(brain, geometry.to_img(brain, np.ones((2, brain.n_units))))
