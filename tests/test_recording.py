"""The journal of an unfinished recording, and the recording itself."""

from __future__ import annotations

import numpy as np
import pytest

from llm2nifti import geometry, paradigm
from llm2nifti.recording import Journal, Recording, RecordingError

SHAPE = (4, 2, 3)


def fill(journal, start, stop):
    journal.values[start:stop] = np.arange(start, stop)[:, None, None]
    journal.commit(start, stop, [{"response": str(i)} for i in range(start, stop)])


def test_committed_batches_survive_a_new_journal(tmp_path):
    fill(Journal(tmp_path, SHAPE, {"a": 1}), 0, 2)
    again = Journal(tmp_path, SHAPE, {"a": 1})
    assert [batch["start"] for batch in again.batches] == [0]
    assert (again.values[1] == 1).all()


def test_rows_come_in_trial_order(tmp_path):
    journal = Journal(tmp_path, SHAPE, {})
    fill(journal, 2, 4)
    fill(journal, 0, 2)
    assert [row["response"] for row in journal.rows()] == ["0", "1", "2", "3"]


def test_a_torn_line_is_dropped_and_written_again(tmp_path):
    fill(Journal(tmp_path, SHAPE, {}), 0, 2)
    with (tmp_path / "batches.jsonl").open("a") as file:
        file.write('{"start": 2, "sto')
    journal = Journal(tmp_path, SHAPE, {})
    fill(journal, 2, 4)
    assert [b["start"] for b in Journal(tmp_path, SHAPE, {}).batches] == [0, 2]


@pytest.mark.parametrize(("shape", "plan"), [(SHAPE, {"a": 2}), ((5, 2, 3), {"a": 1})])
def test_another_plan_is_refused(tmp_path, shape, plan):
    Journal(tmp_path, SHAPE, {"a": 1})
    with pytest.raises(RecordingError, match="--overwrite"):
        Journal(tmp_path, shape, plan)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_numbers_are_refused(tmp_path, bad):
    journal = Journal(tmp_path, SHAPE, {})
    journal.values[1, 1, 2] = bad
    with pytest.raises(RecordingError, match=r"trial 1 .* unit 2"):
        journal.commit(0, 2, [{}, {}])
    assert not Journal(tmp_path, SHAPE, {}).batches


def test_space_is_reserved_at_once(tmp_path):
    Journal(tmp_path, (100, 10, 100), {})
    stat = (tmp_path / "values.npy").stat()
    assert stat.st_blocks * 512 >= 100 * 10 * 100 * 4


def test_trial_means_equal_a_naive_mean():
    values = np.random.default_rng(0).normal(size=(8, 3, 5)).astype(np.float32)
    brain = geometry.layout([geometry.Site("mlp", 1, "m", 5)])
    design = paradigm.blocks("pathology", n_blocks=2, trials_per_block=2, n_frames=3)
    recording = Recording(values, design, brain, None, [], [])
    for trial in range(8):
        expected = [sum(float(v) for v in values[trial, :, u]) / 3 for u in range(5)]
        np.testing.assert_allclose(recording.trial_means()[trial], expected, rtol=1e-5)
    assert "8 trials x 3 frames x 5 units" in repr(recording)
