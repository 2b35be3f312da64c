"""Runs whose volumes are words, whole trials or images, written, validated and analysed."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import tiny
from PIL import Image

from llm2nifti import bids, cli, geometry, glm, models, paradigm, scanner, stimuli
from llm2nifti.bids import checking, files
from llm2nifti.bids.writing import copy_shown

SIZES = {"n_blocks": 2, "trials_per_block": 8, "n_frames": 2}


def scan(model, design, **settings):
    settings = scanner.Settings(**settings)
    return scanner.scan(model, design, settings=settings, on_trials=lambda _n: None)


@pytest.fixture(scope="module")
def words(tiny_model, tmp_path_factory):
    """A run of words, the recording beside it."""
    root = tmp_path_factory.mktemp("words")
    recording = scan(
        tiny_model, paradigm.blocks("pathology", **SIZES), mode="read", frames="word", sites="resid"
    )
    bids.write(recording, root)
    return recording, bids.read(root, task="pathology"), root


def test_trials_of_different_lengths_are_valid_bids(words, validate):
    recording, run, root = words
    validate(root)
    assert len(set(recording.counts)) > 1
    assert run.volume_counts.tolist() == recording.counts.tolist()
    np.testing.assert_array_equal(run.frame_values(), recording.values)
    events = run.events
    assert events["onset"].tolist() == np.cumsum([0, *recording.counts[:-1]]).tolist()
    assert events["duration"].tolist() == recording.counts.tolist()
    trial_events = bids.read_tsv(run.paths.derivative("desc-trial_events.tsv"))
    assert np.allclose(np.diff(trial_events["onset"]), run.t_r)
    assert run.sidecar["NumberOfVolumesPerTrial"] == 1


def test_words_and_their_means_go_through_the_glm(words):
    _, run, _ = words
    n_volumes = int(run.volume_counts.sum())
    tokens = glm.fit(run, frames="token")
    assert [len(design) for design in tokens.designs] == [n_volumes]
    column = np.repeat((run.events["trial_type"] == "control").to_numpy(), run.volume_counts)
    assert (tokens.designs[0]["control"].to_numpy() == column).all()
    assert glm.fit(run).contrast("pathology - control").df < len(run.events)
    assert (glm.token_level(run, n=3).below_05 < 1).all()


@pytest.mark.parametrize(
    ("mode", "frames", "what"),
    [
        ("generate", "trial", "the mean of its frames"),
        ("read", "trial", "the mean of its frames"),
        ("read", "last", "its last token"),
    ],
)
def test_reduced_trials_are_stored_once(tiny_model, tmp_path, validate, mode, frames, what):
    design = paradigm.blocks("pathology", **SIZES)
    recording = scan(tiny_model, design, mode=mode, frames=frames)
    paths = bids.write(recording, tmp_path)
    validate(tmp_path)
    assert paths.bold.samefile(paths.trial_bold)
    run = bids.read(tmp_path, task="pathology")
    np.testing.assert_array_equal(run.values(), recording.values)
    assert run.t_r == (2 if mode == "generate" else 1)
    assert run.sidecar["Description"] == f"One volume a trial: {what}."
    assert run.sidecar["Frames"] == run.frames == frames
    with pytest.raises(bids.NoSuchRunError, match=f"frames='{frames}'"):
        run.frame_values()
    with pytest.raises(glm.DesignError, match="no tokens"):
        glm.fit(run, frames="token")
    with pytest.raises(glm.DesignError, match="no tokens"):
        glm.token_level(run)


def test_prompts_of_every_script_are_kept_as_they_were_shown(tiny_model, tmp_path, validate):
    table = stimuli.load().replace({"prompt": {" ": "\u00a0"}}, regex=True)
    table["prompt"] += " \u200d\u00ad\U0001f469\u200d\U0001f52c"  # joiners, soft hyphen, an emoji
    design = paradigm.blocks("pathology", table=table, **SIZES)
    bids.write(scan(tiny_model, design, mode="read"), tmp_path)
    validate(tmp_path)
    shown = bids.read(tmp_path, task="pathology").events["prompt"]
    assert shown.tolist() == design.trials["prompt"].tolist()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_empty_planes_around_the_units_take_no_disk(tmp_path, suffix):
    brain = geometry.layout([geometry.Site("resid", layer, f"h.{layer}", 2500) for layer in (0, 1)])
    values = np.random.default_rng(0).normal(size=(7, brain.n_units)).astype(np.float32)
    path = tmp_path / f"x{suffix}"
    files.write_frames(path, tmp_path, brain, [values[:3], values[3:]], n_volumes=7, t_r=1.0)
    img = nib.load(path)
    np.testing.assert_array_equal(geometry.from_img(brain, img), values)
    assert np.count_nonzero(img.get_fdata()) == values.size
    assert path.stat().st_blocks * 512 < 0.8 * img.dataobj.dtype.itemsize * np.prod(img.shape)


def test_images_are_kept_with_the_dataset(tiny_folders, tmp_path, validate):
    table = stimuli.load(tiny.draw_images(tmp_path / "images", n=40))
    design = paradigm.blocks("discs", table=table, **SIZES)
    model = models.load(str(tiny_folders["vit"]))
    bids.write(scan(model, design), tmp_path / "ds")
    tiny.draw_images(tmp_path / "images", n=40, seed=1)  # others under the same names
    bids.write(scan(model, design), tmp_path / "ds", overwrite=True)
    validate(tmp_path / "ds")
    run = bids.read(tmp_path / "ds", task="discs")
    for name, image in zip(run.events["stim_file"], design.trials["image"], strict=True):
        kept = tmp_path / "ds" / "stimuli" / name
        assert kept.read_bytes() == Path(image).read_bytes()
    first, second, *_ = (tmp_path / "ds" / "stimuli" / name for name in run.events["stim_file"])
    first.unlink()
    second.write_bytes(b"damaged")
    with pytest.warns(bids.manifest.ForeignFileWarning, match=second.name):
        copy_shown(tmp_path / "ds", design.trials, only_known=True)
    assert checking.problems(tmp_path / "ds") == []


def test_an_image_that_changed_is_not_shown_by_its_old_copy(tiny_folders, tmp_path):
    table = stimuli.load(tiny.draw_images(tmp_path / "images", n=40))
    design = paradigm.blocks("discs", table=table, **SIZES)
    model = models.load(str(tiny_folders["vit"]))
    bids.write(scan(model, design), tmp_path / "ds")
    image = Path(design.trials["image"].iloc[0])
    Image.new("RGB", (48, 48), "white").save(image)
    bids.write(scan(model, design), tmp_path / "ds", overwrite=True)
    name = bids.read(tmp_path / "ds", task="discs").events["stim_file"].iloc[0]
    assert (tmp_path / "ds" / "stimuli" / name).read_bytes() == image.read_bytes()


def test_parts_of_fused_projections_are_rebuilt_from_the_dataset(tiny_folders, tmp_path, validate):
    model = models.load(str(tiny_folders["gpt2"]))
    recording = scan(
        model, paradigm.blocks("pathology", **SIZES), sites="q,k,v", fused_qkv="contiguous"
    )
    bids.write(recording, tmp_path)
    validate(tmp_path)
    run = bids.read(tmp_path, task="pathology")
    assert run.brain.sites == recording.brain.sites
    assert run.brain.space == recording.brain.space


def scan_images(root, folder, tiny_folders, *options):
    size = ["--n-runs", "1", "--n-blocks", "2", "--trials-per-block", "4", "--quiet"]
    model = ["--model", str(tiny_folders["vit"]), "--no-untrained", "--stimuli", str(folder)]
    return cli.main(["scan", str(root), *size, *model, *options])


def test_overwriting_keeps_no_image_of_before(tiny_folders, tmp_path, validate):
    root = tmp_path / "ds"
    for seed, options in ((0, []), (1, ["--overwrite"])):  # other discs under the same names
        folder = tiny.draw_images(tmp_path / f"images{seed}", n=40, seed=seed)
        assert scan_images(root, folder, tiny_folders, *options, "--seed", str(seed)) == 0
    table = stimuli.load(folder)
    sources = dict(zip(bids.writing.stimulus_names(table), table["image"], strict=True))
    shown = set(bids.read(root, task="discs").events["stim_file"])
    assert {path.name for path in (root / "stimuli").iterdir()} == shown
    for name in shown:
        assert (root / "stimuli" / name).read_bytes() == Path(sources[name]).read_bytes()
    validate(root)


@pytest.mark.parametrize(
    ("names", "message"),
    [(("a-1", "a1"), "'a-1' and 'a1' would both be called a1.png"), (("é", "b"), "no ASCII")],
)
def test_images_that_cannot_be_named_apart_are_refused(
    names, message, tiny_folders, tmp_path, capsys
):
    folder = tiny.draw_images(tmp_path / "images", n=40)
    table = pd.read_csv(folder / "stimuli.tsv", sep="\t")
    table["stim_id"] = [*names, *(f"c{i}" for i in range(len(table) - 2))]
    table.to_csv(folder / "stimuli.tsv", sep="\t", index=False)
    assert scan_images(tmp_path / "ds", folder, tiny_folders) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "ds").exists()
