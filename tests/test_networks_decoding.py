"""Decoding from products of trials: equal to scikit-learn on the units, calibrated, basis-free."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from llm2nifti.networks.decoding import areas, balanced, decode, fitted, over_time


def data(rng, *, strength=0.0, n_units=30):
    """Trials of three runs, half of them on."""
    run, is_on = np.repeat([1, 2, 3], 20), np.arange(60) % 2 == 0
    return rng.normal(size=(60, n_units)) + strength * is_on[:, None] + 3, is_on, run


def test_scores_are_those_of_ridge_regression_on_the_units():
    x, is_on, run = data(np.random.default_rng(0), strength=0.3)
    train, held = run != 3, run == 3
    inside, outside = fitted(x[train] @ x[train].T, x[held] @ x[train].T, is_on[train][:, None])
    centred = x[train] - x[train].mean(axis=0)
    penalty = (centred**2).sum() / len(centred)
    target = np.where(is_on[train], 1.0, -1.0)
    model = Ridge(alpha=penalty).fit(x[train], target)
    np.testing.assert_allclose(outside[:, 0], model.predict(x[held]) - target.mean(), atol=1e-8)
    np.testing.assert_allclose(inside[:, 0], model.predict(x[train]) - target.mean(), atol=1e-8)


def test_areas_and_accuracies_are_scikit_learns():
    rng = np.random.default_rng(1)
    scores, is_on = rng.normal(size=(30, 4)).round(1), rng.random((30, 4)) < 0.4
    limits = rng.normal(size=4)
    columns = range(4)
    expected = [roc_auc_score(is_on[:, i], scores[:, i]) for i in columns]
    np.testing.assert_allclose(areas(scores, is_on), expected)
    above = scores > limits
    expected = [balanced_accuracy_score(is_on[:, i], above[:, i]) for i in columns]
    np.testing.assert_allclose(balanced(scores, is_on, limits), expected)
    assert areas(np.zeros((30, 4)), is_on) == pytest.approx([0.5] * 4)  # all scores tie


def test_what_is_there_is_decoded_and_what_is_not_is_at_chance():
    rng = np.random.default_rng(2)
    x, is_on, run = data(rng, strength=1.0)
    auc, accuracy, scores = decode(x @ x.T, is_on[:, None], run)
    assert auc[0] > 0.95
    assert accuracy[0] > 0.85
    assert scores[is_on].mean() > scores[~is_on].mean()
    null = []
    for _ in range(100):
        x, is_on, run = data(rng)
        null.append([part[0] for part in decode(x @ x.T, is_on[:, None], run)[:2]])
    error = np.std(null, axis=0) / 10
    assert (np.abs(np.mean(null, axis=0) - 0.5) < 4 * error).all()


def test_every_labelling_is_a_classifier_of_its_own():
    rng = np.random.default_rng(3)
    x, is_on, run = data(rng, strength=0.5)
    labels = np.stack([is_on, rng.permutation(is_on)], axis=1)
    both = decode(x @ x.T, labels, run)[0]
    for column, auc in zip(labels.T, both, strict=True):
        assert decode(x @ x.T, column[:, None], run)[0][0] == pytest.approx(auc, abs=1e-10)


def test_time_generalises_where_the_pattern_stays():
    """Frames 0 and 1 share a pattern, frame 2 has another one, frame 3 none."""
    rng = np.random.default_rng(4)
    run, is_on = np.repeat([1, 2, 3], 20), np.arange(60) % 2 == 0
    patterns = 5 * np.linalg.qr(rng.normal(size=(25, 2)))[0].T
    x = rng.normal(size=(4, 60, 25))
    for frame, pattern in ((0, 0), (1, 0), (2, 1)):
        x[frame] += is_on[:, None] * patterns[pattern]
    flat = x.reshape(-1, 25)
    grams = (flat @ flat.T).reshape(4, 60, 4, 60)
    auc = over_time(grams, is_on[:, None], run)[:, :, 0]
    assert min(auc[0, 0], auc[0, 1], auc[1, 0], auc[2, 2]) > 0.9
    assert np.abs(auc[:, 3] - 0.5).max() < 0.3  # nothing is there to be told
    assert auc[0, 2] < 0.8 < auc[0, 1]
    for frame in range(4):  # the diagonal is decoding at that frame
        alone = decode(x[frame] @ x[frame].T, is_on[:, None], run)[0][0]
        assert auc[frame, frame] == pytest.approx(alone, abs=1e-10)


def test_a_constant_parcel_is_at_chance():
    is_on, run = np.arange(20) % 2 == 0, np.repeat([1, 2], 10)
    assert decode(np.ones((20, 20)), is_on[:, None], run)[0][0] == 0.5
