"""Fit every task, select its network, and write maps and networks, a task and a run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass

import numpy as np
from tqdm import tqdm

from llm2nifti import bids, cluster, glm, networks
from llm2nifti.bids import Run, Session, statsmodel
from llm2nifti.experiments.maps.plan import GlmPlan
from llm2nifti.experiments.maps.result import MapsResult, TaskMaps
from llm2nifti.networks import Rule

_DESC = {"trial": "network", "token": "networktokens"}


def measure(
    session: Session, plan: GlmPlan, *, mapper: cluster.Mapper | None = None, verbose: int = 1
) -> MapsResult:
    """Fit, threshold and write the maps of every task.

    By default the workers that the plan names, or this process, fit the slabs; or a `mapper` does.
    """
    session = session.only(plan.task)
    rule = Rule(plan.height_control, plan.alpha, plan.share, not plan.one_sided)
    how = _How(plan, rule, bids.label(_DESC[plan.frames] + rule.label))
    with (
        nullcontext(mapper) if mapper else cluster.mapped(plan.n_jobs, plan.dask) as mapped,
        tqdm(total=len(session), desc="glm", unit="run", disable=None if verbose else True) as bar,
    ):
        if plan.contrast:
            tasks = {plan.contrast: _of_contrast(session, plan.contrast, how, mapped)}
        else:
            tasks = {}
            for task in session.tasks:
                bar.set_description(f"glm {task}")
                tasks[task] = _of_task(session.of(task), task, how, mapped)
                bar.update(len(session.of(task)))
    if plan.frames == "trial":
        return MapsResult(tasks, more=plan.more)
    null = glm.token_level(session.first).summary()
    return MapsResult(tasks, token_level_null=null, more=plan.more)


@dataclass(frozen=True)
class _How:
    """How maps are made and written."""

    plan: GlmPlan
    rule: Rule
    desc: str  #: entity of the networks' files

    def fit(self, runs: Session, mapper: cluster.Mapper) -> glm.Fit:
        """Fit what the plan asks for."""
        return glm.fit(
            runs,
            frames=self.plan.frames,
            covariates=self.plan.covariate,
            modulators=self.plan.modulate,
            rectify=self.plan.rectify,
            verbose=0,
            mapper=mapper,
        )

    def label(self, contrast: str) -> str:
        """Entity of the maps' files; empty where these are the task's own."""
        if not self.plan.more:
            return ""
        words = re.sub("[-+]", lambda sign: " vs " if sign[0] == "-" else " and ", contrast)
        given = [f"given {name}" for name in self.plan.covariate]
        by = [f"by {name}" for name in self.plan.modulate if name not in contrast]
        size = ["of absolute values"] if self.plan.rectify else []
        return bids.label(" ".join([words, *given, *by, *size]).title())


def _of_task(runs: Session, task: str, how: _How, mapper: cluster.Mapper) -> TaskMaps:
    """Maps of a task minus its control, of each run and of all."""
    contrast, shares = glm.task_contrast(runs.first.events), []
    label = how.label(contrast)
    statsmodel.write(runs.root, task, (run.events for run in runs))
    fitted = how.fit(runs, mapper)
    for i, run in enumerate(runs):
        maps = fitted.of_run(i).contrast(contrast)
        if not label:
            _write(maps, [run], how, only_run=True)
        shares.append(maps.share_below())
    maps = fitted.contrast(contrast)
    network = _write(maps, runs, how, label=label)
    # Welch's test is of prompts without covariates: there is nothing to compare others with.
    compares = not (maps.note or label)
    welch = glm.welch_disagreement(runs, maps) if compares else None
    return _numbers(maps, network, how, runs=len(runs), shares=shares, welch=welch)


def _of_contrast(session: Session, contrast: str, how: _How, mapper: cluster.Mapper) -> TaskMaps:
    """Maps of any contrast of the conditions of all tasks."""
    maps = how.fit(session, mapper).contrast(contrast)
    network = _write(maps, session, how, label=how.label(contrast))
    return _numbers(maps, network, how, runs=len(session), shares=[], welch=None)


def _numbers(
    maps: glm.StatMaps,
    network: networks.Network,
    how: _How,
    *,
    runs: int,
    shares: list[float],
    welch: float | None,
) -> TaskMaps:
    """What is told of maps."""
    return TaskMaps(
        n_runs=runs,
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
        welch_disagreement=welch,
        profile=network.profile().to_dict(orient="records"),
        note=maps.note,
        network=how.desc,
        rule=how.rule,
    )


def _write(
    maps: glm.StatMaps,
    runs: Sequence[Run],
    how: _How,
    *,
    only_run: bool = False,
    label: str = "",
) -> networks.Network:
    """Select the network of one run or of all runs together; write it and t, z and effect maps."""
    network, run = networks.select(maps, how.rule, runs=runs), runs[0]
    root, kind = run.paths.root, "tokens" if maps.note else ""  # there is a note on tokens only
    for name, img in (("t", maps.t_img), ("z", maps.z_img), ("effect", maps.effect_img)):
        path = run.paths.stat_map(name + kind, only_run=only_run, contrast=label)
        sidecar = {"Contrast": maps.name, "Statistic": name, "DegreesOfFreedom": maps.df}
        sidecar |= {"Covariates": list(how.plan.covariate), "Modulators": list(how.plan.modulate)}
        sidecar |= {"Rectified": True} if how.plan.rectify else {}
        bids.write_img(path, root, img, {**sidecar, "Note": maps.note or "n/a"})
    sidecar = {
        "Type": "ROI",
        "Sources": [f"bids::{run.paths.trial_bold.relative_to(root / bids.DERIVATIVES)}"],
        "Description": f"Units that respond to {maps.name}: {network.how}.",
        "SpatialReference": run.sidecar["SpatialReference"],
        "Rule": asdict(how.rule),
    }
    path = run.paths.network(only_run=only_run, desc=how.desc, contrast=label)
    bids.write_img(path, root, network.mask_img(), sidecar)
    return network
