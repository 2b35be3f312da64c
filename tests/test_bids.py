"""The dataset: valid for the official validator, readable by independent programs."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.glm import threshold_stats_img
from nilearn.maskers import NiftiMasker
from tests_support import make_dataset, make_recording

from llm2nifti import bids, experiments, geometry
from llm2nifti.bids import files
from llm2nifti.experiments.maps.plan import GlmPlan
from llm2nifti.plans import Attribution

NASTY = ['<script>alert("x")</script>', "tab\there", "two\nlines", '"quoted', "NA", " ", "n/a"]


@pytest.fixture
def dataset(tmp_path):
    """Two tasks of two runs."""
    return make_dataset(tmp_path / "ds")


@pytest.mark.parametrize("compress", [False, True])
def test_official_validator_finds_nothing(tmp_path, validate, compress):
    responses = (NASTY * 9)[: make_recording().paradigm.n_trials]
    bids.write(make_recording(responses=responses), tmp_path, compress=compress)
    validate(tmp_path)


def test_values_read_back_equal_those_written(dataset):
    recording = make_recording("archeology", 2, seed=3)
    run = bids.read(dataset, task="archeology", run=2)
    np.testing.assert_array_equal(run.values(), recording.trial_means())
    flat = recording.values.reshape(-1, recording.brain.n_units)
    np.testing.assert_array_equal(run.frame_values(), flat)
    assert run.brain.sites == recording.brain.sites
    assert run.brain.space == recording.brain.space
    assert run.t_r == 3
    assert list(run.events["prompt"]) == list(recording.paradigm.trials["prompt"])


def test_streamed_image_equals_one_made_in_memory(dataset):
    recording = make_recording("pathology", 1, seed=0)
    img = nib.load(bids.read(dataset, task="pathology").paths.bold)
    flat = recording.values.reshape(-1, recording.brain.n_units)
    expected = geometry.to_img(recording.brain, flat, t_r=1.0)
    np.testing.assert_array_equal(img.get_fdata(), expected.get_fdata())
    np.testing.assert_array_equal(img.affine, expected.affine)
    assert img.header["pixdim"][4] == 1
    assert img.header.get_xyzt_units() == ("mm", "sec")
    assert img.header["sform_code"] > 0


def test_compressed_image_has_the_same_values_and_no_time_stamp(tmp_path):
    plain = bids.write(make_recording(), tmp_path / "a").bold
    packed = bids.write(make_recording(), tmp_path / "b", compress=True).bold
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    assert packed.read_bytes()[4:8] == b"\0\0\0\0"
    assert bids.read(tmp_path / "b", task="pathology").values().shape[0] > 0


@pytest.mark.skipif(not shutil.which("nifti_tool"), reason="nifti_tool (Debian nifti-bin) missing")
def test_an_independent_reader_agrees_on_header_and_one_voxel(dataset):
    run = bids.read(dataset, task="pathology")
    i, j, k = run.brain.voxels[11]
    command = ["nifti_tool", "-quiet", "-disp_ci", str(i), str(j), str(k), "-1", "0", "0", "0"]
    done = subprocess.run(
        [*command, "-infiles", run.paths.bold], capture_output=True, text=True, check=True
    )
    series = np.array(done.stdout.split(), float)
    np.testing.assert_allclose(series, run.frame_values()[:, 11], atol=1e-6)  # six digits
    header = subprocess.run(
        ["nifti_tool", "-disp_hdr", "-field", "dim", "-infiles", run.paths.bold],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert " ".join(map(str, [4, *run.frames_img.shape])) in " ".join(header.split())


def test_plain_nilearn_reads_the_dataset_without_llm2nifti(dataset):
    code = f"""
import sys, warnings
warnings.simplefilter("ignore")
from nilearn.glm.first_level import first_level_from_bids
space = {bids.read(dataset, task="pathology").paths.space!r}
models, imgs, events, confounds = first_level_from_bids(
    {str(dataset)!r}, "pathology", space_label=space, sub_labels=["tinyModel1"],
    derivatives_folder="derivatives/llm2nifti", img_filters=[("desc", "trial")],
    hrf_model=None, drift_model=None, signal_scaling=False, noise_model="ols",
    mask_img="derivatives")
model, = models
assert model.t_r == 3.0 and model.slice_time_ref == 0.5, (model.t_r, model.slice_time_ref)
events = [e[e["trial_type"] != "control"] for e in events[0]]
model.fit(imgs[0], events=events)
t = model.compute_contrast("pathology", output_type="stat")
print(t.get_fdata()[model.masker_.mask_img_.get_fdata() > 0].shape[0])
assert not any(name.startswith("llm2nifti") for name in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == make_recording().brain.n_units


@pytest.mark.filterwarnings("ignore")
def test_pybids_indexes_the_dataset(dataset):
    from bids import BIDSLayout

    layout = BIDSLayout(dataset, derivatives=dataset / bids.DERIVATIVES, validate=False)
    assert set(layout.get_tasks()) == {"archeology", "pathology"}
    assert len(layout.get(suffix="bold", extension=".nii", scope="raw")) == 4
    trial = layout.get(desc="trial", suffix="bold", extension=".nii", task="pathology", run=1)
    assert trial[0].get_metadata()["StartTime"] == 1.5


def test_existing_run_is_kept_unless_overwritten(tmp_path):
    bids.write(make_recording(seed=1), tmp_path)
    before = bids.read(tmp_path, task="pathology").values()
    with pytest.raises(bids.ExistsError, match="overwrite=True"):
        bids.write(make_recording(seed=2), tmp_path)
    np.testing.assert_array_equal(bids.read(tmp_path, task="pathology").values(), before)
    bids.write(make_recording(seed=2), tmp_path, overwrite=True)
    assert not np.array_equal(bids.read(tmp_path, task="pathology").values(), before)


@pytest.mark.parametrize("name", ["README.md", "thesis.tex"])
def test_foreign_folder_is_refused_and_untouched(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(bids.ExistsError, match="not an llm2nifti dataset"):
        bids.write(make_recording(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_failed_write_leaves_nothing(tmp_path):
    path = tmp_path / "a" / "b.json"
    with pytest.raises(ValueError, match="JSON"):
        bids.write_json(path, tmp_path, {"x": float("nan")})
    assert not list(tmp_path.rglob("*.json"))


def test_unwritten_sidecar_means_an_unfinished_run(dataset):
    run = bids.read(dataset, task="pathology", run=2)
    run.paths.derivative("desc-trial_bold.json").unlink()
    assert ("pathology", 2) not in set(
        bids.runs(dataset)[["task", "run"]].itertuples(index=False, name=None)
    )
    bids.write(make_recording("pathology", 2, seed=2), dataset)
    assert len(bids.runs(dataset)) == 4


@pytest.mark.parametrize(
    ("text", "expected"), [("gpt-2", "gpt2"), ("facebook/opt_125m", "facebookopt125m")]
)
def test_labels_keep_letters_and_digits(text, expected):
    assert bids.label(text) == expected


def test_names_without_letters_are_refused():
    with pytest.raises(bids.LabelError, match="'--'"):
        bids.label("--")


def test_nasty_text_survives_in_one_cell(tmp_path):
    table = pd.DataFrame({"a": NASTY, "b": range(len(NASTY))})
    files.write_tsv(tmp_path / "t.tsv", tmp_path, table)
    assert len((tmp_path / "t.tsv").read_text().splitlines()) == len(NASTY) + 1
    plain = pd.read_csv(tmp_path / "t.tsv", sep="\t", keep_default_na=False)
    assert list(plain["b"]) == list(range(len(NASTY)))
    assert list(plain["a"][:3]) == [NASTY[0], "tab\\there", "two\\nlines"]
    assert list(plain["a"][3:5]) == ['"quoted', "NA"]


def test_same_recording_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        bids.write(make_recording(), tmp_path / name)
        bids.writing.clear_work(tmp_path / name)
    one, two = (
        {
            p.relative_to(tmp_path / n): p.read_bytes()
            for p in (tmp_path / n).rglob("*")
            if p.is_file()
        }
        for n in ("a", "b")
    )
    assert one == two


def test_sidecars_say_what_a_reader_needs(dataset):
    run = bids.read(dataset, task="pathology")
    raw = json.loads(run.paths.raw("bold.json").read_text())
    for key in ("TaskName", "RepetitionTime", "Model", "Settings", "Sites", "Threads"):
        assert key in raw
    assert "no one took part" in raw["TaskDescription"]
    assert run.sidecar["StartTime"] == run.t_r / 2
    people = bids.read_tsv(dataset / "participants.tsv")
    assert people["species"].isna().all()
    assert list(people["participant_id"]) == ["sub-tinyModel1"]


def test_sidecar_of_trials_says_that_a_volume_is_a_trial(dataset):
    run = bids.read(dataset, task="pathology")
    trial, raw = run.sidecar, json.loads(run.paths.raw("bold.json").read_text())
    # RepetitionTime is that of a trial, so nothing beside it may count frames or other volumes.
    counting = {key: value for key, value in trial.items() if "Frame" in key or "Volume" in key}
    assert counting == {
        "FrameTimeConvention": "a trial lasts 3 s by convention",
        "Frames": "trial",
        "NumberOfVolumesPerTrial": 1,
    }
    assert trial["RepetitionTime"] == run.img.header.get_zooms()[3] == 3
    assert trial["StartTime"] == 1.5
    assert run.img.shape[3] == len(run.events)
    assert (raw["Frames"], raw["RepetitionTime"]) == ("token", 1)
    assert raw["NumberOfFramesPerTrial"] == raw["NumberOfVolumesPerTrial"] == run.n_frames == 3
    assert (run.frames, set(run.volume_counts)) == ("token", {3})


@pytest.mark.parametrize("only_run", [True, False])
def test_statistical_maps_say_what_they_are_and_nilearn_reads_them(dataset, only_run):
    experiments.measure(bids.session(dataset).of("pathology"), GlmPlan(), verbose=0)
    paths = bids.read(dataset, task="pathology").paths
    files_of = {stat: paths.stat_map(stat, only_run=only_run) for stat in ("t", "z", "effect")}
    imgs = {stat: nib.load(path) for stat, path in files_of.items()}
    df = bids.read_json(Path(str(files_of["t"]).replace(".nii.gz", ".json")))["DegreesOfFreedom"]
    intents = {stat: img.header.get_intent()[:2] for stat, img in imgs.items()}
    assert intents == {"t": ("t test", (df,)), "z": ("z score", ()), "effect": ("estimate", ())}
    texts = [img.header["descrip"].item().decode("ascii") for img in imgs.values()]
    assert texts[0] == f"t of pathology - control, {df:.0f} degrees of freedom"
    assert texts[1:] == ["z of pathology - control", "effect of pathology - control"]
    for img in imgs.values():
        masker = NiftiMasker(bids.read(dataset, task="pathology").mask_img, standardize=None)
        inside = img.get_fdata()[masker.mask_img.get_fdata() > 0]
        np.testing.assert_allclose(masker.fit_transform(img).ravel(), inside, rtol=1e-6)
    passed, _ = threshold_stats_img(imgs["z"], alpha=0.5, height_control="fpr", two_sided=True)
    assert passed.header.get_intent()[0] == "z score"


def test_sources_of_a_dataset_and_its_derivatives_are_real(tmp_path, validate):
    raw, derived = (
        folder / "dataset_description.json" for folder in (tmp_path, tmp_path / bids.DERIVATIVES)
    )
    bids.write(make_recording(), tmp_path)  # of a model that came from a folder
    assert bids.read_json(raw)["SourceDatasets"] == []
    sources = []
    for name in ("b/two", "a/one"):
        url = f"https://huggingface.co/{name}"
        sources.append({"URL": url, "Version": "0a"})
        for copy in (name, f"{name}-untrained"):
            bids.write(make_recording(name=copy, URL=url, Revision="0a"), tmp_path)
    assert bids.read_json(raw)["SourceDatasets"] == sources[::-1]
    (source,) = bids.read_json(derived)["SourceDatasets"]
    assert (derived.parent / source["URL"]).resolve() == tmp_path.resolve()
    validate(tmp_path)
    bids.dataset.remove_dataset(tmp_path)
    assert bids.read_json(raw)["SourceDatasets"] == []


@pytest.mark.parametrize("authors", [["Jane Doe"], ["Jane Doe", "John Roe"]])
def test_authors_and_licence_are_those_of_the_user(dataset, validate, authors):
    paths = [
        folder / "dataset_description.json" for folder in (dataset, dataset / bids.DERIVATIVES)
    ]
    content = bids.read_json(paths[0])
    assert (content["Authors"], content["License"]) == (["Not stated"], "Not stated")
    paths[0].write_text(json.dumps(content | {"Funding": ["of mine"]}))
    bids.dataset.attribute(dataset, Attribution(author=authors))
    bids.dataset.attribute(dataset, Attribution(license="CC0"))
    bids.write(make_recording(name="other"), dataset)
    for path in paths:
        content = bids.read_json(path)
        assert (content["Authors"], content["License"]) == (authors, "CC0")
    assert bids.read_json(paths[0])["Funding"] == ["of mine"]
    validate(dataset)


def test_readme_says_what_the_validator_is_told_to_ignore(dataset):
    ignored = bids.read_json(dataset / bids.dataset.VALIDATOR_CONFIG)["ignore"]
    readme = (dataset / "README.md").read_text()
    assert [code["code"] for code in ignored if code["code"] not in readme] == [
        "SIDECAR_KEY_RECOMMENDED",  # it says: recommended keys
        "JSON_KEY_RECOMMENDED",
    ]
    assert "recommended sidecar keys" in readme
    assert "--author NAME --license TEXT" in readme


def test_missing_runs_and_models_are_named(dataset, tmp_path):
    with pytest.raises(bids.NoSuchRunError, match="pathology run 1"):
        bids.read(dataset, task="pathology", run=9)
    with pytest.raises(bids.NoSuchRunError, match="llm2nifti scan"):
        bids.runs(tmp_path / "nowhere")
    bids.write(make_recording(name="other"), dataset)
    with pytest.raises(bids.NoSuchRunError, match="name one: other, tinyModel1"):
        bids.read(dataset, task="pathology")
    assert bids.read(dataset, task="pathology", subject="other").subject == "other"


def test_overwriting_a_run_removes_what_was_made_of_it(dataset):
    run = bids.read(dataset, task="pathology")
    derived = [run.paths.stat_map("t"), run.paths.stat_map("t", only_run=True)]
    derived += [run.paths.network(), dataset / bids.SUMMARY]
    kept = bids.read(dataset, task="archeology").paths.stat_map("t")
    for path in [*derived, kept]:
        bids.write_text(path, dataset, "old")
    bids.write(make_recording("pathology", 1, seed=9), dataset, overwrite=True)
    assert not [path for path in derived if path.exists()]
    assert kept.exists()


def test_text_that_looks_like_numbers_stays_text(tmp_path):
    recording = make_recording(responses=["007"] * make_recording().paradigm.n_trials)
    bids.write(recording, tmp_path)
    assert set(bids.read(tmp_path, task="pathology").events["response"]) == {"007"}


def test_a_run_that_is_written_again_outdates_what_was_made_of_it(tmp_path):
    bids.write(make_recording(), tmp_path)
    made = [tmp_path / bids.DERIVATIVES / f"{name}.json" for name in ("lesion", "steer", "summary")]
    for path in made:
        bids.write_text(path, tmp_path, "{}")
    bids.write(make_recording(run=2), tmp_path)
    assert [path.exists() for path in made] == [True, True, False]
    bids.write(make_recording(), tmp_path, overwrite=True)
    assert not any(path.exists() for path in made)


def test_clearing_keeps_what_can_be_resumed(tmp_path):
    work = tmp_path / bids.WORK
    for name in ("begun", "tmp-host-1-2"):
        (work / name).mkdir(parents=True)
    (work / "begun" / "plan.json").write_text("{}")
    (work / "shared.lock").touch()
    bids.writing.clear_work(tmp_path)
    assert [path.name for path in work.iterdir()] == ["begun"]
    bids.writing.clear_work(tmp_path, recordings=True)
    assert not work.exists()
