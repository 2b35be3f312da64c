"""A real Dask cluster: the same bytes, also when a worker is killed or the user interrupts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import pytest
import torch
from campaign import counted
from distributed import Client, LocalCluster
from tests_support import assert_same, contents, make_dataset

from llm2nifti import bids, cli, cluster, study
from llm2nifti.experiments.maps.measure import measure
from llm2nifti.experiments.maps.plan import GlmPlan
from llm2nifti.experiments.nulls.plan import NullPlan
from llm2nifti.plans import Design, ModelChoice, ScanPlan

STUDY = """
dataset = "ds"
[design]
tasks = ["pathology"]
n_runs = 2
n_blocks = 2
trials_per_block = 6
n_frames = 4
[recording]
batch_size = 2
[[model]]
name = "{llama}"
subject = "llama"
seed = [0, 1]
temperature = 0.9
[[model]]
name = "{gpt2}"
"""
N_RUNS = 2 * (2 + 1) * 2  # runs, sessions, trained and untrained


def write_study(folder: Path, tiny_folders, **changes: str) -> Path:
    folder.mkdir()
    path = folder / "study.toml"
    names = {kind: tiny_folders[kind] for kind in ("llama", "gpt2")}
    path.write_text(STUDY.format(**{**names, **changes}))
    return path


def words(path: Path, *options: str) -> list[str]:
    return ["scan", str(path), "--quiet", "--threads", "1", *options]


@pytest.fixture(scope="module")
def alone(tiny_folders, tmp_path_factory):
    """Files of the dataset that one process makes, and with how many operations."""
    path = write_study(tmp_path_factory.mktemp("alone") / "a", tiny_folders)
    done, n_operations = counted.run(words(path), path.parent)
    assert done.returncode == 0, done.stderr
    return contents(path.parent / "ds"), n_operations


@pytest.fixture(scope="module")
def two_workers():
    """A scheduler with two worker processes, which its nannies start again when they die."""
    with (
        LocalCluster(2, threads_per_worker=1, dashboard_address=None, silence_logs=60) as running,
        Client(running, set_as_default=False) as client,
    ):
        yield running, client


def test_interrupted_and_with_a_killed_worker_it_ends_with_the_same_bytes(
    alone, tiny_folders, tmp_path, validate
):
    """SIGTERM reaches the command alone, SIGINT its workers too, SIGKILL one worker."""
    path = write_study(tmp_path / "a", tiny_folders)
    root, line = path.parent / "ds", words(path, "--n-jobs", "2")
    for signal, ended in (("SIGTERM", "ended by SIGTERM"), ("SIGINT", "interrupted")):
        done, _ = counted.run(line, path.parent, at=alone[1] // 4, signal=signal)
        assert done.stderr == f"{ended}; the same command resumes\n"
        assert done.returncode == counted.CODES[signal]
        assert len(bids.runs(root)) < N_RUNS
    options = {"at": 60, "signal": "SIGKILL", "workers": True}
    done, n_operations = counted.run(line, path.parent, **options)
    assert (done.returncode, done.stderr) == (0, "")
    assert path.parent.with_suffix(".log.sent").exists()  # a worker was killed, in the middle
    assert n_operations > 2 * options["at"]
    assert len(bids.runs(root)) == N_RUNS
    validate(root)
    assert_same(root, alone[0])


def small_plan(tiny_folders, **changes) -> ScanPlan:
    """One run of a tiny model."""
    design = Design(("pathology",), n_runs=1, n_blocks=2, trials_per_block=4, n_frames=1)
    return ScanPlan(ModelChoice(**{"name": str(tiny_folders["llama"]), **changes}), design)


def test_workers_share_the_cores_and_put_their_threads_back(two_workers, tiny_folders, tmp_path):
    running, client = two_workers
    before = client.run(torch.get_num_threads)
    study.scan(tmp_path / "ds", small_plan(tiny_folders), verbose=0, dask=running.scheduler_address)
    run = bids.read(tmp_path / "ds", task="pathology")
    assert run.sidecar["Threads"] == max(1, len(os.sched_getaffinity(0)) // 2)
    study.scan(
        tmp_path / "other",
        small_plan(tiny_folders),
        verbose=0,
        threads=3,
        dask=running.scheduler_address,
    )
    assert bids.read(tmp_path / "other", task="pathology").sidecar["Threads"] == 3
    assert client.run(torch.get_num_threads) == before
    assert not (tmp_path / "ds" / bids.WORK).exists()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"gpt2": "nowhere/model"}, [], "nowhere/model"),
        ({}, ["--n-jobs", "0"], "n_jobs is 0; give -1 for one process a core, or 1 or more"),
        ({}, ["--dask", "nonsense"], "address of a scheduler"),
        (
            {},
            ["--n-jobs", "2", "--threads", "0"],
            "--threads is '0'; it must be a whole number of at least 1",
        ),
    ],
)
def test_mistakes_are_the_same_one_line_as_without_a_cluster(
    changes, options, message, tiny_folders, tmp_path, capfd
):
    path = write_study(tmp_path / "a", tiny_folders, **changes)
    capfd.readouterr()  # what saving the models printed
    options = options or ["--n-jobs", "2"]
    assert cli.main(["scan", str(path), "--quiet", *options]) == 2
    err = capfd.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (path.parent / "ds").exists()


def test_a_scheduler_that_does_not_answer_is_said_in_one_line(
    monkeypatch, tiny_folders, tmp_path, capfd
):
    monkeypatch.setattr(cluster, "_PATIENCE", 1)
    path = write_study(tmp_path / "a", tiny_folders)
    assert cli.main(["scan", str(path), "--dask", "tcp://127.0.0.1:9", "--quiet"]) == 1
    err = capfd.readouterr().err
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in err
    assert len(err.strip().splitlines()) == 1
    assert not (path.parent / "ds").exists()


def test_a_scheduler_without_workers_is_said_to_have_none(monkeypatch, tiny_folders, tmp_path):
    monkeypatch.setattr(cluster, "_PATIENCE", 2)
    with (
        LocalCluster(n_workers=0, dashboard_address=None) as running,
        pytest.raises(cluster.ClusterError, match="has no worker"),
    ):
        study.scan(tmp_path / "ds", small_plan(tiny_folders), dask=running.scheduler_address)


def test_a_lost_scheduler_is_said_in_one_line(tiny_folders, tmp_path):
    code = (
        "import os, sys, time\nfrom distributed import LocalCluster\n"
        "if __name__ == '__main__':\n"
        "    c = LocalCluster(1, processes=False, protocol='tcp')\n"
        "    print(c.scheduler_address, flush=True)\n"
        "    while not os.path.exists(sys.argv[1]): time.sleep(.01)\n"
        "    os._exit(1)\n"
    )
    script = tmp_path / "scheduler.py"
    script.write_text(code)
    marker = tmp_path / "ds" / bids.WORK / "locks"  # a worker has begun
    process = subprocess.Popen(
        [sys.executable, script, marker],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    address = process.stdout.readline().strip()
    try:
        with pytest.raises(cluster.ClusterError, match="the same command resumes"):
            study.scan(tmp_path / "ds", small_plan(tiny_folders), verbose=0, dask=address)
    finally:
        process.kill()
        process.communicate()


def test_workers_in_another_folder_find_the_dataset(
    two_workers, tiny_folders, tmp_path, monkeypatch
):
    running, client = two_workers
    (tmp_path / "elsewhere").mkdir()
    before = client.run(os.getcwd)
    client.run(os.chdir, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    plan = small_plan(tiny_folders, untrained=False)
    path = study.run(
        Path("ds"), plan, measured=[NullPlan(n=3)], verbose=0, dask=running.scheduler_address
    )
    assert path == Path("ds") / bids.DERIVATIVES / "report.html"
    assert path.exists()
    assert not list((tmp_path / "elsewhere").iterdir())
    client.run(os.chdir, next(iter(before.values())))


def test_a_file_that_is_missing_is_not_called_a_lost_scheduler(two_workers, tmp_path):
    with (
        cluster.mapped(1, two_workers[0].scheduler_address) as mapper,
        pytest.raises(FileNotFoundError, match=r"nowhere\.nii"),  # nibabel's has no errno
    ):
        list(mapper(nib.load, [tmp_path / "nowhere.nii"]))


def test_without_distributed_the_extra_is_named(monkeypatch, tiny_folders, tmp_path):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(cluster.DaskError, match=r"pip install 'llm2nifti\[cluster\]'"):
        study.scan(tmp_path / "ds", small_plan(tiny_folders), n_jobs=2)
    assert not (tmp_path / "ds").exists()


def test_slabs_of_large_runs_are_fitted_by_the_workers(two_workers, tmp_path):
    root = make_dataset(tmp_path / "ds")
    runs = bids.session(root)
    whole = measure(runs, GlmPlan(), verbose=0).tasks
    running, client = two_workers
    with cluster.mapped(1, running.scheduler_address) as mapper:
        spread = measure(runs, GlmPlan(), verbose=0, mapper=mapper).tasks
    assert spread.keys() == whole.keys()
    for task, numbers in spread.items():
        assert numbers.n_active == whole[task].n_active
        assert numbers.max_t == pytest.approx(whole[task].max_t, rel=1e-5)
    seen = client.run_on_scheduler(
        lambda dask_scheduler: [str(entry[0]) for entry in dask_scheduler.transition_log]
    )
    assert any(key.startswith("llm2nifti-analyse") for key in seen)
