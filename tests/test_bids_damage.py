"""A damaged file of a dataset is named, with its line and what to do; no traceback, exit 2."""

from __future__ import annotations

import copy
import gzip
import pickle
import shutil
from pathlib import Path

import pytest
from tests_support import make_dataset, make_recording

from llm2nifti import bids, cli, geometry, glm, study

EVENTS = "task-pathology_run-1_events.tsv"
SIDECAR = "task-pathology_run-1_space-mb2624b057_desc-trial_bold.json"
IMAGE = SIDECAR.replace(".json", ".nii")
OPTIONS = {"null": ["--n", "2"], "where": ["--unit", "embed:1"]}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A dataset that was analysed and has a report's numbers."""
    root = make_dataset(tmp_path_factory.mktemp("damage") / "ds")
    study.analyse(bids.session(root), n_null=2, verbose=0)
    return root


@pytest.fixture
def dataset(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "ds"))


def forget_what_was_written(root):
    """As in a dataset that was begun without a manifest: only what is read can show damage."""
    (root / bids.manifest.MANIFEST).unlink()


def path_of(root, name):
    """The first file whose name ends so."""
    return next(path for path in sorted(root.rglob("*")) if path.name.endswith(name))


def damage(path, how):
    """Write a damaged version of a file, or delete it."""
    raw = path.read_bytes()
    lines = raw.splitlines(keepends=True) or [b""]
    new = {
        "empty": b"",
        "zeros": bytes(len(raw)),
        "half": raw[: len(raw) // 2],
        "invalid UTF-8": raw[:20] + b"\xff" + raw[20:],
        "one cell more": b"".join([*lines[:2], b"1\t" + lines[-1]]),
        "list": b"[1]",
        "text": b'"x"',
        "unclosed": b"{\n",
        "no keys": b"{}",
        "nested": b'{"a":' * 100_000,
        "flipped": raw[:-40] + bytes(byte ^ 255 for byte in raw[-40:-12]) + raw[-12:],
    }
    path.unlink() if how == "missing" else path.write_bytes(new[how])


def change_cell(path, column, value, line=3):
    """Put something else into one cell of a table, or take the column away."""
    rows = [row.split("\t") for row in path.read_text("utf-8").splitlines()]
    i = rows[0].index(column)
    if value is None:
        rows = [row[:i] + row[i + 1 :] for row in rows]
    else:
        rows[line - 1][i] = value
    path.write_text("\n".join(map("\t".join, rows)) + "\n", "utf-8")


def message(capsys, command, root):
    """What a command that ends with exit code 2 says: one line, no traceback."""
    code = cli.main([command, str(root), *OPTIONS.get(command, []), "--quiet"])
    lines = capsys.readouterr().err.strip().splitlines()
    assert (code, len(lines)) == (2, 1), lines
    return lines[0]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("empty", "the file is empty"),
        ("zeros", "line 1 column 1: not JSON (Expecting value)"),
        ("half", "not JSON ("),
        ("invalid UTF-8", "line 2: not UTF-8 text (invalid start byte)"),
        ("list", "a JSON list, not an object"),
        ("text", "a JSON str, not an object"),
        ("unclosed", "line 2 column 1: not JSON (Expecting property name"),
        ("nested", "nested too deeply"),
        ("missing", "there is no such file"),
    ],
)
def test_damaged_json_is_named_with_line_and_cure(dataset, how, said):
    path = path_of(dataset, SIDECAR)
    damage(path, how)
    with pytest.raises(bids.DamagedFileError) as raised:
        bids.read_json(path)
    text = str(raised.value)
    assert text.startswith(f"{path}: ")
    assert said in text
    cure = f"; the file is damaged: run llm2nifti check {dataset} --repair, or restore it"
    assert text.endswith(cure)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("empty", "the file is empty"),
        ("zeros", "the column onset is missing"),
        ("invalid UTF-8", "line 1: not UTF-8 text (invalid start byte)"),
        ("one cell more", "not a table (Expected 15 fields in line 3, saw 16)"),
        ("missing", "there is no such file"),
    ],
)
def test_damaged_table_is_named_with_line_and_cure(dataset, how, said):
    path = path_of(dataset, EVENTS)
    damage(path, how)
    with pytest.raises(bids.DamagedFileError) as raised:
        bids.read_tsv(path, {"onset": float})
    text = str(raised.value)
    assert text.startswith(f"{path}: {said}; the file is damaged: run llm2nifti check {dataset}")


@pytest.mark.parametrize(
    ("value", "kind"),
    [("", int), ("x", int), ("n/a", int), ("1.5", int), ("", float), ("x", float)],
)
def test_cell_that_is_no_number_is_named_with_its_line(dataset, value, kind):
    path = path_of(dataset, EVENTS)
    change_cell(path, "block", value, line=4)
    with pytest.raises(bids.DamagedFileError, match=f"line 4: block is .*{value}.*, no .*number"):
        bids.read_tsv(path, {"block": kind})


def test_column_that_is_missing_is_named(dataset):
    forget_what_was_written(dataset)
    change_cell(path_of(dataset, EVENTS), "trial_type", None)
    run = bids.read(dataset, task="pathology")
    with pytest.raises(bids.DamagedFileError, match=r"events.tsv: the column trial_type is"):
        run.events  # noqa: B018


def test_missing_key_is_named_at_any_depth(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"Model": {"Name": "m"}, "Settings": 3}')
    content = bids.read_json(path)
    assert content == {"Model": {"Name": "m"}, "Settings": 3}
    assert content.get("RepetitionTime") is None
    said = r"x.json: RepetitionTime is missing; .*restore it"
    for broken in (content, content["Model"]):
        with pytest.raises(bids.DamagedFileError, match=said):
            broken["RepetitionTime"]
    with pytest.raises(bids.DamagedFileError, match="Settings is 3, no object"):
        bids.read_json(path, {"Settings": dict})
    assert pickle.loads(pickle.dumps(content)) == content == copy.deepcopy(content)


@pytest.mark.parametrize(
    "command", ["glm", "repeatability", "identification", "null", "report", "where"]
)
def test_every_command_names_a_damaged_file(dataset, capsys, command):
    damages = {"dseg.tsv": "invalid UTF-8", "units.tsv": "half", "dseg.nii.gz": "half"}
    for name, how in {**damages, "participants.tsv": "empty"}.items():
        path = path_of(dataset, name)
        before = path.read_bytes()
        damage(path, how)
        assert f"{path}: " in message(capsys, command, dataset)
        path.write_bytes(before)


@pytest.mark.parametrize("command", ["glm", "repeatability", "null"])
@pytest.mark.parametrize("name", [EVENTS, IMAGE])
def test_analyses_name_a_damaged_file_of_a_run(dataset, capsys, command, name):
    path = path_of(dataset, name)
    for how in ("zeros", "empty", "missing"):
        damage(path, how)
        assert f"{path}: " in message(capsys, command, dataset)


def test_events_and_image_of_different_length_are_both_named(dataset, capsys):
    forget_what_was_written(dataset)
    path = path_of(dataset, EVENTS)
    path.write_text("".join(path.read_text("utf-8").splitlines(keepends=True)[:-1]), "utf-8")
    text = message(capsys, "glm", dataset)
    assert path_of(dataset, IMAGE).name in text
    assert path.name in text


@pytest.mark.parametrize(
    "name", ["llm2nifti/summary.json", "VsControl_stat-t_statmap.nii.gz", "T1w.nii.gz"]
)
def test_report_names_a_damaged_result(dataset, capsys, name):
    paths = [p for p in sorted(dataset.rglob("*")) if p.as_posix().endswith(name)]
    path = next(p for p in paths if "_run-" not in p.name)
    damage(path, "half")
    assert f"{path}: " in message(capsys, "report", dataset)


def test_result_that_lacks_a_key_is_named(dataset, capsys):
    (dataset / bids.DERIVATIVES / "lesion.json").write_text("{}")
    text = message(capsys, "report", dataset)
    assert "lesion.json: " in text
    assert "delete it and run the command that made it again" in text


def test_packed_image_that_was_cut_or_changed_is_named(tmp_path):
    root = tmp_path / "ds"
    bids.write(make_recording(), root, compress=True)
    forget_what_was_written(root)
    path = path_of(root, IMAGE + ".gz")
    sound = path.read_bytes()
    path.write_bytes(sound[:-3])
    with pytest.raises(bids.DamagedFileError, match=r"bold.nii.gz: an image cut off"):
        bids.read(root, task="pathology").img  # noqa: B018
    path.write_bytes(sound)
    damage(path, "flipped")
    run = bids.read(root, task="pathology")
    with pytest.raises(geometry.UnreadableImageError, match=r"bold.nii.gz: the file is damaged"):
        run.values()
    with pytest.raises(geometry.UnreadableImageError, match=r"bold.nii.gz: the file is damaged"):
        glm.fit(run)


@pytest.mark.parametrize(
    "content", [b"", b"no image", gzip.compress(b"no image", mtime=0), b"\x1f\x8bx"]
)
@pytest.mark.parametrize("name", ["mask.nii", "mask.nii.gz"])
def test_file_that_is_no_image_is_named(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(bids.DamagedFileError, match=name):
        bids.read_img(path)
