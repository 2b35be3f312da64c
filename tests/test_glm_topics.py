"""Are topics the unit of inference, and are rates nominal where nothing is there?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import planted
import pytest
from nilearn.glm.second_level import SecondLevelModel
from scipy import stats

from llm2nifti import bids, experiments, geometry, glm
from llm2nifti.glm import topics


def trials(rng, n_topics=8, per_topic=3, n_control=24, *, copies=1, task="pain"):
    """Trials of a run in random order: topics of a task, and controls, each copied."""
    rows = [(task, f"{task} {i}") for i in range(n_topics) for _ in range(per_topic)]
    rows += [("control", f"other {i}") for i in range(n_control) for _ in range(copies)]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    table = pd.DataFrame(rows, columns=["trial_type", "topic"])
    names = [f"{task}{i}" for i in range(len(table))]
    frames = ["ab"[i % 2] for i in range(len(table))]
    return table.assign(block=1, stim_id=names, concept=names, question_frame=frames, prompt=names)


def values(table, rng, n_units=40, *, by_topic=1.0, noise=1.0, shift=0.0):
    """Activations with an effect of every topic, and of the task in the first half of units."""
    effects = {topic: rng.normal(0, by_topic, n_units) for topic in sorted(set(table["topic"]))}
    out = np.stack([effects[topic] for topic in table["topic"]])
    out = out + rng.normal(0, noise, out.shape) if noise else out
    out[(table["trial_type"] != "control").to_numpy(), : n_units // 2] += shift
    return out


def test_topic_maps_are_means_of_topics_minus_controls_that_no_other_has():
    rng = np.random.default_rng(0)
    tables = [trials(rng), trials(rng)]
    tables[1]["topic"] = tables[1]["topic"].str.replace("pain ", "pain1")
    runs = [planted.run(t.assign(question_frame=""), values(t, rng)) for t in tables]
    maps = glm.topics.topic_maps(runs)
    both = pd.concat(tables, ignore_index=True)
    Y = np.concatenate([run.values() for run in runs])
    assert maps.topics == sorted(set(both.loc[both["trial_type"] == "pain", "topic"]))
    assert maps.n_prompts == 48
    controls = [
        Y[(both["topic"] == topic).to_numpy()].mean(axis=0) - row
        for topic, row in zip(maps.topics, maps.values, strict=True)
    ]
    # 24 control topics with a prompt in each run, dealt to 16 topics: 8 have two, 8 have one.
    names = sorted({topic for topic in both["topic"] if topic.startswith("other")})
    means = np.stack([Y[(both["topic"] == name).to_numpy()].mean(axis=0) for name in names])
    used = []
    for control in controls:
        fits = np.linalg.lstsq(means.T, control, rcond=None)[0]
        used.append(tuple(np.flatnonzero(np.abs(fits) > 1e-8)))
        np.testing.assert_allclose(means[list(used[-1])].mean(axis=0), control, atol=1e-8)
    assert sorted(i for dealt in used for i in dealt) == list(range(24))


def test_question_frames_are_taken_out():
    rng = np.random.default_rng(1)
    table = trials(rng)
    Y = values(table, rng, noise=0.0)
    framed = Y + 5.0 * (table["question_frame"] == "a").to_numpy()[:, None]
    plain, shifted = (topics.topic_maps([planted.run(table, y)]).values for y in (Y, framed))
    np.testing.assert_allclose(plain, shifted, atol=1e-8)


def test_t_over_topics_is_that_of_scipy_and_of_nilearns_second_level():
    rng = np.random.default_rng(2)
    table = trials(rng)
    run = planted.run(table, values(table, rng, shift=1.0))
    maps = topics.topic_maps([run])
    expected = stats.ttest_1samp(maps.values, 0).statistic
    np.testing.assert_allclose(maps.t(), expected)
    imgs = [geometry.to_img(run.brain, row) for row in maps.values]
    model = SecondLevelModel(mask_img=run.mask_img, smoothing_fwhm=None)
    model.fit(imgs, design_matrix=pd.DataFrame({"intercept": np.ones(len(imgs))}))
    img = model.compute_contrast("intercept", output_type="stat")
    np.testing.assert_allclose(geometry.from_img(run.brain, img), expected, atol=1e-6)


def rates(seed, **how):
    """Shares of units below .05 over topics, and over prompts, where the task is nothing."""
    rng = np.random.default_rng(seed)
    table = trials(rng, **how)
    run = planted.run(table, values(table, rng, n_units=60))
    over_topics = 2 * stats.t.sf(np.abs(topics.topic_maps([run]).t()), 7)
    return (over_topics < 0.05).mean(), glm.fit(run).contrast("pain").share_below()


@pytest.mark.parametrize("copies", [1, 4])
def test_unrelated_topics_pass_at_five_percent_over_topics_and_more_over_prompts(copies):
    over_topics, over_prompts = np.mean([rates(i, copies=copies) for i in range(120)], axis=0)
    assert 0.04 < over_topics < 0.06
    assert over_prompts > 0.08


def test_pseudo_tasks_of_unrelated_topics_are_nominal():
    rng = np.random.default_rng(5)
    tables = [trials(rng, n_control=60, copies=2) for _ in range(3)]
    brain_values = values(pd.concat(tables), rng, n_units=200)
    parts = np.split(brain_values, np.cumsum([len(t) for t in tables])[:-1])
    runs = [planted.run(t, y) for t, y in zip(tables, parts, strict=True)]
    null = topics.pseudo_topics(runs, n_topics=12, n=150)
    assert 0.04 < null.below_05.mean() < 0.06
    assert null.any_fdr.mean() < 0.12


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"n_topics": 2}, "needs 3 of a task, there are 2"),
        ({"n_topics": 8, "n_control": 7}, "8 topics of the task need .*, there are 7"),
        ({"n_topics": 20, "per_topic": 1}, "each of the 20 prompts is a topic of its own"),
    ],
)
def test_designs_without_enough_topics_are_named(how, said):
    rng = np.random.default_rng(0)
    table = trials(rng, **how)
    with pytest.raises(glm.DesignError, match=said):
        topics.topic_maps([planted.run(table, values(table, rng))])


def test_experiment_finds_what_all_topics_share_and_writes_the_map(tmp_path):
    rng = np.random.default_rng(3)
    for number, (task, shift) in enumerate((("pain", 3.0), ("tone", 0.0)), start=1):
        table = trials(rng, task=task, n_control=40)
        Y = values(table, rng, shift=shift)
        planted.dataset_run(tmp_path, table, Y[:, None], task=task, number=number)
    session = bids.session(tmp_path)
    plan = experiments.TopicsPlan(n_null=20, n_perm=200)
    result = experiments.measure(session, plan, verbose=0)
    pain, tone = result.tasks["pain"], result.tasks["tone"]
    assert (pain.n_topics, pain.n_prompts) == (8, 24)
    assert pain.share_active > 0.4
    assert tone.share_active < 0.1
    assert pain.n_active_max > tone.n_active_max
    assert result.null.n_relabellings == 20
    assert type(result).read(session).content() == result.content()
    (path,) = tmp_path.rglob("*contrast-painOverTopics_stat-t_statmap.nii.gz")
    t = geometry.from_img(session.brain, bids.read_img(path))
    assert (np.abs(t[:20]) > np.abs(t[20:]).max()).mean() > 0.5
    assert "holds for other topics" in " ".join(repr(result).split())
    assert result.tables()["tasks"]["task"].tolist() == ["pain", "tone"]


def test_tasks_whose_prompts_are_topics_of_their_own_are_left_out_with_the_reason(tmp_path):
    rng = np.random.default_rng(3)
    table = trials(rng, n_topics=12, per_topic=1, n_control=40)
    planted.dataset_run(tmp_path, table, values(table, rng)[:, None])
    result = experiments.measure(bids.session(tmp_path), experiments.TopicsPlan(), verbose=0)
    assert result.tasks == {}
    assert "a topic of its own" in result.skipped["pain"]
    assert "pain was not tested" in repr(result)
