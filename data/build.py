"""Build the bundled stimulus sets from the concept lists in ``data/sources``.

Run from the repository root: ``python data/build.py``. Everything follows from the seed: which
concepts are kept (so that prompts of all tasks and of the control have the same length in tokens),
which question frame each gets, and which topics belong to which split.
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

from llm2nifti import models, stimuli

SEED = 20231118
HERE = Path(__file__).parent
FRAMES = {
    "tell": "Tell me about {}.",
    "overview": "Give me a short overview of {}.",
    "interesting": "What makes {} interesting?",
    "explain": "How would you explain {} to a friend?",
    "care": "Why do people care about {}?",
    "write": "Write a few sentences about {}.",
    "know": "What should everyone know about {}?",
    "features": "Describe the main features of {}.",
}
PER_TOPIC = {"control": 8}  # every topic meets every frame once
PER_TASK_TOPIC = 12
NEAR_DUPLICATE = 0.6  # shared share of content words
SWAPS = 20_000


def content_words(concept: str) -> frozenset[str]:
    """Content words without plural endings."""
    words = re.findall(r"[a-z]+", concept.lower())
    return frozenset(w.rstrip("s") for w in words if w not in ("the", "of", "in", "and"))


def load_sources() -> pd.DataFrame:
    """All concepts, without near-duplicates: the later one goes, control last."""
    tasks = [task for task in stimuli.TASKS if task != "randomstrings"]
    tables = [
        pd.read_csv(HERE / "sources" / f"{name}.tsv", sep="\t").assign(task=name)
        for name in [*tasks, "control"]
    ]
    table = pd.concat(tables, ignore_index=True)
    kept: list[frozenset[str]] = []
    by_word: dict[str, list[int]] = defaultdict(list)
    keep = []
    for concept in table["concept"]:
        words = content_words(concept)
        near = {i for word in words for i in by_word[word]}
        is_new = all(len(words & kept[i]) / len(words | kept[i]) < NEAR_DUPLICATE for i in near)
        keep.append(is_new)
        if is_new:
            for word in words:
                by_word[word].append(len(kept))
            kept.append(words)
    return table[keep].reset_index(drop=True)


def distance(counts: np.ndarray, target: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two histograms over token counts."""
    return float(np.abs(np.cumsum(counts) / counts.sum() - np.cumsum(target)).max())


def match_lengths(group: pd.DataFrame, target: np.ndarray, rng: random.Random) -> pd.DataFrame:
    """Keep a fixed number of concepts a topic, swapping while the lengths come closer."""
    task = group["task"].iloc[0]
    n = PER_TOPIC.get(task, PER_TASK_TOPIC)
    chosen, spare = [], defaultdict(list)
    for topic, rows in group.groupby("topic", sort=False):
        indices = list(rows.index)
        rng.shuffle(indices)
        if len(indices) < n:
            raise SystemExit(f"topic {topic!r} of {task} has {len(indices)} concepts, needs {n}")
        chosen += indices[:n]
        spare[topic] = indices[n:]
    lengths = group["n_tokens"].to_dict()
    topics = group["topic"].to_dict()
    counts = np.bincount([lengths[i] for i in chosen], minlength=len(target)).astype(float)
    best = distance(counts, target)
    for _ in range(SWAPS):
        k = rng.randrange(len(chosen))
        others = spare[topics[chosen[k]]]
        if not others:
            continue
        j = rng.randrange(len(others))
        old, new = lengths[chosen[k]], lengths[others[j]]
        counts[old] -= 1
        counts[new] += 1
        trial = distance(counts, target)
        if trial <= best:
            best = trial
            chosen[k], others[j] = others[j], chosen[k]
        else:
            counts[old] += 1
            counts[new] -= 1
    return group.loc[sorted(chosen)]


def finish(group: pd.DataFrame, rng: random.Random) -> pd.DataFrame:
    """Add split, frame, prompt and stim_id."""
    task = group["task"].iloc[0]
    topics = list(dict.fromkeys(group["topic"]))
    rng.shuffle(topics)
    development = set(topics[: len(topics) // 2])
    parts = []
    for split in ("development", "evaluation"):
        inside = [t for t in topics if (t in development) == (split == "development")]
        for number, topic in enumerate(inside):
            rows = group[group["topic"] == topic].sample(frac=1, random_state=rng.randrange(2**31))
            frames = list(FRAMES)
            # A task topic has 12 concepts: two topics together meet every frame three times.
            names = [frames[(j + 4 * number) % 8] for j in range(len(rows))]
            parts.append(rows.assign(frame=names, split=split))
    table = pd.concat(parts, ignore_index=True)
    table["prompt"] = [
        FRAMES[f].format(c) for f, c in zip(table["frame"], table["concept"], strict=True)
    ]
    table["stim_id"] = [f"{task}-{i:04d}" for i in range(1, len(table) + 1)]
    return table[list(stimuli.COLUMNS)]


def random_strings(lengths: list[int], tokenizer: object, rng: random.Random) -> pd.DataFrame:
    """Strings of random characters with the prompts' lengths in tokens, 16 groups of 12."""
    alphabet = "abcdefghijklmnopqrstuvwxyz0123456789     "
    rows: list[dict[str, str]] = []
    seen = set()
    while len(rows) < len(lengths):
        target = lengths[len(rows)]
        text = ""
        while len(tokenizer(text)["input_ids"]) < target:  # type: ignore[operator]
            text = (text + rng.choice(alphabet)).lstrip().replace("  ", " ")
        text = text.strip()
        if len(tokenizer(text)["input_ids"]) != target or text in seen:  # type: ignore[operator]
            continue
        seen.add(text)
        rows.append({"concept": text, "prompt": text})
    table = pd.DataFrame(rows)
    number = np.arange(len(table))
    table["task"] = "randomstrings"
    table["topic"] = [f"group {n // 12 + 1:02d}" for n in number]
    table["frame"] = ""
    table["split"] = np.where(number < len(table) // 2, "development", "evaluation")
    table["stim_id"] = [f"randomstrings-{i + 1:04d}" for i in number]
    return table[list(stimuli.COLUMNS)]


def sidecar(table: pd.DataFrame) -> dict[str, object]:
    """How a set was made, for the JSON beside its table."""
    task = table["task"].iloc[0]
    made = (
        "Random letters, digits and spaces from the seed, as long in tokens as the other prompts."
        if task == "randomstrings"
        else "Concepts written for this project (with the help of a language model), then filtered "
        "for near-duplicates and matched in prompt length (tokens of the default model)."
    )
    return {
        "Name": f"llm2nifti stimuli: {task}",
        "License": "CC0-1.0",
        "Method": made,
        "Seed": SEED,
        "Builder": "data/build.py",
        "QuestionFrames": {} if task == "randomstrings" else FRAMES,
        "Splits": {
            "development": "for sweeps, sizes, scores, thresholds and every tuning",
            "evaluation": "for what is reported; topics and concepts are disjoint from development",
        },
        "Columns": stimuli.COLUMNS,
        "Rows": len(table),
    }


def main() -> None:
    """Write one TSV and one JSON a set."""
    rng = random.Random(SEED)
    tokenizer = models.load().tokenizer
    table = load_sources()
    table["n_tokens"] = [len(tokenizer("about " + c)["input_ids"]) for c in table["concept"]]
    shares = [np.bincount(g["n_tokens"], minlength=30) / len(g) for _, g in table.groupby("task")]
    target = np.mean(shares, axis=0)
    finished = {
        task: finish(match_lengths(group, target, rng), rng)
        for task, group in table.groupby("task", sort=False)
    }
    pool = finished["control"]["prompt"]
    lengths = sorted(len(tokenizer(p)["input_ids"]) for p in pool)
    picked = [lengths[int((i + 0.5) / 192 * len(lengths))] for i in range(192)]
    rng.shuffle(picked)
    finished["randomstrings"] = random_strings(picked, tokenizer, rng)
    for task, frame in finished.items():
        frame.to_csv(HERE / f"{task}.tsv", sep="\t", index=False, lineterminator="\n")
        text = json.dumps(sidecar(frame), indent=2, ensure_ascii=False)
        (HERE / f"{task}.json").write_text(text + "\n", "utf-8")
        counts = np.bincount(
            [len(tokenizer(p)["input_ids"]) for p in frame["prompt"]], minlength=30
        )
        overall = np.bincount(lengths, minlength=30) / len(lengths)
        print(f"{task}: {len(frame)} prompts, distance to control {distance(counts, overall):.3f}")


if __name__ == "__main__":
    main()
