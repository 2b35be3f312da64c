"""Build the bundled stimulus sets from the lists in ``data/sources``.

Run from the repository root, with the package's extras ``stimuli``: ``python data/build.py``.
Everything follows from the seed: which topics belong to which split, which question frame each
concept gets, and the random strings. Concepts that two blind labellers did not both give their own
list's field alone are left out. Every prompt gets the measures that controls are matched by.
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from pathlib import Path

import pandas as pd

from llm2nifti import models, stimuli
from llm2nifti.models import LoadedModel
from llm2nifti.scanner import likelihood
from llm2nifti.stimuli.measures import MEASURES, frequency

SEED = 20231118
HERE = Path(__file__).parent
QUESTIONS = {
    "tell": "Tell me about {}.",
    "overview": "Give me a short overview of {}.",
    "interesting": "What makes {} interesting?",
    "explain": "How would you explain {} to a friend?",
    "care": "Why do people care about {}?",
    "write": "Write a few sentences about {}.",
    "know": "What should everyone know about {}?",
    "features": "Describe the main features of {}.",
}
LETTERS = {
    "politicalscience": "P",
    "medicalimaging": "I",
    "paleontology": "F",
    "archeology": "A",
    "pathology": "D",
    "cooking": "C",
    "sports": "S",
    "music": "M",
    "law": "L",
    "weather": "W",
    "transport": "T",
    "control": "E",
}
NEAR_DUPLICATE = 0.6  # shared share of content words
FEWEST = 6  # concepts that a topic keeps, or it goes
# Concepts of a task that have a word make it the task's, in a concept or a topic of the control.
FEW_CONCEPTS = {"concept": 3, "topic": 6}
N_STRINGS = 480
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
MEASURED = ("tokens", "frequency", "surprisal")
PER_ITEM = 12  # strings of one group, which takes the place of a topic


def content_words(concept: str) -> frozenset[str]:
    """Content words without plural endings."""
    words = re.findall(r"[a-z]+", concept.lower())
    return frozenset(w.rstrip("s") for w in words if w not in ("the", "of", "in", "and"))


def load_sources() -> pd.DataFrame:
    """All unambiguous concepts, without near-duplicates: the later one goes, control last."""
    tables = []
    for name, letter in LETTERS.items():
        table = pd.read_csv(HERE / "sources" / f"{name}.tsv", sep="\t", keep_default_na=False)
        is_clear = (table["first"] == letter) & (table["second"] == letter)
        tables.append(table.loc[is_clear, ["topic", "concept"]].assign(task=name))
    table = pd.concat(tables, ignore_index=True)
    table = table[is_new(table["concept"])]
    control = table["task"] == "control"
    of_tasks = table[table["task"].isin(stimuli.TASKS)]
    is_near = pd.Series(data=False, index=table.index)
    for column, fewest in FEW_CONCEPTS.items():
        words = task_words(of_tasks, fewest)
        is_near |= table[column].map(lambda text, words=words: bool(content_words(text) & words))
    table = table[~(control & is_near)]
    sizes = table.groupby(["task", "topic"])["concept"].transform("size")
    return table[sizes >= FEWEST].reset_index(drop=True)


def is_new(concepts: pd.Series) -> list[bool]:
    """Whether a concept shares few content words with every one before it."""
    kept: list[frozenset[str]] = []
    by_word: dict[str, list[int]] = defaultdict(list)
    out = []
    for concept in concepts:
        words = content_words(concept)
        near = {i for word in words for i in by_word[word]}
        out.append(all(len(words & kept[i]) / len(words | kept[i]) < NEAR_DUPLICATE for i in near))
        if out[-1]:
            for word in words:
                by_word[word].append(len(kept))
            kept.append(words)
    return out


def task_words(table: pd.DataFrame, fewest: int) -> set[str]:
    """Words of at least five letters that at least so many concepts of a task have."""
    words: set[str] = set()
    for _, concepts in table.groupby("task")["concept"]:
        counts: dict[str, int] = defaultdict(int)
        for concept in concepts:
            for word in content_words(concept):
                counts[word] += len(word) >= 5
        words |= {word for word, n in counts.items() if n >= fewest}
    return words


def framed(group: pd.DataFrame, rng: random.Random) -> pd.DataFrame:
    """Split the topics of a set in halves and give its concepts question frames.

    In each split every frame is equally frequent, and spread over topics as evenly as possible; a
    few concepts of the largest topics are left out for it.
    """
    topics = list(dict.fromkeys(group["topic"]))
    rng.shuffle(topics)
    halves = {"development": topics[: len(topics) // 2], "evaluation": topics[len(topics) // 2 :]}
    names, parts = list(QUESTIONS), []
    for split, inside in halves.items():
        concepts = {
            topic: rng.sample(sorted(rows["concept"]), len(rows))
            for topic, rows in group.groupby("topic")
            if topic in inside
        }
        for _ in range(sum(map(len, concepts.values())) % len(names)):
            max(concepts.values(), key=len).pop()
        rows = [(topic, concept) for topic in inside for concept in concepts[topic]]
        part = pd.DataFrame(rows, columns=["topic", "concept"]).assign(split=split)
        part["frame"] = [names[i % len(names)] for i in range(len(part))]
        parts.append(part)
    table = pd.concat(parts, ignore_index=True).assign(task=group["task"].iloc[0])
    table["prompt"] = [
        QUESTIONS[f].format(c) for f, c in zip(table["frame"], table["concept"], strict=True)
    ]
    return table


def random_text(tokenizer: object, n_tokens: int, n_words: int, rng: random.Random) -> str:
    """Random letters and digits of this many tokens, in this many words."""
    while True:
        sizes = [rng.randint(1, max(1, 2 * n_tokens // n_words)) for _ in range(n_words)]
        text = " ".join("".join(rng.choices(ALPHABET, k=size)) for size in sizes)
        if len(tokenizer(text)["input_ids"]) == n_tokens:  # type: ignore[operator]
            return text


def random_strings(name: str, control: pd.DataFrame, tokenizer: object) -> pd.DataFrame:
    """Random strings with the tokens and words of the control's concepts, or of its prompts."""
    rng = random.Random(f"{SEED} {name}")
    is_framed = name == "randomstrings"
    texts: dict[str, None] = {}
    for like in rng.sample(list(control["concept" if is_framed else "prompt"]), N_STRINGS):
        n_words = len(like.split())
        # One token is one character, of which there are few.
        n_tokens = max(2, n_words, len(tokenizer(like)["input_ids"]))  # type: ignore[operator]
        text = random_text(tokenizer, n_tokens, n_words, rng)
        while text in texts:
            text = random_text(tokenizer, n_tokens, n_words, rng)
        texts[text] = None
    groups = [f"group {i // PER_ITEM + 1:02d}" for i in range(N_STRINGS)]
    table = pd.DataFrame({"task": name, "topic": groups, "concept": list(texts)})
    if is_framed:
        return framed(table, rng)
    half = N_STRINGS // 2
    split = ["development"] * half + ["evaluation"] * half
    return table.assign(prompt=table["concept"], frame="", split=split)


def localizer(name: str) -> pd.DataFrame:
    """A task with conditions of its own; it belongs to every split, as nothing is tuned on it."""
    table = pd.read_csv(HERE / "sources" / f"{name}.tsv", sep="\t", dtype=str)
    keys = table["condition"] + "-" + table["item"]
    out = pd.DataFrame({"task": name, "topic": keys, "concept": table["text"], "frame": ""})
    out = out.assign(split="", prompt=table["text"], condition=table["condition"])
    return out.assign(pair=table["pair"]) if "pair" in table else out


def finish(table: pd.DataFrame, model: LoadedModel) -> pd.DataFrame:
    """Add identifiers and measures, and put the columns in order."""
    name = table["task"].iloc[0]
    has_words = name not in ("randomstrings", "rawstrings")
    measured = likelihood.measures(model, table["prompt"].tolist())
    table = table.assign(
        stim_id=[f"{name}-{i:04d}" for i in range(1, len(table) + 1)],
        tokens=measured["tokens"].astype(int),
        frequency=[f"{frequency(text):.3f}" if has_words else "n/a" for text in table["concept"]],
        surprisal=[f"{nats:.4f}" for nats in measured["surprisal"]],
    )
    columns = [*stimuli.COLUMNS, *stimuli.CONDITIONS, *MEASURED]
    return table[[column for column in columns if column in table]]


def sidecar(table: pd.DataFrame) -> dict[str, object]:
    """How a set was made, for the JSON beside its table."""
    task = table["task"].iloc[0]
    if task in stimuli.LOCALIZERS:
        made = "Texts written for this project (with the help of a language model)."
    elif task in ("randomstrings", "rawstrings"):
        made = (
            "Random letters and digits from the seed, with as many tokens and words as concepts of "
            "the control (randomstrings, in question frames) or its whole prompts (rawstrings)."
        )
    else:
        made = (
            "Concepts written for this project (with the help of a language model). Two passes of "
            "a language model labelled all concepts blindly, without their lists and topics; kept "
            "are those that both gave the field of their list and no second reading, without "
            "near-duplicates."
        )
    splits = {
        "development": "for sweeps, sizes, scores, thresholds and every tuning",
        "evaluation": "for what is reported; topics and concepts are disjoint from development",
    }
    is_framed = (table["frame"] != "").any()
    columns = stimuli.COLUMNS | stimuli.CONDITIONS | MEASURES
    return {
        "Name": f"llm2nifti stimuli: {task}",
        "License": "CC0-1.0",
        "Method": made,
        "Seed": SEED,
        "Builder": "data/build.py",
        "MeasuredBy": "smollm2-135m",
        "QuestionFrames": QUESTIONS if is_framed else {},
        "Splits": splits if (table["split"] != "").any() else {},
        "Columns": {name: columns[name] for name in table},
        "Rows": len(table),
    }


def main() -> None:
    """Write one TSV and one JSON a set."""
    rng = random.Random(SEED)
    model = models.load()
    source = load_sources()
    finished = {
        task: finish(framed(group, rng), model)
        for task, group in source.groupby("task", sort=False)
    }
    for name in ("randomstrings", "rawstrings"):
        strings = random_strings(name, finished["control"], model.tokenizer)
        finished[name] = finish(strings, model)
    finished |= {name: finish(localizer(name), model) for name in stimuli.LOCALIZERS}
    for task, table in finished.items():
        table.to_csv(HERE / f"{task}.tsv", sep="\t", index=False, lineterminator="\n")
        text = json.dumps(sidecar(table), indent=2, ensure_ascii=False)
        (HERE / f"{task}.json").write_text(text + "\n", "utf-8")
        print(f"{task}: {len(table)} prompts, {table['topic'].nunique()} topics")


if __name__ == "__main__":
    main()
