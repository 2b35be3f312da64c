"""A network of one model becomes a mask in the space of another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from llm2nifti import bids, geometry, glm, networks
from llm2nifti.bids import Session
from llm2nifti.bids.dataset import GROUP
from llm2nifti.bids.sessions import Sessions
from llm2nifti.experiments.errors import ExperimentError
from llm2nifti.experiments.group.parts import Written
from llm2nifti.experiments.group.plan import GroupPlan
from llm2nifti.experiments.group.prompts import Responses, SharedPrompts, responses
from llm2nifti.experiments.group.shuffles import Independent, p_of, range_of
from llm2nifti.glm.maps import described
from llm2nifti.networks import alignment
from llm2nifti.networks.network import Network, Rule, from_mask, ranked
from llm2nifti.parcels import parcels_in, read, residuals_of


@dataclass(frozen=True, eq=False)
class Cargo:
    """What is carried, from which session."""

    name: str  #: label of the task or of the mask
    source: Session
    share: float  #: of the units of every target
    task: str | None = None  #: whose effect it is
    pattern: NDArray[np.float64] | None = None  #: (n_units,) or the pattern of a mask


def cargo_of(sessions: Sessions, plan: GroupPlan) -> Cargo | None:
    """Read what is to be carried; ExperimentError if there is no such session or network."""
    names = [session.name for session in sessions]
    if plan.source is not None and plan.carry is None:
        raise ExperimentError("source says where a network comes from; say which with carry")
    if plan.carry is None:
        return None
    wanted = plan.source or names[0]
    wanted = wanted if wanted.startswith("sub-") else f"sub-{wanted}"
    if wanted not in names:
        raise ExperimentError(f"no session {wanted!r} in the dataset; there are: {names}")
    source = sessions[names.index(wanted)]
    path = Path(plan.carry)
    if path.name.endswith((".nii", ".nii.gz")):
        network = from_mask(source.brain, bids.read_img(path), name=path.name)
        share = network.n_units / source.brain.n_units
        name = bids.label(path.name.partition(".")[0])
        return Cargo(name, source, share, pattern=network.signs * network.strengths)
    task = source.of(plan.carry).tasks[0]
    return Cargo(task, source, plan.share, task=task)


def write_carried(
    sessions: Sessions,
    cargo: Cargo,
    prompts: SharedPrompts,
    read_in: Mapping[str, Responses],
    plan: GroupPlan,
) -> Iterator[Written]:
    """Carry into every other session, write map and mask there, and say where they are.

    Parameters
    ----------
    sessions, plan
        The dataset, and what is asked.
    cargo : Cargo
        What is carried.
    prompts, read_in : SharedPrompts, mapping of str to Responses
        Prompts that all saw, and what they evoked in each session.
    """
    wanted = prompts.kinds != cargo.task  # an alignment that knows the task would copy it
    independent = Independent(prompts, wanted)
    every, rng = np.ones(len(prompts.trials), bool), np.random.default_rng(plan.seed)
    if cargo.pattern is None:
        a = read_in[cargo.source.name].whole
        products = a @ prompts.contrast(str(cargo.task), every)
    else:
        with TemporaryDirectory() as folder:
            where = Path(folder)
            whole = responses(
                cargo.source, prompts, where, sites=plan.site, pattern=cargo.pattern, verbose=0
            ).whole
        a, products = whole[:-1, :-1], whole[:-1, -1]
    rows = [independent.rows(), *(independent.shuffled(rng) for _ in range(plan.n_null))]
    for session in sessions:
        if session.name == cargo.source.name:
            continue
        b = read_in[session.name].whole
        gram_b = rows[0] @ b @ rows[0].T
        mixtures = []
        for one in rows:
            fitted = alignment.align(one @ a @ one.T, gram_b)
            mixtures.append(rows[0].T @ fitted.mixture(one @ products))
        yield _written(session, cargo, prompts, np.stack(mixtures), plan)


def _written(
    session: Session,
    cargo: Cargo,
    prompts: SharedPrompts,
    mixtures: NDArray[np.float64],
    plan: GroupPlan,
) -> Written:
    """Write what a mixture of prompts evokes in a session, and the units where it is largest."""
    brain, residual = session.brain, residuals_of(prompts.trials)
    maps, t = np.zeros((2, len(mixtures), brain.n_units))
    for parcel, values in read(session.runs, parcels_in(session, plan.site), verbose=0):
        centred = values[prompts.rows[session.name]].astype(float)
        centred -= centred.mean(axis=0)
        maps[:, parcel.units] = mixtures @ centred
        noise = np.sqrt((residual(centred) ** 2).mean(axis=0))
        t[:, parcel.units] = maps[:, parcel.units] / np.where(noise > 0, noise, np.inf)
    rule = Rule("top", share=cargo.share, sites=plan.site)
    drawn = [ranked(cargo.name, brain, row, rule) for row in t]
    come = bids.label(cargo.source.name)
    stem = f"{session.name}_space-{brain.space}_label-{cargo.name}_desc-from{come}"
    folder, root = session.root / bids.DERIVATIVES / GROUP, session.root
    path = folder / f"{stem}_mask.nii.gz"
    bids.write_img(path, root, drawn[0].mask_img())
    img = described(geometry.to_img(brain, maps[0]), "effect", f"{cargo.name} from {come}")
    bids.write_img(folder / f"{stem}_stat-effect_statmap.nii.gz", root, img)
    dice = _dice(session, cargo, drawn, rule)
    return Written(
        what=cargo.name,
        source=cargo.source.name,
        target=session.name,
        mask=path.relative_to(root).as_posix(),
        n_units=drawn[0].n_units,
        dice=dice[0] if dice else None,
        null=range_of(dice[1:]) if dice else None,
        p=p_of(dice[0], dice[1:]) if dice else None,
    )


def _dice(session: Session, cargo: Cargo, drawn: list[Network], rule: Rule) -> list[float]:
    """Overlap with the session's network of the task, of the same size; nothing of a mask."""
    if cargo.task is None:
        return []
    runs = session.of(cargo.task)
    maps = glm.fit(runs, verbose=0).contrast(glm.task_contrast(runs.first.events))
    units = networks.select(maps, rule).units
    return [float(networks.dice(one.units, units)) for one in drawn]
