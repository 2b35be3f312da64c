"""Similarity of representations: unbiased, basis-free, and rsatoolbox's and bctpy's own."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
import rsatoolbox
from scipy.stats import ortho_group
from sklearn.covariance import LedoitWolf

from llm2nifti.networks import representation
from llm2nifti.networks.representation import (
    MissingPackageError,
    communities,
    crossnobis,
    debiased_cka,
    rdm_similarity,
    repeated,
    required,
    whitened_products,
)


def grams(*parcels):
    """Products of rows."""
    return np.stack([x @ x.T for x in parcels])


def naive_cka(x, y):
    """By its definition, with loops."""

    def mean(a, b):
        n = len(a)
        pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
        return np.mean([(a[i] @ a[j]) * (b[i] @ b[j]) for i, j in pairs])

    return mean(x, y) / np.sqrt(mean(x, x) * mean(y, y))


def test_cka_is_that_of_a_naive_loop():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 7))
    y = x[:, :3] @ rng.normal(size=(3, 5)) + rng.normal(size=(12, 5))
    cka = debiased_cka(grams(x, y))
    assert cka[0, 1] == pytest.approx(naive_cka(x, y), abs=1e-12)
    np.testing.assert_allclose(np.diag(cka), 1)
    np.testing.assert_allclose(debiased_cka(grams(x), grams(y)), cka[:1, 1:])


def test_parcels_that_share_nothing_are_at_zero_however_many_units_they_have():
    """The plain estimate is near 1 here."""
    rng = np.random.default_rng(1)
    values = []
    for _ in range(200):
        x, y = rng.normal(size=(2, 20, 300))
        values.append(debiased_cka(grams(x, y))[0, 1])
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * error
    assert np.min(values) < 0 < np.max(values)
    plain = [(g * h).sum() / np.sqrt((g * g).sum() * (h * h).sum()) for g, h in [grams(x, y)]]
    assert plain[0] > 0.8


def test_cka_does_not_see_rotations_and_scales():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 15, 9))
    y[:, :4] += x[:, :4]
    turned = 7 * x @ ortho_group.rvs(9, random_state=0) * np.sign(rng.normal(size=9))
    np.testing.assert_allclose(
        debiased_cka(grams(turned, y)), debiased_cka(grams(x, y)), atol=1e-10
    )
    assert debiased_cka(grams(x * np.arange(1, 10), y))[0, 1] != pytest.approx(
        debiased_cka(grams(x, y))[0, 1], abs=1e-3
    )


def test_constant_parcels_are_similar_to_nothing():
    x = np.random.default_rng(3).normal(size=(8, 4))
    np.testing.assert_array_equal(debiased_cka(grams(x, 0 * x))[1], 0)


def test_whitened_products_are_those_of_sklearns_precision():
    rng = np.random.default_rng(4)
    residuals = rng.normal(size=(60, 12)) @ rng.normal(size=(12, 12))
    values = rng.normal(size=(10, 12))
    precision = LedoitWolf(assume_centered=True).fit(residuals).precision_
    expected = values @ precision @ values.T
    np.testing.assert_allclose(whitened_products(values, residuals), expected, rtol=1e-6)
    turn = ortho_group.rvs(12, random_state=1)
    turned = whitened_products(values @ turn, residuals @ turn)
    np.testing.assert_allclose(turned, expected, rtol=1e-6)


def test_crossnobis_is_rsatoolboxs_on_the_units_themselves():
    rng = np.random.default_rng(5)
    conditions, folds = np.tile(list("abcd"), 6), np.repeat([1, 2, 3], 8)
    x = rng.normal(size=(24, 40))
    data = rsatoolbox.data.Dataset(x, obs_descriptors={"c": conditions, "f": folds})
    how = {"method": "crossnobis", "descriptor": "c", "cv_descriptor": "f"}
    with warnings.catch_warnings(action="ignore"):
        expected = 40 * rsatoolbox.rdm.calc_rdm(data, **how).dissimilarities[0]
    np.testing.assert_allclose(crossnobis(x @ x.T, conditions, folds), expected, atol=1e-10)


def test_crossnobis_is_zero_on_average_where_there_is_nothing():
    rng = np.random.default_rng(6)
    conditions, folds = np.tile(list("abc"), 4), np.repeat([1, 2], 6)
    draws = [crossnobis(x @ x.T, conditions, folds) for x in rng.normal(size=(150, 12, 30))]
    assert abs(np.mean(draws)) < 4 * np.std(np.mean(draws, axis=1)) / np.sqrt(150)


def test_similar_rdms_are_similar():
    rng = np.random.default_rng(7)
    first, other = rng.random((2, 28))
    matrix = rdm_similarity(np.stack([first, 3 * first, other]))
    assert matrix[0, 1] == pytest.approx(1)
    assert abs(matrix[0, 2]) < 0.6


def test_conditions_that_repeat_are_in_every_fold():
    conditions = ["a", "a", "b", "b", "c", "a", "", ""]
    folds = [1, 2, 1, 2, 1, 2, 1, 2]
    assert repeated(conditions, folds, most=9) == ["a", "b"]
    assert repeated(conditions, folds, most=1) == ["a"]


def test_planted_communities_come_out_and_null_networks_have_none():
    rng = np.random.default_rng(8)
    truth = np.repeat([0, 1, 2], 8)
    matrix = 0.2 + 0.5 * (truth[:, None] == truth) + 0.05 * rng.normal(size=(24, 24))
    told = communities((matrix + matrix.T) / 2, n_null=10)
    labels = np.array(told["community"])
    assert {tuple(labels[truth == group]) for group in range(3)} == {(g,) * 8 for g in set(labels)}
    assert told["modularity"] > 2 * max(told["null"])
    hub = matrix.copy()
    hub[0] = hub[:, 0] = 0.9
    assert np.argmax(communities(hub, n_null=1)["strength"]) == 0


@pytest.mark.parametrize("n_nodes", [24, 60])
def test_null_networks_keep_weights_signs_degrees_and_strengths(n_nodes):
    rng = np.random.default_rng(3)
    noise = rng.normal(0.3, 1, size=(n_nodes, n_nodes)).round(6)
    matrix = np.triu(noise, 1) + np.triu(noise, 1).T
    null = representation._null_network(matrix, seed=1)
    assert np.allclose(np.sort(null, axis=None), np.sort(matrix, axis=None), atol=1e-8)
    assert (np.sign(null) != np.sign(matrix)).any()
    assert ((null > 0).sum(axis=0) == (matrix > 0).sum(axis=0)).all()
    for sign in (1, -1):
        strengths = [np.maximum(sign * w, 0).sum(axis=0) for w in (matrix, null)]
        assert np.corrcoef(strengths)[0, 1] > 0.8
    told = communities(matrix, n_null=5)
    assert told["modularity"] == pytest.approx(np.mean(told["null"]), rel=0.2)  # noise has none


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "bct", None)
    with pytest.raises(MissingPackageError, match=r'pip install "llm2nifti\[networks\]"'):
        required("bct")
