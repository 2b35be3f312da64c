"""Naming the task of trials and runs by their maps, and what naming by the prompts alone gives."""

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import planted
import pytest
from planted import templates, trial_sets
from scipy import stats
from sklearn.feature_extraction.text import TfidfVectorizer

from llm2nifti import networks
from llm2nifti.networks.identification import SHRINKAGE, match


def test_trials_are_named_right_where_tasks_differ_and_by_chance_where_not():
    rng = np.random.default_rng(9)
    sets = trial_sets(rng, strength=1)
    effects = templates(sets)
    assert networks.name_trials(sets, effects).accuracy > 0.95
    with pytest.raises(networks.IdentificationError, match="at least 2 runs"):
        networks.name_trials([s for s in sets if s.run == 1], {1: effects[1]})
    noise = [trial_sets(rng, strength=0) for _ in range(60)]
    named = [networks.name_trials(sets, templates(sets)) for sets in noise]
    assert named[0].chance == 1 / 3
    assert abs(np.mean([n.accuracy for n in named]) - 1 / 3) < 0.05


def test_names_use_training_controls_and_no_held_out_ones():
    sets = trial_sets(np.random.default_rng(10), strength=0.4)
    effects = templates(sets)
    before = networks.name_trials(sets, effects)
    changed = {}
    for run in (1, 2):
        shifted = [
            replace(s, values=s.values + 30 * effects[1]["x"] * ~s.is_task[:, None])
            if s.run == run
            else s
            for s in sets
        ]
        after = networks.name_trials(shifted, effects)
        changed[run] = after.named[after.fold == 1] != before.named[before.fold == 1]
    assert not changed[1].any()
    assert changed[2].any()


def task_trials(trials):
    return zip(trials.values[trials.is_task], trials.frames[trials.is_task], strict=True)


@pytest.mark.parametrize("n_units", [6, 90])
def test_names_equal_dense_whitening_and_a_loop_over_correlations(n_units):
    sets = trial_sets(np.random.default_rng(11), strength=0.5, n_units=n_units)
    for s in sets:
        s.values[:, 2] = 4
    effects, expected = templates(sets), []
    for run in (1, 2):
        training = [s for s in sets if s.run != run]
        means, whitener = planted.dense_whitening(training, SHRINKAGE)
        held_out = [s for s in sets if s.run == run]
        correlations = []
        for s in held_out:
            for v, f in task_trials(s):
                white = (v - means[f]) @ whitener
                r = [stats.pearsonr(white, effects[run][t] @ whitener).statistic for t in "xyz"]
                correlations.append(r)
        got = match(training, held_out, np.stack([effects[run][t] for t in "xyz"]))
        sizes = [(v - means[f]) @ whitener for s in held_out for v, f in task_trials(s)]
        got /= np.std(sizes, axis=1)[:, None]
        np.testing.assert_allclose(got, correlations, atol=1e-5)
        expected += np.argmax(correlations, axis=1).tolist()
    named = networks.name_trials(sets, effects)
    assert named.named.tolist() == expected
    assert set(expected) == {0, 1, 2}


def test_runs_are_named_by_the_best_correlation():
    rng = np.random.default_rng(12)
    effects = {task: rng.normal(size=60) for task in "xyz"}
    maps = {(t, r): e + rng.normal(size=60) for t, e in effects.items() for r in (1, 2, 3)}
    others = {r: {t: maps[t, r % 3 + 1] for t in "xyz"} for r in (1, 2, 3)}
    assert networks.name_runs(maps, others).accuracy == 1
    noise = {key: rng.normal(size=60) for key in maps}
    expected = [
        int(np.argmax([stats.pearsonr(noise[t, r], others[r][u]).statistic for u in "xyz"]))
        for r in (1, 2, 3)
        for t in "xyz"
    ]
    assert networks.name_runs(noise, others).named.tolist() == expected


def test_prompts_alone_name_trials_of_disjoint_vocabularies():
    rng = np.random.default_rng(13)
    sets = [replace(s, values=np.full_like(s.values, np.nan)) for s in trial_sets(rng, strength=0)]
    assert networks.name_prompts(sets).accuracy == 1
    assert len(networks.name_prompts(sets).truth) == sum(s.is_task.sum() for s in sets)
    swap = {"x": "y", "y": "x", "z": "z"}  # what is learnt from the other run is wrong for x and y
    swapped = [replace(s, task=swap[s.task]) if s.run == 2 else s for s in sets]
    assert networks.name_prompts(swapped).accuracy == 1 / 3


def test_prompts_are_named_by_the_nearest_centroid_of_their_characters():
    rng = np.random.default_rng(14)
    sets = trial_sets(rng, strength=0)
    sets = [
        replace(s, prompts=["".join(rng.choice(list("abc "), 12)) for _ in s.prompts]) for s in sets
    ]
    expected = []
    for run in sorted({s.run for s in sets}):
        texts = {
            task: [
                prompt
                for s in sets
                if s.task == task and s.run != run
                for prompt, shown in zip(s.prompts, s.is_task, strict=True)
                if shown
            ]
            for task in "xyz"
        }
        model = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True)
        model.fit([prompt for some in texts.values() for prompt in some])
        centroids = [model.transform(some).toarray().mean(axis=0) for some in texts.values()]
        for task in "xyz":
            for s in sets:
                for prompt, shown in zip(s.prompts, s.is_task, strict=True):
                    if s.task == task and s.run == run and shown:
                        row = model.transform([prompt]).toarray()[0]
                        cosines = [row @ c / np.linalg.norm(c) for c in centroids]
                        expected.append(("xyz".index(task), int(np.argmax(cosines)), run))
    named = networks.name_prompts(sets)
    assert list(zip(named.truth, named.named, named.fold, strict=True)) == expected
    assert len({name for _, name, _ in expected}) == 3


def test_p_value_equals_exact_enumeration():
    rng = np.random.default_rng(15)
    for _ in range(3):
        truth, fold = np.repeat([0, 0, 1, 1], 5), np.tile(np.repeat([0, 1], 5), 2)
        named = np.where(rng.random(20) < 0.6, truth, 1 - truth)
        item = networks.Identification(["a", "b"], truth, named, fold)
        hits = [
            sum(named[i] == perms[fold[i]][truth[i]] for i in range(20))
            for perms in product(permutations(range(2)), repeat=2)
        ]
        exact = np.mean(np.array(hits) >= (named == truth).sum())
        assert abs(item.p_value(n_perm=4000) - exact) < 0.04


def test_p_value_is_small_when_right_and_valid_for_dependent_trials():
    rng = np.random.default_rng(16)
    right = planted.random_names(rng, 4, 3, 2)
    right = replace(right, named=right.truth)
    assert right.p_value(n_perm=999) < 0.003
    p = np.array([planted.random_names(rng, 3, 3, 8).p_value(n_perm=99) for _ in range(300)])
    for alpha in (0.05, 0.2, 0.5):
        assert (p <= alpha).mean() < alpha + 4 * np.sqrt(alpha * (1 - alpha) / 300)
    assert (p <= 0.3).mean() > 0.1


def test_confusion_counts_names_by_true_task():
    item = planted.random_names(np.random.default_rng(17), 3, 4, 2)
    confusion = item.confusion()
    np.testing.assert_allclose(confusion.sum(axis=1), 1)
    for i, j in product(range(3), repeat=2):
        assert confusion[i, j] == pytest.approx(np.mean(item.named[item.truth == i] == j))
    assert item.accuracy == pytest.approx(np.trace(confusion) / 3)
    assert item.summary()["n_items"] == 24
