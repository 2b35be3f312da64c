"""Decoding of tasks by parcel: where it was planted, with an honest null, in any basis."""

from __future__ import annotations

import numpy as np
import pytest
from planted_parcels import Turned, brain_dataset

from llm2nifti import bids, cli, experiments
from llm2nifti.experiments.decoding.measure import measure

PLAN = experiments.DecodePlan(n_null=39, n_boot=50)
SHIFTED = 4  # the stream of layer 2, among the parcels


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Task prompts shift the stream of layer 2, a pattern each; two frames a trial."""
    return brain_dataset(tmp_path_factory.mktemp("decoding") / "ds")


@pytest.fixture(scope="module")
def result(planted):
    return measure(bids.session(planted), PLAN, verbose=0)


def test_a_task_is_decoded_where_it_was_planted(result):
    assert list(result.comparisons) == ["joy - control", "pain - control", "joy - pain"]
    for name, told in result.comparisons.items():
        assert np.argmax(told.auc) == SHIFTED, name
        assert told.p[SHIFTED] == 1 / 40
        assert told.auc[SHIFTED] > told.limit
        assert told.low[SHIFTED] <= told.auc[SHIFTED] <= told.high[SHIFTED]
        assert told.accuracy[SHIFTED] > 0.8
        assert told.null_mean == pytest.approx(0.5, abs=0.03)


def test_parcels_of_noise_stay_below_the_limit(result):
    """Attention and MLP of layer 1 have patterns of their topics, which name tasks, too."""
    noise = [i for i, site in enumerate(result.sites) if result.layers[i] == 2 and site != "resid"]
    noise.append(1)  # the stream of layer 1
    for told in result.comparisons.values():
        assert max(told.auc[i] for i in noise) < told.limit
        assert min(told.p[i] for i in noise) > 0.05


def test_p_values_fall_with_the_area_and_are_never_below_one_in_all(result):
    for told in result.comparisons.values():
        p = np.array(told.p)[np.argsort(told.auc)]
        assert (np.diff(p) <= 1e-12).all()
        assert p.min() >= 1 / 40


def test_a_lasting_pattern_generalises_over_tokens(result):
    timing = result.times["resid"]
    auc = np.array(timing.auc)
    assert auc.shape == (2, 2)
    assert auc.min() > timing.limit > 0.5
    assert timing.layers == [1, 2]


def test_no_number_depends_on_the_basis_of_a_parcel(planted, result, tmp_path):
    root = Turned(planted).write(tmp_path / "ds")
    turned = measure(bids.session(root), PLAN, verbose=0)
    for name, told in result.comparisons.items():
        other = turned.comparisons[name]
        for field in ("auc", "accuracy", "p", "low", "high"):
            np.testing.assert_allclose(getattr(other, field), getattr(told, field), atol=1e-6)
        assert other.limit == pytest.approx(told.limit, abs=1e-6)
    for site, timing in result.times.items():
        np.testing.assert_allclose(turned.times[site].auc, timing.auc, atol=1e-6)


def test_the_command_tells_it_and_keeps_it(planted, tmp_path, capsys, validate):
    root = Turned(planted, turn=False).write(tmp_path / "ds")
    words = ["decode", str(root), "--n-null", "19", "--n-boot", "20", "--quiet"]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "Where, and when, is a task decodable?" in printed
    assert "layer02_resid" in printed
    validate(root)
    assert cli.main([*words, "--no-frames", "--site", "mlp"]) == 0
    assert "layer02_resid" not in capsys.readouterr().out


def test_a_result_shows_itself(result):
    table = result.tables()["parcels"]
    assert len(table) == 3 * 6
    assert result._repr_html_().count("data:image/png") == 2 + len(result.times)


def test_mistakes_are_one_line(planted, tmp_path, capsys):
    assert cli.main(["decode", str(planted), "--site", "norm", "--quiet"]) in (1, 2)
    assert "no site 'norm' in the dataset" in capsys.readouterr().err
    root = brain_dataset(tmp_path / "ds", n_runs=1)
    assert cli.main(["decode", str(root), "--quiet"]) in (1, 2)
    err = capsys.readouterr().err
    assert "need the same 2 or more runs" in err
    assert len(err.strip().splitlines()) == 1
