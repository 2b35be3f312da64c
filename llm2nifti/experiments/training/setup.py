"""What do the trainings of one experiment share? Their network, modules, texts and losses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llm2nifti import bids, glm, networks, stimuli
from llm2nifti.bids import Session
from llm2nifti.experiments.errors import ExperimentError
from llm2nifti.experiments.training.plan import TrainPlan
from llm2nifti.models import LoadedModel
from llm2nifti.networks import Network
from llm2nifti.plans import Json
from llm2nifti.surgery.feeding import check_owning
from llm2nifti.surgery.finetuning import (
    Recipe,
    Text,
    concept_texts,
    fine_tuned,
    n_trained,
    text_losses,
)
from llm2nifti.surgery.ranking import owning
from llm2nifti.surgery.targets import default_top, target_modules


@dataclass(frozen=True, eq=False)
class Trainings:
    """Everything that the trainings of one experiment share.

    Attributes
    ----------
    session : Session
        Runs of one model.
    model : LoadedModel
        The model.
    task : str
        Label of the task.
    plan : TrainPlan
        How it is done.
    """

    session: Session
    model: LoadedModel
    task: str
    plan: TrainPlan

    def check(self) -> None:
        """Raise unless everything that is needed is there."""
        _ = self.modules["network"], self.training, self.held_out

    @property
    def recipe(self) -> Recipe:
        """How modules are trained, but for the learning rate."""
        return Recipe(epochs=self.plan.epochs, r=self.plan.r, alpha=self.plan.lora_alpha)

    @cached_property
    def made_from(self) -> Session:
        """Runs that the network is made from: all of the task but the last, if there are more."""
        runs = self.session.of(self.task)
        return runs.without(runs.folds[-1]) if len(runs) > 1 else runs

    @cached_property
    def network(self) -> Network:
        """Units of those runs that pass FDR .05 and own weights."""
        maps = glm.fit(self.made_from, verbose=0).contrast(f"{self.task} - {glm.CONTROL}")
        network = owning(networks.select(maps))
        check_owning(network)
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
        return rows.reset_index(drop=True)

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

    def texts(self, rows: pd.DataFrame) -> list[Text]:
        """Texts of some prompts, in the template of the scan."""
        settings = self.session.settings
        prompts, concepts = rows["prompt"].tolist(), rows["concept"].tolist()
        template = settings.get("template", "auto")
        return concept_texts(self.model, prompts, concepts, template=template)

    def base(self) -> Json:
        """Losses of the model as it is."""
        return {"losses": self._losses(), "training": text_losses_of(self, self.training).tolist()}

    def try_rate(self, condition: str, rate: float) -> Json:
        """Loss on a quarter of the development topics, trained on the others."""
        topics = self.training["topic"].unique()
        is_kept = self.training["topic"].isin(topics[-max(1, len(topics) // 4) :])
        rest = self.texts(self.training[~is_kept])
        recipe = replace(self.recipe, rate=rate)
        with fine_tuned(self.model, self.draw(condition, 0), rest, recipe) as epochs:
            loss = float(text_losses_of(self, self.training[is_kept]).mean())
        return {"loss": loss, "epochs": epochs}

    def train(self, condition: str, seed: int, rate: float) -> Json:
        """Losses after one training."""
        recipe = replace(self.recipe, rate=rate)
        modules = self.draw(condition, seed)
        texts = self.texts(self.training)
        with fine_tuned(self.model, modules, texts, recipe, seed=seed) as epochs:
            losses = self._losses()
        n_weights = n_trained(self.model, modules, recipe.r)
        return {"losses": losses, "epochs": epochs, "modules": modules, "n_weights": n_weights}

    def _losses(self) -> dict[str, list[float]]:
        """Loss of every held-out prompt, by task."""
        return {t: text_losses_of(self, rows).tolist() for t, rows in self.held_out.items()}

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


def text_losses_of(trainings: Trainings, rows: pd.DataFrame) -> NDArray[np.float64]:
    """(n_prompts,) loss of some prompts."""
    return text_losses(trainings.model, trainings.texts(rows))
