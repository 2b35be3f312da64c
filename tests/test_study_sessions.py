"""Several models and sessions in one dataset: analysed apart, compared on one page."""

from __future__ import annotations

import html
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from test_report import check_page, needs_browser
from tests_support import make_recording

from llm2nifti import bids, cli, glm, report, study
from llm2nifti.experiments.nulls.plan import NullPlan
from llm2nifti.experiments.repeatability.measure import measure
from llm2nifti.experiments.repeatability.plan import RepeatabilityPlan
from llm2nifti.report import overview

EVIL = "<b>model</b>"
SEED = {"Session": "seed0"}, {"Session": "seed1"}


def planted(task, run, *, seed, **model):
    """Noise of its own, and an effect on units of the task that every session shares."""
    recording = make_recording(task, run, seed=seed, **model)
    is_task = (recording.paradigm.trials["trial_type"] == task).to_numpy()
    values = recording.values.copy()
    pattern = np.random.default_rng(list(task.encode())).normal(size=recording.brain.n_units)
    values[np.repeat(is_task, recording.counts)] += pattern.astype(np.float32)
    return replace(recording, values=values)


def add_model(root, *, seed=0, **model):
    for i, (task, run) in enumerate((t, r) for t in ("pathology", "archeology") for r in (1, 2)):
        bids.write(planted(task, run, seed=seed + i, **model), root)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """One model in two sessions, each with an untrained copy, and another model; analysed."""
    root = tmp_path_factory.mktemp("study") / "ds"
    random = {"WeightsHash": "random weights, seed 0"}
    for i, session in enumerate(SEED):
        add_model(root, seed=10 * i, name="one", Name=EVIL, **session)
        add_model(root, seed=10 * i + 5, name="one-untrained", **random, **session)
    add_model(root, seed=40, name="two")
    add_model(root, seed=50, name="three-untrained", **random)  # of no model that is here
    study.analyse_all(root, measured=[NullPlan(n=3)], verbose=0)
    bids.writing.clear_work(root)
    return root


@pytest.fixture
def changeable(dataset, tmp_path):
    return shutil.copytree(dataset, tmp_path / "ds")


WHO = [("one", "seed0"), ("one", "seed1"), ("two", "")]
FOLDERS = ["sub-one/ses-seed0", "sub-one/ses-seed1", "sub-two"]


def reports(root):
    return {name: root / bids.DERIVATIVES / name / "report.html" for name in FOLDERS}


def test_every_session_has_its_numbers_report_and_figures(dataset, validate):
    validate(dataset)
    for name, page in reports(dataset).items():
        assert page.exists()
        assert (page.parent / "figures" / "atlas.png").exists()
        summary = json.loads((page.parent / "summary.json").read_text())
        folder = bids.folder_of(summary["design"]["subject"], summary["design"]["session"])
        assert folder.as_posix() == name
        assert f"{name}/func/*_statmap.nii.gz" in page.read_text("utf-8")
    assert not (dataset / bids.DERIVATIVES / "sub-oneuntrained/ses-seed0/report.html").exists()


def test_each_session_is_compared_with_its_own_untrained_copy(dataset):
    for i, who in enumerate(WHO[:2]):
        untrained = bids.read_summary(dataset, who)["untrained"]
        assert untrained["subject"] == "oneuntrained"
        runs = bids.session(dataset, subject="oneuntrained", session=f"seed{i}")
        expected = measure(runs, RepeatabilityPlan(), intervals=False, verbose=0)
        assert untrained["similarity"]["r"] == expected.r
    assert "untrained" not in bids.read_summary(dataset, WHO[2])


def test_overview_has_the_numbers_of_every_session(dataset):
    whole = bids.read_summary(dataset)
    assert [(row["subject"], row["session"]) for row in whole["sessions"]] == WHO
    for who, row in zip(WHO, whole["sessions"], strict=True):
        summary = bids.read_summary(dataset, who)
        shares = {task: numbers["share_active"] for task, numbers in summary["tasks"].items()}
        assert row["active"] == shares
        assert row["same_task_r"] == summary["similarity"]["same_task_r"]
        assert row["trials_right"] == summary["identification"]["trials"]["accuracy"]
        assert row["null_below_05"] == summary["null"]["relabelled"]["below_05"]


def test_overview_page_links_to_the_reports_and_escapes_names(dataset):
    text = (dataset / bids.DERIVATIVES / "report.html").read_text("utf-8")
    links = re.findall(r'href="([^"#:]*)"', text)
    assert links == [f"{name}/report.html" for name in FOLDERS]
    assert EVIL not in text
    assert html.escape(EVIL) in text
    for name, page in reports(dataset).items():
        back = re.findall(r'href="([./]*report\.html)"', page.read_text("utf-8"))
        assert [(page.parent / link).resolve() for link in back] == [
            (dataset / bids.DERIVATIVES / "report.html").resolve()
        ], name
    rows = bids.read_summary(dataset)["sessions"]
    share = f"{100 * rows[1]['active']['pathology']:.1f}\N{NO-BREAK SPACE}%"
    assert f'<td class="n">{share}</td>' in text


def test_overview_says_one_rule_once_and_several_row_by_row(changeable, capsys):
    page = changeable / bids.DERIVATIVES / "report.html"
    assert page.read_text("utf-8").count("false discovery rate 0.05, two-sided") == 1
    assert "Active by" not in page.read_text("utf-8")
    one = ("--subject", "two", "--quiet")
    assert call(capsys, "glm", changeable, "--height-control", "bonferroni", *one)[0] == 0
    assert call(capsys, "report", changeable, "--quiet")[0] == 0
    text = page.read_text("utf-8")
    assert text.count("Active by") == 1
    assert text.count("<td>false discovery rate 0.05, two-sided</td>") == 2
    assert text.count("<td>family-wise error rate (Bonferroni) 0.05") == 1


@needs_browser
def test_overview_page_does_not_scroll_sideways(dataset, tmp_path):
    check_page(dataset / bids.DERIVATIVES / "report.html", tmp_path, width=400)


def t_of(root, who, task, number):
    """T map of a run, fitted anew."""
    run = bids.read(root, task=task, run=number, subject=who[0], session=who[1])
    return glm.fit(run).contrast(f"{task} - control").t()


def test_maps_of_sessions_correlate_as_their_files_do(dataset):
    pairs = bids.read_summary(dataset)["between_sessions"]
    assert [pair["sessions"] for pair in pairs] == [
        ["sub-one_ses-seed0", "sub-one_ses-seed1"],
        ["sub-one_ses-seed0", "sub-two"],
        ["sub-one_ses-seed1", "sub-two"],
    ]
    tasks = ("archeology", "pathology")
    a, b = ({(t, n): t_of(dataset, w, t, n) for t in tasks for n in (1, 2)} for w in WHO[:2])
    same = [np.corrcoef(a[t, n], b[t, 3 - n])[0, 1] for t in tasks for n in (1, 2)]
    cross = [
        np.corrcoef(a[t, n], b[u, 3 - n])[0, 1] for t, u in (tasks, tasks[::-1]) for n in (1, 2)
    ]
    assert pairs[0]["same_task_r"] == pytest.approx(np.mean(same), abs=1e-5)
    assert pairs[0]["cross_task_r"] == pytest.approx(np.mean(cross), abs=1e-5)
    assert pairs[0]["same_task_r"] > 0.5 > pairs[0]["cross_task_r"]
    assert pairs[0]["same_prompts_r"] > pairs[0]["same_task_r"]


def test_comparison_says_none_where_there_is_nothing_to_compare():
    one = {("pathology", run): np.arange(5.0) for run in (0, 1)}
    assert overview.between(one, one)["same_task_r"] is None
    assert overview.between(one, one)["same_prompts_r"] == pytest.approx(1)
    other = {("archeology", run): np.arange(5.0) for run in (0, 1, 2)}
    assert set(overview.between(one, other).values()) == {None}


def test_only_what_changed_is_analysed_again(changeable):
    before = {name: path.stat().st_mtime_ns for name, path in reports(changeable).items()}
    text = {name: path.read_bytes() for name, path in reports(changeable).items()}
    run = planted("pathology", 2, seed=1, name="one", Name=EVIL, **SEED[1])
    bids.write(run, changeable, overwrite=True)
    study.analyse_all(changeable, measured=[NullPlan(n=3)], verbose=0)
    again = {
        name
        for name, path in reports(changeable).items()
        if path.stat().st_mtime_ns != before[name]
    }
    assert again == {"sub-one/ses-seed1"}
    assert text["sub-one/ses-seed1"] != reports(changeable)["sub-one/ses-seed1"].read_bytes()
    study.analyse_all(changeable, measured=[NullPlan(n=4)], verbose=0)
    assert bids.read_summary(changeable, WHO[2])["null"]["relabelled"]["n_relabellings"] == 4


def call(capsys, *args):
    code = cli.main([str(arg) for arg in args])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_commands_take_one_session(changeable, capsys):
    options = ["--subject", "one", "--session", "seed1", "--quiet", "--json"]
    code, out, _ = call(capsys, "glm", changeable, *options, "--alpha", "0.2")
    assert code == 0
    summary = bids.read_summary(changeable, ("one", "seed1"))
    assert (
        summary["tasks"]["pathology"]["n_active"]
        == json.loads(out)["tasks"]["pathology"]["n_active"]
    )
    assert summary["tasks"]["pathology"]["threshold"].startswith("fdr 0.2")
    assert summary["options"] == {"n_null": 3}  # which a repair takes
    assert "made_from" not in summary  # so that the next run analyses it anew
    assert "made_from" in bids.read_summary(changeable, ("one", "seed0"))
    for command in ("repeatability", "null", "report"):
        extra = ["--n", "2"] if command == "null" else []
        assert call(capsys, command, changeable, *options, *extra)[0] == 0
    code, out, _ = call(capsys, "where", changeable, "--unit", "h.1.mlp:3", *options)
    assert json.loads(out)["unit"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "several models, name one: one, two"),
        (["--subject", "one"], "several sessions, name one: seed0, seed1"),
        (["--subject", "two", "--session", "x"], "no session 'x'"),
    ],
)
def test_a_session_that_is_not_named_is_asked_for(dataset, options, message, capsys):
    code, _, err = call(capsys, "repeatability", dataset, *options)
    assert code == 2
    assert message in err


def test_report_makes_all_pages_again(changeable, capsys):
    pages = [*reports(changeable).values(), changeable / bids.DERIVATIVES / "report.html"]
    before = [page.read_bytes() for page in pages]
    for page in pages:
        page.unlink()
    code, out, _ = call(capsys, "report", changeable, "--quiet")
    assert code == 0
    assert out.strip() == str(pages[-1])
    assert [page.read_bytes() for page in pages] == before


def test_a_session_without_numbers_is_named(changeable):
    (changeable / bids.DERIVATIVES / "sub-two" / "summary.json").unlink()
    with pytest.raises(report.ReportError, match="sub-two has not been analysed"):
        report.compare_sessions(changeable)
    (changeable / bids.SUMMARY).unlink()
    with pytest.raises(report.ReportError, match="nothing to report"):
        report.write_overview(changeable)
