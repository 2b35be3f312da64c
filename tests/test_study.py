"""The whole job on tiny models: the same result after any interruption, clear refusals."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import tiny
from campaign import counted
from tests_support import assert_same, contents, make_dataset

from llm2nifti import bids, cli, experiments, glm, scanner, stimuli, study
from llm2nifti.experiments.detection.plan import DetectPlan
from llm2nifti.experiments.nulls.plan import NullPlan
from llm2nifti.experiments.repeatability.plan import RepeatabilityPlan
from llm2nifti.plans import Design, ModelChoice, PlanError, ScanPlan, Settings
from llm2nifti.scanner import ScanError
from llm2nifti.study import StudyError, crews, scanning
from llm2nifti.study.plans import PLAN_FILE, load, paradigms

SIZES = ["--n-runs", "2", "--n-blocks", "2", "--trials-per-block", "4", "--n-frames", "2"]
TASKS = ["--task", "pathology", "--task", "archeology", "--batch-size", "6", "--n-null", "5"]


def small_plan(folder, **changes):
    options = {"tasks": ("pathology", "archeology"), "n_runs": 2, "n_blocks": 2, "n_frames": 2}
    design = Design(**{**options, "trials_per_block": 4, **changes})
    return ScanPlan(ModelChoice(name=str(folder)), design)


def words(folder, root):
    return ["run", str(root), "--quiet", "--model", str(folder), *SIZES, *TASKS]


def command(folder, root):
    return [sys.executable, "-m", "llm2nifti.cli", *words(folder, root)]


@pytest.fixture(scope="module")
def uninterrupted(tiny_folders, tmp_path_factory):
    """A finished `llm2nifti run` of a tiny model, made by a process of its own."""
    root = tmp_path_factory.mktemp("study") / "ds"
    done, n_operations = counted.run(words(tiny_folders["llama"], root), root)
    assert done.returncode == 0, done.stderr
    return root, done.stdout, n_operations


def test_run_writes_a_valid_dataset_with_report_and_summary(uninterrupted, validate):
    root, printed, _ = uninterrupted
    validate(root)
    assert (root / bids.DERIVATIVES / "report.html").exists()
    summary = bids.read_summary(root)
    assert set(summary["tasks"]) == {"pathology", "archeology"}
    assert "Repeatability r" in printed
    assert "participants.tsv" in printed or "more files" in printed
    assert str(bids.DERIVATIVES / "report.html") in printed


def test_killed_again_and_again_it_ends_with_the_same_bytes(uninterrupted, tiny_folders, tmp_path):
    whole, _, n_operations = uninterrupted
    root, line = tmp_path / "ds", words(tiny_folders["llama"], tmp_path / "ds")
    for signal in ("SIGINT", "SIGKILL", "SIGHUP"):
        killed, _ = counted.run(line, root, at=n_operations // 4, signal=signal)
        assert killed.returncode == counted.CODES[signal], killed.stderr
        assert len(killed.stderr.splitlines()) == (signal != "SIGKILL"), killed.stderr
    again = subprocess.run(
        command(tiny_folders["llama"], root), capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert_same(root, contents(whole))


def test_a_finished_run_is_not_scanned_again(uninterrupted, tiny_folders, tmp_path):
    root = tmp_path / "ds"
    shutil.copytree(uninterrupted[0], root)
    bold = next((root / "sub-tinyllama" / "func").glob("*_bold.nii"))
    before = bold.stat().st_mtime_ns
    study.scan(root, _plan_of(root, tiny_folders), verbose=0)
    assert bold.stat().st_mtime_ns == before


def _plan_of(root, tiny_folders):
    plan = json.loads((root / PLAN_FILE).read_text())
    (scan,) = plan["scans"].values()
    shown = {k: v for k, v in plan["design"].items() if k != "stimuli_path"}
    design = Design.of(shown)
    model = ModelChoice(name=str(tiny_folders["llama"]))
    return ScanPlan(model, design, Settings(**scan["settings"]))


def test_other_settings_are_refused_and_named(uninterrupted, tiny_folders, tmp_path):
    root = tmp_path / "ds"
    shutil.copytree(uninterrupted[0], root)
    with pytest.raises(StudyError, match=r"design\.trials_per_block was 4, now 3"):
        study.scan(root, small_plan(tiny_folders["llama"], trials_per_block=3), verbose=0)


def described(root):
    """Authors and licence of a dataset and of its derivatives."""
    folders = (root, root / bids.DERIVATIVES)
    contents_of = [bids.read_json(folder / "dataset_description.json") for folder in folders]
    return [(content["Authors"], content["License"]) for content in contents_of]


def test_whose_a_dataset_is_can_be_said_later_and_decides_nothing(tiny_folders, tmp_path, validate):
    root = tmp_path / "ds"
    scan = ["scan", str(root), "--model", str(tiny_folders["llama"]), "--task", "pathology"]
    scan += [*SIZES, "--no-untrained", "--quiet"]
    assert cli.main(scan) == 0
    assert described(root) == [(["Not stated"], "Not stated")] * 2
    before = contents(root)
    whose = ["--author", "Jane Doe, John Roe", "--author", "Wu", "--license", "CC-BY-4.0"]
    for options in (whose, []):  # nothing is scanned again, and what is not given stays
        assert cli.main([*scan, *options]) == 0
        assert described(root) == [(["Jane Doe", "John Roe", "Wu"], "CC-BY-4.0")] * 2
    after = contents(root)
    changed = {name for name in after if after[name] != before.get(name)}
    assert {Path(name).name for name in changed} == {
        "dataset_description.json",
        "llm2nifti_manifest.tsv",
    }
    validate(root)
    (root / bids.DERIVATIVES / "dataset_description.json").unlink()
    assert cli.main([*scan, "--overwrite", "--license", "CC0"]) == 0
    assert described(root) == [(["Jane Doe", "John Roe", "Wu"], "CC0")] * 2


def test_plans_of_other_authors_are_refused(tiny_folders, tmp_path):
    plan = small_plan(tiny_folders["llama"])
    other = dataclasses.replace(plan, model=ModelChoice(name="gpt2"), author=("Jane Doe",))
    with pytest.raises(StudyError, match="all plans of a dataset have one author"):
        study.scan(tmp_path / "ds", [plan, other], verbose=0)


def test_overwrite_starts_anew(tiny_folders, tmp_path):
    plan = small_plan(tiny_folders["llama"], tasks=("pathology",))
    study.scan(tmp_path / "ds", plan, verbose=0)
    other = small_plan(tiny_folders["llama"], tasks=("archeology",))
    study.scan(tmp_path / "ds", other, overwrite=True, verbose=0)
    assert set(bids.runs(tmp_path / "ds")["task"]) == {"archeology"}


def test_two_processes_do_not_write_to_one_folder(tiny_folders, tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from llm2nifti.bids import locked\n"
        f"with locked(Path({str(tmp_path / 'ds')!r})):\n"
        "    print('locked', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(bids.InUseError, match="another llm2nifti is writing"):
            study.scan(tmp_path / "ds", small_plan(tiny_folders["llama"]), verbose=0)
    finally:
        holder.kill()
        holder.communicate()


def test_bad_sizes_change_nothing_on_disk(tiny_folders, tmp_path):
    with pytest.raises(ValueError, match="needs"):
        study.scan(tmp_path / "ds", small_plan(tiny_folders["llama"], n_runs=99), verbose=0)
    assert not (tmp_path / "ds").exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounting tmpfs needs root")
def test_full_disk_is_one_clear_line(tiny_folders, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=150k", "tmpfs", small],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        done = subprocess.run(
            command(tiny_folders["llama"], small / "ds"),
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        subprocess.run(["umount", small], check=True)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "disk is full" in done.stderr


def test_unwritable_folder_is_one_clear_line(tiny_folders):
    with pytest.raises(bids.InUseError, match="cannot write to"):
        study.scan(Path("/proc/ds"), small_plan(tiny_folders["llama"]), verbose=0)


def test_tasks_with_the_same_label_are_refused(tiny_folders, tmp_path):
    own = tmp_path / "mine.tsv"
    own.write_text("task\tprompt\n" + "".join(f"my-task\ta{i}\nmy task\tb{i}\n" for i in range(40)))
    plan = small_plan(tiny_folders["llama"], tasks=(), stimuli=str(own))
    with pytest.raises(stimuli.StimulusError, match=r"row 3: .* same BIDS label as 'my-task'"):
        study.scan(tmp_path / "ds", plan, verbose=0)


def test_own_stimuli_work_end_to_end(tiny_folders, tmp_path):
    own = tmp_path / "mine.tsv"
    own.write_text("task\tprompt\n" + "".join(f"birds!\tWhich bird is {i}?\n" for i in range(40)))
    plan = small_plan(tiny_folders["llama"], tasks=(), stimuli=str(own))
    study.scan(tmp_path / "ds", plan, verbose=0)
    run = bids.read(tmp_path / "ds", task="birds!", run=2)
    assert run.events.loc[run.events["trial_type"] == "birds", "prompt"].str.contains("bird").all()


def test_maps_on_disk_equal_a_fit_of_the_dataset(uninterrupted):
    import nibabel as nib

    root, *_ = uninterrupted
    runs = [run for run in bids.session(root) if run.task == "pathology"]
    expected = glm.fit(runs).contrast("pathology - control")
    path = runs[0].paths.stat_map("t")
    np.testing.assert_allclose(
        nib.load(path).get_fdata(), expected.t_img.get_fdata(), rtol=1e-5, atol=1e-5
    )
    network = nib.load(runs[0].paths.network())
    assert network.get_fdata().sum() == bids.read_summary(root)["tasks"]["pathology"]["n_active"]


def test_untrained_copy_is_shown_the_trained_models_tokens(uninterrupted):
    root, *_ = uninterrupted
    trained = bids.read(root, task="pathology", subject="tiny-llama")
    untrained = bids.read(root, task="pathology", subject="tiny-llama-untrained")
    assert list(trained.tokens["token_id"]) == list(untrained.tokens["token_id"])
    assert not np.allclose(trained.values(), untrained.values())


def copies(folder, root, **settings):
    """Jobs of the untrained copy, each with a recording of it by these settings."""
    plan = small_plan(folder)
    model = load(plan.model, untrained=True)
    for design in paradigms(plan.design, plan.model):
        job = scanning.Job(plan, design, untrained=True)
        trained = dataclasses.replace(job, untrained=False).name
        tokens = bids.Run(bids.checking.find_run(root, trained)).tokens.groupby("trial")["token_id"]
        replay = [list(ids) for _, ids in tokens]
        how = {"settings": Settings(**settings), "replay": replay}
        yield job, lambda d=design, h=how, **more: scanner.scan(model, d, **h, **more)


@pytest.fixture
def scanned(tiny_folders, tmp_path):
    study.scan(tmp_path / "ds", small_plan(tiny_folders["llama"]), verbose=0)
    return tmp_path / "ds"


def test_of_the_untrained_copy_one_volume_a_prompt_is_kept(scanned, tiny_folders, validate):
    validate(scanned)
    for job, record in copies(tiny_folders["llama"], scanned, frames="token"):
        run = bids.Run(bids.checking.find_run(scanned, job.name))
        assert run.frames == run.sidecar["Settings"]["frames"] == "trial"
        assert run.frames_img.shape == run.img.shape
        assert run.paths.bold.samefile(run.paths.trial_bold)
        np.testing.assert_allclose(run.values(), record().trial_means(), atol=1e-5)
        trained = bids.read(scanned, task=run.task, run=run.run, subject="tiny-llama")
        assert trained.frames == "token"


def test_copies_with_tokens_stay_and_can_be_mixed_with_others(scanned, tiny_folders, validate):
    for _, record in copies(tiny_folders["llama"], scanned, frames="token"):
        bids.write(record(), scanned, overwrite=True)  # as earlier versions did
    study.run(scanned, small_plan(tiny_folders["llama"]), measured=[NullPlan(n=3)], verbose=0)
    who = {"subject": "tiny-llama-untrained"}
    assert {run.frames for run in bids.session(scanned, **who)} == {"token"}
    plan = DetectPlan(threshold=0.1, n_boot=5)
    whole = experiments.measure(bids.session(scanned), plan, verbose=0).untrained
    assert whole.n_tokens == 2
    next(scanned.rglob("*untrained*_run-2_*desc-trial_bold.json")).unlink()
    study.run(scanned, small_plan(tiny_folders["llama"]), measured=[NullPlan(n=3)], verbose=0)
    assert {run.frames for run in bids.session(scanned, **who)} == {"token", "trial"}
    validate(scanned)
    mixed = experiments.measure(bids.session(scanned), plan, verbose=0).untrained
    assert mixed.n_tokens == 1
    ends = [copy.auc["network"]["control"].mean[-1].value for copy in (whole, mixed)]
    assert ends[0] == ends[1]


def test_a_copy_that_was_begun_with_tokens_is_begun_anew(scanned, tiny_folders):
    job, record = next(copies(tiny_folders["llama"], scanned, frames="token"))
    bids.checking.find_run(scanned, job.name).derivative("desc-trial_bold.json").unlink()
    record(folder=scanned / bids.WORK / job.name)
    study.scan(scanned, small_plan(tiny_folders["llama"]), verbose=0)
    assert bids.Run(bids.checking.find_run(scanned, job.name)).frames == "trial"


def test_one_model_is_held_at_a_time_and_none_after_the_scan(tiny_folders, tmp_path):
    loaded, n_held = [], []

    class Watched(crews.ThisProcess):
        def load(self, choice, *, untrained):
            model = super().load(choice, untrained=untrained)
            loaded.append(weakref.ref(model.module))
            gc.collect()
            n_held.append(len({id(ref()) for ref in loaded if ref()}))
            return model

    with bids.locked(tmp_path / "ds"):
        scanning.scan(tmp_path / "ds", small_plan(tiny_folders["llama"]), crew=Watched(), verbose=0)
    assert len({*map(id, loaded)}) > 1
    assert set(n_held) == {1}
    gc.collect()
    assert not any(ref() for ref in loaded)


def test_tokens_of_the_untrained_copy_are_kept_where_the_plan_asks(tiny_folders, tmp_path):
    plan = small_plan(tiny_folders["llama"], tasks=("pathology",), n_runs=1)
    plan = dataclasses.replace(plan, settings=Settings(frames="token"))
    study.scan(tmp_path / "ds", plan, verbose=0)
    copy = bids.read(tmp_path / "ds", task="pathology", subject="tiny-llama-untrained")
    assert copy.frames == "token"


def test_runs_of_another_origin_are_not_mixed_in(tiny_folders, tmp_path):
    make_dataset(tmp_path / "ds")
    with pytest.raises(StudyError, match="not made by llm2nifti scan"):
        study.scan(tmp_path / "ds", small_plan(tiny_folders["llama"]), verbose=0)


def test_an_edited_stimulus_file_is_noticed(tiny_folders, tmp_path):
    own = tmp_path / "mine.tsv"
    rows = [f"birds\tWhich bird is {i}?\n" for i in range(40)]
    own.write_text("task\tprompt\n" + "".join(rows))
    plan = small_plan(tiny_folders["llama"], tasks=(), stimuli=str(own))
    study.scan(tmp_path / "ds", plan, verbose=0)
    own.write_text("task\tprompt\n" + "".join(rows) + "birds\tWhich bird sings?\n")
    with pytest.raises(StudyError, match="stimuli_sha256"):
        study.scan(tmp_path / "ds", plan, verbose=0)


def test_changed_weights_are_noticed_before_a_run_is_resumed(tiny_folders, tmp_path):
    folder = tmp_path / "tiny-llama"
    shutil.copytree(tiny_folders["llama"], folder)
    plan = small_plan(folder, tasks=("pathology",))
    study.scan(tmp_path / "ds", plan, verbose=0)
    next((tmp_path / "ds").rglob("*_run-2_*desc-trial_bold.json")).unlink()
    tiny.save(folder, rope_theta=500.0, tie_word_embeddings=True)
    with pytest.raises(StudyError, match="weights of tiny-llama changed"):
        study.scan(tmp_path / "ds", plan, verbose=0)


def test_too_long_prompts_are_named_with_their_row_before_the_scan(tiny_folders, tmp_path):
    own = tmp_path / "mine.tsv"
    rows = [f"birds\tWhich bird is {i}?\n" for i in range(16)]
    own.write_text("task\tprompt\n" + "".join(rows[:15]) + f"birds\t{'long ' * 200}\n")
    plan = small_plan(tiny_folders["llama"], tasks=(), stimuli=str(own))
    with pytest.raises(ScanError, match=r"'birds-0016'.*mine\.tsv row 17"):
        study.scan(tmp_path / "ds", plan, verbose=0)
    assert not (tmp_path / "ds").exists()


@pytest.mark.parametrize(
    ("settings", "model"),
    [({"sites": "wings"}, None), ({"template": "chat"}, None), ({}, "/nowhere/model")],
)
def test_what_the_model_lacks_is_said_before_anything_is_written(
    settings, model, tiny_folders, tmp_path
):
    plan = small_plan(model or tiny_folders["llama"])
    plan = dataclasses.replace(plan, settings=Settings(**settings))
    with pytest.raises(ValueError, match=r"wings|no chat template|/nowhere/model"):
        study.scan(tmp_path / "ds", plan, verbose=0)
    assert not (tmp_path / "ds").exists()


def test_one_task_is_analysed_and_reported_without_comparisons(tiny_folders, tmp_path):
    plan = small_plan(tiny_folders["llama"], tasks=("pathology",), trials_per_block=8)
    report = study.run(tmp_path / "ds", plan, measured=[NullPlan(n=3)], verbose=0)
    summary = bids.read_summary(tmp_path / "ds")
    assert "cross_task_r" not in summary["similarity"]
    assert "identification" not in summary
    assert report.exists()


def test_comparisons_of_an_unfinished_dataset_are_refused(tmp_path):
    root = make_dataset(tmp_path / "ds")
    next(root.rglob("*task-pathology_run-2_*desc-trial_bold.json")).unlink()
    with pytest.raises(ValueError, match="same 2 or more runs of every task"):
        experiments.measure(bids.session(root), RepeatabilityPlan(), verbose=0)


def test_no_relabelling_is_refused_before_the_scan(tiny_folders, tmp_path):
    with pytest.raises(PlanError, match="n is 0; it must be a whole number of at least 1"):
        study.run(tmp_path / "ds", small_plan(tiny_folders["llama"]), measured=[NullPlan(n=0)])
    assert not (tmp_path / "ds").exists()
