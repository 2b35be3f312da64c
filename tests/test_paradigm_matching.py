"""Are controls like the task's prompts, and is the assignment the cheapest there is?"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pandas as pd
import pytest

from llm2nifti import stimuli
from llm2nifti.defaults import PRESETS
from llm2nifti.paradigm import experiment
from llm2nifti.paradigm.matching import Candidates, assign, match, reachable
from llm2nifti.stimuli.measures import MEASURES, TOLERANCE, difference


def differences(design):
    """Cohen's d of every measure, by the textbook formula."""
    on = design.trials["trial_type"] != stimuli.CONTROL
    out = {}
    for name in MEASURES:
        a, b = (design.trials.loc[rows, name].to_numpy(float) for rows in (on, ~on))
        n, m = len(a), len(b)
        pooled = ((n - 1) * a.var(ddof=1) + (m - 1) * b.var(ddof=1)) / (n + m - 2)
        out[name] = (a.mean() - b.mean()) / np.sqrt(pooled)
    return out


@pytest.mark.parametrize("split", stimuli.SPLITS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_run_of_the_default_experiment_is_matched_in_every_measure(split, seed):
    for design in experiment(seed=seed, table=stimuli.load(split=split)):
        d = differences(design)
        if design.task == stimuli.WORDLESS:  # no words, and half of the letters a token
            assert np.isnan(d.pop("frequency"))
            assert d.pop("characters") < -1
        assert {name: value for name, value in d.items() if not abs(value) <= TOLERANCE} == {}


def test_where_controls_are_scarce_fewer_are_shown_so_that_they_still_match():
    runs = experiment(**PRESETS["thorough"])
    for design in runs:
        kinds = design.trials["trial_type"].value_counts()
        assert (kinds[stimuli.CONTROL], kinds[design.task]) == (24, 32)
    worded = [design for design in runs if design.task != stimuli.WORDLESS]
    d = np.abs([[*differences(design).values()] for design in worded])
    assert (d <= TOLERANCE).mean() > 0.95
    assert d.max() < 0.3  # with 32 controls for 24 prompts, .9 in the last run


def test_everyday_domains_are_matched():
    table = stimuli.load(tasks=stimuli.DOMAINS)
    for design in experiment(stimuli.DOMAINS, n_runs=2, table=table):
        assert max(map(abs, differences(design).values())) <= TOLERANCE


def cheapest(slots, pool, costs):
    """Smallest cost of all ways to give every slot a prompt."""
    sums = [
        costs[range(len(slots)), list(rows)].sum()
        for rows in permutations(range(len(pool)), len(slots))
        if (pool.levels[list(rows)] == slots).all()
        and len(set(pool.topics[list(rows)])) == len(slots)
    ]
    return min(sums, default=None)


@pytest.mark.parametrize("seed", range(12))
def test_assignment_is_the_cheapest_with_topics_that_differ(seed):
    rng = np.random.default_rng(seed)
    slots = rng.integers(0, 2, 3)
    pool = Candidates(rng.integers(0, 2, 7), rng.integers(0, 5, 7), np.zeros((7, 0)))
    costs = rng.random((3, 7))
    rows, best = assign(slots, pool, costs), cheapest(slots, pool, costs)
    if best is None:
        assert rows is None
    else:
        assert (pool.levels[rows] == slots).all()
        assert len(set(pool.topics[rows])) == 3
        assert costs[range(3), rows].sum() == pytest.approx(best)


def pools(rng, shift):
    """Task prompts that differ from the pool by `shift` standard deviations in two measures."""
    target = Candidates(np.arange(24) % 4, np.zeros(24, int), rng.normal(shift, 1, (24, 2)))
    return target, Candidates(
        rng.integers(0, 4, 800), np.arange(800) % 100, rng.normal(0, 1, (800, 2))
    )


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0])
def test_matching_takes_away_what_a_random_draw_has(shift):
    rng = np.random.default_rng(3)
    target, pool = pools(rng, shift)
    slots = np.arange(32) % 4
    rows = match(target, slots, pool, np.zeros((32, 800)))
    assert np.abs(difference(target.values, pool.values[rows])).max() <= TOLERANCE
    drawn = assign(slots, pool, rng.random((32, 800)))
    if shift:
        assert np.abs(difference(target.values, pool.values[drawn])).max() > shift / 2


def test_measures_that_prompts_lack_or_that_are_out_of_reach_are_left_out():
    table = pd.DataFrame(
        {"near": [1.0, 2, 1, 3], "far": [9.0, 9.1, 1, 1.1], "none": [1, np.nan, 1, 2]}
    )
    task, control = np.array([0, 1]), np.array([2, 3])
    assert list(reachable(table, ["near", "far", "none", "absent"], task, control)) == ["near"]


def test_difference_is_cohens_d_and_zero_where_nothing_differs():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 2, 20), rng.normal(0, 3, 30)
    pooled = (19 * a.var(ddof=1) + 29 * b.var(ddof=1)) / 48
    assert difference(a, b) == pytest.approx((a.mean() - b.mean()) / np.sqrt(pooled))
    assert difference(np.ones(3), np.ones(4)) == 0
    assert difference(np.ones(3), np.zeros(4)) == np.inf
