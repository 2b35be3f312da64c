"""The section on lesions: what each network's lesion does to each task's text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llm2nifti import plotting
from llm2nifti.tell import Plot, Section, Table
from llm2nifti.tell.wording import listing, number, percent, plural

Content = Mapping[str, Any]


def lesion_section(content: Content) -> Section:
    """What ``lesion.json`` or ``lesion_masks.json`` says."""
    first = content["conditions"][0]
    plots = [_matrix_plot(first, "lesions", "the")]
    paragraphs = [_what(content, first), _reading(content)]
    tables = [_matrix_table(first), _effects_table(first)]
    untrained = content["untrained"]
    if untrained:
        plots.append(_matrix_plot(untrained["conditions"][0], "lesions_untrained", "the untrained"))
    if "selectivity" in first:
        paragraphs.append(_selectivity_sentence(first, "The model"))
        if untrained:
            paragraphs.append(
                _selectivity_sentence(untrained["conditions"][0], "The untrained copy")
            )
        tables.append(_pairs_table(first))
    plots += _dose_plots(content["conditions"])
    return Section("lesions", "What happens without a network?", paragraphs, plots, tables)


def steer_section(content: Content) -> Section:
    """What ``steer.json`` says."""
    first = content["conditions"][0]
    units = f"{percent(first['share'])} of the units of {listing(first['sites'])}"
    paragraphs = [
        f"The difference between a task and control is added {number(first['strength'], 1)} times "
        f"to the {units} with the largest |t| for the task, while the model reads text of a run "
        "that made neither. Beside it, the same values are added to random units of the same "
        "sites and layers.",
        "Above 0, steering makes text more likely than that does. If steering were specific, the "
        "diagonal would be highest in every column.",
    ]
    plots = [_matrix_plot(first, "steering", "the")]
    if content["untrained"]:
        copy = content["untrained"]["conditions"][0]
        plots.append(_matrix_plot(copy, "steering_untrained", "the untrained"))
    if "selectivity" in first:
        s = first["selectivity"]
        paragraphs.append(
            "Own task minus other tasks, after taking out how easily each task is moved: "
            f"{_with_interval(s['value'], s['interval'])} nats a token; random units "
            f"{number(min(s['random']), 3)} to {number(max(s['random']), 3)}."
        )
    title = "What happens when a task's effect is added?"
    return Section(
        "steering", title, paragraphs, plots, [_matrix_table(first), _effects_table(first)]
    )


def _what(content: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """What was lesioned, and how the effect was measured."""
    sizes = content["sizes"]
    how = {
        "mean": "held at their mean over control prompts",
        "zero": "set to 0",
        "resample": "given their values in random control prompts",
    }[first["mode"]]
    share = first["share"]
    which = "The units of each mask" if share is None else f"The {percent(share)} of the units of "
    if share is not None:
        which += f"{listing(first['sites'])} with the largest |t| for a task"
    made = (
        "The network is made from all runs but one, and its effect is measured on prompts and "
        "answers of the run that was left out"
        if content["held_out"]
        else "Masks were given, so whether they have seen these texts is not known"
    )
    when = ", but for the chat template" if first["spare_template"] else ""
    return (
        f"{which} are {how} while the model reads{when}. {made}: the change of their log "
        "probability, in nats a token. Beside every network, "
        f"{plural(sizes['n_random'], 'random set')} of units "
        "matched in number, layer, site and decile of mean |activation| are lesioned."
    )


def _reading(content: Mapping[str, Any]) -> str:
    """How to read the matrix."""
    copy = " The second matrix is the untrained copy." if content["untrained"] else ""
    return (
        "Below 0, a lesion hurts more than that of matched random units does. A star marks cells "
        "whose 95 % interval (bootstrap over texts and random sets) excludes 0. If networks were "
        f"specific, the diagonal would be lowest in every column.{copy} Bottom units are as many "
        "that respond least. Two tasks cross over if each one's text is hurt more by its own "
        "lesion than by the other's, which is shown if both intervals lie below 0."
    )


def _matrix_plot(condition: Mapping[str, Any], stem: str, who: str) -> Plot:
    """Matrix of effects beyond the random units."""
    effects = condition["effects"]
    names, tasks = list(effects), list(next(iter(effects.values())))
    values = np.array([[effects[n][t]["excess"] for t in tasks] for n in names])
    ends = np.array([[effects[n][t]["excess_interval"] for t in tasks] for n in names])
    clear = (ends[..., 0] > 0) | (ends[..., 1] < 0)
    title = "Untrained copy" if "untrained" in stem else ""
    row = "Network of" if condition["mode"] != "steer" else "Steered by"

    def draw() -> Any:
        return plotting.plot_lesions(values, names, tasks, clear=clear, title=title, row_label=row)

    return Plot(
        stem,
        draw,
        f"Effects of {plural(len(names), 'network')} on text of {plural(len(tasks), 'condition')} "
        f"in {who} model, from {number(values.min(), 3)} to {number(values.max(), 3)} nats a token "
        "beyond matched random units.",
        "Each row is an intervention, each column the text it is measured on; numbers are nats a "
        "token beyond matched random units.",
    )


def _matrix_table(condition: Mapping[str, Any]) -> Table:
    """The numbers of the matrix."""
    effects = condition["effects"]
    tasks = list(next(iter(effects.values())))
    rows = [
        {"network": name, **{task: _starred(cells[task]) for task in tasks}}
        for name, cells in effects.items()
    ]
    columns = [("network", "Network", False), *((task, f"Text of {task}", True) for task in tasks)]
    return Table("Beyond matched random units (nats a token; * excludes 0)", columns, rows)


def _starred(effect: Mapping[str, Any]) -> str:
    """Effect beyond random units, with a star where its interval excludes 0."""
    low, high = effect["excess_interval"]
    return number(effect["excess"], 3) + ("*" if low > 0 or high < 0 else "")


def _effects_table(condition: Mapping[str, Any]) -> Table:
    """Effect of each network on its own task, or of a mask on everything."""
    rows = []
    for name, effects in condition["effects"].items():
        for task in [name] if name in effects else list(effects):
            e = effects[task]
            rows.append(
                {
                    "network": name,
                    "task": task,
                    "delta": _with_interval(e["delta"], e["interval"], 2),
                    "random": f"{number(min(e['random']))} to {number(max(e['random']))}",
                    "bottom": "n/a" if e["bottom"] is None else number(e["bottom"]),
                    "excess": _with_interval(e["excess"], e["excess_interval"], 2),
                }
            )
    columns = [
        ("network", "Network", False),
        ("task", "Text of", False),
        ("delta", "Change", True),
        ("random", "Random sets", True),
        ("bottom", "Bottom units", True),
        ("excess", "Beyond random", True),
    ]
    return Table("Change of log probability (nats a token)", columns, rows)


def _pairs_table(condition: Mapping[str, Any]) -> Table:
    """Double dissociations."""
    rows = [
        {
            "pair": " – ".join(pair["pair"]),
            "first": _with_interval(pair["first"]["value"], pair["first"]["interval"], 2),
            "second": _with_interval(pair["second"]["value"], pair["second"]["interval"], 2),
            "holds": "yes" if pair["holds"] else "no",
            "crosses": "yes" if pair["crosses"] else "no",
            "random": percent(pair["random_crosses"]),
        }
        for pair in condition["double_dissociations"]
    ]
    columns = [
        ("pair", "Tasks A – B", False),
        ("first", "Text of A", True),
        ("second", "Text of B", True),
        ("crosses", "Cross over", True),
        ("random", "Random", True),
        ("holds", "Shown", True),
    ]
    title = "Double dissociations: its own lesion minus the other's"
    return Table(title, columns, rows)


def _selectivity_sentence(condition: Mapping[str, Any], who: str) -> str:
    """Own task against other tasks, with its null."""
    s = condition["selectivity"]
    pairs = condition["double_dissociations"]
    held = sum(pair["holds"] for pair in pairs)
    return (
        f"{who}: lesions change their own task's text by "
        f"{_with_interval(s['value'], s['interval'])}"
        " nats a token more than other tasks' text, after taking out how fragile each task is; "
        f"matched random units by {number(min(s['random']), 3)} to {number(max(s['random']), 3)}. "
        f"{held} of {plural(len(pairs), 'pair')} of tasks show a double dissociation."
    )


def _dose_plots(conditions: list[dict[str, Any]]) -> list[Plot]:
    """Effect by share of units, where more than one share was lesioned."""
    first = conditions[0]
    how = ("sites", "mode", "spare_template")
    same = [c for c in conditions if all(c[name] == first[name] for name in how)]
    if len(same) < 2 or first["share"] is None:
        return []
    doses: dict[str, dict[float, tuple[float, float, float]]] = {
        name: {} for name in ("own network", "other networks", "matched random", "least responsive")
    }
    for condition in same:
        for name, values in _dose(condition).items():
            mean, error = float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5)
            doses[name][condition["share"]] = (mean, mean - error, mean + error)
    return [
        Plot(
            "lesion_doses",
            lambda: plotting.plot_doses(doses),
            f"Change of log probability for {plural(len(same), 'share')} of lesioned units.",
            "Change of the text of a task, mean over tasks with the standard error over them, when "
            "its own network, other networks, matched random units or the least responsive units "
            "are lesioned.",
        )
    ]


def _dose(condition: Mapping[str, Any]) -> dict[str, list[float]]:
    """Effects of one condition by kind of lesion, one a task."""
    effects = condition["effects"]
    tasks = [task for task in effects if task in effects[task]]
    return {
        "own network": [effects[t][t]["delta"] for t in tasks],
        "other networks": [
            float(np.mean([effects[n][t]["delta"] for n in effects if n != t])) for t in tasks
        ],
        "matched random": [float(np.mean(effects[t][t]["random"])) for t in tasks],
        "least responsive": [effects[t][t]["bottom"] for t in tasks],
    }


def _with_interval(value: float, ends: list[float], digits: int = 3) -> str:
    """Value with its interval."""
    low, high = (number(end, digits) for end in ends)
    return f"{number(value, digits)} [{low}, {high}]"
