"""Measure the nulls: each experiment that the dataset allows."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from llm2nifti import glm
from llm2nifti.bids import Session
from llm2nifti.experiments.nulls.plan import NullPlan
from llm2nifti.experiments.nulls.result import NullResult
from llm2nifti.experiments.rates import Rates
from llm2nifti.plans import Json

_POOLED = 4  # so many times fewer pseudo-tasks of all runs together, which take longer


def measure(session: Session, plan: NullPlan, *, verbose: int = 1) -> NullResult:
    """Measure false positive rates, and what any coherent topic activates."""
    session = session.only(plan.task)
    is_control = ~glm.is_on(session.first.events)
    sizes: Json = {"n_on": int((~is_control).sum()), "n_off": int(is_control.sum())}
    n_runs = len(session.of(session.tasks[0]))
    pooled = {name: n * n_runs for name, n in sizes.items()}
    how = {"n": plan.n, "seed": plan.seed, "verbose": verbose}
    fewer = {**how, "n": -(-plan.n // _POOLED)}
    nulls = {
        "relabelled": partial(glm.relabelled, session, **how),
        "pseudo_tasks": partial(glm.pseudo_tasks, session, **sizes, **how),
        "pseudo_tasks_pooled": partial(glm.pseudo_tasks, session, **pooled, **fewer),
        "token_level": partial(glm.token_level, session.first),
    }
    if n_runs == 1:
        del nulls["pseudo_tasks_pooled"]  # the same
    out = {}
    for name, null in nulls.items():
        try:
            rates = null()
        except glm.DesignError as error:  # a small dataset does not allow it
            out[name] = Rates(not_possible=str(error))
            continue
        out[name] = Rates(**rates.summary())
        if name.startswith("pseudo_tasks"):
            size = sizes if name == "pseudo_tasks" else pooled
            out[name] = replace(out[name], **size, rates_below_05=rates.below_05.tolist())
    return NullResult(**out)
