"""Parcels: which units, read how, and what of them does not depend on their basis."""

from __future__ import annotations

import numpy as np
import pytest
from planted import dataset_run, noise, trials
from scipy import stats

from llm2nifti import bids
from llm2nifti.geometry import Site, layout
from llm2nifti.parcels import (
    MOST,
    ParcelError,
    centre_of,
    nuisance,
    parcels_in,
    parcels_of,
    read,
    residuals_of,
    shuffle_within,
    trials_of,
    without_nuisance,
)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """Two tasks of two runs, two frames a trial."""
    root = tmp_path_factory.mktemp("parcels") / "ds"
    for task, seed in (("pain", 0), ("joy", 10)):
        for number in (1, 2):
            table = trials(task)
            values = noise(table, n_units=40, n_frames=2, seed=seed + number)
            dataset_run(root, table, values, task=task, number=number)
    return bids.session(root)


def test_parcels_are_the_labels_of_the_atlas(session):
    parcels = parcels_in(session)
    assert [p.name for p in parcels] == [
        f"layer{layer:02d}_{site}" for layer in (1, 2) for site in ("attn", "resid", "mlp")
    ]
    together = np.sort(np.concatenate([p.units for p in parcels]))
    np.testing.assert_array_equal(together, np.arange(40))
    assert [p.name for p in parcels_in(session, ["mlp"])] == ["layer01_mlp", "layer02_mlp"]
    with pytest.raises(ParcelError, match="no site 'norm' in the dataset"):
        parcels_in(session, ["norm"])


def test_heads_are_parcels_of_their_own_unless_they_are_too_many():
    sites = [Site("heads", layer, f"h.{layer}.o", 12, "input") for layer in range(3)]
    brain = layout(sites)
    heads = parcels_of(brain, n_heads=4)
    assert [p.name for p in heads[:4]] == [f"layer00_heads{i}" for i in range(4)]
    np.testing.assert_array_equal(heads[5].units, [15, 16, 17])
    assert len(parcels_of(brain, n_heads=MOST)) == 3
    assert len(parcels_of(brain, n_heads=5)) == 3  # which does not divide 12
    low, high = (centre_of(brain, parcel)[2] for parcel in (heads[0], heads[-1]))
    assert low < high


@pytest.mark.parametrize("frames", [False, True])
def test_reading_gives_every_parcel_of_every_run(session, frames):
    expected = [run.frame_values() if frames else run.values() for run in session]
    expected = np.concatenate(expected)
    for parcel, values in read(session, parcels_in(session), frames=frames, verbose=0):
        part = expected[:, parcel.units]
        np.testing.assert_array_equal(
            values, part.reshape(-1, 2, part.shape[1]) if frames else part
        )


def test_nuisances_leave_neither_runs_nor_question_frames(session):
    table = trials_of(session)
    assert len(table) == sum(len(run.events) for run in session)
    assert table["is_task"].sum() == 4 * 12
    basis = without_nuisance(table)
    assert basis.shape == (len(table), len(table) - np.linalg.matrix_rank(nuisance(table)))
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-12)
    shift = {"a": 0.0, "b": 7.0}
    runs = table["task"].str.len() + 3.0 * table["run"]
    column = table["question_frame"].map(shift).to_numpy() + runs.to_numpy()
    np.testing.assert_allclose(basis.T @ column, 0, atol=1e-10)


def test_residuals_leave_no_topic(session):
    table = trials_of(session)
    effect = stats.zscore(table["topic"].astype("category").cat.codes.to_numpy(float))
    rng = np.random.default_rng(0)
    values = np.outer(effect, rng.normal(size=5)) + rng.normal(size=(len(table), 5))
    left = residuals_of(table)(values)
    means = table.assign(x=left[:, 0]).groupby(["trial_type", "topic"])["x"].mean()
    np.testing.assert_allclose(means, 0, atol=1e-10)
    assert left.std() > 0.1


def test_too_few_prompts_are_said_in_one_line(session):
    with pytest.raises(ParcelError, match=r"4 prompts are too few: .* scan more"):
        without_nuisance(trials_of(session)[:4])


def test_shuffling_stays_within_its_groups():
    groups = np.repeat(["x", "y"], 20)
    order = shuffle_within(groups, np.random.default_rng(0))
    np.testing.assert_array_equal(groups[order], groups)
    np.testing.assert_array_equal(np.sort(order), np.arange(40))
    assert (order != np.arange(40)).any()
