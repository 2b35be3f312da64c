"""Fine-tune on one task's text: the network's modules, random ones, or all.

LoRA fine-tuning on the development split's prompts of one task; the loss is that of the tokens of
the concept, because question frames are shared by all tasks. It is measured on prompts of the
evaluation split that did not make the network: of its task, of the other tasks, and of control. The
splits share no topic and no concept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from llm2nifti import bids
from llm2nifti.bids import Session
from llm2nifti.experiments.journal import ResultJournal
from llm2nifti.experiments.results import plain
from llm2nifti.experiments.training.plan import TrainPlan
from llm2nifti.experiments.training.result import TrainingResult
from llm2nifti.experiments.training.setup import Trainings
from llm2nifti.experiments.training.summary import CONDITIONS, best_rate, summarise
from llm2nifti.interventions.reloading import reload
from llm2nifti.models import LoadedModel
from llm2nifti.plans import Json
from llm2nifti.progress import stage
from llm2nifti.scanner.threads import torch_threads

N_BEYOND = 2  # learning rates that are tried beyond the ends of those


def measure(
    session: Session, plan: TrainPlan, *, model: LoadedModel | None = None, verbose: int = 1
) -> TrainingResult:
    """Train with each condition's best learning rate, several times.

    Every finished training is kept beside the results until all are done, so that an interrupted
    experiment goes on where it was.

    Parameters
    ----------
    session : Session
        Runs of one model, scanned with ``heads`` and ``mlp_hidden``.
    plan : TrainPlan
        What to train on, and how.
    model : LoadedModel, optional
        The model of the runs, if it is loaded already.
    verbose : int, default=1
        0 shows no progress.

    Returns
    -------
    TrainingResult
        Of this task; ``training.json`` holds those of all tasks. Results of the very same training
        are returned as they are there.

    Raises
    ------
    ExperimentError
        If there is no such task, no unit of its network owns weights, or the stimuli have no
        development split.
    llm2nifti.bids.ExistsError
        If the task has results of another training already.
    """
    label, path = bids.label(plan.task), session.folder / TrainingResult.file
    kept = TrainingResult.read(session)
    done = kept.tasks.get(label) if kept else None
    with torch_threads(plan.threads):
        trainings = Trainings(session, model or reload(session.first, plan), label, plan)
        trainings.check()
        journal, digest = _journal(session, trainings)
        made_from = f"{digest} with {plan.seeds} seeds"
        is_same = done is not None and done.made_from == made_from
        if done and is_same and (len(journal) or not plan.overwrite):
            journal.finish()  # it was stopped at the very end, or nothing changed since
            return TrainingResult({label: done})
        if done and not plan.overwrite:
            raise bids.ExistsError(
                f"{path} has results of {label!r}; replace them with overwrite=True"
            )
        content = _train_all(trainings, journal, verbose=verbose)
    result = TrainingResult.of(plain({label: {**content, "made_from": made_from}}))
    result.keep(session)  # before the journal goes
    journal.finish()
    return result


def _journal(session: Session, trainings: Trainings) -> tuple[ResultJournal, str]:
    """Results of finished trainings, and the digest of what decides them."""
    shown = [trainings.training, *trainings.held_out.values()]
    settings = {
        "plan": replace(trainings.plan, seeds=1).asked,  # more seeds can be added
        "weights": trainings.model.source.get("WeightsHash"),
        "subject": [session.subject, session.session],
        "modules": trainings.modules["network"],
        "prompts": [rows["prompt"].tolist() for rows in shown],
    }
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    name = f"training-{trainings.task}-{digest[:8]}_evaluations.jsonl"
    return ResultJournal(session.folder / name, {"settings": digest}), digest


def _train_all(trainings: Trainings, journal: ResultJournal, *, verbose: int) -> Json:
    """Try the learning rates, then train with the best of each condition."""

    def kept(make: Callable[..., Any], *key: Any) -> Any:
        name = " ".join([make.__name__, *(f"{part}" for part in key)])
        return journal.get(name, lambda: make(*key))

    n_seeds, pieces = trainings.plan.seeds, {}
    with stage("train", total=len(CONDITIONS), unit="training", verbose=verbose) as bar:
        rates = {name: _search(trainings, kept, name, bar) for name in CONDITIONS}
        bar.total = bar.n + len(CONDITIONS) * n_seeds
        for condition, tried in rates.items():
            best = best_rate(tried)
            for seed in range(n_seeds):
                bar.set_description(f"{condition}, seed {seed}")
                pieces[condition, seed] = kept(trainings.train, condition, seed, best)
                bar.update()
    return summarise(trainings.describe(), rates, kept(trainings.base), pieces)


def _search(
    trainings: Trainings, kept: Callable[..., Any], condition: str, bar: Any
) -> dict[float, Json]:
    """Try learning rates: the given ones and, while the best lies at an end, one beyond it."""
    todo = sorted(set(trainings.plan.learning_rate))
    if len(todo) == 1:  # needs no trial
        return {todo[0]: {"loss": None}}
    tried: dict[float, Json] = {}
    for _ in range(1 + N_BEYOND):
        for rate in todo:
            bar.set_description(f"{condition}, rate {rate:g}")
            tried[rate] = kept(trainings.try_rate, condition, rate)
            bar.update()
        low, *_, high = sorted(tried)
        step = trainings.plan.step
        todo = {low: [low / step], high: [high * step]}.get(best_rate(tried), [])
    return tried
