"""A damaged dataset is not called complete; `check` names the files and `--repair` mends them."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from test_study import SIZES, small_plan
from tests_support import contents, make_dataset

from llm2nifti import bids, cli, report, study
from llm2nifti.bids import checking, manifest
from llm2nifti.study.plans import plans_of

# The command line prints it; elsewhere a warning that nobody expects is an error.
pytestmark = pytest.mark.filterwarnings("always::llm2nifti.bids.manifest.ForeignFileWarning")


def command(folder, root):
    """`llm2nifti run` of a tiny model, with as many relabellings as by default."""
    tasks = ["--task", "pathology", "--task", "archeology"]
    return ["run", str(root), "--quiet", "--model", str(folder), *SIZES, *tasks]


@pytest.fixture(scope="module")
def analysed(tiny_folders, tmp_path_factory):
    """A finished `llm2nifti run` of a tiny model."""
    root = tmp_path_factory.mktemp("repair") / "ds"
    assert cli.main(command(tiny_folders["llama"], root)) == 0
    return root


@pytest.fixture
def dataset(analysed, tmp_path):
    """A copy to damage."""
    return shutil.copytree(analysed, tmp_path / "ds")


def call(capsys, *args):
    code = cli.main([str(arg) for arg in args])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def damaged_files(root):
    """A file of every part of a dataset."""
    paths = bids.read(root, task="pathology").paths
    plan = root / "code" / "llm2nifti_plan.json"
    figure = next((root / bids.DERIVATIVES / "figures").glob("*.png"))
    made = [paths.stat_map("t"), paths.network(), root / bids.SUMMARY, figure]
    return [paths.bold, paths.raw("events.tsv"), paths.anat("units.tsv"), *made, plan]


def same_but_what_was_kept(root, expected):
    """Whether a dataset has the files of another, and beside them only what was set aside."""
    now = {n: d for n, d in contents(root).items() if not n.startswith(str(manifest.ASIDE))}
    return now == contents(expected)


@pytest.mark.parametrize("which", range(7))
def test_check_names_what_is_damaged_and_repair_mends_it(
    dataset, analysed, tiny_folders, capsys, which
):
    path = damaged_files(dataset)[which]
    os.truncate(path, path.stat().st_size - 5)
    code, out, err = call(capsys, "check", dataset)
    assert code == 1
    assert [line.partition(":")[0] for line in out.splitlines()[:-1]] == [str(path)]
    assert "--repair" in err
    options = ["--model", tiny_folders["llama"], "--quiet"]
    code, out, err = call(capsys, "check", dataset, "--repair", *options)
    assert code == 0
    assert err.splitlines() == [line for line in err.splitlines() if "is kept as" in line]
    assert str(path) in err
    assert same_but_what_was_kept(dataset, analysed)
    assert call(capsys, "check", dataset)[0] == 0


def test_nothing_is_moved_where_the_model_is_not_given(dataset, capsys):
    path = bids.read(dataset, task="pathology").paths.bold
    os.truncate(path, path.stat().st_size - 5)
    before = contents(dataset)
    code, _, err = call(capsys, "check", dataset, "--repair", "--quiet")
    assert (code, err.count("\n")) == (2, 1)
    assert "say where it is with --model" in err
    assert contents(dataset) == before


def test_a_repair_that_was_ended_after_its_scan_analyses_too(
    dataset, analysed, tiny_folders, capsys
):
    os.truncate(bids.read(dataset, task="pathology").paths.bold, 1000)
    todo = {"scans": True, "forgets": False, "n_null": 200}
    (dataset / "code" / "llm2nifti_repair.json").write_text(json.dumps(todo))
    plans = plans_of(dataset, model=str(tiny_folders["llama"]))
    study.scan(dataset, plans, verbose=0)  # deletes what was made of the run before
    assert not (dataset / bids.SUMMARY).exists()
    options = ["--model", tiny_folders["llama"], "--quiet"]
    assert call(capsys, "check", dataset, "--repair", *options)[0] == 0
    assert same_but_what_was_kept(dataset, analysed)


def test_the_same_command_mends_a_damaged_run(dataset, analysed, tiny_folders, capsys):
    paths = bids.read(dataset, task="pathology", run=2).paths
    os.truncate(paths.bold, 1000)
    paths.anat("dseg.nii.gz").unlink()
    code, _, err = call(capsys, *command(tiny_folders["llama"], dataset))
    assert code == 0
    assert err.startswith(
        f"llm2nifti run: {paths.bold} is not as llm2nifti wrote it; it is kept as"
    )
    assert same_but_what_was_kept(dataset, analysed)


def test_a_finished_run_is_recognised_and_redone_on_demand(dataset, tiny_folders, capsys):
    maps = bids.read(dataset, task="pathology").paths.stat_map("t")
    times = [maps.stat().st_mtime_ns]
    args = command(tiny_folders["llama"], dataset)
    for extra in ([], ["--redo"]):
        assert call(capsys, *args, *extra)[0] == 0
        times.append(maps.stat().st_mtime_ns)
    assert times[0] == times[1] != times[2]


def test_new_results_of_interventions_are_reported_without_analysing_again(dataset):
    page = dataset / bids.DERIVATIVES / "report.html"
    maps = bids.read(dataset, task="pathology").paths.stat_map("t")
    before = page.stat().st_mtime_ns, maps.stat().st_mtime_ns
    journal = dataset / bids.DERIVATIVES / "lesion_evaluations.jsonl"
    bids.write_text(journal, dataset, "")
    study.analyse_all(dataset, verbose=0)
    assert page.stat().st_mtime_ns != before[0]
    assert maps.stat().st_mtime_ns == before[1]


def test_another_rule_has_another_file_and_every_row_says_its_rule(dataset, capsys):
    paths = bids.read(dataset, task="pathology").paths
    before = paths.network().read_bytes()
    assert call(capsys, "glm", dataset, "--task", "pathology", "--alpha", "0.2", "--quiet")[0] == 0
    assert paths.network().read_bytes() == before
    assert paths.network(desc="networkfdr0p2").exists()
    assert call(capsys, "report", dataset, "--quiet")[0] == 0
    text = (dataset / bids.DERIVATIVES / "report.html").read_text()
    assert "false discovery rate 0.2, two-sided" in text
    assert "false discovery rate 0.05, two-sided" in text
    printed = repr(report.read_session_summary(bids.session(dataset)))
    assert "false discovery rate 0.2, two-sided" in printed
    assert "false discovery rate 0.05, two-sided" in printed


def test_what_was_changed_on_purpose_can_be_accepted(dataset, capsys):
    events = bids.read(dataset, task="pathology").paths.raw("events.tsv")
    events.write_text(events.read_text().replace("What", "Which", 1))
    code, _, err = call(capsys, "repeatability", dataset, "--quiet")
    assert code == 2
    assert f"{events}: " in err
    assert "check" in err
    assert call(capsys, "check", dataset, "--accept")[0] == 0
    assert call(capsys, "repeatability", dataset, "--quiet")[0] == 0
    assert "Which" in events.read_text()


def test_what_cannot_be_repaired_says_so(tmp_path, tiny_folders, capsys):
    root = make_dataset(tmp_path / "ds")
    paths = bids.read(root, task="pathology").paths
    paths.bold.unlink()
    code, _, err = call(capsys, "check", root, "--repair")
    assert code == 2
    assert "llm2nifti_plan.json" in err
    assert call(capsys, "check", tmp_path / "nowhere")[0] == 2


def test_overwrite_spares_a_subject_of_others(tmp_path, tiny_folders):
    root, plan = tmp_path / "ds", small_plan(tiny_folders["llama"], tasks=("pathology",))
    study.scan(root, plan, verbose=0)
    foreign = root / bids.DERIVATIVES / "sub-human" / "func" / "x.nii"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    other = small_plan(tiny_folders["llama"], tasks=("archeology",))
    with pytest.warns(bids.manifest.ForeignFileWarning, match="sub-human"):
        study.scan(root, other, overwrite=True, verbose=0)
    assert foreign.read_text() == "mine"
    assert set(bids.runs(root)["task"]) == {"archeology"}
    assert checking.problems(root) == []


def test_a_summary_that_was_changed_is_refused_by_name(dataset, capsys):
    path = dataset / bids.SUMMARY
    path.write_text('{"other": 1}')
    before = contents(dataset)
    with pytest.raises(bids.DamagedFileError, match=r"summary\.json: not what was written"):
        bids.read_summary(dataset)
    code, _, err = call(capsys, "report", dataset, "--quiet")
    assert (code, err.count("\n")) == (2, 1)
    assert contents(dataset) == before
