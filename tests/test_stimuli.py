"""Do the bundled sets keep what their sidecars promise, and are users' files checked row by row?"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import ks_2samp

from llm2nifti import cli, media, models, stimuli
from llm2nifti.stimuli import COLUMNS, CONTROL, SPLITS, TASKS, StimulusError, load

SETS = (*TASKS, CONTROL)
FRAMED = [name for name in SETS if name != "randomstrings"]
# What a reader would call a word of one of the disciplines; the data add their own.
TASK_WORDS = (
    r"election|parliament|senate|ballot|democra|diplomac|x-ray|radiolog|radiograph|tomograph|"
    r"ultrasound|mri\b|fossil|dinosaur|trilobite|paleonto|palaeo|excavation|archaeolog|archeolog|"
    r"artifact|pottery|tumou?r|biops|histolog|carcinoma|necrosis|autops|lesion"
)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return load(split=None)


def sidecar(name: str) -> dict:
    return json.loads((stimuli.data_folder() / f"{name}.json").read_text("utf-8"))


def stems(text: str, shortest: int = 1) -> set[str]:
    words = re.findall(rf"[a-z]{{{shortest},}}", text.lower())
    return {word.rstrip("s") for word in words if word not in ("the", "of", "in", "and")}


@pytest.fixture
def write(tmp_path):
    def to_file(content: str | bytes):
        path = tmp_path / "mine.tsv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return to_file


@pytest.mark.parametrize("name", SETS)
def test_sidecar_describes_its_table(name):
    told, found = sidecar(name), stimuli.read(stimuli.data_folder() / f"{name}.tsv")
    header = (stimuli.data_folder() / f"{name}.tsv").read_text("utf-8").splitlines()[0]
    assert header.split("\t") == list(told["Columns"]) == list(COLUMNS)
    assert told["Rows"] == len(found)
    assert set(found["task"]) == {name}
    assert set(told["QuestionFrames"]) == set(found["frame"]) - {""}
    assert set(told["Splits"]) == set(found["split"]) == set(SPLITS)


def test_sets_are_large_enough(table):
    concepts = table.groupby("task")["concept"].nunique()
    assert set(concepts.index) == set(SETS)
    assert concepts.min() >= 128
    assert concepts[CONTROL] >= 1024
    assert table.loc[table["task"] == CONTROL, "topic"].nunique() >= 128


@pytest.mark.parametrize("column", ["stim_id", "concept", "prompt"])
def test_nothing_appears_twice_in_or_across_sets(table, column):
    times = Counter(text.casefold().strip() for text in table[column])
    assert [text for text, n in times.items() if n > 1] == []


def test_no_topic_is_in_both_splits(table):
    n_splits = table.groupby(["task", "topic"])["split"].nunique()
    assert (n_splits == 1).all()


@pytest.mark.parametrize("split", SPLITS)
def test_question_frames_are_equally_frequent_in_every_condition(table, split):
    framed = table[(table["split"] == split) & table["task"].isin(FRAMED)]
    counts = pd.crosstab(framed["task"], framed["frame"])
    assert set(counts.index) == set(FRAMED)
    assert (counts.nunique(axis=1) == 1).all()
    assert counts.min(axis=None) > 0


@pytest.mark.parametrize("name", SETS)
def test_prompt_is_the_frame_filled_with_the_concept(table, name):
    patterns = {"": "{}", **sidecar(name)["QuestionFrames"]}
    rows = table[table["task"] == name]
    made = [
        patterns[f].replace("{}", c) for f, c in zip(rows["frame"], rows["concept"], strict=True)
    ]
    assert rows["prompt"].tolist() == made


def test_no_two_concepts_share_most_of_their_words(table):
    by_word = defaultdict(list)
    for concept in table.loc[table["task"].isin(FRAMED), "concept"]:
        for word in stems(concept):
            by_word[word].append(concept)
    pairs = {pair for same in by_word.values() for pair in combinations(same, 2)}
    shares = {(a, b): len(stems(a) & stems(b)) / len(stems(a) | stems(b)) for a, b in pairs}
    assert len(pairs) > 100
    assert [pair for pair, share in shares.items() if share >= 0.6] == []


def test_control_has_no_word_of_a_task(table):
    common = {}
    for task, concepts in table.groupby("task")["concept"]:
        times = Counter(word for concept in concepts for word in stems(concept, shortest=5))
        common[task] = {word for word, n in times.items() if n >= 3}
    own = set().union(*(common[task] for task in TASKS))
    control = table.loc[table["task"] == CONTROL, ["concept", "topic"]].agg(" ".join, axis=1)
    assert len(own) > 5
    assert [text for text in control if stems(text) & own] == []
    assert [text for text in control if re.search(rf"\b({TASK_WORDS})", text.lower())] == []
    tasks = table.loc[table["task"] != CONTROL, "concept"].str.lower()
    assert tasks.str.contains(rf"\b(?:{TASK_WORDS})").sum() > 20


@pytest.mark.real_model
def test_prompts_of_all_sets_are_equally_long(table):
    tokenizer = models.load().tokenizer
    lengths = table["prompt"].map(lambda prompt: len(tokenizer(prompt)["input_ids"]))
    groups = {key: lengths[rows] for key, rows in table.groupby(["task", "split"]).groups.items()}
    far = {
        (task, split): ks_2samp(groups[task, split], groups[CONTROL, split]).statistic
        for task in TASKS
        for split in SPLITS
    }
    assert {key: d for key, d in far.items() if d > 0.2} == {}


def test_one_split_is_loaded_unless_both_are_asked_for(table):
    assert set(load()["split"]) == {"evaluation"}
    assert len(load(split="development")) + len(load()) == len(table)
    with pytest.raises(StimulusError, match="'test'; use one of development, evaluation"):
        load(split="test")


def test_describe_counts_rows_of_each_task_and_split(table):
    for row in stimuli.describe(table).itertuples():
        rows = [r for r in table.itertuples() if (r.task, r.split) == (row.task, row.split)]
        assert row.prompts == len(rows)
        assert row.topics == len({r.topic for r in rows})
        assert row.frames == len({r.frame for r in rows} - {""})
        assert row.example == rows[0].prompt


def test_users_file_needs_only_task_and_prompt(write):
    mine = load(write("prompt\ttask\nWhat is a sonnet?\tpoetry\nWhat is jazz?\tmusic\n"))
    assert list(mine.columns) == list(COLUMNS)
    assert set(mine["task"]) == {"poetry", "music", CONTROL}
    assert mine["prompt"].tolist()[:2] == ["What is a sonnet?", "What is jazz?"]
    assert mine["stim_id"].is_unique
    assert mine["concept"].tolist()[:2] == mine["stim_id"].tolist()[:2]
    assert mine["frame"].tolist()[:2] == ["", ""]


def test_users_own_control_replaces_the_bundled_one(write):
    mine = load(write("task\tprompt\nmusic\tWhat is jazz?\ncontrol\tWhat is tea?\n"))
    assert mine["prompt"].tolist() == ["What is jazz?", "What is tea?"]


@pytest.mark.parametrize("text", ["NA", "null", "nan", "None", "1.0"])
def test_text_that_looks_like_a_missing_value_stays_text(write, text):
    assert load(write(f"task\tprompt\n{text}\t{text}\n")).loc[0, ["task", "prompt"]].tolist() == [
        text,
        text,
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("task\ttext\na\tx\n", "no column 'prompt'; the header has task, text"),
        ("task,prompt\na,x\n", "no column 'task'.*separated by tabs"),
        ("task\tprompt\na\tx\na\t \n", "row 3: empty prompt"),
        ("task\tprompt\n\tx\n", "row 2: empty task"),
        ("task\tprompt\na\tx\nb\ty\na\tx\n", "row 4: prompt used before .'x'"),
        ("stim_id\ttask\tprompt\n1\ta\tx\n1\ta\ty\n", "row 3: stim_id used before .'1'"),
        ("task\tprompt\tsplit\na\tx\t\na\ty\ttrain\n", "row 3: unknown split .'train'"),
        ("task\tprompt\na\tx\na\ty\tz\n", "row 3: 3 cells"),
        ("task\tprompt\na\tcafé\n".encode("latin-1"), "not UTF-8"),
        ("", "no rows"),
        ("task\tprompt\na\tx\ncon trol\ty\n", "row 3: .*same BIDS label as 'control'.*'con trol'"),
        ("task\tprompt\na\tx\nControl\ty\n", "row 3: .*same BIDS label as 'control'"),
        ("task\tprompt\nart\tx\nb\ty\nA rt\tz\n", "row 4: .*same BIDS label as 'art'.*'A rt'"),
        ("task\tprompt\na\tx\n音楽\ty\n", "row 3: task has no ASCII letter or digit"),
        ("task\tprompt\ncontrol\tx\ncontrol\ty\n", "every row .* is of task 'control'"),
        ("task\tprompt\na\tx\na\ty\0z\n", r"row 3: prompt holds .*'\\x00'"),
        ("task\tprompt\na\tx\na\ty\x85z\n", r"row 3: prompt holds .*'\\x85'"),
        ('task\tprompt\na\tx\na\t"y\tz"\n', r"row 3: prompt holds .*'\\t'"),
        ("task\ttopic\tprompt\na\t\x1b[1m\ty\n", "row 2: topic holds"),
        ("task\tprompt\tprompt\na\tx\ty\n", "row 1: column 'prompt' .* 2 times .columns 2, 3"),
        ("task\tprompt\t\t\na\tx\t\t\n", "row 1: column '' .* 2 times"),
        ("task\timage\taudio\na\tx.png\tx.wav\n", "columns image and audio; a table shows one"),
    ],
)
def test_bad_file_is_refused_with_its_name_and_row(write, content, said):
    path = write(content)
    with pytest.raises(StimulusError, match=said) as error:
        load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("command", ["scan", "run"])
def test_bad_stimuli_are_refused_before_anything_is_written(write, tmp_path, capsys, command):
    path = write("task\tprompt\na\tx\ncon trol\ty\n")
    assert cli.main([command, str(tmp_path / "ds"), "--stimuli", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path}, row 3" in line
    assert not (tmp_path / "ds").exists()


def test_tasks_of_another_split_do_not_make_up_for_control_alone(write):
    text = "task\tprompt\tsplit\na\tx\tdevelopment\ncontrol\ty\tevaluation\n"
    with pytest.raises(StimulusError, match="every row of split 'evaluation' is of task 'control'"):
        load(write(text))
    assert len(load(write(text), split=None)) == 2


def broken_images(folder):
    """One file of every kind that cannot be shown, by name; and what is said of it."""
    good = Image.fromarray(np.random.default_rng(0).integers(255, size=(64, 64, 3), dtype=np.uint8))
    for name in ("good.png", "cut.png", "cut.jpg", "worse.png"):
        good.save(folder / name)
    for name in ("cut.png", "cut.jpg", "worse.png"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: 40 if name == "worse.png" else len(data) * 2 // 3])
    (folder / "drawn.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "text.png").write_text("no pixels")
    (folder / "empty.png").touch()
    (folder / "folder.png").mkdir()
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    return {
        "cut.png": "damaged: .*truncated",
        "cut.jpg": "damaged: .*truncated",
        "worse.png": "damaged or not an image",
        "drawn.svg": "damaged or not an image; Pillow reads PNG",
        "text.png": "damaged or not an image",
        "empty.png": "empty",
        "folder.png": "a folder",
        "bomb.png": "too large .400000000 pixels.; make it smaller",
        "absent.png": "no such file",
    }


def test_every_image_that_cannot_be_shown_is_named_at_once(tmp_path, monkeypatch):
    bad = broken_images(tmp_path)
    rows = [f"art\t{name}\n" for name in ("good.png", *bad)]
    (tmp_path / "stimuli.tsv").write_text(f"task\timage\n{''.join(rows)}control\t./good.png\n")
    with pytest.raises(StimulusError, match=f"{len(bad)} of 11 images cannot be shown") as error:
        load(tmp_path)
    assert str(error.value).endswith(f"; and {len(bad) - 5} more")
    monkeypatch.setattr(media, "N_NAMED", len(bad))
    with pytest.raises(StimulusError) as error:
        load(tmp_path)
    for row, (name, said) in enumerate(bad.items(), start=3):
        assert re.search(f"row {row}, '{name}': {said}", str(error.value)), name
    assert "good.png" not in str(error.value)


def test_missing_file_is_refused_with_its_name(tmp_path):
    with pytest.raises(StimulusError, match=r"no stimulus file .*absent\.tsv"):
        load(tmp_path / "absent.tsv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('task\tprompt\na\t"What\nis it?\n', "row 2: unexpected end of data"),
        ("task\tprompt\na\tWhat?\ta note\n", "row 2: 3 cells, the header has 2"),
        ("task\tprompt\na\tWhat?\n\na\tWho?\n", "row 3: 0 cells"),
        ("task\tprompt\n", "no rows"),
        ("stim_id\ttask\tprompt\ncontrol-0001\ta\tWhat?\n", "bundled control.*control-0001"),
    ],
)
def test_malformed_tables_name_the_row(tmp_path, text, message):
    path = tmp_path / "mine.tsv"
    path.write_text(text)
    with pytest.raises(stimuli.StimulusError, match=message):
        stimuli.load(path, split=None)


def test_the_row_of_a_wrong_byte_is_that_of_the_file(tmp_path):
    path = tmp_path / "mine.tsv"
    rows = b"".join(b"a\tprompt %d\n" % i for i in range(20_000))
    path.write_bytes(b"task\tprompt\n" + rows + b"a\tcaf\xe9\n")
    with pytest.raises(stimuli.StimulusError, match="row 20002: not UTF-8"):
        stimuli.load(path)
