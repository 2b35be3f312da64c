"""Are tests of localizers, pairs, factors and frames those of statsmodels, scipy and nilearn?"""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import planted
import pytest
import statsmodels.formula.api as smf
from nilearn.glm.first_level import FirstLevelModel
from planted import noise
from scipy import stats

from llm2nifti import experiments, geometry, glm
from llm2nifti.glm.conditions import named_contrasts, pairs_of
from llm2nifti.glm.frames import values_by_frame


def conditions(*names: str, n: int = 9, first: int = 1, seed: int = 0) -> pd.DataFrame:
    """Trials of some conditions in random order; the first ones are the task."""
    table = pd.DataFrame({"trial_type": np.repeat(names, n)})
    table["role"] = np.where(table["trial_type"].isin(names[:first]), "task", "control")
    table["pair"] = np.tile(np.arange(n, dtype=float), len(names))
    order = np.random.default_rng(seed).permutation(len(table))
    table = table.iloc[order].reset_index(drop=True)
    return table.assign(block=1, question_frame="", prompt=[f"p {i}" for i in range(len(table))])


def ols(table: pd.DataFrame, values: np.ndarray, formula: str) -> list:
    return [smf.ols(formula, table.assign(y=y)).fit() for y in np.asarray(values, float).T]


def test_localizer_is_nilearns_difference_of_conditions():
    table = conditions("sentences", "nonwords").drop(columns="pair")
    run = planted.run(table, noise(table), "language")
    maps = glm.fit(run).contrast("language")
    # The other condition is the baseline: with its column, the design would have a constant twice.
    events = run.events.loc[table["role"] == "task", ["trial_type"]]
    events = events.assign(onset=events.index * 1.0, duration=1.0)
    model = FirstLevelModel(
        t_r=1.0,
        hrf_model=None,
        drift_model=None,
        signal_scaling=False,
        smoothing_fwhm=None,
        noise_model="ols",
        mask_img=run.mask_img,
        minimize_memory=False,
    )
    model.fit(run.img, events=events)
    theirs = model.compute_contrast("sentences", stat_type="t", output_type="stat")
    np.testing.assert_allclose(maps.t(), geometry.from_img(run.brain, theirs), rtol=1e-5, atol=1e-6)
    assert glm.task_contrast(table) == "sentences - nonwords"


def test_pairs_are_tested_by_their_differences():
    table = conditions("hard", "easy")
    pair_effect = np.random.default_rng(1).normal(0, 5, 9)[table["pair"].astype(int)]
    run = planted.run(table, noise(table) + pair_effect[:, None, None], "arithmetic")
    maps = glm.fit(run).contrast("arithmetic")
    ordered = table.sort_values(["trial_type", "pair"]).index
    easy, hard = np.split(run.values()[ordered], 2)
    expected = stats.ttest_rel(hard, easy)
    np.testing.assert_allclose(maps.t(), expected.statistic, atol=1e-8)
    assert maps.df == 8
    unpaired = planted.run(table.drop(columns="pair"), run.array, "arithmetic")
    without = glm.fit(unpaired).contrast("arithmetic").t()
    np.testing.assert_allclose(without, stats.ttest_ind(hard, easy).statistic, atol=1e-8)


def test_pairs_that_conditions_do_not_share_are_no_pairs():
    table = conditions("hard", "easy")
    assert (pairs_of(table.assign(pair=np.nan)) == "").all()
    assert (pairs_of(table.assign(pair=np.arange(len(table)))) == "").all()
    assert (pairs_of(table[table["role"] == "control"]) == "").all()
    incomplete = table.drop(index=table.index[table["pair"] == 0][0]).reset_index(drop=True)
    run = planted.run(incomplete, noise(incomplete), "arithmetic")
    rows = incomplete[incomplete["pair"] > 0].sort_values(["trial_type", "pair"]).index
    easy, hard = np.split(run.values()[rows], 2)
    expected = stats.ttest_rel(hard, easy).statistic
    np.testing.assert_allclose(glm.fit(run).contrast("arithmetic").t(), expected, atol=1e-8)


def test_shuffled_labels_of_pairs_have_one_of_each():
    table = conditions("hard", "easy", n=12)
    run = planted.run(table, noise(table), "arithmetic")
    labels = glm.shuffled(run, n=30)
    for row in labels.is_on:
        assert table["pair"][row].is_unique
        assert row.sum() == 12
    assert len({tuple(row) for row in labels.is_on}) == 30


def factors(n: int = 7) -> pd.DataFrame:
    """Trials of two crossed factors in random order."""
    names = ["_".join(pair) for pair in product(("animate", "object"), ("past", "present"))]
    table = conditions(*names, n=n, first=2).drop(columns="pair")
    both = table["trial_type"].str.split("_", expand=True)
    return table.assign(kind=both[0], tense=both[1])


def test_factors_are_contrasts_by_their_names_as_in_statsmodels():
    table = factors()
    run = planted.run(table, noise(table), "verbs")
    fitted = glm.fit(run)
    signs = {"kind": table["kind"] == "animate", "tense": table["tense"] == "past"}
    coded = table.assign(**{f"is_{k}": np.where(v, 0.5, -0.5) for k, v in signs.items()})
    expected = ols(coded, run.values(), "y ~ is_kind * is_tense")
    names = {"kind": "is_kind", "tense": "is_tense", "kind:tense": "is_kind:is_tense"}
    for asked, term in names.items():
        theirs = [f.tvalues[term] for f in expected]
        np.testing.assert_allclose(fitted.contrast(asked).t(), theirs, atol=1e-8)
    np.testing.assert_allclose(fitted.contrast("verbs").t(), fitted.contrast("kind").t())
    assert fitted.contrast("kind:tense").name == "kind:tense"


def test_names_of_contrasts_are_spelled_out():
    assert named_contrasts("verbs", factors()) == {
        "kind": "(animate_past + animate_present) / 2 - (object_past + object_present) / 2",
        "tense": "(animate_past + object_past) / 2 - (animate_present + object_present) / 2",
        "kind:tense": "(animate_past + object_present) / 2 - (animate_present + object_past) / 2",
        "verbs": "(animate_past + animate_present) / 2 - (object_past + object_present) / 2",
    }
    assert named_contrasts("pain", planted.trials()) == {}


def test_tasks_with_their_own_control_are_compared_with_those_of_the_common_one():
    own = conditions("sentences", "nonwords").drop(columns="pair")
    common = planted.trials(n_on=8, n_off=10)
    runs = [planted.run(own, noise(own), "language"), planted.run(common, noise(common, seed=2))]
    maps = glm.fit(runs).contrast("language - pain")
    each = [glm.fit(run).contrast(run.task) for run in runs]
    effect = [geometry.from_img(one.brain, one.effect_img) for one in each]
    t = (effect[0] - effect[1]) / np.sqrt(
        sum((e / one.t()) ** 2 for e, one in zip(effect, each, strict=True))
    )
    np.testing.assert_allclose(maps.t(), t, rtol=1e-6)


def test_names_that_mean_different_things_in_two_tasks_are_no_names():
    tables = {
        task: conditions(*names).drop(columns="pair")
        for task, names in {"speech": ("words", "noise"), "sums": ("hard", "easy")}.items()
    }
    runs = [
        planted.run(table.assign(condition=table["trial_type"]), noise(table), task)
        for task, table in tables.items()
    ]
    assert glm.fit(runs[0]).contrast("condition").t() == pytest.approx(
        -glm.fit(runs[0]).contrast("noise - words").t()
    )
    both = glm.fit(runs)
    with pytest.raises(glm.DesignError, match="'condition' cannot be read"):
        both.contrast("condition")
    np.testing.assert_allclose(both.contrast("sums").t(), glm.fit(runs[1]).contrast("sums").t())


def test_what_is_sustained_is_a_covariate_as_in_statsmodels():
    table = planted.trials(levels=())
    rng = np.random.default_rng(0)
    table["sustained"] = rng.integers(0, 2, len(table))
    run = planted.run(table, noise(table) + table["sustained"].to_numpy()[:, None, None])
    maps = glm.fit(run, covariates=["sustained"]).contrast("sustained")
    expected = ols(table, run.values(), "y ~ trial_type + sustained")
    np.testing.assert_allclose(maps.t(), [f.tvalues["sustained"] for f in expected], atol=1e-8)


def test_rectified_activations_are_absolute_values():
    table = planted.trials()
    run = planted.run(table, noise(table))
    rectified = planted.run(table, np.abs(run.values()))
    maps = glm.fit(run, rectify=True).contrast("pain")
    np.testing.assert_allclose(maps.t(), glm.fit(rectified).contrast("pain").t(), atol=1e-8)
    assert np.abs(maps.t() - glm.fit(run).contrast("pain").t()).max() > 0.5


def test_permutation_refuses_what_it_does_not_test():
    for more in ({"rectify": True}, {"covariate": "length"}, {"contrast": "a - b"}):
        with pytest.raises(ValueError, match="exchanges task and control trials as they are"):
            experiments.GlmPlan(height_control="permutation", **more)


def responding(n_frames: int = 3):
    """A run whose first unit responds at the second frame alone."""
    table = planted.trials(levels=())
    values = np.random.default_rng(3).normal(size=(len(table), n_frames, 24))
    values[(table["trial_type"] == "pain").to_numpy(), 1, 0] += 4
    return planted.run(table, values)


def test_frames_have_the_effects_of_nilearns_fir_and_the_t_of_prompts():
    run = responding()
    n = run.n_frames
    ours = [glm.run_contrast(v, run.events, "pain - control") for v in values_by_frame(run)]
    events = run.events[["onset", "trial_type"]].assign(duration=1.0)
    model = FirstLevelModel(
        t_r=1.0,
        hrf_model="fir",
        fir_delays=list(range(n)),
        drift_model=None,
        signal_scaling=False,
        smoothing_fwhm=None,
        noise_model="ols",
        mask_img=run.mask_img,
        slice_time_ref=0,
        minimize_memory=False,
    )
    model.fit(run.frames_img, events=events)
    table = run.events
    for frame, contrast in enumerate(ours):
        asked = f"pain_delay_{frame} - control_delay_{frame}"
        theirs = model.compute_contrast(asked, stat_type="t", output_type="effect_size")
        values = geometry.from_img(run.brain, theirs)
        np.testing.assert_allclose(np.ravel(contrast.effect), values, rtol=1e-5, atol=1e-6)
        expected = ols(table, run.array[:, frame], "y ~ C(trial_type, Treatment('control'))")
        t = [f.tvalues.iloc[1] for f in expected]
        np.testing.assert_allclose(np.ravel(contrast.stat()), t, atol=1e-6)


def test_fir_says_when_units_respond_and_what_shuffles_give(tmp_path):
    from llm2nifti import bids

    for number in (1, 2):
        run = responding(4)
        rng = np.random.default_rng(number)
        values = run.array + rng.normal(0, 0.5, run.array.shape)
        planted.dataset_run(tmp_path, run.table, values, number=number)
    session = bids.session(tmp_path)
    result = experiments.measure(session, experiments.FirPlan(n_null=20), verbose=0)
    frames = result.tables()["frames"]
    assert frames["n_active"].tolist() == [0, 1, 0, 0]
    assert 0.02 < frames["null_below_05"].mean() < 0.08
    image = bids.reading.read_img(session.first.paths.stat_map("t", contrast="painOverFrames"))
    assert image.shape[3] == 4
    peak = geometry.from_img(session.brain, image).argmax()
    assert np.unravel_index(peak, (4, 24)) == (1, 0)
    assert type(result).read(session).content() == result.content()
    text = " ".join(repr(result).split())
    assert "Every one of the 4 generated tokens" in text


def test_fir_needs_frames(tmp_path):
    from llm2nifti import bids

    table = planted.trials(levels=())
    planted.dataset_run(tmp_path, table, noise(table)[:, :1])
    with pytest.raises(glm.DesignError, match="needs equally many, at least 2"):
        experiments.measure(bids.session(tmp_path), experiments.FirPlan(), verbose=0)
