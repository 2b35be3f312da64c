"""Does a network know what a prompt is about? The section of the page that says how well."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from llm2nifti import plotting
from llm2nifti.tell import Plot, Section, Table
from llm2nifti.tell.wording import count, interval, listing, number, percent

_NAMES = {"network": "network", "probe": "linear probe", "words": "bag of words"}


def detection_section(numbers: Mapping[str, Any]) -> Section:
    """What ``detection.json`` says."""
    n_tokens, frames = numbers["n_tokens"], numbers["frames"]
    when = f"by the one volume ({frames}) that was kept of each"
    if n_tokens > 1:
        when = f"after each of the {n_tokens} tokens that the model generates"
    at = numbers["thresholds"]
    passing = f"Thresholds let {percent(at['rate'], 0)} of control prompts of "
    if at["other_runs"]:
        passing += "other runs pass, scored by networks of yet other runs."
    else:
        passing += (
            "the other run pass; it also made the networks, so false alarms are more frequent than "
            "that."
        )
    what = (
        "The score of a network is the mean of its units beyond control prompts, in SDs. Networks "
        f"({count(numbers['n_network_units'])} of {count(numbers['n_units'])} units of "
        f"{listing(numbers['sites'])} each) are made from all runs but one, and tell the prompts "
        f"of the remaining one apart, {when}. A linear probe (logistic regression on all of these "
        "units) and a bag of words of the prompt learn each comparison from the same runs. "
        f"{numbers['n_task_prompts']} prompts a task, {numbers['n_control_prompts']} control "
        f"prompts. Means are over {listing(numbers['mean_of'])}."
    )
    return Section(
        "detection",
        "Do the networks know what a prompt is about?",
        [what, *_sentences(numbers)],
        _plots(numbers),
        _tables(numbers),
        [
            f"Intervals: bootstrap over prompts, {count(numbers['n_boot'])} draws; networks and "
            f"probes are not made anew. {passing} Hits and false alarms: held-out prompts of the "
            "task, and control prompts, on which its network is above threshold after all tokens. "
            "Named right: of the networks above threshold, the task's own is furthest."
        ],
    )


def _methods(numbers: Mapping[str, Any], comparison: str) -> dict[str, list[dict[str, float]]]:
    """Mean AUC of each method over tasks, after 1, 2, ... tokens."""
    return {_NAMES[name]: numbers["auc"][name][comparison]["mean"] for name in _NAMES} | {
        f"{name}, untrained": numbers["untrained"]["auc"][name][comparison]["mean"]
        for name in ("network", "probe")
        if "untrained" in numbers
    }


def _is_reduced(numbers: Mapping[str, Any]) -> bool:
    """Whether the untrained copy keeps the means of trials alone, where the model has tokens."""
    auc = numbers.get("untrained", {}).get("auc")
    return auc is not None and len(auc["network"]["control"]["mean"]) < numbers["n_tokens"]


def _plots(numbers: Mapping[str, Any]) -> list[Plot]:
    """AUC by tokens, against control and against other tasks, and the ROC curves."""
    out = []
    titles = {"control": "Against control prompts", "others": "Against the other tasks"}
    for comparison, title in titles.items():
        curves = _methods(numbers, comparison)
        last = [name for name in curves if _is_reduced(numbers) and name.endswith("untrained")]
        note = "; the untrained copy keeps one volume a prompt, so it has one value, after all"
        null = numbers.get("shuffled") if comparison == "control" else None
        told = ", ".join(f"{name} {number(c[-1]['value'])}" for name, c in curves.items())
        out.append(
            Plot(
                f"auc_{comparison}",
                partial(plotting.plot_auc, curves, null=null, at_end=last, title=title),
                f"AUC by the number of tokens seen, {title.lower()}; after all of them: {told}.",
                f"{title}: AUC on held-out prompts, mean over tasks, by the number of tokens that "
                "the model has generated, with 95 % bootstrap intervals; the bag of words reads "
                f"the prompt alone{note if last else ''}.",
            )
        )
    curve = numbers["roc"]
    out.append(
        Plot(
            "roc",
            lambda: plotting.plot_roc(curve["false_positive_rate"], curve["all"]),
            "ROC curves of the network of each task against control prompts, after all tokens.",
            "Hits against false positives of each task's network on held-out task and control "
            "prompts, after all tokens; the dashed line is guessing.",
        )
    )
    return out


def _tables(numbers: Mapping[str, Any]) -> list[Table]:
    """AUC of networks and their alternatives, and what thresholds do."""
    rows = _rows(numbers)
    areas = [
        ("task", "Task", False),
        ("network_control", "Network, control", True),
        ("first", "Its first token", True),
        ("probe_control", "Probe, control", True),
        ("words_control", "Words, control", True),
        ("network_others", "Network, others", True),
        ("probe_others", "Probe, others", True),
        ("words_others", "Words, others", True),
    ]
    passing = [
        ("task", "Task", False),
        ("hits", "Hits", True),
        ("alarms", "False alarms", True),
        ("right", "Named right", True),
    ]
    return [
        Table("AUC after all tokens, with 95 % intervals", areas, rows),
        Table("What thresholds let pass", passing, rows),
    ]


def _rows(numbers: Mapping[str, Any]) -> list[dict[str, str]]:
    """One row a task: AUC of its network, of the alternatives, and what thresholds do."""
    thresholds, out = numbers["thresholds"], []
    for task in numbers["tasks"]:
        row = {"task": task}
        for comparison in ("control", "others"):
            for name in _NAMES:
                last = numbers["auc"][name][comparison]["tasks"][task][-1]
                row[f"{name}_{comparison}"] = f"{number(last['value'])} {interval(last)}"
        row["first"] = number(numbers["auc"]["network"]["control"]["tasks"][task][0]["value"])
        row["hits"] = percent(thresholds["hits"][task][-1], 0)
        row["alarms"] = percent(thresholds["false_alarms"][task][-1])
        row["right"] = percent(thresholds["named_right"][task][-1], 0)
        out.append(row)
    return out


def _sentences(numbers: Mapping[str, Any]) -> list[str]:
    """What the numbers say, whichever way."""
    out = []
    others = {"control": "control prompts", "others": "prompts of the other tasks"}
    for comparison, words in others.items():
        last = numbers["auc"]["network"][comparison]["mean"][-1]
        parts = []
        for name, title in (("probe", "a linear probe"), ("words", "a bag of words")):
            other = numbers["auc"][name][comparison]["mean"][-1]["value"]
            difference = numbers["difference"][comparison][name]
            parts.append(
                f"{title} {number(other)} (networks minus it {number(difference['value'])} "
                f"{interval(difference)}, {_verdict(difference)})"
            )
        out.append(
            f"Telling a task's prompts from {words}, networks reach an AUC of "
            f"{number(last['value'])} {interval(last)} on average, {' and '.join(parts)}."
        )
    if "untrained" in numbers:
        copy = numbers["untrained"]["auc"]["network"]["control"]["mean"][-1]
        text = f"{number(copy['value'])} {interval(copy)}"
        when = ", after all tokens: it keeps one volume a prompt" if _is_reduced(numbers) else ""
        out.append(f"Networks of the untrained copy reach {text} against control prompts{when}.")
    if "shuffled" in numbers:
        null = {key: numbers["shuffled"][key][-1] for key in ("mean", "low", "high")}
        out.append(
            f"Networks of shuffled labels reach {number(null['mean'])} {interval(null)} "
            f"({numbers['shuffled']['n']} shuffles)."
        )
    thresholds = numbers["thresholds"]
    out.append(
        f"At a rate of {percent(thresholds['rate'], 0)} for each network, some network is above "
        f"its threshold after all tokens in {percent(thresholds['control_named'][-1])} of held-out "
        f"control prompts, and at some token in {percent(thresholds['ever_false_alarm'])}."
    )
    return out


def _verdict(difference: dict[str, float]) -> str:
    """What the interval of a difference says."""
    if difference["low"] > 0:
        return "networks do better"
    return "networks do worse" if difference["high"] < 0 else "not told apart"
