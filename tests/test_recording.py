"""The journal of an unfinished recording, and the recording itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from llm2nifti import geometry, paradigm
from llm2nifti.recording import (
    DamagedJournalError,
    Journal,
    Lines,
    Recording,
    RecordingError,
    windows,
)

SHAPE = ([2, 2, 2, 2], 3)  # volumes of each trial, units


def new(folder, shape=SHAPE, plan=None):
    return Journal(folder, *shape, plan or {})


def fill(journal, start, stop):
    values = journal.open(start, stop)
    values[:] = np.repeat(np.arange(start, stop), 2)[:, None]
    journal.commit(start, stop, values, [{"response": str(i)} for i in range(start, stop)])


def test_committed_batches_survive_a_new_journal(tmp_path):
    fill(new(tmp_path), 0, 2)
    again = new(tmp_path)
    assert [batch["start"] for batch in again.batches] == [0]
    fill(again, 2, 4)
    assert again.values[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_rows_come_in_trial_order(tmp_path):
    journal = new(tmp_path)
    fill(journal, 2, 4)
    fill(journal, 0, 2)
    assert [row["response"] for row in journal.rows()] == ["0", "1", "2", "3"]


def test_a_torn_line_is_dropped_and_written_again(tmp_path):
    fill(new(tmp_path), 0, 2)
    with (tmp_path / "batches.jsonl").open("a") as file:
        file.write('{"start": 2, "sto')
    journal = new(tmp_path)
    fill(journal, 2, 4)
    assert [b["start"] for b in new(tmp_path).batches] == [0, 2]


@pytest.mark.parametrize(("shape", "plan"), [(SHAPE, {"a": 2}), (([2], 3), {"a": 1})])
def test_another_plan_is_refused(tmp_path, shape, plan):
    new(tmp_path, plan={"a": 1})
    with pytest.raises(RecordingError, match="overwrite=True"):
        new(tmp_path, shape, plan)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_numbers_are_refused(tmp_path, bad):
    journal = new(tmp_path)
    values = journal.open(0, 2)
    values[3, 2] = bad
    with pytest.raises(RecordingError, match=r"trial 1 .* unit 2"):
        journal.commit(0, 2, values, [{}, {}])
    assert not new(tmp_path).batches


def test_space_is_reserved_batch_by_batch(tmp_path):
    journal = new(tmp_path, ([10] * 100, 1000))
    for start, stop in [(0, 20), (20, 100)]:
        journal.open(start, stop)
        assert (tmp_path / "values.f32").stat().st_blocks * 512 >= stop * 10 * 1000 * 4
    assert (tmp_path / "values.f32").stat().st_size == 100 * 10 * 1000 * 4


def test_a_recording_that_does_not_fit_the_disk_is_refused_before_it_begins(tmp_path):
    with pytest.raises(RecordingError, match=r"needs 4\d{3}.* GB"):
        new(tmp_path, ([1000] * 1000, 10**6))
    assert not (tmp_path / "plan.json").exists()


def test_trials_of_a_memory_map_are_windows_of_any_length(tmp_path):
    counts = [3, 1, 2]
    journal = new(tmp_path, (counts, 4))
    values = journal.open(0, 3)
    values[:] = np.random.default_rng(0).normal(size=values.shape)
    journal.commit(0, 3, values, [{}] * 3)
    parts = list(windows(journal.values, counts))
    assert [len(part) for part in parts] == counts
    assert np.array_equal(np.concatenate(parts), journal.values)
    assert not any(isinstance(part, np.memmap) for part in parts)
    plain = np.array(journal.values)
    assert np.array_equal(np.concatenate(list(windows(plain, counts))), plain)


def test_trial_means_equal_a_naive_mean():
    design = paradigm.blocks("pathology", n_blocks=2, trials_per_block=2, n_frames=3)
    n = design.n_trials
    values = np.random.default_rng(0).normal(size=(n, 3, 5)).astype(np.float32)
    brain = geometry.layout([geometry.Site("mlp", 1, "m", 5)])
    recording = Recording(values.reshape(-1, 5), design, brain, None, [], [])
    for trial in range(n):
        expected = [sum(float(v) for v in values[trial, :, u]) / 3 for u in range(5)]
        np.testing.assert_allclose(recording.trial_means()[trial], expected, rtol=1e-5)
    assert f"{n} trials x 3 frames x 5 units" in repr(recording)
    assert np.array_equal(recording.by_trial(), values)


def test_trials_of_different_lengths_are_timed_and_averaged_one_by_one():
    design = paradigm.blocks("pathology", n_blocks=1, trials_per_block=2, n_frames=3)
    counts = tuple(range(1, design.n_trials + 1))
    design = dataclasses.replace(design, frame_counts=counts)
    assert design.events["onset"].tolist() == np.cumsum([0, *counts[:-1]]).tolist()
    assert design.events["duration"].tolist() == list(counts)
    values = np.repeat(counts, counts)[:, None].astype(np.float32)
    brain = geometry.layout([geometry.Site("mlp", 1, "m", 1)])
    recording = Recording(values, design, brain, None, [], [])
    assert recording.trial_means()[:, 0].tolist() == list(counts)
    with pytest.raises(RecordingError, match=r"trials\(\)"):
        recording.by_trial()
    assert f"1 to {len(counts)} frames" in repr(recording)


def test_a_torn_line_is_dropped_and_the_next_one_takes_its_place(tmp_path):
    path = tmp_path / "deeper" / "x.jsonl"
    lines = Lines(path)
    assert not path.parent.exists()
    lines.append({"a": 1}, [2])
    whole = path.read_bytes()
    for torn in (b"", b"[", b"[3]", bytes(9), "é".encode()[:1]):  # a new line is what ends a line
        path.write_bytes(whole + torn)
        again = Lines(path)
        assert again.contents == [{"a": 1}, [2]]
        assert path.read_bytes() == whole + torn  # reading changes nothing
        again.append([4])
        assert path.read_bytes() == whole + b"[4]\n"


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"[1]\n[2\n[3]\n")
    with pytest.raises(DamagedJournalError, match=r"x.jsonl: line 2: .*delete it to do that work"):
        Lines(path)


def test_a_line_that_could_not_be_written_does_not_count(tmp_path, monkeypatch):
    path = tmp_path / "x.jsonl"
    lines = Lines(path)
    lines.append([1])

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        lines.append([2])
    monkeypatch.undo()
    lines.append([3])
    assert Lines(path).contents == [[1], [3]]
