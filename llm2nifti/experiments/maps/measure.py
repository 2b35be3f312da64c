"""Fit every task, select its network, and write maps and networks, a task and a run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict

import numpy as np
from tqdm import tqdm

from llm2nifti import bids, cluster, glm, networks
from llm2nifti.bids import Run, Session, statsmodel
from llm2nifti.experiments.maps.plan import GlmPlan
from llm2nifti.experiments.maps.result import MapsResult, TaskMaps
from llm2nifti.networks import Rule


def measure(
    session: Session, plan: GlmPlan, *, mapper: cluster.Mapper | None = None, verbose: int = 1
) -> MapsResult:
    """Fit, threshold and write the maps of every task.

    By default the workers that the plan names, or this process, fit the slabs; or a `mapper` does.
    """
    session = session.only(plan.task)
    rule = Rule(plan.height_control, plan.alpha, plan.share, not plan.one_sided)
    desc = bids.label("network" + ("" if plan.frames == "trial" else "tokens") + rule.label)
    tasks = {}
    with (
        nullcontext(mapper) if mapper else cluster.mapped(plan.n_jobs, plan.dask) as mapped,
        tqdm(total=len(session), desc="glm", unit="run", disable=None if verbose else True) as bar,
    ):
        for task in session.tasks:
            bar.set_description(f"glm {task}")
            runs, contrast, shares = session.of(task), f"{task} - {glm.CONTROL}", []
            statsmodel.write(session.root, task, (run.events for run in runs))
            fitted = glm.fit(runs, frames=plan.frames, verbose=0, mapper=mapped)
            for i, run in enumerate(runs):
                maps = fitted.of_run(i).contrast(contrast)
                _write(maps, [run], rule, only_run=True, desc=desc)
                shares.append(maps.share_below())
            maps = fitted.contrast(contrast)
            network = _write(maps, runs, rule, only_run=False, desc=desc)
            bar.update(len(runs))
            tasks[task] = TaskMaps(
                n_runs=len(runs),
                n_active=network.n_units,
                share_active=network.n_units / network.brain.n_units,
                n_more=int((network.signs > 0).sum()),
                n_less=int((network.signs < 0).sum()),
                threshold=network.how,
                df=maps.df,
                max_t=float(np.abs(maps.t()).max()),
                n_constant=maps.n_constant,
                share_below_05=maps.share_below(),
                share_below_05_per_run=shares,
                # Welch's test is of prompts: there is nothing to compare token-level tests with.
                welch_disagreement=None if maps.note else glm.welch_disagreement(runs, maps),
                profile=network.profile().to_dict(orient="records"),
                note=maps.note,
                network=desc,
                rule=rule,
            )
    if plan.frames == "trial":
        return MapsResult(tasks)
    return MapsResult(tasks, token_level_null=glm.token_level(session.first).summary())


def _write(
    maps: glm.StatMaps, runs: Sequence[Run], rule: Rule, *, only_run: bool, desc: str
) -> networks.Network:
    """Select the network of one run or of all runs together; write it and t, z and effect maps."""
    network, run = networks.select(maps, rule, runs=runs), runs[0]
    root, kind = run.paths.root, "tokens" if maps.note else ""  # there is a note on tokens only
    for name, img in (("t", maps.t_img), ("z", maps.z_img), ("effect", maps.effect_img)):
        path = run.paths.stat_map(name + kind, only_run=only_run)
        sidecar = {"Contrast": maps.name, "Statistic": name, "DegreesOfFreedom": maps.df}
        bids.write_img(path, root, img, {**sidecar, "Note": maps.note or "n/a"})
    sidecar = {
        "Type": "ROI",
        "Sources": [f"bids::{run.paths.trial_bold.relative_to(root / bids.DERIVATIVES)}"],
        "Description": f"Units that respond to {maps.name}: {network.how}.",
        "SpatialReference": run.sidecar["SpatialReference"],
        "Rule": asdict(rule),
    }
    path = run.paths.network(only_run=only_run, desc=desc)
    bids.write_img(path, root, network.mask_img(), sidecar)
    return network
