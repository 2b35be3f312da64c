"""Other labels of the same trials, and what nothing looks like: against lstsq and known rates."""

import numpy as np
import pandas as pd
import planted
import pytest
from planted import lstsq_contrast, lstsq_t, noise
from scipy import stats

from llm2nifti import glm
from llm2nifti.glm import relabelling


def lstsq_t_of(label, confounds, Y):
    """T of one label by lstsq."""
    X = np.column_stack([label, np.ones(len(Y)), confounds]).astype(float)
    effect, variance, df = lstsq_contrast(X, np.eye(X.shape[1])[0], Y)
    return effect / np.sqrt(variance), df


@pytest.mark.parametrize("mean", [0, 1e5])
def test_t_of_labels_equals_lstsq(mean):
    """Labels of all trials, and of subsets with confounds of their own, in one call."""
    rng = np.random.default_rng(3)
    table = planted.trials(levels=("a", "b", "c"))
    Y = noise(table, n_units=2 * relabelling._TOGETHER + 3)[:, 0] + mean * rng.normal()
    base = (table["trial_type"] == "pain").to_numpy()
    is_on = np.stack([rng.permutation(base) for _ in range(5)])
    confounds = glm.nuisance(table).to_numpy()
    some = [glm.Labels(is_on, confounds), glm.Labels(is_on[:2], confounds[:, :0])]
    for n in (15, 20):
        rows = rng.permutation(len(table))[:n]
        some.append(glm.Labels(base[rows][None], glm.nuisance(table.iloc[rows]).to_numpy(), rows))
    t = iter(glm.t_of_labels(Y, some))
    for labels in some:
        rows = slice(None) if labels.kept is None else labels.kept
        for label in labels.is_on:
            expected, df = lstsq_t_of(label, labels.confounds, Y[rows])
            np.testing.assert_allclose(next(t), expected, rtol=1e-6, atol=1e-6)
            assert labels.df == df
    assert next(t, None) is None


def test_labels_that_cannot_be_tested_raise():
    table = planted.trials(n_on=6, n_off=8, levels=tuple("abcdefgh"))
    is_on = (table["trial_type"] == "pain").to_numpy()
    Y, none = noise(table)[:, 0], np.empty((14, 0))
    with pytest.raises(glm.DesignError, match="14 trials are too few for 13"):
        glm.t_of_labels(Y, [glm.Labels(is_on[None], np.eye(14)[:, 1:])])
    for label in (np.ones(14, bool), is_on):
        labels = glm.Labels(label[None], is_on[:, None].astype(float))
        with pytest.raises(glm.DesignError, match="mixed up"):
            glm.t_of_labels(Y, [labels])
        assert len(labels.testable().is_on) == 0
    assert len(glm.Labels(is_on[None], none).testable().is_on) == 1


def test_shuffles_that_equal_a_question_frame_are_drawn_again():
    table = planted.trials(n_blocks=1, n_on=2, n_off=3, levels=("a",))
    table["question_frame"] = ["a", "b", "b", "b", "a"]
    labels = glm.shuffled(planted.run(table, noise(table)), n=30)
    is_a = (table["question_frame"] == "a").to_numpy()
    assert len(labels.is_on) == 30
    assert not (labels.is_on == is_a).all(axis=1).any()


def test_shuffles_that_question_frames_leave_no_room_for_are_refused():
    table = planted.trials(n_blocks=1, n_on=2, n_off=3, levels=("a",))
    table["question_frame"] = list("abcde")
    with pytest.raises(glm.DesignError, match="run 1: question frames are mixed up"):
        glm.shuffled(planted.run(table, noise(table)), n=30)


def shuffled_maps(run, seed=0):
    return glm.t_of_labels(run.values(), [glm.shuffled(run, n=400, seed=seed)])


def test_shuffled_maps_are_centred_on_zero():
    table = planted.trials(n_on=20, n_off=28)
    values = noise(table, n_units=40)[:, 0]
    values[(table["trial_type"] == "pain").to_numpy()] += 2 * values.std(axis=0)
    run = planted.run(table, values)
    assert (lstsq_t(table, values) > 3).all()
    maps = shuffled_maps(run)
    assert maps.shape == (400, 40)
    assert np.abs(maps.mean(axis=0)).max() < 4.5 / np.sqrt(400)
    assert 0.9 < maps.std() < 1.15
    assert not np.array_equal(maps, shuffled_maps(run, seed=1))
    shifted = planted.run(table, values + 9 * (table[["question_frame"]] == "a").to_numpy())
    np.testing.assert_allclose(shuffled_maps(shifted), maps, atol=1e-8)


@pytest.mark.parametrize(("n_blocks", "n_on", "n_off"), [(4, 24, 32), (3, 12, 18), (4, 21, 30)])
def test_every_block_and_every_control_trial_is_left_out_once(n_blocks, n_on, n_off):
    table = planted.trials(n_blocks=n_blocks, n_on=n_on, n_off=n_off)
    is_on = (table["trial_type"] == "pain").to_numpy()
    masks = glm.delete_masks(table)
    out = ~np.array(masks)
    assert len(masks) == n_blocks
    assert (out.sum(axis=0) == 1).all()
    assert [set(table["block"][o & is_on]) for o in out] == [{2 * b + 2} for b in range(n_blocks)]
    for keep in masks:
        expected = n_off / n_on * (keep & is_on).sum()
        assert abs((keep & ~is_on).sum() - expected) < 1


def test_topics_are_left_out_where_they_are_groups_of_prompts():
    table = planted.trials(n_blocks=3, n_on=12, n_off=18, levels=())
    run = planted.run(table, noise(table))
    assert glm.random_factor([run]) == "block"  # one topic
    topics = [f"t{i % 4}" if kind == "pain" else f"c{i}" for i, kind in enumerate(table.trial_type)]
    by_topic = planted.run(table.assign(topic=topics), noise(table))
    assert glm.random_factor([by_topic]) == "topic"
    assert glm.random_factor([by_topic, run]) == "block"
    single = table.assign(topic=table["stim_id"])
    assert glm.random_factor([planted.run(single, noise(table))]) == "block"
    out = ~np.array(glm.delete_masks(by_topic.events, by="topic"))
    is_on = (table["trial_type"] == "pain").to_numpy()
    assert (out.sum(axis=0) == 1).all()
    assert [len(set(np.array(topics)[o & is_on])) for o in out] == [1] * 4


def test_maps_without_a_block_equal_lstsq_without_the_block():
    table = planted.trials(n_blocks=3, n_on=12, n_off=18, levels=("a", "b"))
    run = planted.run(table, noise(table))
    controls = np.flatnonzero(table["trial_type"] == "control").reshape(3, 6)
    maps = glm.t_of_labels(run.values(), glm.without(table))
    for block, control, t in zip((2, 4, 6), controls, maps, strict=True):
        keep = (table["block"] != block).to_numpy() & ~np.isin(np.arange(30), control)
        np.testing.assert_allclose(t, lstsq_t(table[keep], run.values()[keep]), atol=1e-8)


def test_relabelled_independent_noise_holds_its_level():
    rng = np.random.default_rng(5)
    table = planted.trials(n_on=16, n_off=24)
    runs = [planted.run(table, rng.normal(size=(40, 2000))) for _ in range(3)]
    summary = glm.relabelled(runs, n=200, verbose=0).summary()
    assert summary["n_relabellings"] == 200
    assert 0.04 < summary["below_05"] < 0.06
    assert 0.0005 < summary["below_001"] < 0.002
    assert summary["any_fdr"] < 0.12


def test_fewer_relabellings_than_runs_are_done():
    table = planted.trials(n_on=16, n_off=24)
    runs = [planted.run(table, noise(table, seed=i)) for i in range(3)]
    rates = glm.relabelled(runs, n=2, verbose=0)
    assert len(rates.below_05) == 2
    first = glm.relabelled(runs[:1], n=1, verbose=0)
    assert rates.below_05[0] == first.below_05[0]
    constant = [planted.run(table, np.ones((40, 24)))]
    with pytest.raises(glm.DesignError, match="no unit varies"):
        glm.relabelled(constant, n=1, verbose=0)


def test_rates_equal_those_of_all_p_values():
    rng = np.random.default_rng(9)
    found = set()
    for effect in (0, 3, 5):
        t = rng.standard_t(30, size=3000)
        t[:300] = 0
        t[300:330] += effect
        p = 2 * stats.t.sf(np.abs(t[300:]), 30)
        expected = (p < 0.05).mean(), (p < 0.001).mean()
        any_fdr = bool((stats.false_discovery_control(p) < 0.05).any())
        assert relabelling.rates_of(t, 30) == pytest.approx((*expected, any_fdr))
        found.add(any_fdr)
    assert found == {True, False}


def test_pseudo_tasks_see_coherent_topics_and_relabelling_within_runs_does_not():
    rng = np.random.default_rng(6)
    found = {}
    for strength in (0, 1):
        runs = planted.coherent_topics(rng, strength)
        pseudo = glm.pseudo_tasks(runs, n_on=8, n_off=12, n=100, verbose=0)
        found[strength] = pseudo.summary(), glm.relabelled(runs, n=100, verbose=0).summary()
    assert 0.035 < found[0][0]["below_05"] < 0.065
    assert found[1][0]["below_05"] > 0.1
    assert found[1][0]["any_fdr"] > 0.5
    assert all(0.04 < relabelled["below_05"] < 0.06 for _, relabelled in found.values())


def test_nulls_with_too_few_topics_or_controls_raise():
    runs = planted.coherent_topics(np.random.default_rng(7), 0)
    with pytest.raises(glm.DesignError, match="96 trials of 24 topics"):
        glm.pseudo_tasks(runs, n_on=96, n_off=12, n=1, verbose=0)
    table = planted.trials(n_blocks=1, n_on=4, n_off=3)
    with pytest.raises(glm.DesignError, match="3 control trials"):
        glm.relabelled([planted.run(table, noise(table))], verbose=0)
    table = planted.trials(n_on=6, n_off=8, levels=tuple("abcdefgh"))
    with pytest.raises(glm.DesignError, match="too few for 7"):
        glm.relabelled([planted.run(table, noise(table))], verbose=0)


def test_token_level_rate_exceeds_the_prompt_level_rate_where_prompts_differ():
    rng = np.random.default_rng(8)
    table = planted.trials(n_on=8, n_off=24)
    tokens = rng.normal(size=(32, 8, 400))
    prompts = rng.normal(size=(32, 1, 400))
    mixed = planted.run(table, tokens + prompts)
    X = np.column_stack([np.repeat(rng.permutation(24) < 10, 8), np.ones(192)]).astype(float)
    controls = np.repeat((table["trial_type"] == "control").to_numpy(), 8)
    effect, variance, df = lstsq_contrast(X, np.array([1, 0]), mixed.frame_values()[controls])
    ols = (2 * stats.t.sf(np.abs(effect) / np.sqrt(variance), df) < 0.05).mean()
    assert 0.15 < glm.token_level(mixed).below_05.mean() < ols - 0.05
    assert 0.03 < glm.relabelled([mixed], n=40, verbose=0).below_05.mean() < 0.07
    assert 0.03 < glm.token_level(planted.run(table, tokens)).below_05.mean() < 0.07


def test_units_that_never_change_have_no_t_in_any_resampling():
    events = pd.DataFrame({"trial_type": ["control", "pathology"] * 12})
    values = np.random.default_rng(3).normal(size=(24, 400)).astype(np.float32)
    values[:, 200:] = np.linspace(0.1, 9, 200)
    is_on = (events["trial_type"] != "control").to_numpy()
    t = glm.t_map([glm.run_contrast(values, events, "pathology - control")])
    assert (t[200:] == 0).all()
    labels = glm.Labels(is_on[None], np.empty((24, 0)))
    assert (glm.t_of_labels(values, [labels])[0, 200:] == 0).all()
    values[:12, 200:] += 1  # constant in the trials that are labelled, not in all of them
    labels = glm.Labels(is_on[None, :12], np.empty((12, 0)), np.arange(12))
    assert (glm.t_of_labels(values, [labels])[0, 200:] == 0).all()
    assert (t[:200] != 0).all()
