"""Name held-out runs and prompts by maps of the other runs; also from the prompts alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from nilearn.glm.contrasts import Contrast
from numpy.typing import NDArray

from llm2nifti import glm, networks
from llm2nifti.bids import Run, Session
from llm2nifti.experiments.identification.plan import IdentificationPlan
from llm2nifti.experiments.identification.result import IdentificationResult, Naming
from llm2nifti.networks.naming import Accuracy, name_by_training, naming_curve
from llm2nifti.stimuli import WORDLESS

Contrasts = Mapping[tuple[str, int], Contrast]


def measure(
    session: Session,
    plan: IdentificationPlan,
    *,
    contrasts: Contrasts | None = None,
    verbose: int = 1,
) -> IdentificationResult:
    """Hold out each run number in turn, and name its runs and prompts.

    `contrasts` are those of `llm2nifti.glm.contrasts_of`, if they are there already.
    """
    session = session.only(plan.task)
    session.check_repeated()
    contrasts = contrasts or glm.contrasts_of(session)
    trials = [trial_set(run) for run in session]
    groups = {"": set(session.tasks)}  # tasks among which is named, by the ending of the results
    if WORDLESS in session.tasks and len(session.tasks) > 2:
        groups[f"_without_{WORDLESS}"] = groups[""] - {WORDLESS}
    out: dict[str, Any] = {}
    for ending, tasks in groups.items():
        kept = {key: c for key, c in contrasts.items() if key[0] in tasks}
        maps = {key: glm.t_map([c]) for key, c in kept.items()}
        sets = [t for t in trials if t.task in tasks]
        named = {"runs": networks.name_runs(maps, _training(kept, glm.t_map))}
        if plan.method == "ridge":
            named["trials"] = name_by_training(sets)
        else:
            named["trials"] = networks.name_trials(sets, _training(kept, _effect))
        if any(prompt for t in sets for prompt in t.prompts):  # images have no characters
            named["prompts"] = networks.name_prompts(sets)
            named["words"] = networks.name_prompts(sets, by="words")
        out.update({name + ending: Naming(**what.summary()) for name, what in named.items()})
        curves = {name: _curve(what, sets, plan) for name, what in named.items() if name != "runs"}
        out[f"curve{ending}"] = curves
    copy = session.untrained if plan.untrained else None
    of_copy = measure(copy, replace(plan, untrained=False), verbose=verbose) if copy else None
    return IdentificationResult(**out, method=plan.method, untrained=of_copy)


def _curve(
    named: networks.Identification, sets: list[networks.TrialSet], plan: IdentificationPlan
) -> list[Accuracy]:
    """Accuracy of naming groups of prompts, with intervals over their topics."""
    by_fold = [t for fold in sorted({t.run for t in sets}) for t in sets if t.run == fold]
    topics = np.concatenate([t.task_topics for t in by_fold])
    return naming_curve(named, topics, n_boot=plan.n_boot)


def _effect(contrasts: list[Any]) -> NDArray:
    """(n_units,) effect summed over runs, in the activations' units."""
    return np.ravel(sum(c.effect for c in contrasts))


def _training(
    contrasts: Contrasts, combine: Callable[[list[Any]], NDArray]
) -> dict[int, dict[str, NDArray]]:
    """For each held-out run, the map of every task over the other runs."""
    training: dict[int, dict[str, NDArray]] = {run: {} for run in sorted({r for _, r in contrasts})}
    for held_out, task in product(training, networks.tasks_of(contrasts)):
        others = [c for (t, run), c in contrasts.items() if t == task and run != held_out]
        training[held_out][task] = combine(others)
    return training


def trial_set(run: Run) -> networks.TrialSet:
    """Trials of a run for identification."""
    return networks.TrialSet(
        task=run.task,
        run=run.run,
        values=run.values(),
        is_task=glm.is_on(run.events),
        frames=run.events["question_frame"].to_numpy(str),
        prompts=run.events["prompt"].to_list(),
        topics=run.events["topic"].to_numpy(str),
    )
