"""Naming by a ridge classifier, and how accuracy grows with the prompts that are named together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import planted
import pytest
from planted import trial_sets
from sklearn.linear_model import RidgeClassifier

from llm2nifti import networks
from llm2nifti.networks.naming import RIDGE, name_by_training, naming_curve


def test_names_are_those_of_a_classifier_in_all_units():
    sets = trial_sets(np.random.default_rng(4), strength=0.5)
    named = name_by_training(sets)
    expected = []
    for run in (1, 2):
        training = [s for s in sets if s.run != run]
        means, _ = planted.dense_whitening(training, 0.5)
        residuals = [
            v - means[f]
            for s in training
            for v, f in zip(s.values[~s.is_task], s.frames[~s.is_task], strict=True)
        ]
        scale = np.std(residuals, axis=0)

        def rows(trials, means=means, scale=scale):
            return [
                (v - means[f]) / scale
                for s in trials
                for v, f in zip(s.values[s.is_task], s.frames[s.is_task], strict=True)
            ]

        X = np.array(rows(training))
        alpha = RIDGE * (X**2).sum(axis=1).mean()
        known = [s.task for s in training for _ in range(s.is_task.sum())]
        model = RidgeClassifier(alpha=alpha).fit(X, known)
        expected += model.predict(rows([s for s in sets if s.run == run])).tolist()
    assert [named.tasks[i] for i in named.named] == expected
    assert len(set(expected)) == 3


def test_tasks_that_differ_are_named_and_tasks_that_do_not_are_guessed():
    rng = np.random.default_rng(9)
    assert name_by_training(trial_sets(rng, strength=1)).accuracy > 0.95
    shares = [name_by_training(trial_sets(rng, strength=0)).accuracy for _ in range(60)]
    assert abs(np.mean(shares) - 1 / 3) < 0.05


def test_training_uses_no_trial_of_the_held_out_run():
    sets = trial_sets(np.random.default_rng(10), strength=0.4)
    before = name_by_training(sets)
    rng = np.random.default_rng(0)
    shifted = [
        replace(s, values=s.values + 9 * rng.normal(size=s.values.shape) * ~s.is_task[:, None])
        if s.run == 1
        else s
        for s in sets
    ]
    after = name_by_training(shifted)
    assert (after.named[after.fold == 1] == before.named[before.fold == 1]).all()
    with pytest.raises(networks.IdentificationError, match="at least 2 runs"):
        name_by_training([s for s in sets if s.run == 1])


def identification(rng, n=24, *, strength, by_topic=0.0):
    """Scores of 3 tasks x 2 runs x n prompts in 6 topics, and the topics."""
    truth = np.repeat(np.tile([0, 1, 2], 2), n)
    fold = np.repeat([1, 2], 3 * n)
    topics = np.array(
        [f"{t} {f} {i % 6}" for i, (t, f) in enumerate(zip(truth, fold, strict=True))]
    )
    scores = rng.normal(size=(len(truth), 3)) + strength * np.eye(3)[truth]
    _, of_topic = np.unique(topics, return_inverse=True)
    scores += by_topic * rng.normal(size=(of_topic.max() + 1, 3))[of_topic]
    named = scores.argmax(axis=1)
    return networks.Identification(["x", "y", "z"], truth, named, fold, scores), topics


def test_single_prompts_have_the_accuracy_of_the_identification():
    named, topics = identification(np.random.default_rng(0), strength=1.0)
    points = naming_curve(named, topics, n_boot=50)
    assert [p.n_prompts for p in points] == [1, 2, 3, 4, 6, 24]
    assert points[0].accuracy == pytest.approx(named.accuracy)
    assert all(p.low <= p.accuracy <= p.high for p in points)


def test_without_samples_there_are_no_intervals():
    named, topics = identification(np.random.default_rng(0), strength=1.0)
    assert {(p.low, p.high) for p in naming_curve(named, topics, n_boot=0)} == {(None, None)}


def test_accuracy_grows_with_prompts_as_the_mean_of_scores_says():
    rng = np.random.default_rng(1)
    named, topics = identification(rng, n=240, strength=0.8)
    points = {p.n_prompts: p.accuracy for p in naming_curve(named, topics, n_boot=2)}
    draws = np.random.default_rng(2)
    for size in (1, 2, 4):
        scores = draws.normal(size=(200_000, 3)) / np.sqrt(size) + 0.8 * np.eye(3)[0]
        assert points[size] == pytest.approx((scores.argmax(axis=1) == 0).mean(), abs=0.04)


def test_intervals_are_wider_where_topics_differ():
    widths = []
    for by_topic in (0.0, 2.0):
        named, topics = identification(np.random.default_rng(3), strength=1.0, by_topic=by_topic)
        (first, *_) = naming_curve(named, topics, sizes=(1,), n_boot=200)
        widths.append(first.high - first.low)
    assert widths[1] > 1.3 * widths[0]
