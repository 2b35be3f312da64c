"""Networks made from other runs, and how trials score: against a naive loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_experiments_detection import TASKS, by_hand, plant

from llm2nifti import glm, networks
from llm2nifti.evidence import calibrated, gather


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return plant(tmp_path_factory.mktemp("evidence") / "ds")


def test_live_thresholds_come_from_runs_that_did_not_make_the_networks(runs):
    evidence = gather(runs, share=0.25, verbose=0)
    limits = calibrated(evidence, runs, rate=0.1, verbose=0)
    expected = []
    for task in TASKS:
        means = [by_hand(runs, r, task)[r.events["trial_type"] == "control"] for r in runs]
        expected.append(np.quantile(np.concatenate(means), 0.9, axis=0, method="higher"))
    np.testing.assert_allclose(limits.values, np.stack(expected, axis=1), atol=1e-4)


def test_control_trials_have_the_mean_and_sd_of_plain_numpy(runs):
    evidence = gather(runs, verbose=0)
    kept = [run for run in runs if run.run in (1, 3)]
    rows = [r.values()[(r.events["trial_type"] == glm.CONTROL).to_numpy()] for r in kept]
    control = np.concatenate(rows).astype(float)
    found = evidence.controls([1, 3])
    np.testing.assert_allclose(found.mean, control.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.sd, control.std(axis=0, ddof=1), rtol=1e-4)


def test_a_site_that_was_not_recorded_is_named(runs):
    evidence = gather(runs, verbose=0)
    assert evidence.rule.sites == ("attn", "mlp")
    elsewhere = replace(evidence, rule=replace(evidence.rule, sites=("heads",)))
    with pytest.raises(networks.ThresholdError, match="no site 'heads'"):
        elsewhere.networks([1])
