"""Sessions of a model: valid, described, read apart, and written by several processes at once."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from tests_support import make_dataset, make_recording

from llm2nifti import bids

MODEL = {"Architecture": "Tiny", "Layers": 2, "Width": 7, "Tokenizer": "Bytes", "Licence": "CC0"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """One model in two sessions, one without; tests do not change it."""
    root = tmp_path_factory.mktemp("sessions") / "ds"
    for seed, session in enumerate(("seed-0", "seed-1")):
        made = {**MODEL, "Session": session, "Revision": "main", "DType": "float32"}
        make_dataset(root, seed=10 * seed, **made, WeightsHash=f"hash{seed}")
    make_dataset(root, seed=50, name="other", Parameters=12)
    return root


def cells(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False).set_index(
        path.read_text("utf-8").split("\t")[0]
    )


def test_official_validator_finds_nothing(dataset, validate):
    validate(dataset)


def test_runs_are_listed_and_read_by_session(dataset):
    table = bids.runs(dataset)
    assert list(dict.fromkeys(zip(table["subject"], table["session"], strict=True))) == [
        ("other", ""),
        ("tinyModel1", "seed0"),
        ("tinyModel1", "seed1"),
    ]
    run = bids.read(dataset, task="archeology", run=2, subject="tiny/Model-1", session="seed-1")
    expected = make_recording("archeology", 2, seed=13).trial_means()
    np.testing.assert_array_equal(run.values(), expected)
    assert repr(run) == "Run: sub-tinyModel1 ses-seed1, task archeology, run 2, 40 trials"
    assert len(bids.session(dataset, subject="tinyModel1", session="seed0")) == 4
    assert len(bids.session(dataset, subject="other")) == 4


@pytest.mark.parametrize(
    ("subject", "session", "message"),
    [
        (None, None, "several models, name one: other, tinyModel1"),
        ("tinyModel1", None, "several sessions, name one: seed0, seed1"),
        ("tinyModel1", "seed2", "no session 'seed2'; there are: seed0, seed1"),
        ("other", "seed0", "no session 'seed0'; there are: none"),
    ],
)
def test_what_is_not_there_is_named(dataset, subject, session, message):
    with pytest.raises(bids.NoSuchRunError, match=message):
        bids.read(dataset, task="pathology", subject=subject, session=session)
    with pytest.raises(bids.NoSuchRunError, match=message):
        bids.session(dataset, subject=subject, session=session)


def test_the_only_session_need_not_be_named(tmp_path):
    bids.write(make_recording(Session="a"), tmp_path)
    assert bids.read(tmp_path, task="pathology").session == "a"


def test_models_and_sessions_are_described(dataset):
    people = cells(dataset / "participants.tsv")
    described = people.loc["sub-tinyModel1"]
    assert dict(described[["layers", "width", "tokenizer", "licence", "parameters"]]) == {
        "layers": "2",
        "width": "7",
        "tokenizer": "Bytes",
        "licence": "CC0",
        "parameters": "3",
    }
    assert described["weights_hash"] == "n/a"  # the sessions differ
    assert people.loc["sub-other", ["weights_hash", "layers", "parameters"]].tolist() == [
        "abc",
        "n/a",
        "12",
    ]
    sessions = cells(dataset / "sub-tinyModel1" / "sub-tinyModel1_sessions.tsv")
    assert sessions["weights_hash"].to_dict() == {"ses-seed0": "hash0", "ses-seed1": "hash1"}
    assert set(sessions["revision"]) == {"main"}
    for path in (dataset / "participants.json", dataset / "sub-tinyModel1"):
        explained = path if path.is_file() else path / "sub-tinyModel1_sessions.json"
        columns = json.loads(explained.read_text())
        table = cells(explained.with_suffix(".tsv"))
        assert [table.index.name, *table.columns] == list(columns)


def test_columns_that_others_add_to_the_participants_stay(tmp_path):
    bids.write(make_recording(name="one", Session="a", WeightsHash="1"), tmp_path)
    path = tmp_path / "participants.tsv"
    bids.write_tsv(path, tmp_path, cells(path).reset_index().assign(group="mine"))
    bids.write(make_recording(name="one", Session="b", WeightsHash="2"), tmp_path)
    bids.write(make_recording(name="two"), tmp_path)
    table = cells(path)
    assert table["group"].to_dict() == {"sub-one": "mine", "sub-two": "n/a"}
    assert table.loc["sub-one", "weights_hash"] == "n/a"


def test_weights_are_known_by_session(dataset):
    assert bids.dataset.weights_hash(dataset, "tinyModel1", "seed1") == "hash1"
    assert bids.dataset.weights_hash(dataset, "other") == "abc"
    assert bids.dataset.weights_hash(dataset, "other", "seed1") is None
    assert bids.dataset.weights_hash(dataset, "nobody") is None


def test_every_session_has_its_own_anatomy(dataset):
    images = [bids.anatomy(dataset, "tinyModel1", session) for session in ("seed0", "seed1")]
    assert not np.array_equal(*(img.get_fdata() for img in images))
    with pytest.raises(bids.NoSuchRunError, match="no anatomical image"):
        bids.anatomy(dataset, "tinyModel1")


def test_plain_nilearn_reads_one_session(dataset):
    run = bids.read(dataset, task="pathology", subject="tinyModel1", session="seed1")
    code = f"""
import sys, warnings
warnings.simplefilter("ignore")
from nilearn.glm.first_level import first_level_from_bids
(model,), (imgs,), (events,), _ = first_level_from_bids(
    {str(dataset)!r}, "pathology", space_label={run.paths.space!r}, sub_labels=["tinyModel1"],
    derivatives_folder="derivatives/llm2nifti", img_filters=[("desc", "trial"), ("ses", "seed1")],
    hrf_model=None, drift_model=None, signal_scaling=False, noise_model="ols",
    mask_img="derivatives")
assert len(imgs) == 2 and all("ses-seed1" in name for name in imgs), imgs
events = [e.loc[e["trial_type"] != "control", ["onset", "duration", "trial_type"]] for e in events]
model.fit(imgs, events=events).compute_contrast("pathology", output_type="effect_size").to_filename(
    sys.argv[1])
assert not any(name.startswith("llm2nifti") for name in sys.modules)
"""
    out = dataset.parent / "effect.nii"
    command = [sys.executable, "-c", code, out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = nib.load(out).get_fdata()[tuple(run.brain.voxels.T)]
    expected = np.zeros(run.brain.n_units)
    for number in (
        1,
        2,
    ):  # no nuisance columns here: means differ
        recording = make_recording("pathology", number, seed=9 + number)
        values = recording.trial_means().astype(float)
        is_task = (recording.paradigm.trials["trial_type"] == "pathology").to_numpy()
        expected += (values[is_task].mean(axis=0) - values[~is_task].mean(axis=0)) / 2
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_pybids_indexes_the_sessions(dataset):
    from bids import BIDSLayout

    layout = BIDSLayout(dataset, derivatives=dataset / bids.DERIVATIVES, validate=False)
    assert set(layout.get_sessions()) == {"seed0", "seed1"}
    found = layout.get(suffix="bold", extension=".nii", scope="raw", session="seed1")
    assert len(found) == 4


def test_overwriting_a_run_touches_its_own_session_alone(tmp_path):
    runs = [bids.write(make_recording(Session=name), tmp_path) for name in ("a", "b")]
    for paths in runs:
        folder = bids.analysis_folder(tmp_path, paths.subject, paths.session)
        for path in (paths.stat_map("t"), paths.network(), folder / "report.html"):
            bids.write_text(path, tmp_path, "old")
    bids.write(make_recording(Session="a", seed=5), tmp_path, overwrite=True)
    left = {
        path.name for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size == 3
    }
    assert left == {runs[1].stat_map("t").name, runs[1].network().name, "report.html"}
    assert (tmp_path / bids.DERIVATIVES / "sub-tinyModel1" / "ses-b" / "report.html").exists()


def test_numbers_are_at_the_root_only_while_one_session_is_analysed(dataset, tmp_path):
    one = make_dataset(tmp_path / "ds")
    bids.write(make_recording(name="copy", WeightsHash="random weights, seed 0"), one)
    whole = one / bids.DERIVATIVES
    assert bids.analysed(one) == [("tinyModel1", "")]
    assert bids.analysis_folder(one, "tinyModel1") == whole
    assert bids.analysis_folder(one, "copy") == whole / "sub-copy"
    assert bids.analysis_folder(dataset, "other") == dataset / bids.DERIVATIVES / "sub-other"
    expected = dataset / bids.DERIVATIVES / "sub-tinyModel1" / "ses-seed0"
    assert bids.analysis_folder(dataset, "tinyModel1", "seed0") == expected


def test_processes_can_write_to_one_dataset_at_the_same_time(tmp_path, validate):
    code = (
        "import sys\nfrom pathlib import Path\nfrom tests_support import make_dataset, bids\n"
        "bids.writing.clear_work = lambda root: None\n"
        "print('ready', flush=True)\nsys.stdin.readline()\n"
        "make_dataset(Path(sys.argv[1]), name=sys.argv[2], Session=sys.argv[3])"
    )
    who = [(name, session) for name in ("one", "two") for session in ("a", "b", "c")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, tmp_path / "ds", *labels],
            cwd=Path(__file__).parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for labels in who
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:  # all have loaded everything: now they write together
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    bids.writing.clear_work(tmp_path / "ds")
    validate(tmp_path / "ds")
    assert list(cells(tmp_path / "ds" / "participants.tsv").index) == ["sub-one", "sub-two"]
    for name in ("one", "two"):
        table = cells(tmp_path / "ds" / f"sub-{name}" / f"sub-{name}_sessions.tsv")
        assert list(table.index) == ["ses-a", "ses-b", "ses-c"]
    assert len(bids.runs(tmp_path / "ds")) == 24


def test_a_write_waits_for_another_process_that_writes_shared_files(tmp_path):
    bids.write(make_recording(name="one"), tmp_path)
    writer = threading.Thread(target=lambda: bids.write(make_recording(name="two"), tmp_path))
    with bids.files.shared(tmp_path):
        writer.start()
        writer.join(2)
        assert writer.is_alive()
        assert list(cells(tmp_path / "participants.tsv").index) == ["sub-one"]
    writer.join()
    assert list(cells(tmp_path / "participants.tsv").index) == ["sub-one", "sub-two"]
