"""Does the localizer find what tells conditions apart, again in other prompts, and only there?"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import planted
import pytest

from llm2nifti import bids, cli, experiments, geometry, glm, stimuli
from llm2nifti.experiments.errors import ExperimentError
from llm2nifti.experiments.localizer.measure import _half

N_UNITS = 600


def table(n: int = 40, seed: int = 0, *, paired: bool = False) -> pd.DataFrame:
    """Trials of two conditions in random order."""
    trials = pd.DataFrame({"trial_type": np.repeat(["sentences", "nonwords"], n), "block": 1})
    trials["role"] = np.where(trials["trial_type"] == "sentences", "task", "control")
    if paired:
        trials["pair"] = np.tile(np.arange(n), 2)
    order = np.random.default_rng(seed).permutation(2 * n)
    trials = trials.iloc[order].reset_index(drop=True)
    names = [f"prompt {seed} {i}" for i in range(2 * n)]
    same = dict.fromkeys(("stim_id", "topic", "concept", "prompt"), names)
    return trials.assign(question_frame="", **same)


def dataset(root, *, strength: float = 3.0, n_responding: int = 30, paired: bool = False):
    """Two runs in which some units tell the conditions apart, and a copy in which none does."""
    for number in (1, 2):
        trials = table(seed=number, paired=paired)
        for name, scale in (("planted", strength), ("planted-untrained", 0.0)):
            rng = np.random.default_rng([number, len(name)])
            values = rng.normal(size=(len(trials), 1, N_UNITS))
            is_on = (trials["role"] == "task").to_numpy()
            values[is_on, 0, :n_responding] += scale
            more = {"Subject": name, "WeightsHash": "none" if scale else "random, seed 0"}
            planted.dataset_run(root, trials, values, task="language", number=number, **more)
    return bids.session(root, subject="planted")


def test_network_is_what_tells_conditions_apart_and_halves_agree_about_it(tmp_path):
    session = dataset(tmp_path)
    plan = experiments.LocalizePlan(share=0.05)
    result = experiments.measure(session, plan, verbose=0)
    one = result.tasks["language"]
    mask_img = bids.reading.read_img(session.first.paths.network(desc="localizer"))
    units = geometry.from_img(session.brain, mask_img)
    assert np.flatnonzero(units).tolist() == list(range(30))
    assert (one.n_on, one.n_off, one.n_units) == (80, 80, 30)
    assert min(one.halves.dice) > 0.95
    assert np.mean(one.shuffled.dice) < 0.2
    assert one.untrained is not None
    assert np.mean(one.untrained.dice) < 0.2
    assert type(result).read(session).content() == result.content()
    assert "80 + 80" in " ".join(repr(result).split())


def test_halves_of_pairs_keep_members_together_and_of_others_have_half_of_each_condition():
    rng = np.random.default_rng(0)
    pairs, plain = table(paired=True), table()
    first = _half(pairs, rng)
    assert set(pairs["pair"][first]).isdisjoint(pairs["pair"][~first])
    assert first.sum() == 40
    first = _half(plain, rng)
    assert plain["trial_type"][first].value_counts().tolist() == [20, 20]


def test_rectified_networks_are_of_absolute_values(tmp_path):
    rng = np.random.default_rng(0)
    for number in (1, 2):
        trials = table(seed=number)
        values = rng.normal(size=(len(trials), 1, N_UNITS))
        is_on = (trials["role"] == "task").to_numpy()
        values[is_on, 0, :30] *= 6  # larger in both directions: no difference of means
        planted.dataset_run(tmp_path, trials, values, task="language", number=number)
    session = bids.session(tmp_path)
    dice = {}
    for rectify in (False, True):
        plan = experiments.LocalizePlan(share=0.05, rectify=rectify)
        result = experiments.measure(session, plan, verbose=0)
        dice[rectify] = np.mean(result.tasks["language"].halves.dice)
    assert dice[True] > 0.9 > dice[False]
    assert list(tmp_path.rglob("*contrast-languageLocalizerOfAbsoluteValues_stat-t_statmap.nii.gz"))


def test_tasks_with_the_common_control_are_no_localizers(tmp_path):
    trials = planted.trials()
    planted.dataset_run(tmp_path, trials, planted.noise(trials))
    session = bids.session(tmp_path)
    with pytest.raises(ExperimentError, match="no conditions of its own"):
        experiments.measure(session, experiments.LocalizePlan(task=("pain",)), verbose=0)
    with pytest.raises(ExperimentError, match="no task has conditions of its own"):
        experiments.measure(session, experiments.LocalizePlan(), verbose=0)


@pytest.fixture(scope="module")
def own_table(tmp_path_factory):
    """Stimuli of a localizer of our own, with a marked word."""
    living = "dog cat cow hen fox owl bee ant elk yak ape bat rat pig ram doe emu cod"
    things = "cup pot pan jar lid fan bag box bed mat hat cap pen map key car bus"
    rows = [("naming", f"the {noun} sleeps", "living", noun) for noun in living.split()]
    rows += [("naming", f"the {noun} stands", "thing", noun) for noun in things.split()]
    path = tmp_path_factory.mktemp("own") / "naming.tsv"
    columns = ["task", "prompt", "condition", "span"]
    pd.DataFrame(rows, columns=columns).to_csv(path, sep="\t", index=False)
    return path


def test_one_command_scans_and_localizes(tmp_path, tiny_folders, own_table, validate, capsys):
    root = tmp_path / "ds"
    command = ["localize", str(root), "--task", "naming", "--stimuli", str(own_table), "--quiet"]
    command += ["--model", str(tiny_folders["llama"]), "--at", "span", "--share", "0.1", "--json"]
    assert cli.main(command) == 0
    content = json.loads(capsys.readouterr().out)
    one = content["tasks"]["naming"]
    assert one["contrast"] == "living - thing"
    assert (one["n_on"], one["n_off"]) == (16, 16)  # 8 a run: things are 17
    session = bids.session(root)
    events = session.first.events
    assert set(events["trial_type"]) == {"living", "thing"}
    assert session.settings["at"] == "span"
    validate(root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*_bold.nii")}
    assert cli.main(command) == 0  # nothing is scanned again
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*_bold.nii")} == before
    sidecar = json.loads((root / "task-naming_events.json").read_text())
    assert sidecar["trial_type"]["Levels"] == {
        "living": "condition of the task naming",
        "thing": "condition that naming is compared with",
    }


def test_plain_nilearn_reads_the_conditions(tmp_path, tiny_folders, own_table):
    from nilearn.glm.first_level import first_level_from_bids

    root = tmp_path / "ds"
    how = ["--task", "naming", "--stimuli", str(own_table), "--model", str(tiny_folders["llama"])]
    more = ["--at", "span", "--no-untrained", "--quiet"]
    assert cli.main(["localize", str(root), *how, *more]) == 0
    models, imgs, events, _ = first_level_from_bids(
        str(root),
        "naming",
        space_label=bids.session(root).brain.space,
        derivatives_folder=str(root / bids.DERIVATIVES),
        img_filters=[("desc", "trial")],
        hrf_model=None,
        drift_model=None,
        signal_scaling=False,
        smoothing_fwhm=None,
        noise_model="ols",
        slice_time_ref=None,
    )
    session = bids.session(root)
    model = models[0]
    model.mask_img = session.first.mask_img
    columns = ["onset", "duration", "trial_type"]
    model.fit(imgs[0], events=[e.loc[e["role"] == "task", columns] for e in events[0]])
    theirs = model.compute_contrast("living", stat_type="t", output_type="stat")
    ours = glm.fit(session.of("naming"), verbose=0).contrast("naming").t()
    np.testing.assert_allclose(ours, geometry.from_img(session.brain, theirs), rtol=1e-3, atol=1e-3)


def test_whole_job_runs_on_a_localizer(tmp_path, tiny_folders, own_table, capsys):
    root = tmp_path / "ds"
    how = ["--task", "naming", "--stimuli", str(own_table), "--model", str(tiny_folders["llama"])]
    sizes = ["--n-runs", "2", "--n-blocks", "1", "--trials-per-block", "3", "--n-frames", "2"]
    assert cli.main(["run", str(root), *how, *sizes, "--n-null", "5", "--quiet"]) == 0
    page = (root / bids.DERIVATIVES / "report.html").read_text()
    assert "living" in page
    assert cli.main(["glm", str(root), "--contrast", "naming", "--quiet"]) == 0


def test_localizing_a_task_without_conditions_is_refused_before_anything_is_written(
    tmp_path, capsys
):
    assert cli.main(["localize", str(tmp_path / "ds"), "--task", "pathology", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "no conditions of its own" in said
    assert ", ".join(stimuli.LOCALIZERS) in said
    assert not (tmp_path / "ds").exists()
