"""Do the bundled sets keep what their sidecars promise, and are users' files checked row by row?"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from llm2nifti import cli, media, models, stimuli
from llm2nifti.stimuli import (
    BUNDLED,
    COLUMNS,
    CONDITIONS,
    CONTROL,
    DOMAINS,
    LOCALIZERS,
    SPLITS,
    TASKS,
    StimulusError,
    load,
)
from llm2nifti.stimuli.measures import MEASURES, frequency

SETS = (*BUNDLED, CONTROL)
FRAMED = [*TASKS, *DOMAINS, CONTROL]
WORDED = [name for name in FRAMED if name != "randomstrings"]
# What a reader would call a word of one of the disciplines; the data add their own.
TASK_WORDS = (
    r"election|parliament|senate|ballot|democra|diplomac|x-ray|radiolog|radiograph|tomograph|"
    r"ultrasound|mri\b|fossil|dinosaur|trilobite|paleonto|palaeo|excavation|archaeolog|archeolog|"
    r"artifact|pottery|tumou?r|biops|histolog|carcinoma|necrosis|autops|lesion"
)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return load(split=None, tasks=BUNDLED)


def sidecar(name: str) -> dict:
    return json.loads((stimuli.data_folder() / f"{name}.json").read_text("utf-8"))


def stems(text: str) -> set[str]:
    words = re.findall(r"[a-z]+", text.lower())
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
    told, rows = sidecar(name), stimuli.read(stimuli.data_folder() / f"{name}.tsv")
    header = (stimuli.data_folder() / f"{name}.tsv").read_text("utf-8").splitlines()[0]
    known = [*COLUMNS, *CONDITIONS, "tokens", "frequency", "surprisal"]
    columns = [c for c in known if name in LOCALIZERS or c not in CONDITIONS]
    if name == "language":  # no minimal pairs
        columns.remove("pair")
    assert header.split("\t") == list(told["Columns"]) == columns
    assert told["Rows"] == len(rows)
    assert set(rows["task"]) == {name}
    assert set(told["QuestionFrames"]) == set(rows["frame"]) - {""}
    assert set(told["Splits"]) == set(rows["split"]) - {""}
    assert set(told["Splits"]) == (set() if name in LOCALIZERS else set(SPLITS))


def test_sets_are_large_enough(table):
    concepts, topics = (table.groupby("task")[name].nunique() for name in ("concept", "topic"))
    assert set(concepts.index) == set(SETS)
    assert concepts[list(TASKS)].min() >= 480
    assert topics[list(TASKS[:5])].min() >= 48
    assert (concepts[CONTROL], topics[CONTROL]) >= (2400, 240)
    assert concepts[list(DOMAINS)].min() >= 120
    rows = table.groupby(["task", "condition"]).size()
    assert rows["language"].to_dict() == {"sentences": 240, "words": 240, "nonwords": 240}
    assert min(rows[name].min() for name in ("arithmetic", "beliefs", "physics")) >= 40


@pytest.mark.parametrize("name", ["arithmetic", "beliefs", "physics"])
def test_every_pair_of_a_localizer_has_one_prompt_of_each_condition(table, name):
    rows = table[table["task"] == name]
    pairs = pd.crosstab(rows["pair"], rows["condition"])
    assert pairs.shape[1] == 2
    assert (pairs == 1).all(axis=None)


def test_every_concept_was_given_its_own_field_by_both_labellers(table):
    letters = {"politicalscience": "P", "pathology": "D", "cooking": "C", CONTROL: "E"}
    for name, letter in letters.items():
        source = Path(__file__).parents[1] / "data" / "sources" / f"{name}.tsv"
        labels = pd.read_csv(source, sep="\t", keep_default_na=False).set_index("concept")
        rows = labels.loc[table.loc[table["task"] == name, "concept"]]
        assert set(rows["first"]) == set(rows["second"]) == {letter}


def test_measures_are_those_of_the_prompts(table):
    assert set(MEASURES) - set(table) == {"characters", "words"}
    strings = table["task"].isin(["randomstrings", "rawstrings"])
    assert table.loc[strings, "frequency"].isna().all()
    assert table.loc[~strings, ["tokens", "frequency", "surprisal"]].notna().all(axis=None)
    for text in ("cooking", "transport"):
        rows = table[table["task"] == text].head(20)
        told = [frequency(concept) for concept in rows["concept"]]
        assert rows["frequency"].tolist() == pytest.approx(told, abs=6e-4)


@pytest.mark.parametrize("column", ["stim_id", "concept", "prompt"])
def test_nothing_appears_twice_in_or_across_sets(table, column):
    times = Counter(text.casefold().strip() for text in table[column])
    assert [text for text, n in times.items() if n > 1] == []


def test_no_topic_is_in_both_splits(table):
    table = table[table["split"] != ""]
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
    for concept in table.loc[table["task"].isin(WORDED), "concept"]:
        for word in stems(concept):
            by_word[word].append(concept)
    pairs = {pair for same in by_word.values() for pair in combinations(same, 2)}
    shares = {(a, b): len(stems(a) & stems(b)) / len(stems(a) | stems(b)) for a, b in pairs}
    assert len(pairs) > 100
    assert [pair for pair, share in shares.items() if share >= 0.6] == []


@pytest.mark.parametrize(("column", "fewest"), [("concept", 3), ("topic", 6)])
def test_control_has_no_word_of_a_task(table, column, fewest):
    times = {
        task: Counter(word for text in concepts for word in stems(text) if len(word) >= 5)
        for task, concepts in table.groupby("task")["concept"]
    }
    of_tasks = {word for task in TASKS for word, n in times[task].items() if n >= fewest}
    control = table.loc[table["task"] == CONTROL, column]
    assert len(of_tasks) > 100
    assert [text for text in control if stems(text) & of_tasks] == []
    assert [text for text in control if re.search(rf"\b({TASK_WORDS})", text.lower())] == []
    tasks = table.loc[table["task"].isin(TASKS), "concept"].str.lower()
    assert tasks.str.contains(rf"\b(?:{TASK_WORDS})").sum() > 100


@pytest.mark.real_model
def test_tokens_and_surprisal_are_those_of_the_default_model(table):
    model = models.load()
    rows = table[table["task"].isin(["pathology", "beliefs", "rawstrings"])].iloc[::150]
    for row in rows.itertuples():
        text = model.render([row.prompt], "auto")[0]
        ids = model.encode([text], rendered=True)[0]
        start, end = text.index(row.prompt), text.index(row.prompt) + len(row.prompt)
        spans = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        inside = [i for i, (a, b) in enumerate(spans["offset_mapping"]) if a < end and b > start]
        with torch.no_grad():
            logits = model.module(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        nats = [-float(logits[i - 1, ids[i]]) for i in inside]
        assert row.tokens == len(inside)
        assert row.surprisal == pytest.approx(np.mean(nats), abs=2e-3)


def test_one_split_is_loaded_unless_both_are_asked_for(table):
    assert set(load()["split"]) == {"evaluation"}
    assert len(load(split="development")) + len(load()) == len(load(split=None))
    with pytest.raises(StimulusError, match="'test'; use one of development, evaluation"):
        load(split="test")


def test_describe_counts_rows_of_each_task_and_split(table):
    for row in stimuli.describe(table).itertuples():
        split = "" if row.split == "any" else row.split
        rows = [r for r in table.itertuples() if (r.task, r.split) == (row.task, split)]
        assert row.prompts == len(rows)
        assert row.topics == len({r.topic for r in rows})
        assert row.frames == len({r.frame for r in rows} - {""})
        assert row.example == rows[0].prompt


def test_users_file_needs_only_task_and_prompt(write):
    mine = load(write("prompt\ttask\nWhat is a sonnet?\tpoetry\nWhat is jazz?\tmusic\n"))
    assert list(mine.columns) == [*COLUMNS, "tokens", "frequency", "surprisal"]
    assert mine.loc[mine["task"] != CONTROL, "tokens"].isna().all()
    assert set(mine["task"]) == {"poetry", "music", CONTROL}
    assert mine["prompt"].tolist()[:2] == ["What is a sonnet?", "What is jazz?"]
    assert mine["stim_id"].is_unique
    assert mine["concept"].tolist()[:2] == mine["stim_id"].tolist()[:2]
    assert mine["frame"].tolist()[:2] == ["", ""]


def test_users_own_control_replaces_the_bundled_one(write):
    mine = load(write("task\tprompt\nmusic\tWhat is jazz?\ncontrol\tWhat is tea?\n"))
    assert mine["prompt"].tolist() == ["What is jazz?", "What is tea?"]


def test_further_columns_are_kept_as_numbers_or_texts(write):
    rows = "music\tjazz\t1.5\tloud\nmusic\tfolk\tn/a\t\ncontrol\ttea\t2\tsoft\n"
    mine = load(write("task\tprompt\ttempo\tcondition\n" + rows))
    assert mine["tempo"].tolist()[::2] == [1.5, 2.0]
    assert np.isnan(mine["tempo"][1])
    assert mine["condition"].tolist() == ["loud", "", "soft"]


def test_columns_that_events_have_are_refused(write):
    with pytest.raises(StimulusError, match=r"column 'response' would be called .*; rename it"):
        load(write("task\tprompt\tresponse\na\tx\ty\ncontrol\tz\ty\n"))


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
