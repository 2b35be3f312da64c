"""Do further columns and contrasts between tasks give what statsmodels and nilearn give?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import planted
import pytest
import statsmodels.formula.api as smf
from nilearn.glm.first_level import make_first_level_design_matrix
from planted import lstsq_contrast, noise

from llm2nifti import bids, experiments, glm
from llm2nifti.glm.designs import contrast_vectors

CONTRAST = "pain - control"


def measured(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Trials with a length that differs between conditions, and with a prompt."""
    rng = np.random.default_rng(seed)
    is_on = (table["trial_type"] == "pain").to_numpy()
    return table.assign(
        length=rng.normal(5 + is_on, 1), heat=rng.normal(0, 2, len(table)), prompt="one two"
    )


def fits(table: pd.DataFrame, values: np.ndarray, formula: str) -> list:
    return [smf.ols(formula, table.assign(y=y)).fit() for y in np.asarray(values, float).T]


def test_covariates_are_what_statsmodels_takes_out():
    table = measured(planted.trials(levels=()))
    run = planted.run(table, noise(table) + 2 * table["length"].to_numpy()[:, None, None])
    maps = glm.fit(run, covariates=["length", "heat"]).contrast(CONTRAST)
    formula = "y ~ C(trial_type, Treatment('control')) + length + heat"
    expected = [f.tvalues.iloc[1] for f in fits(table, run.values(), formula)]
    np.testing.assert_allclose(maps.t(), expected, atol=1e-8)
    assert np.abs(glm.fit(run).contrast(CONTRAST).t()).mean() > np.abs(maps.t()).mean() + 1
    slope = glm.fit(run, covariates=["length"]).contrast("length")
    expected = [f.tvalues["length"] for f in fits(table, run.values(), "y ~ trial_type + length")]
    np.testing.assert_allclose(slope.t(), expected, atol=1e-8)


def test_modulators_are_slopes_within_a_condition_as_in_statsmodels():
    table = measured(planted.trials(levels=()))
    run = planted.run(table, noise(table))
    maps = glm.fit(run, modulators=["heat"]).contrast("pain_by_heat")
    is_on = table["trial_type"] == "pain"
    table = table.assign(
        is_on=is_on * 1.0, slope=is_on * (table["heat"] - table["heat"][is_on].mean())
    )
    expected = fits(table, run.values(), "y ~ is_on + slope")
    np.testing.assert_allclose(maps.t(), [f.tvalues["slope"] for f in expected], atol=1e-8)


def test_modulated_columns_are_nilearns_with_its_column_modulation():
    table = measured(planted.trials(levels=()))
    design = glm.design_matrix(table, modulators=["heat"])
    is_on = (table["trial_type"] == "pain").to_numpy()
    heat = table["heat"].to_numpy()
    events = pd.DataFrame(
        {
            "onset": np.flatnonzero(is_on) * 1.0,
            "duration": 1.0,
            "trial_type": "slope",
            "modulation": heat[is_on] - heat[is_on].mean(),
        }
    )
    times = np.arange(len(table)) + 0.5
    theirs = make_first_level_design_matrix(times, events, hrf_model=None, drift_model=None)
    np.testing.assert_allclose(design["pain_by_heat"], theirs["slope"], atol=1e-10)


def test_lengths_are_counted_where_the_events_have_none():
    table = measured(planted.trials())
    table["prompt"] = ["word " * (1 + i % 5) for i in range(len(table))]
    design = glm.design_matrix(table, covariates=["words", "characters"])
    words = np.array([1 + i % 5 for i in range(len(table))], float)
    np.testing.assert_allclose(design["words"], words - words.mean())
    np.testing.assert_allclose(design["characters"], 5 * (words - words.mean()))


@pytest.mark.parametrize(
    ("covariate", "said"),
    [
        ("weight", "no numbers called 'weight'; there are length, heat"),
        ("topic", "no numbers called 'topic'"),
        ("gap", "3 of 28 trials have no 'gap'"),
        ("pain", "covariate 'pain' is called as a condition"),
    ],
)
def test_covariates_that_cannot_be_used_are_named(covariate, said):
    table = measured(planted.trials()).assign(topic="a", gap=1.5)
    table.loc[:2, "gap"] = np.nan
    with pytest.raises(glm.DesignError, match=said):
        glm.design_matrix(table, covariates=[covariate])


def two_tasks(n_runs=(2, 3)):
    """Runs of two tasks with their own controls, and their values."""
    runs = []
    for task, n in zip(("pain", "tone"), n_runs, strict=True):
        for _ in range(n):
            table = planted.trials(levels=("a", "b"), n_on=8, n_off=10)
            table["trial_type"] = table["trial_type"].replace("pain", task)
            runs.append(planted.run(table, noise(table, seed=len(runs)), task))
    return runs


def test_contrast_between_tasks_is_the_difference_of_their_contrasts_with_controls():
    runs = two_tasks()
    maps = glm.fit(runs).contrast("pain - 2 * tone")
    total, variance, df = 0.0, 0.0, 0.0
    for task, weight, n in (("pain", 1, 2), ("tone", -2, 3)):
        for run in (run for run in runs if run.task == task):
            X = glm.design_matrix(run.events)
            vector = (X.columns == task) * 1.0 - (X.columns == "control")
            effect, var, dof = lstsq_contrast(X.to_numpy(), vector, run.values())
            total, variance = total + weight * effect / n, variance + weight**2 * var / n**2
            df += dof
    np.testing.assert_allclose(maps.t(), total / np.sqrt(variance), atol=1e-8)
    assert maps.df == df


def test_condition_alone_is_taken_minus_the_control():
    runs = two_tasks()
    for task in ("pain", "tone"):
        alone = glm.fit(runs).contrast(task)
        own = glm.fit([run for run in runs if run.task == task]).contrast(f"{task} - control")
        np.testing.assert_allclose(alone.t(), own.t(), atol=1e-12)
        assert alone.df == own.df


@pytest.mark.parametrize("definition", ["control", "pain + control", "0.5 * control"])
def test_means_against_zero_are_refused(definition):
    table = planted.trials()
    with pytest.raises(glm.DesignError, match="would test a mean against 0"):
        glm.fit(planted.run(table, noise(table))).contrast(definition)


def test_conditions_without_a_control_need_a_difference():
    table = planted.trials()
    table["trial_type"] = table["trial_type"].replace("control", "cold")
    fitted = glm.fit(planted.run(table, noise(table)))
    with pytest.raises(glm.DesignError, match="write a difference, such as 'pain - cold'"):
        fitted.contrast("pain")
    assert np.abs(fitted.contrast("pain - cold").t()).max() > 0


def test_contrast_of_the_control_alone_has_no_run():
    designs = [glm.design_matrix(run.events) for run in two_tasks()]
    with pytest.raises(glm.DesignError, match="no weight on any condition but the control"):
        contrast_vectors(designs, "control")


def test_maps_of_a_contrast_lie_beside_the_tasks_own(tmp_path):
    for number, task in enumerate(("pain", "tone")):
        table = measured(planted.trials(levels=(), n_on=8, n_off=10))
        table["trial_type"] = table["trial_type"].replace("pain", task)
        planted.dataset_run(tmp_path, table, noise(table, seed=number), task=task)
    session = bids.session(tmp_path)
    plan = experiments.GlmPlan(contrast="pain - tone")
    before = set(tmp_path.rglob("*statmap.nii.gz"))
    result = experiments.measure(session, plan, verbose=0)
    new = sorted(p.name for p in set(tmp_path.rglob("*statmap.nii.gz")) - before)
    assert len(new) == 3
    assert all("contrast-PainVsTone_stat-" in name and "_task-" not in name for name in new)
    assert list(result.tasks) == ["pain - tone"]
    assert "Asked: pain - tone" in repr(result)
    plan = experiments.GlmPlan(task=("pain",), covariate=("length",))
    experiments.measure(session, plan, verbose=0)
    assert list(tmp_path.rglob("*contrast-PainVsControlGivenLength_stat-t_statmap.nii.gz"))
    assert not list(tmp_path.rglob("*contrast-painVsControl*"))
    table = measured(planted.trials(levels=(), n_on=8, n_off=10), seed=5)
    planted.dataset_run(tmp_path, table, noise(table, seed=9), task="pain", number=2)
    assert not list(tmp_path.rglob("*_contrast-*"))  # a run more: they are of other runs
    assert not list(tmp_path.rglob("*_label-*"))
