"""What do the numbers say? Rows and sentences of the page, from ``summary.json`` alone."""

from __future__ import annotations

from collections.abc import Mapping
from math import factorial
from typing import Any

import numpy as np

from llm2nifti import networks
from llm2nifti.tell.wording import (
    NONE,
    count,
    height_control,
    interval,
    listing,
    number,
    p_value,
    percent,
    plural,
)

Summary = Mapping[str, Any]
Row = dict[str, str]

# The two tasks that Nencka et al. (2023) name as the pair with the most overlap.
PAPER_PAIR = ("medicalimaging", "pathology")
_N_PERMUTATIONS = 10_000  # of `networks.Identification.p_value`
MOST_PAIRS = 100  # of tasks, in the table
_KINDS = {"trials": "Held-out prompts", "runs": "Held-out runs"}
_WITHOUT = "_without_randomstrings"


def result_rows(summary: Summary) -> list[Row]:
    """One row a task: size and rule of its network, repeatability, identification."""
    similarity = summary.get("similarity", {})
    named = summary.get("identification", {}).get("trials", {})
    rows = []
    for task, numbers in summary["tasks"].items():
        row = {
            "task": task,
            "active": f"{count(numbers['n_active'])} ({percent(numbers['share_active'])})",
            "rule": height_control(numbers["threshold"]),
            "below_05": percent(numbers["share_below_05"]),
            "repeatability": NONE,
            "named": NONE,
        }
        if similarity:
            i = similarity["tasks"].index(task)
            row["repeatability"] = _with_interval(similarity, task, similarity["r"][i][i])
        if named:
            i = named["tasks"].index(task)
            row["named"] = percent(named["confusion"][i][i], 0)
        rows.append(row)
    return rows


def result_sentences(summary: Summary) -> list[str]:
    """The figures that belong to the whole experiment."""
    out = []
    if "similarity" in summary:
        out.append(distinctness_sentence(summary["similarity"]))
    named = summary.get("identification")
    if named:
        characters = ""
        if "prompts" in named:
            share = percent(named["prompts"]["accuracy"])
            characters = f" and {share} from their characters alone"
        out.append(
            f"Of {count(named['trials']['n_items'])} held-out task prompts, "
            f"{percent(named['trials']['accuracy'])} are named right from their activations"
            f"{characters}; guessing gives {percent(named['trials']['chance'])}."
        )
    relabelled, pseudo = summary["null"]["relabelled"], summary["null"]["pseudo_tasks"]
    if "below_05" not in relabelled:
        return out
    text = (
        f"Where nothing is there to find, {percent(relabelled['below_05'])} of the units have "
        f"p < .05 ({count(relabelled['n_relabellings'])} relabellings of control prompts)"
    )
    if "below_05" in pseudo:
        text += (
            f"; whole control topics in the place of a task give {percent(pseudo['below_05'])} "
            "in a run"
        )
    return [*out, text + "."]


def distinctness_sentence(similarity: Summary) -> str:
    """Whether maps of the same task are more alike than maps of different tasks."""
    same = _with_interval(similarity, "same_task_r", similarity["same_task_r"])
    text = f"Maps of the same task from different runs correlate at r = {same} on average"
    if len(similarity["tasks"]) < 2:
        return text + "."
    cross = _with_interval(similarity, "cross_task_r", similarity["cross_task_r"])
    difference = _with_interval(similarity, "same_minus_cross", similarity["same_minus_cross"])
    text += f", maps of different tasks at {cross}. The difference is {difference}"
    estimate = similarity.get("intervals", {}).get("same_minus_cross")
    if not estimate:
        return text + "."
    if estimate["low"] > 0 or estimate["high"] < 0:
        return text + "; its interval leaves out 0."
    return text + "; its interval includes 0, so these runs do not tell the two apart."


def _with_interval(similarity: Summary, name: str, value: float | None) -> str:
    """Figure with its interval where there is one."""
    limits = interval(similarity.get("intervals", {}).get(name))
    return f"{number(value)} {limits}".strip()


def baseline_rows(summary: Summary) -> list[Row]:
    """Repeatability and distinctness beside what shuffling and random weights give."""
    similarity = summary["similarity"]
    untrained = summary.get("untrained", {}).get("similarity", {})
    shuffled = similarity["shuffled_same_task_r"]
    chance = f"{number(shuffled['mean'])} (largest {number(shuffled['largest'])})"
    r_names = {
        "same_task_r": ("Correlation of maps, same task", chance),
        "cross_task_r": ("Correlation of maps, different tasks", NONE),
        "same_minus_cross": ("Same task minus different tasks", "0"),
    }
    rows = [
        {
            "what": title,
            "value": _with_interval(similarity, name, similarity[name]),
            "null": null,
            "untrained": number(untrained.get(name)),
        }
        for name, (title, null) in r_names.items()
    ]
    share = percent(similarity["top_share"], 0)
    dice = networks.same_and_cross(np.array(similarity["dice"]))
    copies: tuple[float | None, float | None] = (None, None)
    if untrained:
        copies = networks.same_and_cross(np.array(untrained["dice"]))
    names = {"same task": "same_dice", "different tasks": "cross_dice"}
    for (kind, name), value, copy in zip(names.items(), dice, copies, strict=True):
        limits = similarity.get("intervals", {}).get(name)
        rows.append(
            {
                "what": f"Dice of the top {share} of units, {kind}",
                "value": f"{number(value)} {interval(limits)}".strip(),
                "null": f"{number(similarity['dice_chance'])} (random sets)",
                "untrained": number(copy),
            }
        )
    return rows if len(similarity["tasks"]) > 1 else [rows[0], rows[3]]


def pair_rows(similarity: Summary) -> list[Row]:
    """Pairs of different tasks, most similar maps first; of many, the first."""
    tasks = similarity["tasks"]
    rows = []
    for rank, pair in enumerate(similarity.get("closest_pair", [])[:MOST_PAIRS], start=1):
        i, j = (tasks.index(task) for task in pair["pair"])
        rows.append(
            {
                "rank": str(rank),
                "pair": " – ".join(sorted(pair["pair"])),
                "r": f"{number(pair['r'])} {interval(pair.get('interval'))}".strip(),
                "corrected": number(similarity["r_corrected"][i][j]),
                "dice": number(pair["dice"]),
            }
        )
    return rows


def pair_answer(similarity: Summary) -> str | None:
    """Where the paper's pair ranks among all pairs; None unless both tasks are there."""
    pairs = similarity.get("closest_pair", [])
    hit = next((pair for pair in pairs if set(pair["pair"]) == set(PAPER_PAIR)), None)
    if hit is None:
        return None
    name = " and ".join(PAPER_PAIR)
    values = f"r = {number(hit['r'])}, Dice {number(hit['dice'])}"
    if len(pairs) == 1:
        return f"Here {name} are the only pair ({values}), so this dataset cannot answer it."
    ranks = {key: 1 + sum(pair[key] > hit[key] for pair in pairs) for key in ("r", "dice")}
    text = (
        f"Here the pair of {name} ranks {ranks['r']} of {len(pairs)} by the correlation of maps "
        f"and {ranks['dice']} of {len(pairs)} by Dice ({values})"
    )
    firsts = sum(rank == 1 for rank in ranks.values())
    verdict = {
        2: "it is the most similar pair by both measures",
        1: "it is the most similar pair by one of the two measures",
        0: f"the most similar pair is {' and '.join(sorted(pairs[0]['pair']))}",
    }
    return f"{text}: {verdict[firsts]}."


def identification_rows(summary: Summary) -> list[Row]:
    """Accuracy of naming held-out trials and runs, beside the prompts and the untrained copy."""
    named = summary["identification"]
    untrained = summary.get("untrained", {}).get("identification", {})
    rows = []
    for ending in ("", _WITHOUT):
        for kind, what in _KINDS.items():
            result = named.get(kind + ending)
            if result is None:
                continue
            prompts = named.get("prompts" + ending) if kind == "trials" else None
            rows.append(
                {
                    "what": what + (", no randomstrings" if ending else ""),
                    "tasks": count(len(result["tasks"])),
                    "items": count(result["n_items"]),
                    "chance": percent(result["chance"]),
                    "model": _accuracy(result),
                    "prompts": _accuracy(prompts),
                    "untrained": _accuracy(untrained.get(kind + ending)),
                }
            )
    return rows


def _accuracy(result: Summary | None) -> str:
    """Accuracy with its p value."""
    return f"{percent(result['accuracy'])}, {p_value(result['p'])}" if result else NONE


def smallest_p(summary: Summary) -> str | None:
    """Say how small p can get, where few runs limit it; None where they do not."""
    n_tasks, n_runs = len(summary["identification"]["trials"]["tasks"]), _n_runs(summary)
    n_ways = factorial(n_tasks) ** n_runs
    if n_ways > _N_PERMUTATIONS:
        return None
    return (
        f"{plural(n_tasks, 'task')} and {plural(n_runs, 'run')} allow {count(n_ways)} arrangements "
        f"of the labels, so p cannot be below about {1 / n_ways:.2g} here."
    )


def _n_runs(summary: Summary) -> int:
    """Runs of the task that has most."""
    return max(numbers["n_runs"] for numbers in summary["tasks"].values())


def pseudo_rows(summary: Summary) -> list[dict[str, Any]]:
    """Share of units with p < .05 of each task and run, beside the pseudo-tasks."""
    null = np.array(summary["null"]["pseudo_tasks"].get("rates_below_05", []), float)
    rows = []
    for task, share in run_shares(summary).items():
        single = summary["tasks"][task]["share_below_05_per_run"]
        rows.append(
            {
                "task": task,
                "runs": [percent(value) for value in single],
                "mean": percent(share),
                "above": percent(float((null < share).mean()), 0) if len(null) else NONE,
            }
        )
    return rows


def run_shares(summary: Summary) -> dict[str, float]:
    """Mean over single runs of each task's share of units with p < .05: a pseudo-task is a run."""
    return {
        task: float(np.mean(numbers["share_below_05_per_run"]))
        for task, numbers in summary["tasks"].items()
    }


def check_rows(summary: Summary) -> list[Row]:
    """Checks of each task's model."""
    untrained = summary.get("untrained", {}).get("tasks", {})
    return [
        {
            "task": task,
            "df": count(numbers["df"]),
            "max_t": number(numbers["max_t"], 1),
            "welch": percent(numbers["welch_disagreement"]),
            "constant": count(numbers["n_constant"]),
            "untrained": percent(untrained.get(task, {}).get("share_below_05")),
        }
        for task, numbers in summary["tasks"].items()
    ]


def why_no_similarity(summary: Summary) -> str:
    """Why repeatability is not reported."""
    return (
        "Repeatability needs at least 2 runs of each task with at least 2 on-blocks each; this "
        f"dataset has {_sizes(summary)}."
    )


def why_no_identification(summary: Summary) -> str:
    """Why identification is not reported."""
    return (
        "Identification needs at least 2 tasks with at least 2 runs of at least 2 on-blocks each; "
        f"this dataset has {plural(len(summary['tasks']), 'task')} "
        f"({listing(list(summary['tasks']))}) with {_sizes(summary)}."
    )


def _sizes(summary: Summary) -> str:
    """Runs and on-blocks of the design."""
    design = summary["design"]
    return f"{plural(design['n_runs'], 'run')} of {plural(design['n_blocks'], 'on-block')}"
