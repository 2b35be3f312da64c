"""The manifest: only what is as llm2nifti wrote it is deleted or replaced; the rest stays."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys

import pandas as pd
import pytest
from tests_support import contents, make_dataset, make_recording

from llm2nifti import bids
from llm2nifti.bids import files, manifest

DESCRIPTION = "dataset_description.json"
KEPT = {DESCRIPTION, manifest.MANIFEST.as_posix()}
SUBJECT = "sub-tinyModel1"


@pytest.fixture
def dataset(tmp_path):
    """Two tasks of two runs."""
    return make_dataset(tmp_path / "ds")


def rows(root):
    """The manifest, as any reader of tables sees it."""
    table = pd.read_csv(root / manifest.MANIFEST, sep="\t").set_index("path")
    return table.drop(manifest.MANIFEST.as_posix(), errors="ignore")


def left_after_removal(root, *, warns=True):
    """Files that are there after everything of ours is deleted."""
    if warns:
        with pytest.warns(bids.manifest.ForeignFileWarning) as caught:
            bids.dataset.remove_dataset(root)
        said = " ".join(str(warning.message) for warning in caught)
    else:
        bids.dataset.remove_dataset(root)
        said = ""
    return set(contents(root)) - KEPT, said


def test_every_file_is_listed_once_with_size_and_hash(dataset):
    listed, there = rows(dataset), contents(dataset)
    del there[manifest.MANIFEST.as_posix()]
    assert list(listed.index) == sorted(there)
    for name, data in there.items():
        assert int(listed.loc[name, "size"]) == len(data)
        assert listed.loc[name, "sha256"] == hashlib.sha256(data).hexdigest()


def test_all_of_an_untouched_dataset_is_deleted(dataset):
    left, _ = left_after_removal(dataset, warns=False)
    assert left == set()


FOREIGN = [
    "derivatives/fmriprep/x.txt",
    "sub-human/func/x.nii",
    f"{SUBJECT}/anat/foreign.nii",
    f"{SUBJECT}/notes.txt",
    "task-other_events.json",
    f"derivatives/llm2nifti/{SUBJECT}/anat/{SUBJECT}_label-drawn_mask.nii.gz",
    "stimuli/mine.png",
    "code/mine.py",
]


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_others_stay_and_are_named(dataset, name):
    path = dataset / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    left, said = left_after_removal(dataset)
    assert left == {name}
    assert str(path) in said
    assert path.read_text() == "mine"


def test_a_file_of_ours_that_was_changed_stays(dataset):
    mask = bids.read(dataset, task="pathology").paths.network()
    bids.write_text(mask, dataset, "network")
    mask.write_text("drawn by hand")
    left, said = left_after_removal(dataset)
    assert left == {mask.relative_to(dataset).as_posix()}
    assert str(mask) in said


@pytest.mark.parametrize("name", ["derivatives", SUBJECT])
def test_nothing_behind_a_link_is_deleted(dataset, tmp_path, name):
    shutil.move(dataset / name, tmp_path / "elsewhere")
    (dataset / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    before = contents(tmp_path)
    with pytest.raises(bids.ExistsError, match=f"{name} is a link to another folder"):
        bids.dataset.remove_dataset(dataset)
    assert contents(tmp_path) == before


def test_rows_and_columns_of_others_in_participants_stay(dataset):
    people = dataset / "participants.tsv"
    table = bids.read_tsv(people)
    table["liked"] = "yes"
    other = pd.DataFrame([{"participant_id": "sub-human", "liked": "no"}])
    pd.concat([table, other]).to_csv(people, sep="\t", index=False, na_rep="n/a")
    left, _ = left_after_removal(dataset)
    assert left == {"participants.tsv", ".llm2nifti/replaced/participants.tsv"}
    assert list(bids.read_tsv(people)["participant_id"]) == ["sub-human"]
    kept = bids.read_tsv(dataset / manifest.ASIDE / "participants.tsv")
    assert list(kept["liked"]) == ["yes", "no"]
    bids.write(make_recording(), dataset)
    again, _ = left_after_removal(dataset)
    assert "participants.tsv" in again


@pytest.mark.parametrize(
    "description",
    [
        {"DatasetLinks": {"source": "made with llm2nifti"}},
        {"GeneratedBy": [{"Name": "not llm2nifti"}], "Name": "llm2nifti"},
    ],
)
def test_only_who_generated_a_dataset_says_whose_it_is(tmp_path, description):
    (tmp_path / "sub-01").mkdir()
    (tmp_path / "sub-01" / "x.nii").write_text("mine")
    (tmp_path / DESCRIPTION).write_text(json.dumps(description))
    before = contents(tmp_path)
    with pytest.raises(bids.ExistsError, match="not an llm2nifti dataset"):
        bids.dataset.remove_dataset(tmp_path)
    with pytest.raises(bids.ExistsError, match="not an llm2nifti dataset"):
        bids.write(make_recording(), tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["../outside.txt", "/outside.txt", "sub-x/../../outside.txt"])
def test_a_manifest_that_was_edited_leads_nowhere_else(dataset, name):
    outside = dataset.parent / "outside.txt"
    outside.write_text("mine")
    digest = hashlib.sha256(b"mine").hexdigest()
    name = str(outside) if name.startswith("/") else name
    with (dataset / manifest.MANIFEST).open("a") as file:
        file.write(f"{name}\t4\t{digest}\tpending\n{name}\t4\t{digest}\n")
    for _ in range(2):  # as lines that were appended, and in a part with the right hash
        manifest.settle(dataset)
        bids.dataset.remove_dataset(dataset)
        assert outside.read_text() == "mine"
        text = f"path\tsize\tsha256\n{name}\t4\t{digest}\n"
        own = hashlib.sha256(text.encode()).hexdigest()
        (dataset / manifest.MANIFEST).write_text(f"{text}{manifest.MANIFEST}\tn/a\t{own}\n")


def test_a_dataset_without_manifest_is_not_emptied(dataset):
    (dataset / manifest.MANIFEST).unlink()
    before = contents(dataset)
    with pytest.raises(bids.ExistsError, match="delete the folder yourself"):
        bids.dataset.remove_dataset(dataset)
    assert contents(dataset) == before


def test_a_file_of_others_is_moved_out_of_the_way_not_overwritten(dataset):
    mask = bids.read(dataset, task="pathology").paths.network()
    mask.parent.mkdir(exist_ok=True)
    for text in ("drawn by hand", "drawn again"):
        mask.write_text(text)
        with pytest.warns(bids.manifest.ForeignFileWarning, match="kept as"):
            bids.write_text(mask, dataset, "network")
    bids.write_text(mask, dataset, "another network")  # over one of ours: without a word
    kept = dataset / manifest.ASIDE / mask.relative_to(dataset)
    assert kept.read_text() == "drawn by hand"
    assert kept.with_name(kept.name + ".2").read_text() == "drawn again"
    bids.writing.clear_work(dataset, recordings=True)
    assert kept.exists()


def test_a_kill_between_name_and_line_leaves_no_file_unknown(dataset):
    path = dataset / "derivatives" / "llm2nifti" / "summary.json"
    bids.write_text(path, dataset, "old")
    new = dataset / "new"
    new.write_text("new")
    manifest.announce(dataset, path, new)  # and the process is killed: the old one is there
    assert manifest.is_as_written(dataset, path)
    new.replace(path)  # or it is killed here: the new one is there
    assert manifest.is_as_written(dataset, path)
    manifest.settle(dataset)
    name = path.relative_to(dataset).as_posix()
    assert rows(dataset).loc[name, "sha256"] == hashlib.sha256(b"new").hexdigest()


def test_an_announced_file_that_never_came_is_forgotten(dataset):
    before = (dataset / manifest.MANIFEST).read_bytes()
    new = dataset / "new"
    new.write_text("new")
    manifest.announce(dataset, dataset / "sub-x" / "y.txt", new)
    manifest.settle(dataset)
    assert (dataset / manifest.MANIFEST).read_bytes() == before


def test_a_line_cut_off_by_a_full_disk_costs_nothing_else(dataset):
    with (dataset / manifest.MANIFEST).open("a") as file:
        file.write("sub-x/cut")
    files.write_text(dataset / "sub-x" / "y.txt", dataset, "y")
    manifest.settle(dataset)
    assert "sub-x/y.txt" in rows(dataset).index
    assert "sub-x/cut" not in rows(dataset).index


def test_two_processes_may_write_one_file_at_the_same_time(dataset):
    path = dataset / "x.txt"
    contents_of = []
    for text in ("one", "two"):
        new = dataset / text
        new.write_text(text)
        contents_of.append(manifest.announce(dataset, path, new))
    for content, text in zip(contents_of, ("one", "two"), strict=True):
        (dataset / text).replace(path)
        manifest.confirm(dataset, path, content)
        assert manifest.is_as_written(dataset, path)


def test_a_journal_may_grow(dataset):
    path = dataset / "derivatives" / "llm2nifti" / "lesion_evaluations.jsonl"
    for text in ("a", "a\nb"):
        path.write_text(text)
        manifest.record_journal(path)
        assert manifest.is_as_written(dataset, path)
    manifest.settle(dataset)
    left, _ = left_after_removal(dataset, warns=False)
    assert left == set()


def test_every_damage_of_the_manifest_itself_is_seen(dataset):
    path = dataset / manifest.MANIFEST
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    damaged = [
        b"",
        b"[]",
        whole[1:],
        whole.replace(b"a", b"b", 1),
        *(whole[:n] for n in (400, 900)),
    ]
    damaged += [b"".join(lines[:n]) for n in (2, 5, len(lines) - 1)]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(manifest.ManifestError, match="is damaged"):
            bids.dataset.remove_dataset(dataset)
    path.write_bytes(whole)
    manifest.written(dataset)


WATCHED, SEEN = [], []
CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def watch(event, _args):
    """Look at a folder as another process may, before every change of any file."""
    if WATCHED and event in CHANGES:
        root = WATCHED.pop()
        SEEN.append(sorted(path.name for path in root.iterdir()))
        bids.dataset.check_folder(root)
        manifest.written(root)
        WATCHED.append(root)


sys.addaudithook(watch)


def test_a_new_dataset_is_ours_at_every_moment(tmp_path):
    """Another process that looks while it is begun must not take it for damaged or foreign."""
    with bids.files.shared(tmp_path):
        WATCHED.append(tmp_path)
        try:
            bids.dataset.write_dataset_files(tmp_path)
        finally:
            WATCHED.clear()
    assert [manifest.WORK] in SEEN
    assert [manifest.WORK, "code"] in SEEN
    assert len(SEEN) > 20
    assert manifest.has_manifest(tmp_path)
    assert not (tmp_path / manifest.WORK / "code").exists()
