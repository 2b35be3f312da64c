"""A study of several models and sessions from one file: whole, resumable, extensible."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from campaign import counted
from tests_support import assert_same, contents

from llm2nifti import bids, cli, scanner, study
from llm2nifti.plans import Design, ModelChoice, ScanPlan, Settings
from llm2nifti.study import StudyError, plans
from llm2nifti.study.studyfile import read_study

DESIGN = """
dataset = "ds"
n_null = 3
[design]
tasks = ["pathology", "archeology"]
n_runs = 2
n_blocks = 2
trials_per_block = 4
n_frames = 2
[recording]
batch_size = 6
"""
TWO_SEEDS = """
[[model]]
name = "tiny-llama"
subject = "small llama"
seed = [0, 1]
temperature = 0.9
"""
PLAIN = """
[[model]]
name = "tiny-gpt2"
untrained = false
"""
WHO = ["sub-smallllama_ses-seed0", "sub-smallllama_ses-seed1", "sub-tinygpt2"]


def write_study(folder: Path, tiny_folders, *models: str) -> Path:
    """Study file beside links to the models, which it names relative to itself."""
    folder.mkdir(exist_ok=True)
    for kind in ("llama", "gpt2"):
        link = folder / f"tiny-{kind}"
        if not link.exists():
            link.symlink_to(tiny_folders[kind])
    path = folder / "study.toml"
    path.write_text(DESIGN + "".join(models))
    return path


def words(path: Path) -> list[str]:
    return ["run", str(path), "--quiet", "--threads", "1"]


def command(path: Path) -> list[str]:
    return [sys.executable, "-m", "llm2nifti.cli", *words(path)]


# Workers of a cluster compute with one thread, and the last digits of a fit depend on that.
@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            patch.setenv(name, "1")
        yield


def run(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def whole(tiny_folders, tmp_path_factory):
    """A finished `llm2nifti run study.toml`, made by a process of its own; and what it printed."""
    path = write_study(tmp_path_factory.mktemp("study") / "a", tiny_folders, TWO_SEEDS, PLAIN)
    done, n_operations = counted.run(words(path), path.parent)
    assert done.returncode == 0, done.stderr
    return path.parent / "ds", done.stdout, n_operations


def test_one_valid_dataset_with_a_subject_a_model_and_a_session_a_seed(whole, validate):
    root, printed, _ = whole
    validate(root)
    table = bids.runs(root)
    found = set(zip(table["subject"], table["session"], table["untrained"], strict=True))
    assert found == {
        ("smallllama", "seed0", False),
        ("smallllama", "seed1", False),
        ("smallllamauntrained", "seed0", True),
        ("smallllamauntrained", "seed1", True),
        ("tinygpt2", "", False),
    }
    assert len(table) == 5 * 4
    sessions = bids.read_tsv(root / "sub-smallllama" / "sub-smallllama_sessions.tsv")
    assert list(sessions["seed"]) == [0, 1]
    assert set(sessions["temperature"]) == {0.9}
    for who in ("smallllama", "seed1", "tinygpt2", "maps between sessions"):
        assert who in printed
    assert str(root / bids.DERIVATIVES / "report.html") in printed


def test_sessions_sample_differently_and_their_untrained_copies_replay_them(whole):
    root, *_ = whole
    tokens = {}
    for session in ("seed0", "seed1"):
        of_session = {"task": "pathology", "run": 2, "session": session}
        trained = bids.read(root, subject="small llama", **of_session)
        copy = bids.read(root, subject="small llama-untrained", **of_session)
        assert trained.sidecar["Model"]["Session"] == session
        tokens[session] = list(trained.tokens["token_id"])
        assert list(copy.tokens["token_id"]) == tokens[session]
        assert not np.allclose(copy.values(), trained.values())
    assert tokens["seed0"] != tokens["seed1"]


def test_every_session_and_the_whole_are_reported(whole):
    root, *_ = whole
    summary = bids.read_summary(root)
    assert [bids.folder_of(s["subject"], s["session"]).as_posix() for s in summary["sessions"]] == [
        "sub-smallllama/ses-seed0",
        "sub-smallllama/ses-seed1",
        "sub-tinygpt2",
    ]
    assert [pair["sessions"] for pair in summary["between_sessions"]] == [WHO[:2]]
    for row in summary["sessions"]:
        page = root / bids.DERIVATIVES / row["folder"] / "report.html"
        assert row["model"] in page.read_text("utf-8")


def test_killed_and_gone_on_by_a_cluster_it_ends_with_the_same_bytes(whole, tiny_folders, tmp_path):
    path = write_study(tmp_path / "a", tiny_folders, TWO_SEEDS, PLAIN)
    killed, _ = counted.run(words(path), path.parent, at=whole[2] // 3, signal="SIGKILL")
    assert killed.returncode == counted.CODES["SIGKILL"], killed.stderr
    assert 0 < len(bids.runs(path.parent / "ds")) < 20
    done = run([*command(path), "--n-jobs", "2"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:5] == whole[1].splitlines()[:5]
    assert_same(path.parent / "ds", contents(whole[0]))


def test_a_model_is_added_without_scanning_the_others_again(whole, tiny_folders, tmp_path):
    path = write_study(tmp_path / "a", tiny_folders, PLAIN)
    root = path.parent / "ds"
    assert cli.main(["scan", str(path), "--quiet", "--threads", "1"]) == 0
    times = {p: p.stat().st_mtime_ns for p in root.rglob("*_bold.*")}
    write_study(tmp_path / "a", tiny_folders, TWO_SEEDS, PLAIN)
    assert cli.main(["scan", str(path), "--quiet", "--threads", "1"]) == 0
    assert {p: p.stat().st_mtime_ns for p in times} == times
    expected, found = contents(whole[0]), contents(root)
    images = [name for name in expected if name.endswith("_bold.nii")]
    assert len(images) == 2 * 5 * 4
    assert [name for name in images if found[name] != expected[name]] == []
    kept, whole_plan = (json.loads(files[str(plans.PLAN_FILE)]) for files in (found, expected))
    # The first model's tokens are those that controls were matched in; here, both have the same.
    assert (kept.pop("tokens_by"), whole_plan.pop("tokens_by")) == (
        "sub-tinygpt2",
        "sub-smallllama_ses-seed0",
    )
    assert kept == whole_plan


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([PLAIN], "sub-smallllama_ses-seed0 was scanned, now it is not asked for"),
        ([TWO_SEEDS.replace("0.9", "0.8"), PLAIN], "settings.temperature was 0.9, now 0.8"),
        ([TWO_SEEDS, PLAIN.replace("false", "true")], "tinygpt2.model.untrained was False"),
    ],
)
def test_a_changed_study_is_refused(models, message, whole, tiny_folders, tmp_path, capsys):
    path = write_study(tmp_path / "a", tiny_folders, *models)
    shutil.copytree(whole[0], path.parent / "ds")
    assert cli.main(["run", str(path), "--quiet"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_the_plan_names_no_path_of_this_machine(whole):
    kept = json.loads((whole[0] / plans.PLAN_FILE).read_text())
    assert list(kept["scans"]) == WHO
    assert {scan["model"]["name"] for scan in kept["scans"].values()} == {
        "tiny-llama",
        "tiny-gpt2",
    }


def small_plan(tiny_folders) -> ScanPlan:
    """One run of a tiny model."""
    design = Design(("pathology",), n_runs=1, n_blocks=2, trials_per_block=4, n_frames=1)
    return ScanPlan(ModelChoice(str(tiny_folders["llama"]), untrained=False), design)


def test_a_dataset_from_before_there_were_some_settings_is_resumed(tiny_folders, tmp_path):
    plan = small_plan(tiny_folders)
    study.scan(tmp_path / "ds", plan, verbose=0)
    path = tmp_path / "ds" / plans.PLAN_FILE
    kept = json.loads(path.read_text())
    (scan,) = kept["scans"].values()
    del scan["model"]["revision"], scan["settings"]["mode"], scan["settings"]["frames"]
    path.write_text(json.dumps(kept))
    (tmp_path / "ds" / bids.manifest.MANIFEST).unlink()  # there was none
    study.scan(tmp_path / "ds", plan, verbose=0)
    assert list(json.loads(path.read_text())["scans"]) == ["sub-tinyllama"]


def test_a_dataset_keeps_its_batch_size_and_a_new_one_gets_that_of_its_model(
    tiny_folders, tmp_path
):
    plan = small_plan(tiny_folders)
    study.scan(tmp_path / "ds", replace(plan, settings=Settings(batch_size=3)), verbose=0)
    more = replace(plan, model=ModelChoice(str(tiny_folders["gpt2"]), untrained=False))
    study.scan(tmp_path / "ds", [plan, more], verbose=0)
    scans = json.loads((tmp_path / "ds" / plans.PLAN_FILE).read_text())["scans"]
    assert [scan["settings"]["batch_size"] for scan in scans.values()] == [3, 128]
    with pytest.raises(StudyError, match=r"batch_size was 3, now 4"):
        study.scan(tmp_path / "ds", [replace(plan, settings=Settings(batch_size=4)), more])
    study.scan(tmp_path / "ds", [plan, more], overwrite=True, verbose=0)
    scans = json.loads((tmp_path / "ds" / plans.PLAN_FILE).read_text())["scans"]
    assert [scan["settings"]["batch_size"] for scan in scans.values()] == [128, 128]


def test_labels_that_clash_are_refused_before_anything_is_written(tiny_folders, tmp_path):
    name = str(tiny_folders["llama"])
    choices = [ModelChoice(name, session="a"), ModelChoice(name)]
    with pytest.raises(StudyError, match="with sessions and without"):
        study.scan(tmp_path / "ds", [ScanPlan(choice) for choice in choices])
    assert not (tmp_path / "ds").exists()


@pytest.mark.parametrize("other", [{"design": Design(("archeology",))}, {"compress": True}])
def test_plans_that_differ_in_what_they_share_are_refused(tiny_folders, tmp_path, other):
    shown = Design(("pathology",))
    plans = [
        ScanPlan(ModelChoice(str(tiny_folders["llama"])), shown),
        ScanPlan(
            ModelChoice(str(tiny_folders["gpt2"])), **{"design": Design(("pathology",)), **other}
        ),
    ]
    with pytest.raises(StudyError, match=f"one {next(iter(other))}; sub-tinyllama has"):
        study.scan(tmp_path / "ds", plans)
    assert not (tmp_path / "ds").exists()


def test_the_last_models_mistake_is_said_before_the_first_is_scanned(tiny_folders, tmp_path):
    wrong = '\n[[model]]\nname = "nowhere/model"\n'
    path = write_study(tmp_path / "a", tiny_folders, PLAIN, wrong)
    assert cli.main(["scan", str(path), "--quiet"]) == 2
    assert not (path.parent / "ds").exists()
    assert read_study(path).plans[1].model.name == "nowhere/model"


def test_threads_are_put_back(tiny_folders, tmp_path):
    import torch

    before = torch.get_num_threads()
    plan = small_plan(tiny_folders)
    study.scan(tmp_path / "ds", plan, verbose=0, threads=before + 1)
    assert torch.get_num_threads() == before
    run = bids.read(tmp_path / "ds", task="pathology")
    assert run.sidecar["Threads"] == before + 1
    with pytest.raises(scanner.ScanError, match="threads is 0"):
        study.scan(tmp_path / "ds", plan, verbose=0, threads=0)


def test_a_half_made_recording_of_other_threads_is_begun_again(tiny_folders, tmp_path):
    import torch

    plan = small_plan(tiny_folders)
    folder = tmp_path / "ds" / bids.WORK / "sub-tinyllama_task-pathology_run-1"
    study.scan(tmp_path / "ds", plan, verbose=0, threads=1)
    next((tmp_path / "ds").rglob("*desc-trial_bold.json")).unlink()
    folder.mkdir(parents=True)
    half = {"info": {"Threads": torch.get_num_threads() + 1}}
    (folder / "plan.json").write_text(json.dumps(half))
    study.scan(tmp_path / "ds", plan, verbose=0, threads=1)
    assert len(bids.runs(tmp_path / "ds")) == 1
