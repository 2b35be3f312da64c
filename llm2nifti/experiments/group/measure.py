"""Compare all models and sessions of a dataset: in a common space, in geometry, in function."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from tempfile import TemporaryDirectory

from llm2nifti import bids
from llm2nifti.bids import Session, manifest
from llm2nifti.bids.sessions import Sessions
from llm2nifti.experiments.errors import ExperimentError
from llm2nifti.experiments.group import pairs
from llm2nifti.experiments.group.carrying import cargo_of, write_carried
from llm2nifti.experiments.group.levels import depth_levels, shared_sites, voxel_levels
from llm2nifti.experiments.group.parts import Carried, Member, ModelPair
from llm2nifti.experiments.group.plan import GroupPlan
from llm2nifti.experiments.group.prompts import Responses, SharedPrompts, common_prompts, responses
from llm2nifti.experiments.group.result import GroupResult
from llm2nifti.experiments.journal import made_from
from llm2nifti.glm.fitting import one_thread
from llm2nifti.networks.representation import required
from llm2nifti.parcels import parcels_in
from llm2nifti.plans import Json
from llm2nifti.progress import track


@one_thread()
def measure(session: Sessions, plan: GroupPlan, *, verbose: int = 1) -> GroupResult:
    """Compare models and sessions; `session` are all of them.

    Raises
    ------
    ExperimentError
        If there are fewer than two, none is trained, or they have different tasks, no site or no
        prompt in common.
    """
    sessions = _checked(session, plan)
    cargo, source = cargo_of(sessions, plan), _source(sessions, plan)
    kept = None if plan.redo else GroupResult.kept(sessions, source)
    if kept and all((sessions.root / one.mask).exists() for one in kept.written):
        return kept
    required("rsatoolbox")  # before what takes long
    sites = shared_sites(sessions, plan.site)
    copies = _copies(sessions) if plan.untrained else {}
    everyone = [*sessions, *copies.values()]
    prompts = common_prompts(everyone, most=plan.n_prompts, seed=plan.seed)
    depth = depth_levels(sessions, plan, verbose=verbose)
    voxels = voxel_levels(sessions, plan, verbose=verbose)
    with TemporaryDirectory(prefix="llm2nifti-group-") as folder:
        read_in = {}
        for one in track(everyone, "responses", unit="session", verbose=verbose):
            where = Path(folder)
            read_in[one.name] = responses(one, prompts, where, sites=plan.site, verbose=0)
        compared, carried = _pairs(sessions, copies, read_in, (prompts, plan), verbose=verbose)
        written = write_carried(sessions, cargo, prompts, read_in, plan) if cargo else ()
        return GroupResult(
            members=[_member(one, plan, copies) for one in sessions],
            tasks=list(sessions[0].tasks),
            n_prompts=len(prompts.trials),
            n_bins=plan.n_bins,
            sites=sites,
            depth=depth,
            voxels=voxels,
            pairs=compared,
            carried=carried,
            written=list(written),
            made_from=source,
        )


def _checked(sessions: Sessions, plan: GroupPlan) -> Sessions:
    """Sessions of the tasks that are asked about, if they can be compared."""
    table = bids.runs(sessions.root)
    names = ", ".join(one.name for one in sessions)
    if table["untrained"].all():
        raise ExperimentError(f"{names}: only untrained copies, which have no maps to compare")
    if len(sessions) < 2:
        raise ExperimentError(
            f"the dataset has one session, {names}; a group needs two or more: add a [[model]] to "
            "the study file"
        )
    if not plan.task:
        tasks = {one.name: set(one.tasks) for one in sessions}
        first, *others = tasks
        for other in others:
            if tasks[other] != tasks[first]:
                told = "; ".join(f"{n}: {', '.join(sorted(tasks[n]))}" for n in (first, other))
                raise ExperimentError(
                    f"the sessions have different tasks ({told}); say with task which to compare, "
                    "or finish the scan"
                )
    sessions = sessions.only(plan.task)
    for one in sessions:
        one.check_repeated()
        parcels_in(one, plan.site)  # for its error
    return sessions


def _source(sessions: Sessions, plan: GroupPlan) -> Json:
    """What decides the result; a mask that is carried is a part of it."""
    source = made_from(sessions, plan)
    path = Path(plan.carry or "")
    return source | ({"mask": manifest.hash_of(path)} if path.is_file() else {})


def _copies(sessions: Sessions) -> dict[str, Session]:
    """Untrained copies, by the name of their model's session."""
    copies = {one.name: one.untrained for one in sessions}
    whole = {one.name: len(one) for one in sessions}
    return {n: copy for n, copy in copies.items() if copy is not None and len(copy) == whole[n]}


def _member(session: Session, plan: GroupPlan, copies: dict[str, Session]) -> Member:
    """What takes part."""
    parcels = parcels_in(session, plan.site)
    copy = copies.get(session.name)
    return Member(
        name=session.name,
        space=session.brain.space,
        parcels=[parcel.name for parcel in parcels],
        layers=[parcel.layer for parcel in parcels],
        sites=[parcel.site for parcel in parcels],
        untrained=copy.name if copy else None,
    )


def _pairs(
    sessions: Sessions,
    copies: dict[str, Session],
    read_in: dict[str, Responses],
    asked: tuple[SharedPrompts, GroupPlan],
    *,
    verbose: int,
) -> tuple[list[ModelPair], list[Carried]]:
    """Similarity of every two models, and maps carried both ways."""
    compared, carried = [], []
    names = [one.name for one in sessions]
    todo = list(permutations(names, 2))
    for a, b in track(todo, "pairs", unit="pair", verbose=verbose):
        sides = read_in[a], read_in[b]
        copy = read_in[copies[a].name] if a in copies else None
        if names.index(a) < names.index(b):
            compared.append(pairs.compare((a, b), sides, *asked, copy))
        carried += pairs.carry((a, b), sides, *asked, copy)
    return compared, carried
