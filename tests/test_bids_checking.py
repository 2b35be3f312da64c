"""Damage is seen: a run counts as done only if its files are there and as they were written."""

from __future__ import annotations

import os

import nibabel as nib
import numpy as np
import pytest
from tests_support import contents, make_dataset, make_recording

from llm2nifti import bids
from llm2nifti.bids import checking, manifest


@pytest.fixture
def dataset(tmp_path):
    """Two tasks of two runs."""
    return make_dataset(tmp_path / "ds")


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    path.write_bytes(b"")


def flip(path):
    """Change one bit; the size stays."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGES = [cut, empty, flip, os.unlink]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_of_any_file_of_a_run_is_seen(dataset, damage):
    paths = bids.read(dataset, task="pathology", run=2).paths
    other = bids.read(dataset, task="archeology").paths
    assert checking.is_intact(paths)
    assert checking.problems(dataset) == []
    before = contents(dataset)
    for path in (*paths.needed, *paths.anatomy):
        damage(path)
        assert not checking.is_intact(paths), path
        assert [problem.path for problem in checking.problems(dataset)] == [path]
        assert checking.is_intact(other) == (path not in paths.anatomy), path
        path.write_bytes(before[str(path.relative_to(dataset))])
        assert checking.is_intact(paths)


def test_a_damaged_run_is_written_again_and_what_was_measured_stays(dataset):
    paths = bids.read(dataset, task="pathology").paths
    lesion = dataset / bids.DERIVATIVES / "lesion.json"
    bids.write_text(lesion, dataset, "{}")
    cut(paths.bold)
    with pytest.warns(bids.manifest.ForeignFileWarning, match="bold.nii"):
        bids.write(make_recording("pathology", 1, seed=0), dataset)
    assert checking.problems(dataset) == []
    assert lesion.exists()
    with pytest.raises(bids.ExistsError):
        bids.write(make_recording("pathology", 1, seed=0), dataset)


def test_large_files_are_hashed_by_a_thorough_look_alone(dataset):
    path = dataset / "sub-x" / "func" / "sub-x_task-t_run-1_bold.nii"
    values = np.zeros((80, 80, 80), np.float32)
    bids.write_img(path, dataset, nib.Nifti1Image(values, np.eye(4)))
    flip(path)
    assert checking.are_intact(dataset, [path])
    (problem,) = checking.problems(dataset)
    assert (problem.path, problem.text) == (path, "not what was written")


def test_a_header_that_promises_more_is_seen_without_hashing(dataset):
    path = dataset / "x.nii"
    values = np.zeros((80, 80, 80), np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    assert checking.problem_of(path, None) is None
    data = bytearray(path.read_bytes())
    data[42:44] = (90).to_bytes(2, "little")  # dim[1]
    path.write_bytes(bytes(data))
    assert "its header says" in checking.problem_of(path, None)
    path.write_bytes(b"text" * 200)
    assert "not a NIfTI" in checking.problem_of(path, None)


def test_a_kill_before_the_last_line_makes_no_sound_file_damaged(dataset):
    paths = bids.read(dataset, task="pathology").paths
    events = paths.raw("events.tsv")
    new = dataset / "new"
    new.write_text(events.read_text() + "\n")
    manifest.announce(dataset, events, new)
    new.replace(events)  # and the process is killed
    assert checking.is_intact(paths)
    assert checking.problems(dataset) == []


def test_files_that_people_edit_only_have_to_be_there(dataset):
    for name in ("README.md", "participants.tsv", "participants.json"):
        path = dataset / name
        path.write_text(path.read_text() + "\n")
    assert checking.problems(dataset) == []
    (dataset / "participants.json").write_text("{")
    (dataset / "README.md").unlink()
    assert [problem.path.name for problem in checking.problems(dataset)] == [
        "README.md",
        "participants.json",
    ]


def test_a_dataset_without_manifest_is_checked_as_far_as_it_can_be(dataset):
    (dataset / manifest.MANIFEST).unlink()
    paths = bids.read(dataset, task="pathology").paths
    assert checking.problems(dataset) == []
    assert checking.is_intact(paths)
    cut(paths.bold)
    assert [problem.path for problem in checking.problems(dataset)] == [paths.bold]
    assert not checking.is_intact(paths)


def test_what_a_result_is_made_from_changes_with_the_runs_alone(dataset):
    folder = bids.folder_of("tinyModel1")

    def digest():
        return checking.digest(dataset, ("run", "anatomy"), [folder])

    before = digest()
    run = bids.read(dataset, task="pathology")
    bids.write_text(run.paths.stat_map("t"), dataset, "map")
    assert digest() == before
    bids.write(make_recording("pathology", 1, seed=7), dataset, overwrite=True)
    assert digest() != before
    bids.write(make_recording("pathology", 1, seed=0), dataset, overwrite=True)
    assert digest() == before
