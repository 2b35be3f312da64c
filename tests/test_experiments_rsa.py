"""Properties that explain representations: planted ones come out, others do not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from planted_parcels import Turned, brain_dataset

from llm2nifti import bids, cli, experiments
from llm2nifti.experiments.rsa.measure import measure

PLAN = experiments.RsaPlan(n_null=39, n_boot=40)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Attention and MLP of layer 1 know topics; the stream of layer 2 tasks."""
    return brain_dataset(tmp_path_factory.mktemp("rsa") / "ds")


@pytest.fixture(scope="module")
def result(planted):
    return measure(bids.session(planted), PLAN, verbose=0)


def place(result, name):
    """Position of a parcel."""
    return result.parcels.index(name)


def test_planted_properties_explain_their_parcels(result):
    topic, task = result.explained["topic"], result.explained["task"]
    best = [place(result, "layer01_attn"), place(result, "layer01_mlp")]
    assert set(np.argsort(topic.unique)[-2:]) == set(best)
    assert min(topic.unique[i] for i in best) > topic.limit
    assert topic.p[best[0]] == 1 / 40
    stream = place(result, "layer02_resid")
    assert np.argmax(task.unique) == stream
    assert task.p[stream] == 1 / 40
    assert result.matched["task"].r[stream] > 0.9
    assert result.matched["task"].low[stream] > 0.5


def test_what_was_not_planted_explains_nothing(result):
    assert {"question_frame", "characters"} <= set(result.explained)
    assert "surprisal" not in result.explained  # it is 0 everywhere
    for name in ("question_frame", "characters"):
        assert min(result.explained[name].p) > 0.05
        assert max(result.explained[name].unique) < 0.01
    noise = place(result, "layer02_attn")
    assert all(told.p[noise] > 0.05 for told in result.explained.values())


def test_the_ceiling_is_high_where_topics_are(result):
    low = np.array(result.ceiling_low)
    assert low[place(result, "layer01_attn")] > low[place(result, "layer02_attn")] + 0.1
    assert (np.array(result.ceiling_high) >= low).all()


def test_no_number_depends_on_the_basis_of_a_parcel(planted, result, tmp_path):
    turned = measure(bids.session(Turned(planted).write(tmp_path / "ds")), PLAN, verbose=0)
    for name, told in result.explained.items():
        other = turned.explained[name]
        for field in ("unique", "alone", "low", "high"):
            np.testing.assert_allclose(getattr(other, field), getattr(told, field), atol=1e-6)
        assert other.limit == pytest.approx(told.limit, abs=1e-6)
    for name, match in result.matched.items():
        np.testing.assert_allclose(turned.matched[name].r, match.r, atol=1e-6)
    np.testing.assert_allclose(turned.ceiling_low, result.ceiling_low, atol=1e-6)


def test_properties_of_a_table_of_ones_own(planted, tmp_path):
    session = bids.session(planted)
    events = pd.concat([run.events.assign(run=run.run) for run in session])
    table = events.drop_duplicates("stim_id")[["stim_id"]]
    table["number"] = table["stim_id"].str.extract(r"(\d+)$")[0].astype(float)
    path = tmp_path / "mine.tsv"
    table.to_csv(path, sep="\t", index=False)
    plan = experiments.RsaPlan(n_null=5, n_boot=5, properties=path)
    told = measure(session, plan, verbose=0)
    assert max(told.explained["number"].unique) < 0.02
    assert "number" in told.matched


def test_the_command_tells_it_and_keeps_it(planted, tmp_path, capsys, validate):
    root = Turned(planted, turn=False).write(tmp_path / "ds")
    words = ["rsa", str(root), "--n-null", "9", "--n-boot", "9", "--quiet"]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "Which property of prompts explains which depth?" in printed
    assert "question_frame" in printed
    validate(root)
    path = tmp_path / "short.tsv"
    path.write_text("stim_id\tage\nnothing\t3\n")
    assert cli.main([*words, "--properties", str(path)]) in (1, 2)
    err = capsys.readouterr().err
    assert "short.tsv has no row for" in err
    assert len(err.strip().splitlines()) == 1


def test_a_result_shows_itself(result):
    tables = result.tables()
    assert len(tables["prompts"]) == len(result.explained) * 6
    assert {"r", "low", "high", "ceiling_low"} <= set(tables["topics"])
    assert result._repr_html_().count("data:image/png") == 2


def test_topics_that_do_not_repeat_are_one_line(tmp_path, capsys):
    root = brain_dataset(tmp_path / "ds", n_runs=1)
    assert cli.main(["rsa", str(root), "--quiet"]) in (1, 2)
    err = capsys.readouterr().err
    assert "need the same 2 or more runs" in err
    assert len(err.strip().splitlines()) == 1
