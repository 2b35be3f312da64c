"""Decompose the runs of a session, and write what comes out."""

from __future__ import annotations

from llm2nifti.bids import Session, checking
from llm2nifti.bids.parts import write_parts
from llm2nifti.experiments.decomposition.plan import DecomposePlan
from llm2nifti.experiments.decomposition.result import DecompositionResult, RestResult
from llm2nifti.experiments.errors import ExperimentError
from llm2nifti.experiments.journal import made_from
from llm2nifti.networks.components import confounds, evaluate


def measure(session: Session, plan: DecomposePlan, *, verbose: int = 1) -> DecompositionResult:
    """Decompose all runs, and those of each run number alone, and write what comes out.

    What was measured of the same runs, with the same plan and versions, is not measured again.
    ExperimentError if a run has too few prompts for the components, or there are no rest runs.
    """
    kind, runs = (RestResult, session.rest) if plan.rest else (DecompositionResult, session)
    if runs is None:
        raise ExperimentError(f"{session.root} has no rest runs; add some: llm2nifti scan --rest")
    runs.check_repeated()
    n_left = min(len(run.events) - confounds(run).shape[1] for run in runs)
    if max(plan.n_components, plan.n_parcels) > runs.brain.n_units or plan.n_components > n_left:
        raise ExperimentError(
            f"n_components is {plan.n_components} and n_parcels {plan.n_parcels}; a run allows "
            f"{n_left} components (prompts less the mean and question frames), and there are "
            f"{runs.brain.n_units} units. Ask for fewer"
        )
    source, files = made_from(session, plan), runs.first.paths.parts(plan.method, kind.prefix)
    kept = None if plan.redo else kind.kept(session, source)
    if kept and checking.are_intact(session.root, files.values()):
        return kept
    how = {name: getattr(plan, name) for name in ("method", "n_components", "n_parcels", "seed")}
    how |= {"n": plan.n_shuffles, "verbose": verbose}
    trained, parts, courses = evaluate(runs, session, **how)
    write_parts(
        files, runs, maps=parts.maps, parcels=parts.parcels, courses=courses, settings=plan.asked
    )
    copy, of_tasks = (runs.untrained, session.untrained) if plan.untrained else (None, None)
    return kind(
        plan.method,
        n_runs=len(runs.folds),
        n_trials=sum(map(len, courses)),
        n_shuffles=plan.n_shuffles,
        trained=trained,
        untrained=evaluate(copy, of_tasks, **how)[0] if copy and of_tasks else None,
        made_from=source,
    )
