"""Decompose the runs of a session, and write what comes out."""

from __future__ import annotations

from llm2nifti.bids import Session, checking
from llm2nifti.bids.parts import write_parts
from llm2nifti.experiments.decomposition.plan import DecomposePlan
from llm2nifti.experiments.decomposition.result import DecompositionResult
from llm2nifti.experiments.errors import ExperimentError
from llm2nifti.experiments.journal import digest_of_runs, versions
from llm2nifti.networks.components import confounds, evaluate


def measure(session: Session, plan: DecomposePlan, *, verbose: int = 1) -> DecompositionResult:
    """Decompose all runs, and those of each run number alone, and write what comes out.

    What was measured of the same runs, with the same plan and versions, is not measured again.
    ExperimentError if a run has too few prompts for the components.
    """
    session.check_repeated()
    n_left = min(len(run.events) - confounds(run).shape[1] for run in session)
    n_units = session.brain.n_units
    if plan.n_components > min(n_left, n_units) or plan.n_parcels > n_units:
        raise ExperimentError(
            f"n_components is {plan.n_components} and n_parcels {plan.n_parcels}; a run allows "
            f"{n_left} components (prompts less the mean and question frames), and there are "
            f"{n_units} units. Ask for fewer"
        )
    made_from = {"plan": plan.asked, "runs": digest_of_runs(session), "versions": versions()}
    kept = None if plan.redo else DecompositionResult.read(session)
    files = session.first.paths.parts(plan.method)
    is_there = made_from["runs"] and checking.are_intact(session.root, files.values())
    if kept and is_there and kept.made_from == made_from:
        return kept
    how = {name: getattr(plan, name) for name in ("method", "n_components", "n_parcels", "seed")}
    how |= {"n": plan.n_shuffles, "verbose": verbose}
    trained, parts, courses = evaluate(session, **how)
    write_parts(
        files,
        session,
        maps=parts.maps,
        parcels=parts.parcels,
        courses=courses,
        settings=plan.asked,
    )
    copy = session.untrained if plan.untrained else None
    return DecompositionResult(
        plan.method,
        n_runs=len(session.folds),
        n_prompts=sum(map(len, courses)),
        n_shuffles=plan.n_shuffles,
        trained=trained,
        untrained=evaluate(copy, **how)[0] if copy else None,
        made_from=made_from,
    )
