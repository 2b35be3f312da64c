"""Test every task over its topics by nilearn's second level, beside the test of prompts."""

from __future__ import annotations

import numpy as np

from llm2nifti import bids, geometry, glm, networks
from llm2nifti.bids import Session
from llm2nifti.experiments.rates import Rates
from llm2nifti.experiments.topics.plan import TopicsPlan
from llm2nifti.experiments.topics.result import TopicsResult, TopicTask
from llm2nifti.glm.maps import described
from llm2nifti.glm.second_level import second_level
from llm2nifti.glm.topics import TopicMaps, fdr, pseudo_topics, topic_maps
from llm2nifti.progress import track


def measure(session: Session, plan: TopicsPlan, *, verbose: int = 1) -> TopicsResult:
    """Test the topics of every task, and pseudo-tasks of unrelated topics."""
    session = session.only(plan.task)
    tasks, skipped = {}, {}
    for task in track(session.tasks, "topics", unit="task", verbose=verbose):
        try:
            maps = topic_maps(session.of(task), seed=plan.seed)
        except glm.DesignError as error:  # a small dataset does not allow it
            skipped[task] = str(error)
            continue
        tasks[task] = _tested(session.of(task), task, maps, plan)
    return TopicsResult(tasks, _null(session, tasks, plan), skipped, plan.alpha)


def _tested(runs: Session, task: str, maps: TopicMaps, plan: TopicsPlan) -> TopicTask:
    """Test over topics and over prompts; the map of the first is written."""
    brain = runs.brain
    varies = maps.values.std(axis=0) > 0
    imgs = [geometry.to_img(brain, row) for row in maps.values]
    mask_img = geometry.to_img(brain, varies)
    level = second_level(imgs, mask_img, n_perm=plan.n_perm, seed=plan.seed)
    df = len(imgs) - 1
    t = geometry.from_img(brain, level.t_img)
    path = runs.first.paths.stat_map("t", contrast=f"{task}OverTopics")
    sidecar = {"Contrast": f"{task} over topics", "Statistic": "t", "DegreesOfFreedom": df}
    img = described(geometry.to_img(brain, t), "t", f"{task} over topics", df=df)
    bids.write_img(path, runs.root, img, {**sidecar, "Note": "n/a"})
    prompts = glm.pool(task, brain, list(glm.contrasts_of(runs).values()))
    active, rule = fdr(t, df, plan.alpha), networks.Rule("fdr", alpha=plan.alpha)
    return TopicTask(
        n_topics=len(imgs),
        n_prompts=maps.n_prompts,
        share_below_05=float((level.p < 0.05).mean()),
        n_active=int(active.sum()),
        share_active=float(active.mean()),
        share_active_prompts=networks.select(prompts, rule).n_units / brain.n_units,
        n_active_max=None if level.p_max is None else int((level.p_max < plan.alpha).sum()),
    )


def _null(session: Session, tasks: dict[str, TopicTask], plan: TopicsPlan) -> Rates:
    """Pseudo-tasks with as many topics as the task that has the most."""
    if not (tasks and plan.n_null):
        return Rates(not_possible="no task could be tested" if plan.n_null else "not asked for")
    n_topics = max(task.n_topics for task in tasks.values())
    try:
        rates = pseudo_topics(session, n_topics=n_topics, n=plan.n_null, seed=plan.seed)
    except glm.DesignError as error:
        return Rates(not_possible=str(error))
    below = np.round(rates.below_05, 6).tolist()
    return Rates(**rates.summary(), rates_below_05=below)
