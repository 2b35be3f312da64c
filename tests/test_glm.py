from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import planted
import pytest
import statsmodels.api as sm
from nilearn.glm.contrasts import compute_contrast
from nilearn.glm.first_level import FirstLevelModel, run_glm
from planted import dummy_design, lstsq_contrast, lstsq_t, noise
from scipy import stats

from llm2nifti import geometry, glm
from llm2nifti.glm.maps import described
from llm2nifti.paradigm import Paradigm

CONTRAST = "pain - control"


SIZES = [
    {"n_blocks": 2, "n_on": 6, "n_off": 8, "levels": ("a", "b"), "n_frames": 2},
    {"n_blocks": 4, "n_on": 24, "n_off": 32, "levels": tuple("abcdefgh"), "n_frames": 1},
    {"n_blocks": 3, "n_on": 10, "n_off": 15, "levels": ("a", "b", "c"), "n_frames": 3},
    {"n_blocks": 1, "n_on": 5, "n_off": 7, "levels": ("only",), "n_frames": 1},
    {"n_blocks": 2, "n_on": 4, "n_off": 6, "levels": (), "n_frames": 4},
]


@pytest.mark.parametrize("size", SIZES)
def test_fit_equals_lstsq_and_statsmodels(tmp_path: Path, size):
    table = planted.trials(**{k: v for k, v in size.items() if k != "n_frames"})
    run = planted.dataset_run(tmp_path, table, noise(table, n_frames=size["n_frames"]))
    maps = glm.fit(run).contrast(CONTRAST)
    X, Y = dummy_design(table), run.values().astype(float)
    np.testing.assert_allclose(maps.t(), lstsq_t(table, Y), atol=1e-8)
    fits = [sm.OLS(y, X).fit() for y in Y.T]
    np.testing.assert_allclose(maps.t(), [f.tvalues[1] for f in fits], atol=1e-8)
    np.testing.assert_allclose(maps.p(), [f.pvalues[1] for f in fits], atol=1e-8)
    effect = geometry.from_img(run.brain, maps.effect_img)
    np.testing.assert_allclose(effect, [f.params[1] for f in fits], atol=1e-8)
    assert maps.df == fits[0].df_resid == len(table) - X.shape[1]


def test_z_is_the_normal_quantile_of_p():
    table = planted.trials()
    maps = glm.fit(planted.run(table, noise(table))).contrast(CONTRAST)
    z = geometry.from_img(maps.brain, maps.z_img)
    np.testing.assert_allclose(2 * stats.norm.sf(np.abs(z)), maps.p(), atol=1e-10)
    assert (np.sign(z) == np.sign(maps.t())).all()


def test_headers_say_what_the_maps_are():
    table = planted.trials()
    maps = glm.fit(planted.run(table, noise(table))).contrast(CONTRAST)
    assert maps.t_img.header.get_intent()[:2] == ("t test", (maps.df,))
    assert maps.z_img.header.get_intent()[:2] == ("z score", ())
    assert maps.effect_img.header.get_intent()[0] == "estimate"
    end = f", {maps.df:.0f} degrees of freedom"
    texts = [bytes(img.header["descrip"]).rstrip(b"\0") for img in (maps.t_img, maps.z_img)]
    assert texts == [f"t of {CONTRAST}{end}".encode(), f"z of {CONTRAST}".encode()]
    assert b"effect of pain - control" in bytes(maps.effect_img.header["descrip"])


@pytest.mark.parametrize(
    ("name", "shown"),
    [("x" * 200, "x" * 50), ("caf\N{LATIN SMALL LETTER E WITH ACUTE}", "caf?")],
)
def test_a_description_fits_the_header_whatever_the_contrast_is_called(name, shown):
    img = described(nib.Nifti1Image(np.zeros((2, 2, 2)), np.eye(4)), "t", name, df=152.0)
    text = img.header["descrip"].item().decode("ascii")
    assert text == f"t of {shown}, 152 degrees of freedom"
    assert len(text) <= 79
    assert nib.Nifti1Image.from_bytes(img.to_bytes()).header["descrip"].item() == text.encode()


def test_two_runs_combine_by_fixed_effects():
    tables = [planted.trials(), planted.trials(n_on=9, n_off=12, levels=("a", "b", "c"))]
    runs = [planted.run(t, noise(t, seed=i)) for i, t in enumerate(tables)]
    maps = glm.fit(runs).contrast(CONTRAST)
    parts = []
    for run, table in zip(runs, tables, strict=True):
        X = dummy_design(table)
        parts.append(lstsq_contrast(X, np.eye(X.shape[1])[1], run.values()))
    effect, variance, df = (sum(column) for column in zip(*parts, strict=True))
    np.testing.assert_allclose(maps.t(), effect / np.sqrt(variance), atol=1e-8)
    assert maps.df == df
    contrasts = [glm.run_contrast(run.values(), run.events, CONTRAST) for run in runs]
    np.testing.assert_allclose(glm.t_map(contrasts), maps.t(), atol=1e-8)
    np.testing.assert_allclose(glm.t_map(contrasts[:1]), lstsq_t(tables[0], runs[0].values()))


@pytest.mark.parametrize("n_runs", [1, 2])
def test_fit_equals_plain_nilearn(tmp_path: Path, n_runs):
    table = planted.trials(n_blocks=4, n_on=20, n_off=25, levels=("one",))
    runs = [
        planted.dataset_run(tmp_path, table, noise(table, n_frames=3, seed=i), number=i + 1)
        for i in range(n_runs)
    ]
    assert [r.sidecar["StartTime"] / r.sidecar["RepetitionTime"] for r in runs] == [0.5] * n_runs
    plain = FirstLevelModel(
        t_r=runs[0].t_r,
        slice_time_ref=0.5,
        hrf_model=None,
        drift_model=None,
        signal_scaling=False,
        noise_model="ols",
        mask_img=runs[0].mask_img,
    )
    events = [r.events[r.events["trial_type"] != "control"] for r in runs]
    columns = ["onset", "duration", "trial_type"]
    plain.fit([r.img for r in runs], events=[e[columns] for e in events])
    img = plain.compute_contrast(["pain"] * n_runs, output_type="stat")
    expected = geometry.from_img(runs[0].brain, img)
    np.testing.assert_allclose(glm.fit(runs).contrast(CONTRAST).t(), expected, atol=1e-8)


def test_start_time_of_half_a_frame_makes_nilearns_regressor_the_trial_indicator():
    rng = np.random.default_rng(0)
    wrong = {0.5: 0, 0.0: 0}
    for t_r in (0.5, 0.72, 1.0, 1.3, 2.0):
        for n_frames in (1, 4, 7):
            for n_trials in (11, 56, 200):
                is_task = rng.permutation(np.arange(n_trials) < 0.4 * n_trials)
                table = pd.DataFrame({"trial_type": np.where(is_task, "pain", "control")})
                paradigm = Paradigm("pain", 1, n_frames, table, t_r)
                for ref in wrong:
                    wrong[ref] += not np.allclose(planted.nilearn_regressor(paradigm, ref), is_task)
    assert wrong[0.5] == 0
    assert wrong[0.0] > 0


def test_planted_units_are_found_with_their_sign(tmp_path: Path):
    table = planted.trials(n_on=20, n_off=28)
    values = np.random.default_rng(1).normal(size=(len(table), 2, 60))
    is_on = (table["trial_type"] == "pain").to_numpy()
    values[is_on, :, 7] += 4
    values[is_on, :, 50] -= 4
    run = planted.dataset_run(tmp_path, table, values)
    maps = glm.fit(run).contrast(CONTRAST)
    assert maps.t().argmax() == 7
    assert maps.t().argmin() == 50
    assert maps.t_img.get_fdata()[tuple(run.brain.voxels[7])] == maps.t()[7] > 10
    np.testing.assert_allclose(glm.fit(run).contrast("control - pain").t(), -maps.t(), atol=1e-10)


def test_share_below_counts_analysed_units():
    table = planted.trials()
    values = noise(table, n_units=40)[:, 0]
    values[:, :20] = 1.5
    run = planted.run(table, values)
    maps = glm.fit(run).contrast(CONTRAST)
    p = 2 * stats.t.sf(np.abs(lstsq_t(table, values[:, 20:])), maps.df)
    assert maps.share_below(0.5) == (p < 0.5).mean()


def test_constant_units_are_masked_and_reported():
    table = planted.trials()
    first, second = (noise(table, seed=i)[:, 0] for i in (0, 1))
    first[:, [2, 9]] = 3.7, 0.0
    second[:, 11] = -1234.567
    runs = [planted.run(table, first), planted.run(table, second)]
    maps = glm.fit(runs).contrast(CONTRAST)
    constant = [2, 9, 11]
    assert maps.n_constant == 3
    assert not maps.t()[constant].any()
    assert (maps.p()[constant] == 1).all()
    assert np.flatnonzero(geometry.from_img(maps.brain, maps.mask_img) == 0).tolist() == constant
    assert np.delete(maps.t(), constant).all()
    assert "21 units" in repr(maps)
    assert glm.fit(runs).of_run(0).n_constant == 2


@pytest.mark.parametrize("definition", ["pathology - control", "pain -", "pain - pain"])
def test_unreadable_contrasts_raise(definition):
    table = planted.trials()
    with pytest.raises(glm.DesignError, match="contrast"):
        glm.fit(planted.run(table, noise(table))).contrast(definition)


def test_frame_confounded_with_condition_raises():
    table = planted.trials()
    table["question_frame"] = np.where(table["trial_type"] == "pain", "a", "b")
    with pytest.raises(glm.DesignError, match="cannot be estimated"):
        glm.fit(planted.run(table, noise(table))).contrast(CONTRAST)


def test_too_few_volumes_raise():
    table = planted.trials(n_blocks=1, n_on=1, n_off=1)
    with pytest.raises(glm.DesignError, match="too few"):
        glm.run_contrast(noise(table)[:, 0], table, CONTRAST)


def test_unfit_input_raises():
    table = planted.trials()
    run, other = (planted.run(table, noise(table, n_units=n)) for n in (24, 30))
    with pytest.raises(glm.DesignError, match=f"{run.brain.space}.*{other.brain.space}"):
        glm.fit([run, other])
    with pytest.raises(glm.DesignError, match="trial or token"):
        glm.fit(run, frames="tokens")
    with pytest.raises(glm.DesignError, match="no run"):
        glm.fit([])
    with pytest.raises(glm.DesignError, match="trial_type"):
        glm.design_matrix(table.drop(columns="trial_type"))


def test_frame_columns_are_centred_and_one_fewer_than_frames():
    table = planted.trials(n_on=10, n_off=15, levels=("a", "b", "c"))
    columns = glm.nuisance(table)
    assert columns.shape == (25, 2)
    np.testing.assert_allclose(columns.mean(), 0, atol=1e-12)
    for name in ("a", "b"):
        indicator = table["question_frame"] == name
        np.testing.assert_allclose(
            np.corrcoef(columns[glm.designs.NUISANCE[0] + name], indicator), 1
        )
    assert glm.nuisance(planted.trials(levels=("one",))).shape[1] == 0
    assert glm.nuisance(planted.trials(levels=())).shape[1] == 0
    assert glm.nuisance(table.drop(columns="question_frame")).shape == (25, 0)


def test_unframed_task_trials_are_compared_with_the_mean_over_control_frames():
    table = planted.trials("randomstrings", n_on=9, n_off=14, levels=("a", "b", "c"))
    is_on = (table["trial_type"] == "randomstrings").to_numpy()
    table.loc[is_on, "question_frame"] = ""
    columns = glm.nuisance(table)
    assert (columns[is_on] == 0).all(axis=None)
    np.testing.assert_allclose(columns[~is_on].mean(), 0, atol=1e-12)
    run = planted.run(table, noise(table), "randomstrings")
    frames = np.column_stack([table["question_frame"] == f for f in "abc"]).astype(float)
    X = np.column_stack([is_on, frames])
    weights = np.r_[1, -frames[~is_on].mean(axis=0)]
    effect, variance, df = lstsq_contrast(X, weights, run.values())
    maps = glm.fit(run).contrast("randomstrings - control")
    np.testing.assert_allclose(maps.t(), effect / np.sqrt(variance), atol=1e-8)
    assert maps.df == df


def test_token_level_fit_has_a_row_a_frame_and_a_note():
    table = planted.trials()
    run = planted.run(table, noise(table, n_frames=3))
    fitted = glm.fit(run, frames="token")
    for frame in range(3):
        np.testing.assert_array_equal(fitted.designs[0][frame::3], glm.design_matrix(table))
    maps = fitted.contrast(CONTRAST)
    assert "not independent" in maps.note
    assert maps.note in repr(maps)
    assert maps.df == 3 * len(table) - 3
    fit = run_glm(run.frame_values(), fitted.designs[0].to_numpy(), noise_model="ar1")
    np.testing.assert_allclose(maps.t(), compute_contrast(*fit, np.array([-1, 1, 0])).stat())
    assert glm.fit(run).contrast(CONTRAST).note == ""


def test_welch_disagrees_where_variances_and_sizes_differ():
    rng = np.random.default_rng(4)
    table = planted.trials(n_on=12, n_off=48, levels=())
    is_on = (table["trial_type"] == "pain").to_numpy()
    values = rng.normal(size=(60, 1500))
    even = planted.run(table, values)
    uneven = planted.run(table, np.where(is_on[:, None], 3 * values, values))
    shares = []
    for run in (even, uneven):
        maps = glm.fit(run).contrast(CONTRAST)
        shares.append(glm.welch_disagreement([run], maps))
        on, off = run.values()[is_on], run.values()[~is_on]
        welch = stats.ttest_ind(on, off, equal_var=False).pvalue < 0.05
        student = stats.ttest_ind(on, off).pvalue < 0.05
        assert shares[-1] == (welch != student).mean()
    balanced = planted.trials(n_on=60, n_off=60)
    runs = [planted.run(balanced, rng.normal(size=(120, 1500)) + 50 * i) for i in range(2)]
    assert glm.welch_disagreement(runs, glm.fit(runs).contrast(CONTRAST)) < 0.01
    assert shares[1] > 0.1 > 2 * shares[0]


@pytest.mark.parametrize("name", ["20questions", "class", "x"])
def test_any_label_can_be_contrasted(name):
    design = glm.design_matrix(pd.DataFrame({"trial_type": ["control", name] * 3}))
    vector = glm.contrast_vector(design, f"{name} - control")
    assert dict(zip(design, vector, strict=True)) == {name: 1, "control": -1}
