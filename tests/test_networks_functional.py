"""Functional connectivity of single units: planted links, planted tasks, and neither."""

from __future__ import annotations

import numpy as np
import pytest
from planted import dataset_run
from planted_parcels import topic_trials

from llm2nifti import bids, experiments
from llm2nifti.experiments.connectivity.units import of_units
from llm2nifti.networks.functional import agreement, partial_correlations, tangents

TASKS, FOLDS = list("aaabbbccc"), [1, 2, 3] * 3


def covariances(rng, *, strength):
    """Values of three tasks in two runs, whose covariance differs by task."""
    mixing = {task: np.eye(5) + strength * rng.normal(size=(5, 5)) for task in "abc"}
    return [rng.normal(size=(80, 5)) @ mixing[task] for task in TASKS]


def test_partial_correlations_are_those_of_the_precision():
    rng = np.random.default_rng(0)
    chain = np.eye(4) + np.diag([0.6] * 3, 1)  # each unit is driven by the one before
    x = rng.normal(size=(5000, 4)) @ chain
    told = partial_correlations([x])[0]
    precision = np.linalg.inv(np.cov(((x - x.mean(axis=0)) / x.std(axis=0)).T))
    scale = np.sqrt(np.diag(precision))
    np.testing.assert_allclose(told, -precision / np.outer(scale, scale) + 2 * np.eye(4), atol=0.02)


def test_tangents_tell_tasks_whose_covariance_differs():
    rng = np.random.default_rng(1)
    same, cross, p = agreement(tangents(covariances(rng, strength=0.6)), TASKS, FOLDS, n_null=99)
    assert same > 0.8
    assert cross < 0.2
    assert p < 0.1  # of 36 ways to pair the tasks of three runs, one is the true one


def test_tangents_of_equal_covariances_tell_nothing():
    rng = np.random.default_rng(2)
    p = [
        agreement(tangents(covariances(rng, strength=0)), TASKS, FOLDS, n_null=35, seed=i)[2]
        for i in range(40)
    ]
    assert 0.3 < np.mean(p) < 0.75


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """Two tasks of two runs: MLP units 0 and 1 of layer 1 follow each other at rest."""
    root = tmp_path_factory.mktemp("units") / "ds"
    rng = np.random.default_rng(3)
    for task in ("pain", "joy"):
        for number in (1, 2):
            table = topic_trials(task, rng)
            values = rng.normal(size=(len(table), 1, 60))
            values[(table["trial_type"] == task).to_numpy(), 0, 20:22] += 2
            values[:, :, 21] = values[:, :, 20] + 0.3 * values[:, :, 21]
            dataset_run(root, table, values, task=task, number=number, right="mlp_hidden")
    return bids.session(root)


def test_linked_units_are_linked_and_others_are_not(session):
    told = of_units(session, experiments.ConnectivityPlan(n_null=9))
    assert {"h.1.mlp_hidden:0", "h.1.mlp_hidden:1"} <= set(told.units)
    assert all("mlp_hidden" in unit for unit in told.units)
    places = [told.units.index(f"h.1.mlp_hidden:{i}") for i in (0, 1)]
    assert told.partial[places[0]][places[1]] > told.null_max
    assert told.share_above < 0.05
    assert told.p > 0.05


def test_units_of_the_stream_are_not_connected(session):
    plan = experiments.ConnectivityPlan(site=("resid", "attn"))
    assert of_units(session, plan) is None
