"""Dissociation of lesions whose effects are known beforehand."""

from __future__ import annotations

import numpy as np
import pytest

from llm2nifti.networks import dissociation

TASKS = ["a", "b", "c"]
N_TEXTS, N_RANDOM = 24, 5


def changes_of(own, *, fragile=0.0, seed=0):
    """Every network hurts its own task by `own`; task c is `fragile` whatever is lesioned."""
    rng = np.random.default_rng(seed)
    out = []
    for name in TASKS:
        base = {task: -fragile * (task == "c") for task in TASKS}
        lesion = {
            task: base[task] - own * (task == name) + rng.normal(0, 0.02, N_TEXTS) for task in TASKS
        }
        random = {task: base[task] + rng.normal(0, 0.02, (N_RANDOM, N_TEXTS)) for task in TASKS}
        out.append(dissociation.Changes(name, lesion, random, lesion))
    return out


def test_an_effect_is_its_mean_and_the_bootstraps_interval():
    changes = changes_of(0.3)[1]
    found = dissociation.effect(changes, "b")
    assert found.delta == pytest.approx(changes.lesion["b"].mean())
    low, high = found.interval
    error = changes.lesion["b"].std(ddof=1) / N_TEXTS**0.5
    assert low == pytest.approx(found.delta - 1.96 * error, abs=error / 2)
    assert high == pytest.approx(found.delta + 1.96 * error, abs=error / 2)
    assert found.random == pytest.approx(changes.random["b"].mean(axis=1))
    assert found.excess == pytest.approx(found.delta - changes.random["b"].mean())
    assert found.bottom == found.delta


def test_specific_lesions_are_selective_and_dissociate():
    changes = changes_of(0.3, fragile=0.5)
    found = dissociation.selectivity(changes)
    assert found.value == pytest.approx(-0.3, abs=0.02)  # fragility is taken out
    assert found.interval[1] < 0
    assert max(np.abs(found.random)) < 0.02
    pairs = dissociation.double_dissociations(changes)
    assert [pair.pair for pair in pairs] == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert all(pair.holds for pair in pairs)
    assert pairs[0].first.value == pytest.approx(-0.3, abs=0.03)


def test_one_fragile_task_is_no_dissociation():
    """Any lesion hurts task c: neither selectivity nor a dissociation follows."""
    changes = changes_of(0.0, fragile=0.5)
    found = dissociation.selectivity(changes)
    assert abs(found.value) < 0.01
    assert not any(pair.holds for pair in dissociation.double_dissociations(changes))


def test_of_two_effects_on_one_side_only_none_dissociates():
    changes = changes_of(0.0)
    changes[0].lesion["a"] -= 0.3  # the network of a hurts a; nothing hurts b
    pairs = dissociation.double_dissociations(changes)
    assert pairs[0].first.interval[1] < 0
    assert not pairs[0].holds


def test_intervals_hold_their_level():
    """Of 200 experiments with nothing in them, about 5 % of intervals leave out 0."""
    misses = 0
    for seed in range(200):
        low, high = dissociation.effect(changes_of(0.0, seed=seed)[0], "a").interval
        misses += not low <= 0 <= high
    assert 2 <= misses <= 24  # percentile intervals of 24 texts are a little short


def test_a_single_network_has_no_dissociation():
    with pytest.raises(dissociation.DissociationError, match="2 or more tasks"):
        dissociation.selectivity(changes_of(0.1)[:1])


def test_a_few_scattered_sets_are_no_fixed_standard():
    """The interval beyond random sets knows that other sets would have been drawn."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        sets = rng.normal(-0.5, 1.0, (10, 1)) + rng.normal(0, 0.1, (10, 40))
        lesion = rng.normal(-0.5, 1.0) + rng.normal(0, 0.1, 40)  # one more of the same kind
        changes = dissociation.Changes("a", {"a": lesion}, {"a": sets})
        low, high = dissociation.effect(changes, "a").excess_interval
        texts_only = 2 * 1.96 * np.hypot(0.1, 0.1) / 40**0.5
        assert high - low > 3 * texts_only
        inside += low < lesion.mean() + 0.5 < high  # the truth about these sets' mean
    assert inside / 200 > 0.8


def test_crossing_over_is_counted_alike_for_networks_and_random_sets():
    pairs = dissociation.double_dissociations(changes_of(0.3))
    assert all(pair.crosses for pair in pairs)
    weak = dissociation.double_dissociations(changes_of(0.001))
    for pair in (*pairs, *weak):
        assert pair.crosses == (pair.first.value < 0 and pair.second.value < 0)
        assert 0 <= pair.random_crosses <= 1
