"""`llm2nifti run ds` with its defaults, on the real model: made once for the whole session."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from nilearn.glm.first_level import FirstLevelModel, first_level_from_bids
from test_report import check_page, needs_browser

from llm2nifti import bids, geometry, stimuli

pytestmark = pytest.mark.real_model


def test_run_prints_table_tree_and_report(real_dataset):
    _, printed = real_dataset
    for task in stimuli.TASKS:
        assert task in printed
    for text in (
        "Repeatability r",
        "named right",
        "relabellings",
        "|-- participants",
        "report.html",
    ):
        assert text in printed


def test_both_datasets_are_valid(real_dataset, validate):
    validate(real_dataset[0])


def test_every_task_has_its_runs_and_no_prompt_appears_twice(real_dataset):
    root, _ = real_dataset
    runs = bids.session(root)
    assert {run.task for run in runs} == set(stimuli.TASKS)
    prompts = [prompt for run in runs for prompt in run.events["prompt"]]
    assert len(set(prompts)) == len(prompts)
    assert all(run.brain.n_units == runs[0].brain.n_units for run in runs)


def test_bundled_evaluation_split_is_what_is_shown(real_dataset):
    root, _ = real_dataset
    table = stimuli.load(split=None).set_index("stim_id")
    shown = [stim_id for run in bids.session(root) for stim_id in run.events["stim_id"]]
    assert set(table.loc[shown, "split"]) == {"evaluation"}


def test_trial_volumes_are_means_of_token_volumes(real_dataset):
    run = bids.read(real_dataset[0], task="pathology", run=2)
    frames = run.frame_values().reshape(len(run.events), run.n_frames, -1)
    np.testing.assert_allclose(run.values(), frames.mean(axis=1), rtol=1e-3, atol=1e-4)


def test_recorded_parts_add_up_to_the_stream(real_dataset):
    run = bids.read(real_dataset[0], task="pathology")
    values, brain = run.frame_values(), run.brain
    part = {(s.layer, s.name): values[:, brain.slice_of(s)] for s in brain.sites}
    for layer in (2, 15, 30):
        change = part[layer, "resid"] - part[layer - 1, "resid"]
        written = part[layer, "attn"] + part[layer, "mlp"]
        assert np.linalg.norm(change - written) / np.linalg.norm(change) < 1e-3


def test_networks_in_the_summary_are_those_on_disk(real_dataset):
    root, _ = real_dataset
    summary = bids.read_summary(root)
    for run in [r for r in bids.session(root) if r.run == 1]:
        mask = nib.load(run.paths.network())
        assert (geometry.from_img(run.brain, mask) > 0).sum() == summary["tasks"][run.task][
            "n_active"
        ]


@pytest.mark.filterwarnings("ignore")
def test_plain_nilearn_gives_the_maps_of_one_run(real_dataset):
    root, _ = real_dataset
    run = bids.read(root, task="randomstrings")  # unframed task trials: fewest nuisance columns
    (model,), (imgs,), (events,), _ = first_level_from_bids(
        root,
        "randomstrings",
        space_label=run.paths.space,
        sub_labels=[run.subject],
        derivatives_folder="derivatives/llm2nifti",
        img_filters=[("desc", "trial")],
        mask_img="derivatives",
        hrf_model=None,
        drift_model=None,
        signal_scaling=False,
        noise_model="ols",
    )
    assert isinstance(model, FirstLevelModel)
    assert len(imgs) == len({r.run for r in bids.session(root)})
    events = [
        e.loc[e["trial_type"] != "control", ["onset", "duration", "trial_type"]] for e in events
    ]
    model.fit(imgs, events=events)
    plain = geometry.from_img(
        run.brain, model.compute_contrast("randomstrings", output_type="stat")
    )
    ours = geometry.from_img(run.brain, nib.load(run.paths.stat_map("t")))
    # Question frames are not modelled here, so the maps are alike and not equal.
    assert np.corrcoef(plain, ours)[0, 1] > 0.95


def test_relabelled_controls_pass_at_the_nominal_rate(real_dataset):
    rate = bids.read_summary(real_dataset[0])["null"]["relabelled"]
    assert rate["n_relabellings"] >= 200
    assert 0.04 <= rate["below_05"] <= 0.06
    assert 0.0005 <= rate["below_001"] <= 0.002


def test_untrained_copy_is_another_subject_shown_the_same_tokens(real_dataset):
    root, _ = real_dataset
    table = bids.runs(root)
    assert sorted(table["subject"].unique()) == ["smollm2135m", "smollm2135muntrained"]
    pair = [bids.read(root, task="archeology", subject=s) for s in table["subject"].unique()]
    assert list(pair[0].tokens["token_id"]) == list(pair[1].tokens["token_id"])


@needs_browser
def test_report_renders_with_nothing_missing(real_dataset, tmp_path):
    check_page(real_dataset[0] / bids.DERIVATIVES / "report.html", tmp_path)
