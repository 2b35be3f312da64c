"""Decomposition of datasets whose components are known: files, report, resume, errors."""

from __future__ import annotations

import itertools
import shutil

import numpy as np
import pandas as pd
import planted
import pytest
import tests_support
from nilearn.maskers import NiftiLabelsMasker
from test_networks_components import N_UNITS, sources

from llm2nifti import bids, cli, experiments, geometry, study
from llm2nifti.bids import checking
from llm2nifti.experiments.decomposition import measure as measuring
from llm2nifti.experiments.decomposition.plan import DecomposePlan
from llm2nifti.experiments.decomposition.result import DecompositionResult
from llm2nifti.experiments.errors import ExperimentError
from llm2nifti.experiments.nulls.plan import NullPlan
from llm2nifti.networks import components
from llm2nifti.networks.components import pair_up
from llm2nifti.tell import as_text

MAPS = sources(np.random.default_rng(0))
SMALL = {"n_components": 3, "n_parcels": 4, "n_shuffles": 40}


def plant(root, *, tasks=("joy", "pain"), n_runs=2):
    """Runs of mixtures of three maps, the first of which is stronger in prompts of pain."""
    rng = np.random.default_rng(1)
    for task, number in itertools.product(tasks, range(1, n_runs + 1)):
        table = planted.trials(task)
        strengths = rng.normal(size=(len(table), 3))
        strengths[:, 0] += 2 * (table["trial_type"] == "pain")
        values = strengths @ MAPS + 0.3 * rng.normal(size=(len(table), N_UNITS))
        planted.dataset_run(root, table, values[:, None], task=task, number=number)
    return root


def decompose(root, *, subject=None, **changes):
    session = bids.session(root, subject=subject)
    return experiments.measure(session, DecomposePlan(**{**SMALL, **changes}), verbose=0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return plant(tmp_path_factory.mktemp("decomposition") / "ds")


@pytest.fixture(scope="module")
def result(dataset):
    return decompose(dataset)


def test_planted_components_are_found_in_the_files(dataset, result, validate):
    session = bids.session(dataset)
    files = session.first.paths.parts("canica")
    assert all(path.exists() for path in files.values())
    maps = geometry.from_img(session.brain, bids.read_img(files["components"]))
    assert maps.std(axis=1) == pytest.approx([1] * 3, rel=1e-4)
    partner, r = pair_up(np.corrcoef(MAPS, maps)[:3, 3:])
    assert (r > 0.9).all()
    number, likeness = result.trained.best("pain")
    assert number == partner[0] + 1
    assert abs(likeness) > 0.6  # of t, which is no straight line of the map
    assert result.trained.task_p["pain"] == pytest.approx(1 / 41)
    assert result.trained.task_p["joy"] > 0.05
    validate(dataset)


def test_time_courses_are_a_row_a_prompt(dataset, result):
    session = bids.session(dataset)
    files = session.first.paths.parts("canica")
    table = bids.read_tsv(files["courses"])
    names = bids.read_tsv(files["names"])
    assert list(table)[4:7] == ["component01", "component02", "component03"]
    assert list(table)[7:] == list(names["name"]) == [f"parcel{i:02d}" for i in range(1, 5)]
    assert len(table) == result.n_trials == sum(len(run.events) for run in session)
    sidecar = bids.read_json(files["courses"].with_suffix(".json"))
    assert list(sidecar) == list(table)
    run = session.of("pain").first
    rows = table[(table["task"] == "pain") & (table["run"] == 1)]
    assert list(rows["trial_type"]) == list(run.events["trial_type"])
    maps = geometry.from_img(session.brain, bids.read_img(files["components"]))
    values = geometry.from_img(session.brain, components.cleaned(run))
    expected = np.linalg.lstsq(maps.T.astype(float), values.T.astype(float))[0].T
    assert rows[list(table)[4:7]].to_numpy() == pytest.approx(expected, abs=1e-4)
    best = f"component{result.trained.best('pain')[0]:02d}"
    means = rows.groupby("trial_type")[best].mean()
    assert abs(means["pain"] - means["control"]) > 1
    masker = NiftiLabelsMasker(bids.read_img(files["parcels"]), lut=names, standardize=None)
    assert masker.fit_transform(run.img).shape == (len(rows), 4)


def test_the_page_has_a_gallery_on_the_anatomy_of_the_model(tmp_path):
    root = tests_support.make_dataset(tmp_path / "ds")
    path = study.analyse_all(root, measured=[NullPlan(n=2), DecomposePlan(**SMALL)], verbose=0)
    page = path.read_text("utf-8")
    assert "Which components are there without labels?" in page
    figures = {path.name for path in (root / bids.DERIVATIVES / "figures").glob("component*.png")}
    assert figures == {f"component{end}.png" for end in ("s", "_01", "_02", "_03")}
    section = DecompositionResult.read(bids.session(root)).sections()[0]
    assert [table.frame.shape[0] for table in section.tables] == [2, 2]
    assert "the basis of the model's units" in as_text(section)
    alone = DecompositionResult.of(DecompositionResult.read(bids.session(root)).content())
    assert len(alone.sections()[0].plots) == 1  # it does not know where its maps are
    tables = alone.tables()
    assert len(tables["components"]) == 6
    assert set(tables["likeness"]["what"]) == {
        "between runs",
        "random directions",
        "shuffled units",
    }


def test_what_did_not_change_is_not_measured_again_but_on_demand(tmp_path, monkeypatch):
    root = tests_support.make_dataset(tmp_path / "ds")
    calls, real = [], measuring.evaluate

    def counted(*args, **options):
        calls.append(args)
        return real(*args, **options)

    monkeypatch.setattr(measuring, "evaluate", counted)
    first = decompose(root).content()
    files = bids.session(root).first.paths.parts("canica")
    written = files["components"].read_bytes()
    assert decompose(root).content() == first
    assert len(calls) == 1
    files["components"].write_bytes(b"x")
    with pytest.warns(UserWarning, match="is kept as"):
        assert decompose(root).content() == first
    assert len(calls) == 2
    assert files["components"].read_bytes() == written
    assert decompose(root, seed=1).content() != first
    assert decompose(root, seed=1, redo=True).made_from["plan"]["seed"] == 1
    assert len(calls) == 4
    assert checking.problems(root) == []


def test_a_run_that_is_replaced_takes_what_was_made_of_it_along(tmp_path):
    root = tests_support.make_dataset(tmp_path / "ds")
    decompose(root)
    files = bids.session(root).first.paths.parts("canica")
    bids.write(tests_support.make_recording(seed=9), root, overwrite=True)
    assert not (root / bids.DERIVATIVES / "decomposition.json").exists()
    assert not any(path.exists() for path in files.values())


def test_one_task_an_untrained_copy_and_sparse_maps_are_fine(tmp_path):
    root = plant(tmp_path / "ds", tasks=("pain",))
    shutil.copytree(root, tmp_path / "alone")
    alone = decompose(root, method="dictlearning")
    assert set(alone.trained.task_p) == {"pain"}
    assert alone.untrained is None
    root = tests_support.make_dataset(tmp_path / "two", name="tiny")
    for run, task in itertools.product((1, 2), ("pathology", "archeology")):
        copy = tests_support.make_recording(task, run, seed=run + 50, name="tiny-untrained")
        bids.write(copy, root)
    both = decompose(root, subject="tiny")
    assert set(both.models) == {"model", "untrained copy"}
    assert both.untrained.maps["between runs"] != both.trained.maps["between runs"]
    assert decompose(root, subject="tiny", untrained=False).untrained is None
    assert set(both.tables()["likeness"]["of"]) >= {"maps, untrained copy", "parcels, model"}


def test_what_cannot_be_decomposed_is_refused_in_a_line(tmp_path, dataset, capsys):
    with pytest.raises(ExperimentError, match=r"n_components is 27 .*; a run allows 26 components"):
        decompose(dataset, n_components=27)
    with pytest.raises(ExperimentError, match="there are 300 units"):
        decompose(dataset, n_parcels=301)
    single = plant(tmp_path / "ds", n_runs=1)
    with pytest.raises(bids.NotRepeatedError, match="need the same 2 or more runs"):
        decompose(single)
    assert cli.main(["decompose", str(single), "--quiet"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_tells_and_keeps_the_result(dataset, capsys):
    options = ["--n-components", "3", "--n-parcels", "4", "--n-shuffles", "40", "--quiet"]
    assert cli.main(["decompose", str(dataset), *options]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "3 of 3 components are more alike than the best of random directions" in told
    assert "pain has a component like its t map" in told
    kept = pd.read_json(dataset / bids.DERIVATIVES / "decomposition.json", typ="series")
    assert kept["method"] == "canica"
