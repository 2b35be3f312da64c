"""Areas under ROC curves, their intervals, probes and word lists, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from llm2nifti.networks import detection
from llm2nifti.networks.detection import Bootstrap


def draw(n=120, shift=0.8, seed=0):
    """Scores with ties, classes, folds."""
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.4
    return (rng.normal(size=n) + shift * positive).round(1), positive, rng.integers(0, 3, n)


def by_pairs(scores, positive, fold):
    """How often a positive scores higher than a negative of its fold; ties count half."""
    wins = [
        (scores[on] > scores[off]) + 0.5 * (scores[on] == scores[off])
        for on in np.flatnonzero(positive)
        for off in np.flatnonzero(~positive & (fold == fold[on]))
    ]
    return np.mean(wins)


@pytest.mark.parametrize("n", [0, 5])
@pytest.mark.parametrize("seed", range(3))
def test_areas_are_those_of_pairs_and_of_scikit_learn(seed, n):
    scores, positive, fold = draw(seed=seed)
    areas = [roc_auc_score(positive[fold == f], scores[fold == f]) for f in range(3)]
    pairs = [positive[fold == f].sum() * (~positive[fold == f]).sum() for f in range(3)]
    found = Bootstrap(positive.astype(str), fold, n=n).areas(scores, positive, ~positive)
    assert len(found) == 1 + n
    assert found[0] == pytest.approx(by_pairs(scores, positive, fold), abs=1e-12)
    assert found[0] == pytest.approx(np.average(areas, weights=pairs), abs=1e-12)


def test_a_fold_without_positives_says_nothing():
    scores, positive, fold = draw()
    positive &= fold != 1
    found = Bootstrap(positive.astype(str), fold, n=0).areas(scores, positive, ~positive)
    assert found[0] == pytest.approx(by_pairs(scores, positive, fold), abs=1e-12)


def test_a_draw_is_the_area_of_the_trials_that_were_drawn():
    scores, positive, fold = draw()
    boot = Bootstrap(positive.astype(str), fold, n=4, seed=1)
    found = boot.areas(scores, positive, ~positive)
    for weights, area in zip(boot.weights, found, strict=True):
        rows = np.repeat(np.arange(len(scores)), weights.astype(int))
        again = by_pairs(scores[rows], positive[rows], fold[rows])
        assert area == pytest.approx(again, abs=1e-6)
        for f in range(3):  # as many of each kind and fold as there were
            assert weights[(fold == f) & positive].sum() == ((fold == f) & positive).sum()


def test_intervals_cover_the_true_area_as_often_as_they_say():
    covered = []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        positive = np.arange(100) < 50
        scores = rng.normal(size=100) + positive  # true AUC: Phi(1 / sqrt 2)
        boot = Bootstrap(positive.astype(str), np.zeros(100), n=200, seed=seed)
        found = detection.estimate(boot.areas(scores, positive, ~positive))
        covered.append(found["low"] <= 0.7602 <= found["high"])
    assert 0.86 <= np.mean(covered) <= 1


def test_the_probe_is_logistic_regression_on_all_units():
    rng = np.random.default_rng(0)
    kind, train = rng.integers(0, 3, 60), np.arange(60) < 40
    values = rng.normal(size=(60, 200)) * np.exp(rng.normal(size=200)) + (kind == 1)[:, None] * 0.4
    scaled = StandardScaler().fit(values[train]).transform(values)
    on, off = kind == 1, kind == 2
    rows = train & (on | off)
    plain = LogisticRegression(max_iter=5000)
    expected = plain.fit(scaled[rows], on[rows]).decision_function(scaled)
    found = detection.probe(scaled @ scaled.T, on, off, train)
    np.testing.assert_allclose(found, expected, rtol=0.02)  # as far as the solver goes
    assert np.corrcoef(found, expected)[0, 1] > 0.9999


def test_words_are_learned_from_the_training_prompts_alone():
    prompts = ["a bone breaks", "the bone heals", "a senate votes", "the senate sits"] * 5
    prompts[-2:] = ["fossil", "fossil senate"]
    on = np.array(["bone" in p or p == "fossil" for p in prompts])
    scores = detection.words(prompts, on, ~on, np.arange(20) < 16)
    assert (scores[on & (np.arange(20) < 18)] > 0).all()
    unknown = detection.words([*prompts[:19], "nothing"], on, ~on, np.arange(20) < 16)
    assert unknown[18] == unknown[19]  # words that no training prompt has say nothing


def test_a_roc_curve_has_its_area():
    scores, positive, fold = draw(n=600)
    curve = detection.roc(scores, positive, fold)
    assert curve[0] >= 0
    assert curve[-1] == 1
    area = np.trapezoid(curve, detection.GRID)
    assert area == pytest.approx(by_pairs(scores, positive, fold), abs=0.01)
