"""Models compared: what they share comes out, what they do not share does not, in any basis."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from nibabel import Nifti1Image
from planted_parcels import Latent
from scipy import stats
from sklearn.linear_model import RidgeCV
from tests_support import make_dataset

from llm2nifti import bids, cli, experiments, networks, study
from llm2nifti.bids.dataset import GROUP
from llm2nifti.bids.sessions import sessions
from llm2nifti.experiments.group.levels import bins_of
from llm2nifti.experiments.group.measure import measure
from llm2nifti.experiments.group.result import GroupResult
from llm2nifti.glm.second_level import LEAST, second_level
from llm2nifti.networks.alignment import PENALTIES, align
from llm2nifti.networks.representation import effect_energy
from llm2nifti.plans import PlanError
from llm2nifti.study.studyfile import read_study

PLAN = experiments.GroupPlan(n_null=19, n_perm=99, n_bins=4)
RANDOM = {"WeightsHash": "random weights, seed 0"}


def write_two(root, *, turn=False, **more):
    """Models of unequal width, every parcel a linear image of the same responses; one's copy."""
    latent = Latent()
    latent.write(root, "one", seed=1, part=16, turn=turn)
    latent.write(root, "two", seed=2, part=20, turn=turn, **more)
    return latent.write(root, "oneuntrained", seed=3, part=16, shared=(), turn=turn, **RANDOM)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return write_two(tmp_path_factory.mktemp("group") / "ds")


@pytest.fixture(scope="module")
def result(planted):
    return measure(sessions(planted), PLAN, verbose=0)


def test_alignment_carries_maps_of_tasks_that_it_has_not_seen(result):
    assert len(result.carried) == 4  # two tasks, both ways
    for one in result.carried:
        assert one.cosine.value > 0.9
        assert one.cosine.value > one.repeat - 0.05
        assert one.p == 1 / 20
        assert abs(one.null.value) < 0.3
        assert one.null.high < 0.7
        assert one.cross < 0.6
    by_source = {one.source: one.untrained for one in result.carried}
    assert by_source["sub-two"] is None  # it has no copy
    assert abs(by_source["sub-one"]) < 0.5


def test_shuffled_prompts_are_no_better_than_a_model_that_shares_nothing(tmp_path):
    latent = Latent()
    for name, seed, shared in (("one", 1, range(6)), ("other", 2, ())):
        latent.write(tmp_path / "ds", name, seed=seed, shared=tuple(shared))
    outcome = measure(sessions(tmp_path / "ds"), PLAN, verbose=0)
    assert max(one.cosine.value for one in outcome.carried) < 0.3
    (pair,) = outcome.pairs
    assert abs(pair.mean) < 0.05
    assert pair.best < 2 * pair.best_null.high


def test_similarity_has_its_maximum_at_the_planted_layers(tmp_path):
    latent = Latent()
    latent.write(tmp_path / "ds", "one", seed=1, shared=(0,))
    latent.write(tmp_path / "ds", "two", seed=2, part=20, shared=(5,))
    (pair,) = measure(sessions(tmp_path / "ds"), PLAN, verbose=0).pairs
    for matrix in (np.array(pair.cka), np.array(pair.rdm)):
        assert np.unravel_index(matrix.argmax(), matrix.shape) == (0, 5)
    cka = np.array(pair.cka)
    assert cka[0, 5] > 0.5
    assert cka[0, 5] > pair.limit
    assert pair.share_above == 1 / 36
    assert np.delete(cka.ravel(), 5).max() < pair.limit


def test_similarity_is_beyond_shuffled_prompts_and_topics(result):
    (pair,) = result.pairs
    assert (pair.a, pair.b) == ("sub-one", "sub-two")
    assert pair.best_p == 1 / 20
    assert pair.best > 0.5 > pair.best_null.high
    assert pair.condition < pair.best / 2
    assert pair.rdm_p < 0.05
    assert pair.untrained < 0.2


def test_no_basis_changes_similarity_carried_maps_or_depth(result, tmp_path):
    """Every parcel of every model rotated and flipped: the same to a millionth."""
    turned = measure(sessions(write_two(tmp_path / "ds", turn=True)), PLAN, verbose=0)
    (a,), (b,) = result.pairs, turned.pairs
    for name in ("mean", "best", "condition", "limit", "depth_r", "rdm_best", "untrained"):
        assert getattr(b, name) == pytest.approx(getattr(a, name), abs=1e-6), name
    for one, other in zip(result.carried, turned.carried, strict=True):
        for name in ("repeat", "cross", "untrained", "penalty"):
            assert getattr(other, name) == pytest.approx(getattr(one, name), abs=1e-6), name
        assert other.cosine.value == pytest.approx(one.cosine.value, abs=1e-6)
        assert other.null.value == pytest.approx(one.null.value, abs=1e-6)
    for one, other in zip(result.depth, turned.depth, strict=True):
        for model, grid in one.models.items():
            assert other.models[model] == {k: pytest.approx(v, abs=2e-6) for k, v in grid.items()}


def test_effect_energy_is_0_without_an_effect_and_what_was_planted_with_one():
    rng = np.random.default_rng(0)
    design = np.repeat(np.eye(2), 20, axis=0)
    vector, energies = np.array([1.0, -1.0]), {0.0: [], 0.5: []}
    for size, values in energies.items():
        for _ in range(100):
            runs = [rng.normal(size=(40, 30)) + size * design[:, :1] for _ in range(3)]
            values.append(effect_energy(runs, [(design, vector)] * 3))
    assert stats.ttest_1samp(energies[0.0], 0).pvalue > 0.05
    assert np.mean(energies[0.5]) == pytest.approx(0.25, abs=0.01)


def test_an_alignment_is_the_ridge_regression_of_scikit_learn():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(40, 60)) * np.exp(rng.normal(size=60))
    for noise in (0.1, 5.0):
        b = a @ rng.normal(size=(60, 9)) + noise * rng.normal(size=(40, 9))
        unit = (a**2).sum() / 40
        model = RidgeCV(PENALTIES * unit, fit_intercept=False).fit(a, b)
        fitted = align(a @ a.T, b @ b.T)
        assert fitted.penalty * unit == pytest.approx(model.alpha_)
        pattern = rng.normal(size=60)
        np.testing.assert_allclose(
            b.T @ fitted.mixture(a @ pattern), model.predict(pattern[None])[0]
        )


def test_layers_are_spread_over_depth_without_holes():
    np.testing.assert_allclose(bins_of([2.0] * 6, 20), 2)
    np.testing.assert_allclose(bins_of(np.arange(30.0), 15), np.arange(0.5, 30, 2))
    assert bins_of([1.0, 4.0], 3)[1] == pytest.approx(2.5)  # half of each


def noise_imgs(rng, n, mean=0.0):
    return [Nifti1Image(mean + rng.normal(size=(3, 1, 20)), np.eye(4)) for _ in range(n)]


def test_the_second_level_is_calibrated_on_noise_and_sees_an_effect():
    rng, mask = np.random.default_rng(1), Nifti1Image(np.ones((3, 1, 20), np.uint8), np.eye(4))
    p, smallest = [], []
    for _ in range(30):
        level = second_level(noise_imgs(rng, 8), mask, n_perm=99)
        p.append(level.p)
        smallest.append(level.p_max.min())
    assert stats.kstest(np.concatenate(p), "uniform").pvalue > 0.05
    assert stats.binomtest(int(np.sum(np.array(smallest) <= 0.05)), 30, 0.05).pvalue > 0.05
    assert stats.kstest(smallest, "uniform").pvalue > 0.01
    effect = second_level(noise_imgs(rng, 8, mean=4), mask, n_perm=99)
    assert (effect.p_max <= 0.05).all()
    assert second_level(noise_imgs(rng, LEAST - 1), mask, n_perm=99).p_max is None


def test_six_models_are_tested_and_fewer_are_told_what_they_do_not_show(result, tmp_path):
    assert all(level.p_max is None for level in result.depth)
    assert "nothing can be concluded about others" in " ".join(repr(result).split())
    latent = Latent()
    for i in range(LEAST):
        latent.write(tmp_path / "ds", "model", seed=9, Session=f"s{i}")
    many = sessions(tmp_path / "ds")
    outcome = measure(many.only(["pain"]), replace(PLAN, n_null=1, n_prompts=60), verbose=0)
    assert outcome.n_prompts == 60
    for level in outcome.depth:
        assert np.shape(list(level.p_max.values())) == (3, 4)
    voxel = outcome.voxels[0]
    assert voxel.same_r.value == pytest.approx(1)  # they are copies
    assert voxel.sessions == [one.name for one in many]
    assert voxel.n_fdr > 0.9 * voxel.n_units
    assert "nothing can be concluded" not in " ".join(repr(outcome).split())


def test_the_command_writes_maps_networks_and_a_result(planted, tmp_path, capsys, validate):
    root = write_two(tmp_path / "ds")
    words = ["group", str(root), "--n-null", "19", "--n-bins", "4", "--carry", "pain", "--quiet"]
    words += ["--share", "0.1"]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "What do several models have in common?" in printed
    validate(root)
    kept = GroupResult.read(sessions(root))
    (written,) = kept.written
    assert written.dice > written.null.high
    target = bids.session(root, subject="two")
    network = networks.from_mask(target.brain, bids.read_img(root / written.mask))
    assert network.n_units == written.n_units == 12
    folder = root / bids.DERIVATIVES / GROUP
    depth = bids.read_img(next(folder.glob("sub-one_task-pain_space-depth_desc-effect_*")))
    assert depth.shape == (3, 1, 4)
    assert bytes(depth.header["descrip"]).startswith(b"energy of pain (effect by depth) in sub-one")
    t = bids.read_img(next(folder.glob("task-pain_space-depth_desc-effect_stat-t_*")))
    assert t.header.get_intent()[:2] == ("t test", (1,))
    carried = bids.read_img(next(folder.glob("*_stat-effect_statmap.nii.gz")))
    assert bytes(carried.header["descrip"]).startswith(b"effect of pain from subone")
    axes = json.loads((folder / "space-depth_axes.json").read_text())
    assert axes["x"] == ["attn", "resid", "mlp"]
    path = root / bids.DERIVATIVES / "group.json"
    before = path.stat().st_mtime_ns
    assert cli.main(words) == 0  # what did not change is not measured again
    assert path.stat().st_mtime_ns == before
    assert capsys.readouterr().out == printed


def test_a_mask_is_carried_as_well_as_a_task(planted, tmp_path):
    one = bids.session(planted, subject="one")
    signs = np.zeros(one.brain.n_units, np.int8)
    signs[:8] = 1
    path = tmp_path / "mine.nii.gz"
    networks.Network("mine", one.brain, signs).mask_img().to_filename(path)
    plan = replace(PLAN, carry=str(path), source="one", n_null=1)
    outcome = measure(sessions(planted), plan, verbose=0)
    (written,) = outcome.written
    assert (written.what, written.n_units, written.dice) == ("mine", 10, None)  # 8 of 96, of 120
    assert (planted / written.mask).exists()


def test_a_study_measures_the_group_last_and_its_page_has_the_section(tmp_path):
    for i, name in enumerate(("one", "two")):
        make_dataset(tmp_path / "ds", seed=10 * i, name=name)
    plans = [experiments.NullPlan(n=2), replace(PLAN, n_null=1, n_perm=9)]
    page = study.analyse_all(tmp_path / "ds", measured=plans, verbose=0).read_text("utf-8")
    assert 'href="sub-one/report.html"' in page
    assert "What do several models have in common?" in page
    assert (
        page.count("data:image/png") == len(GroupResult.read(sessions(tmp_path / "ds")).tasks) + 2
    )
    path = tmp_path / "study.toml"
    path.write_text('dataset = "ds"\n[group]\nn_bins = 9\n[[model]]\nname = "a"\n')
    with pytest.raises(study.StudyError, match="compares sessions, and the file asks for one"):
        read_study(path)
    path.write_text(path.read_text() + '[[model]]\nname = "b"\n')
    assert read_study(path).measured == (experiments.GroupPlan(n_bins=9),)


def test_a_result_shows_itself(result):
    tables = result.tables()
    assert len(tables["depth"]) == 2 * 2 * 2 * 3 * 4  # tasks, kinds, models, sites, bins
    assert len(tables["carried"]) == 4
    html = result._repr_html_()
    assert html.count("data:image/png") == 2 + 1 + 1
    assert GroupResult.of(result.content()).pairs == result.pairs


def one_line(words, capsys):
    assert cli.main(["group", *words, "--quiet"]) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1
    return err


def test_mistakes_are_one_line(planted, capsys):
    for words, message in (
        (["--site", "norm"], "no site 'norm' in the dataset"),
        (["--task", "fear"], "no task 'fear'"),
        (["--carry", "fear"], "no task 'fear'"),
        (["--carry", "pain", "--source", "three"], "no session 'sub-three' in the dataset"),
        (["--source", "one"], "say which with"),
        (["--subject", "one"], "--subject"),
    ):
        assert message in one_line([str(planted), *words], capsys), words
    with pytest.raises(PlanError, match="n_bins"):
        experiments.GroupPlan(n_bins=0)


def test_datasets_that_cannot_be_compared_are_refused(tmp_path, capsys):
    latent = Latent()
    alone = latent.write(tmp_path / "alone", "one", seed=1)
    assert "the dataset has one session, sub-one" in one_line([str(alone)], capsys)
    other = Latent(seed=5)
    other.write(alone, "two", seed=2)  # the same tasks, other prompts
    for name, seed in (("oneuntrained", 1), ("twountrained", 2)):
        latent.write(tmp_path / "copies", name, seed=seed, **RANDOM)
    assert "only untrained copies" in one_line([str(tmp_path / "copies")], capsys)
    for table in other.tables.values():
        table["prompt"] = "Q" + table["prompt"]
    other.write(tmp_path / "apart", "two", seed=2)
    latent.write(tmp_path / "apart", "one", seed=1)
    assert "no prompt was shown to all sessions" in one_line([str(tmp_path / "apart")], capsys)
    unequal = Latent(tasks=("pain",)).write(tmp_path / "unequal", "one", seed=1)
    latent.write(unequal, "two", seed=1)
    told = one_line([str(unequal)], capsys)
    assert "different tasks (sub-one: pain; sub-two: joy, pain)" in told
