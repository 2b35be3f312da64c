"""Does a network know what a prompt is about? The section of the page that says how well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm2nifti import plotting
from llm2nifti.report.section import read_json
from llm2nifti.report.wording import interval, number, percent

NUMBERS = "detection.json"
_NAMES = {"network": "network", "probe": "linear probe", "words": "bag of words"}


def read_detection(folder: Path) -> dict[str, Any]:
    """Numbers of ``llm2nifti detect``; empty where it was not run."""
    return read_json(folder / NUMBERS) or {}


def methods(found: dict[str, Any], comparison: str) -> dict[str, list[dict[str, float]]]:
    """Mean AUC of each method over tasks, after 1, 2, ... tokens."""
    return {_NAMES[name]: found["auc"][name][comparison]["mean"] for name in _NAMES} | {
        f"{name}, untrained": found["untrained"]["auc"][name][comparison]["mean"]
        for name in ("network", "probe")
        if "untrained" in found
    }


def _is_reduced(found: dict[str, Any]) -> bool:
    """Whether the untrained copy keeps the means of trials alone, where the model has tokens."""
    auc = found.get("untrained", {}).get("auc")
    return auc is not None and len(auc["network"]["control"]["mean"]) < found["n_tokens"]


def plots(found: dict[str, Any]) -> list[tuple[str, Any, str, str]]:
    """Stem, drawing, alternative text and caption of each figure; none without numbers."""
    if not found:
        return []
    out: list[tuple[str, Any, str, str]] = []
    titles = {"control": "Against control prompts", "others": "Against the other tasks"}
    for comparison, title in titles.items():
        curves = methods(found, comparison)
        last = [name for name in curves if _is_reduced(found) and name.endswith("untrained")]
        note = "; the untrained copy keeps one volume a prompt, so it has one value, after all"
        null = found.get("shuffled") if comparison == "control" else None
        told = ", ".join(f"{name} {number(c[-1]['value'])}" for name, c in curves.items())
        out.append(
            (
                f"auc_{comparison}",
                lambda c=curves, n=null, e=last, t=title: plotting.plot_auc(
                    c, null=n, at_end=e, title=t
                ),
                f"AUC by the number of tokens seen, {title.lower()}; after all of them: {told}.",
                f"{title}: AUC on held-out prompts, mean over tasks, by the number of tokens that "
                "the model has generated, with 95 % bootstrap intervals; the bag of words reads "
                f"the prompt alone{note if last else ''}.",
            )
        )
    curve = found["roc"]
    out.append(
        (
            "roc",
            lambda: plotting.plot_roc(curve["false_positive_rate"], curve["all"]),
            "ROC curves of the network of each task against control prompts, after all tokens.",
            "Hits against false positives of each task's network on held-out task and control "
            "prompts, after all tokens; the dashed line is guessing.",
        )
    )
    return out


def rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """One row a task: AUC of its network, of the alternatives, and what thresholds do."""
    thresholds, out = found["thresholds"], []
    for task in found["tasks"]:
        row = {"task": task}
        for comparison in ("control", "others"):
            for name in _NAMES:
                last = found["auc"][name][comparison]["tasks"][task][-1]
                row[f"{name}_{comparison}"] = f"{number(last['value'])} {interval(last)}"
        row["first"] = number(found["auc"]["network"]["control"]["tasks"][task][0]["value"])
        row["hits"] = percent(thresholds["hits"][task][-1], 0)
        row["alarms"] = percent(thresholds["false_alarms"][task][-1])
        row["right"] = percent(thresholds["named_right"][task][-1], 0)
        out.append(row)
    return out


def sentences(found: dict[str, Any]) -> list[str]:
    """What the numbers say, whichever way."""
    out = []
    against = {"control": "against control prompts", "others": "against the other tasks"}
    for comparison, words in against.items():
        last = found["auc"]["network"][comparison]["mean"][-1]
        parts = []
        for name, title in (("probe", "a linear probe"), ("words", "a bag of words")):
            other = found["auc"][name][comparison]["mean"][-1]["value"]
            difference = found["difference"][comparison][name]
            parts.append(
                f"{title} {number(other)} (networks minus it {number(difference['value'])} "
                f"{interval(difference)}, {_verdict(difference)})"
            )
        out.append(
            f"Telling a task's prompts {words}, networks reach an AUC of {number(last['value'])} "
            f"{interval(last)} on average, {' and '.join(parts)}."
        )
    if "untrained" in found:
        own = found["untrained"]["auc"]["network"]["control"]["mean"][-1]
        text = f"{number(own['value'])} {interval(own)}"
        when = ", after all tokens: it keeps one volume a prompt" if _is_reduced(found) else ""
        out.append(f"Networks of the untrained copy reach {text} against control prompts{when}.")
    if "shuffled" in found:
        null = {key: found["shuffled"][key][-1] for key in ("mean", "low", "high")}
        out.append(
            f"Networks of shuffled labels reach {number(null['mean'])} {interval(null)} "
            f"({found['shuffled']['n']} shuffles)."
        )
    thresholds = found["thresholds"]
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
