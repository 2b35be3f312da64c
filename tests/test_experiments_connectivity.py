"""Connectivity of parcels: planted similarity comes out, nothing does not, no basis matters."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from planted_parcels import Turned, brain_dataset

from llm2nifti import bids, cli, experiments
from llm2nifti.experiments.connectivity.measure import measure
from llm2nifti.experiments.connectivity.result import ConnectivityResult, upper

PLAN = experiments.ConnectivityPlan(n_null=19)
ATTN, MLP = 0, 2  # of layer 1, among the parcels


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Attention and MLP of layer 1 share what control evokes; those of layer 2 in task pain too."""
    return brain_dataset(tmp_path_factory.mktemp("connectivity") / "ds", shared={"pain": 2})


@pytest.fixture(scope="module")
def result(planted):
    return measure(bids.session(planted), PLAN, verbose=0)


def test_planted_similarity_is_above_all_shuffled_prompts(result):
    rest = result.states["control"]
    cka = np.array(rest.cka)
    assert cka[ATTN, MLP] > rest.null_max
    others = [
        cka[i, j] for i, j in zip(*np.triu_indices(6, 1), strict=True) if (i, j) != (ATTN, MLP)
    ]
    assert np.max(others) < cka[ATTN, MLP] / 2
    assert abs(np.mean(others)) < 0.1
    assert rest.repeatability.value > 0.5
    assert rest.repeatability.low <= rest.repeatability.value <= rest.repeatability.high


def test_what_changes_in_a_task_is_beyond_relabelled_prompts(result):
    changed, same = result.contrasts["pain"], result.contrasts["joy"]
    assert changed.p == 1 / 20
    assert changed.n_beyond >= 1
    assert changed.mean > changed.null_mean.high
    assert same.p > 0.05
    assert same.n_beyond == 0


def test_rdms_of_topics_show_the_same(result):
    rdm = np.array(result.states["control"].rdm)
    assert rdm[ATTN, MLP] == upper(rdm).max()


def test_no_number_depends_on_the_basis_of_a_parcel(planted, result, tmp_path):
    """Every parcel rotated and flipped at random: the same to a millionth."""
    turned = measure(bids.session(Turned(planted).write(tmp_path / "ds")), PLAN, verbose=0)
    for name, state in result.states.items():
        other = turned.states[name]
        np.testing.assert_allclose(other.cka, state.cka, atol=1e-6)
        for field in ("mean", "null_95", "null_max", "rdm_agreement"):
            assert getattr(other, field) == pytest.approx(getattr(state, field), abs=1e-6), field
        assert other.repeatability.value == pytest.approx(state.repeatability.value, abs=1e-6)
    for task, contrast in result.contrasts.items():
        assert turned.contrasts[task].size == pytest.approx(contrast.size, abs=1e-6)
    assert turned.graph.community == result.graph.community


def test_the_command_writes_relationship_matrices_and_a_section(
    planted, tmp_path, capsys, validate
):
    root = Turned(planted, turn=False).write(tmp_path / "ds")
    words = ["connectivity", str(root), "--n-null", "9", "--quiet"]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "How alike do the parts of the model represent prompts?" in printed
    validate(root)
    func = root / bids.DERIVATIVES / "sub-planted" / "func"
    (path,) = func.glob("*_task-pain_*_stat-cka_relmat.tsv")
    matrix = pd.read_csv(path, sep="\t")
    assert matrix.shape == (6, 6)
    sidecar = json.loads(path.with_suffix(".json").read_text())
    assert sidecar["Nodes"] == list(matrix)
    assert sidecar["RelationshipMeasure"].startswith("debiased linear")
    kept = ConnectivityResult.read(bids.session(root))
    np.testing.assert_allclose(kept.states["pain"].cka, matrix)
    before = (root / bids.DERIVATIVES / "connectivity.json").stat().st_mtime_ns
    assert cli.main(words) == 0  # what did not change is not measured again
    assert (root / bids.DERIVATIVES / "connectivity.json").stat().st_mtime_ns == before
    assert capsys.readouterr().out == printed


def test_a_result_shows_itself(result):
    assert len(result.tables()["pairs"]) == 3 * 15
    assert set(result.tables()["parcels"]["community"]) == set(result.graph.community)
    html = result._repr_html_()
    assert html.count("data:image/png") == 2
    assert "layer01_attn" in repr(result)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--site", "norm"], "no site 'norm' in the dataset"),
        (["--task", "fear"], "no task 'fear'"),
        (["--n-null", "0"], "--n-null is '0'"),
    ],
)
def test_mistakes_are_one_line(words, message, planted, capsys):
    assert cli.main(["connectivity", str(planted), "--quiet", *words]) in (1, 2)
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_one_run_only_is_one_line(tmp_path, capsys):
    root = brain_dataset(tmp_path / "ds", n_runs=1)
    assert cli.main(["connectivity", str(root), "--quiet"]) in (1, 2)
    err = capsys.readouterr().err
    assert "need the same 2 or more runs" in err
    assert len(err.strip().splitlines()) == 1
