"""Model RDMs and what they explain, against scipy, scikit-learn and rsatoolbox."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import rsatoolbox
from scipy.spatial.distance import pdist
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from llm2nifti.networks.properties import (
    PairSums,
    character_distances,
    correlations,
    distances,
    explained,
    model_rdms,
    noise_ceiling,
    squared_distances,
    standardised,
)


def test_distances_are_scipys():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, 4))
    np.testing.assert_allclose(squared_distances(x @ x.T), pdist(x, "sqeuclidean"), atol=1e-10)
    np.testing.assert_allclose(distances(x[:, 0]), pdist(x[:, :1]), atol=1e-12)
    words = rng.choice(list("ab"), 9)
    codes = (words == "a").astype(float)[:, None]
    np.testing.assert_array_equal(distances(words), pdist(codes, "hamming"))


def test_texts_that_share_characters_are_near():
    near, far, same = character_distances(["bone scan", "bone scans", "tax law"])[[0, 1, 2]]
    assert near < 0.3 < far
    assert same > 0.7
    assert character_distances(["a", "a"])[0] == pytest.approx(0)


def test_properties_that_do_not_vary_are_left_out():
    table = pd.DataFrame({"prompt": ["x", "yy", "z"], "one": 1.0, "kind": list("aab")})
    table["lost"] = [1.0, np.nan, 2.0]
    assert list(model_rdms(table, ["one", "kind", "lost", "characters"])) == ["kind", "characters"]


def test_what_is_explained_is_scikit_learns_least_squares():
    rng = np.random.default_rng(1)
    X = [standardised(rng.normal(size=(50, 4))) for _ in range(3)]
    weights = rng.normal(size=(4, 6))
    Y = [standardised(x @ weights + rng.normal(size=(50, 6))) for x in X]
    products = [PairSums.of(x, y) for x, y in zip(X, Y, strict=True)]
    kept = [0, 2, 3]
    model = LinearRegression(fit_intercept=False)
    model.fit(np.concatenate(X[:2])[:, kept], np.concatenate(Y[:2]))
    expected = r2_score(Y[2], model.predict(X[2][:, kept]), multioutput="raw_values")
    np.testing.assert_allclose(explained(products[:2], products[2], kept), expected, atol=1e-10)
    np.testing.assert_array_equal(explained(products[:2], products[2], []), 0)
    x = rng.normal(size=50)
    other = X[0].copy()
    other[:, 1] = x
    replaced = products[0].replaced(1, x, X[0], Y[0])
    expected = PairSums.of(other, Y[0])
    np.testing.assert_allclose(replaced.both, expected.both, atol=1e-12)
    np.testing.assert_allclose(replaced.models, expected.models, atol=1e-12)


def test_standardised_columns_have_no_scale():
    values = standardised(np.column_stack([np.arange(5.0), np.ones(5)]))
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(values.std(axis=0), [1, 0])


def test_correlations_are_numpys_and_their_intervals_hold_them():
    rng = np.random.default_rng(2)
    positions = rng.normal(size=(12, 3))
    model = {"near": pdist(positions), "noise": rng.random(66)}
    data = np.stack([pdist(positions) + 0.3 * rng.random(66), rng.random(66)])
    value, draws = correlations(model, data, n_boot=40)
    expected = np.corrcoef([*model.values(), *data])[:2, 2:]
    np.testing.assert_allclose(value, expected, atol=1e-10)
    assert draws.shape == (40, 2, 2)
    low, high = np.nanpercentile(draws[:, 0, 0], [2.5, 97.5])
    assert 0 < low < value[0, 0] < high
    again = correlations(model, data, n_boot=40)[1]
    np.testing.assert_array_equal(draws, again)


@pytest.mark.filterwarnings("ignore")
def test_the_noise_ceiling_is_rsatoolboxs_and_rises_with_reliability():
    rng = np.random.default_rng(3)
    truth = rng.random(45)
    clean, noisy = (truth + scale * rng.random((3, 45)) for scale in (0.2, 3.0))
    low, high = noise_ceiling(clean)
    assert noise_ceiling(noisy)[0] < low < high <= 1
    mean = np.corrcoef(clean)[np.triu_indices(3, 1)].mean()
    assert low > mean  # each run with the mean of the others
    rdms = rsatoolbox.rdm.RDMs(clean)
    assert rsatoolbox.inference.boot_noise_ceiling(rdms, method="corr")[0] == pytest.approx(low)
