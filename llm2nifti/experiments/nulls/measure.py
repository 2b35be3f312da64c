"""Measure the nulls: each experiment that the dataset allows."""

from __future__ import annotations

from collections.abc import Callable

from llm2nifti import glm
from llm2nifti.bids import Session
from llm2nifti.experiments.nulls.plan import NullPlan
from llm2nifti.experiments.nulls.result import NullResult, Rates


def measure(session: Session, plan: NullPlan, *, verbose: int = 1) -> NullResult:
    """Measure false positive rates, and what any coherent topic activates."""
    session = session.only(plan.task)
    is_control = session.first.events["trial_type"] == glm.CONTROL
    n_on, n_off = int((~is_control).sum()), int(is_control.sum())
    how = {"n": plan.n, "seed": plan.seed}
    relabelled = _rates(lambda: glm.relabelled(session, **how, verbose=verbose))
    pseudo = _rates(
        lambda: glm.pseudo_tasks(session, n_on=n_on, n_off=n_off, **how, verbose=verbose),
        is_listed=True,
    )
    if pseudo.not_possible is None:
        pseudo = pseudo.sized(n_on, n_off)
    return NullResult(relabelled, pseudo, _rates(lambda: glm.token_level(session.first)))


def _rates(make: Callable[[], glm.NullRates], *, is_listed: bool = False) -> Rates:
    """Rates of one experiment, or why a small dataset does not allow it."""
    try:
        rates = make()
    except glm.DesignError as error:
        return Rates(not_possible=str(error))
    return Rates(
        n_relabellings=len(rates.below_05),
        below_05=float(rates.below_05.mean()),
        below_05_sd=float(rates.below_05.std()),
        below_001=float(rates.below_001.mean()),
        any_fdr=float(rates.any_fdr.mean()),
        rates_below_05=rates.below_05.tolist() if is_listed else None,
    )
