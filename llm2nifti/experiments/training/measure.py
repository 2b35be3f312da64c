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
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from llm2nifti import bids, glm, networks, stimuli
from llm2nifti.bids import Session
from llm2nifti.experiments.errors import ExperimentError
from llm2nifti.experiments.journal import ResultJournal
from llm2nifti.experiments.results import plain
from llm2nifti.experiments.training.plan import TrainPlan
from llm2nifti.experiments.training.result import TrainingResult
from llm2nifti.experiments.training.summary import CONDITIONS, best_rate, summarise
from llm2nifti.interventions.reloading import reload
from llm2nifti.models import LoadedModel
from llm2nifti.networks import Network
from llm2nifti.plans import Json
from llm2nifti.progress import stage
from llm2nifti.scanner.kernels import torch_threads
from llm2nifti.surgery import finetuning
from llm2nifti.surgery.feeding import owning
from llm2nifti.surgery.targets import default_top, target_modules

N_BEYOND = 2  # learning rates that are tried beyond the ends of those


def measure(
    session: Session, plan: TrainPlan, *, model: LoadedModel | None = None, verbose: int = 1
) -> TrainingResult:
    """Train with each condition's best learning rate, several times; the result is of this task.

    Every finished training is kept beside the results until all are done, so that an interrupted
    experiment goes on where it was. Results of the very same training are returned as they are
    there. The session was scanned with ``heads`` and ``mlp_hidden``. ExperimentError if there is no
    such task, no unit of its network owns weights, or the stimuli have no development split;
    `llm2nifti.bids.ExistsError` if the task has results of another training already.
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


@dataclass(frozen=True, eq=False)
class Trainings:
    """Everything that the trainings of one experiment share."""

    session: Session
    model: LoadedModel
    task: str  #: its label
    plan: TrainPlan

    def check(self) -> None:
        """Raise unless everything that is needed is there."""
        _ = self.modules["network"], self.training, self.held_out

    @cached_property
    def made_from(self) -> Session:
        """Runs that the network is made from: all of the task but the last, if there are more."""
        runs = self.session.of(self.task)
        return runs.without(runs.folds[-1]) if len(runs) > 1 else runs

    @cached_property
    def network(self) -> Network:
        """Units of those runs that pass FDR .05 and own weights."""
        maps = glm.fit(self.made_from, verbose=0).contrast(
            glm.task_contrast(self.made_from.first.events)
        )
        network = owning(networks.select(maps))
        if not network.n_units:
            raise ExperimentError(f"no unit that owns weights passes FDR .05 for {self.task!r}")
        return network

    @cached_property
    def targets(self) -> pd.DataFrame:
        """Modules by network mass."""
        return target_modules(self.network, model=self.model)

    @cached_property
    def modules(self) -> dict[str, list[str]]:
        """Modules of the conditions ``network`` and ``all``."""
        names = self.targets["module"].tolist()
        top = default_top(self.targets) if self.plan.top is None else self.plan.top
        if not 0 < 2 * top <= len(names):
            raise ExperimentError(
                f"top is {top}; of {len(names)} modules, at most half can be trained"
            )
        return {"network": names[:top], "all": names}

    def draw(self, condition: str, seed: int) -> list[str]:
        """Modules of a condition; random ones have the kinds of the network's, none of its own.

        A module stands for one of the same kind (site, rows or columns, name) in another layer, so
        that as many weights are trained.
        """
        if condition != "random":
            return self.modules[condition]
        rng = np.random.default_rng([seed, 20231110])
        kinds = self.targets["module"].str.rpartition(".")[2]
        chosen = self.targets["module"].isin(self.modules["network"])
        drawn: list[str] = []
        for kind in kinds[chosen].unique():
            pool = self.targets.loc[(kinds == kind) & ~chosen, "module"].to_numpy(str)
            n_wanted = int((chosen & (kinds == kind)).sum())
            if len(pool) < n_wanted:
                raise ExperimentError(
                    f"top leaves {len(pool)} {kind} to draw {n_wanted} from; lower it"
                )
            drawn += rng.permutation(pool)[:n_wanted].tolist()
        return drawn

    @cached_property
    def table(self) -> pd.DataFrame:
        """Stimuli of both splits; task names as labels."""
        table = stimuli.load(self.plan.stimuli, split=None)
        return table.assign(task=table["task"].map(bids.label))

    @cached_property
    def training(self) -> pd.DataFrame:
        """Prompts to train on: the task's of the development split."""
        rows = self.table[
            (self.table["task"] == self.task) & (self.table["split"] == "development")
        ]
        if rows["topic"].nunique() < 2:
            raise ExperimentError(
                f"{self.task!r} has prompts of {rows['topic'].nunique()} topics in the development "
                "split; training needs at least 2 (column split of the stimuli)"
            )
        return rows.head(self.plan.n_training).reset_index(drop=True)

    @cached_property
    def held_out(self) -> dict[str, pd.DataFrame]:
        """Prompts of the evaluation split that did not make the network, by task."""
        shown = {c.casefold() for run in self.made_from for c in run.events["concept"]}
        fresh = self.table[
            (self.table["split"] == "evaluation")
            & ~self.table["concept"].str.casefold().isin(shown)
        ]
        out = {}
        for task, rows in fresh.groupby("task", sort=False):
            n = min(self.plan.n_texts, len(rows))
            out[str(task)] = rows.sample(n, random_state=0).sort_index().reset_index(drop=True)
        if self.task not in out:
            raise ExperimentError(
                f"every prompt of {self.task!r} was shown: none is left to hold out"
            )
        return out

    def texts(self, rows: pd.DataFrame) -> list[finetuning.Text]:
        """Texts of some prompts, in the template of the scan."""
        template = self.session.settings.get("template", "auto")
        prompts, concepts = rows["prompt"].tolist(), rows["concept"].tolist()
        return finetuning.concept_texts(self.model, prompts, concepts, template=template)

    def recipe(self, rate: float) -> finetuning.Recipe:
        """How modules are trained."""
        plan = self.plan
        return finetuning.Recipe(rate=rate, epochs=plan.epochs, r=plan.r, alpha=plan.lora_alpha)

    def losses(self, rows: pd.DataFrame) -> list[float]:
        """Loss of every prompt."""
        return finetuning.text_losses(self.model, self.texts(rows)).tolist()

    def base(self) -> Json:
        """Losses of the model as it is."""
        return {"losses": self._held_out_losses(), "training": self.losses(self.training)}

    def try_rate(self, condition: str, rate: float) -> Json:
        """Loss on a quarter of the development topics, trained on the others."""
        topics = self.training["topic"].unique()
        is_kept = self.training["topic"].isin(topics[-max(1, len(topics) // 4) :])
        modules, rest = self.draw(condition, 0), self.texts(self.training[~is_kept])
        with finetuning.fine_tuned(self.model, modules, rest, self.recipe(rate)) as epochs:
            loss = float(np.mean(self.losses(self.training[is_kept])))
        return {"loss": loss, "epochs": epochs}

    def train(self, condition: str, seed: int, rate: float) -> Json:
        """Losses after one training."""
        modules, texts = self.draw(condition, seed), self.texts(self.training)
        with finetuning.fine_tuned(
            self.model, modules, texts, self.recipe(rate), seed=seed
        ) as epochs:
            losses = self._held_out_losses()
        n_weights = finetuning.n_trained(self.model, modules, self.plan.r)
        return {"losses": losses, "epochs": epochs, "modules": modules, "n_weights": n_weights}

    def _held_out_losses(self) -> dict[str, list[float]]:
        """Loss of every held-out prompt, by task."""
        return {task: self.losses(rows) for task, rows in self.held_out.items()}

    def describe(self) -> Json:
        """What was done, for the results."""
        network = self.network
        return {
            "task": self.task,
            "model": self.session.model,
            "network": {
                "runs": [run.run for run in self.made_from],
                "threshold": network.how,
                "n_units": network.n_units,
                "share": network.n_units / network.brain.n_units,
            },
            "plan": self.plan.asked,
            "n_training": len(self.training),
            "n_modules": len(self.targets),
            "targets": self.targets.head(len(self.modules["network"])).to_dict(orient="records"),
        }
