"""What do the trainings of one experiment share? Their network, modules, texts and losses."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llm2nifti import bids, glm, networks, stimuli
from llm2nifti.bids import Session
from llm2nifti.models import LoadedModel
from llm2nifti.networks import Network
from llm2nifti.study.errors import StudyError
from llm2nifti.surgery.feeding import check_owning, owning_sites
from llm2nifti.surgery.finetuning import (
    Recipe,
    Text,
    concept_texts,
    fine_tuned,
    n_trained,
    text_losses,
)
from llm2nifti.surgery.targets import default_top, target_modules

RATES = (3e-4, 1e-3, 3e-3)


@dataclass(frozen=True)
class Setup:
    """How the experiment is done.

    Attributes
    ----------
    top : int or None
        Modules that are trained; by default a tenth of those that own weights.
    n_seeds : int
        Trainings of every condition; each draws other random modules.
    n_texts : int
        Held-out prompts of each task and of control, at most.
    rates : tuple of float
        Learning rates to choose from, on the development split alone; where the best lies at an
        end, up to two beyond it are tried, too.
    recipe : Recipe
        Epochs, batch size and rank.
    stimuli_path : str or None
        Your own stimuli, with both splits; by default the bundled ones.
    """

    top: int | None = None
    n_seeds: int = 3
    n_texts: int = 48
    rates: tuple[float, ...] = RATES
    recipe: Recipe = field(default_factory=Recipe)
    stimuli_path: str | None = None

    def check(self) -> None:
        """Raise StudyError unless every number makes sense."""
        for name in ("n_seeds", "n_texts", "top"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise StudyError(f"{name} is {value}; it must be at least 1")
        if not self.rates:
            raise StudyError("rates is empty; give at least one learning rate")
        for rate in self.rates:
            replace(self.recipe, rate=rate).check()

    @property
    def step(self) -> float:
        """Mean ratio of neighbouring learning rates."""
        return float((max(self.rates) / min(self.rates)) ** (1 / max(1, len(set(self.rates)) - 1)))


def owning(network: Network) -> Network:
    """Units of a network that own weights; all of it where none were recorded."""
    names = dict.fromkeys(site.name for site in owning_sites(network.brain))
    return network.at(*names) if names else network


@dataclass(frozen=True, eq=False)
class Experiment:
    """Everything that the trainings of one experiment share.

    Attributes
    ----------
    session : Session
        Runs of one model.
    model : LoadedModel
        The model.
    task : str
        Label of the task.
    setup : Setup
        How it is done.
    """

    session: Session
    model: LoadedModel
    task: str
    setup: Setup

    def check(self) -> None:
        """Raise unless everything that is needed is there."""
        self.setup.check()
        _ = self.modules["network"], self.training, self.held_out

    @cached_property
    def made_from(self) -> Session:
        """Runs that the network is made from: all of the task but the last, if there are more."""
        runs = self.session.of(self.task)
        return runs.without(runs.folds[-1]) if len(runs) > 1 else runs

    @cached_property
    def network(self) -> Network:
        """Units of those runs that pass FDR .05 and own weights."""
        maps = glm.fit(self.made_from, quiet=True).contrast(f"{self.task} - {glm.CONTROL}")
        network = owning(networks.select(maps))
        check_owning(network)
        if not network.n_units:
            raise StudyError(f"no unit that owns weights passes FDR .05 for {self.task!r}")
        return network

    @cached_property
    def targets(self) -> pd.DataFrame:
        """Modules by network mass."""
        return target_modules(self.network, model=self.model)

    @cached_property
    def modules(self) -> dict[str, list[str]]:
        """Modules of the conditions ``network`` and ``all``."""
        names = self.targets["module"].tolist()
        top = default_top(self.targets) if self.setup.top is None else self.setup.top
        if not 0 < 2 * top <= len(names):
            raise StudyError(f"top is {top}; of {len(names)} modules, at most half can be trained")
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
                raise StudyError(f"top leaves {len(pool)} {kind} to draw {n_wanted} from; lower it")
            drawn += rng.permutation(pool)[:n_wanted].tolist()
        return drawn

    @cached_property
    def table(self) -> pd.DataFrame:
        """Stimuli of both splits; task names as labels."""
        table = stimuli.load(self.setup.stimuli_path, split=None)
        return table.assign(task=table["task"].map(bids.label))

    @cached_property
    def training(self) -> pd.DataFrame:
        """Prompts to train on: the task's of the development split."""
        rows = self.table[
            (self.table["task"] == self.task) & (self.table["split"] == "development")
        ]
        if rows["topic"].nunique() < 2:
            raise StudyError(
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
            n = min(self.setup.n_texts, len(rows))
            out[str(task)] = rows.sample(n, random_state=0).sort_index().reset_index(drop=True)
        if self.task not in out:
            raise StudyError(f"every prompt of {self.task!r} was shown: none is left to hold out")
        return out

    def texts(self, rows: pd.DataFrame) -> list[Text]:
        """Texts of some prompts, in the template of the scan."""
        settings = self.session.settings
        prompts, concepts = rows["prompt"].tolist(), rows["concept"].tolist()
        template = settings.get("template", "auto")
        return concept_texts(self.model, prompts, concepts, template=template)

    def base(self) -> dict[str, Any]:
        """Losses of the model as it is."""
        return {"losses": self._losses(), "training": text_losses_of(self, self.training).tolist()}

    def try_rate(self, condition: str, rate: float) -> dict[str, Any]:
        """Loss on a quarter of the development topics, trained on the others."""
        topics = self.training["topic"].unique()
        is_kept = self.training["topic"].isin(topics[-max(1, len(topics) // 4) :])
        rest = self.texts(self.training[~is_kept])
        recipe = replace(self.setup.recipe, rate=rate)
        with fine_tuned(self.model, self.draw(condition, 0), rest, recipe) as epochs:
            loss = float(text_losses_of(self, self.training[is_kept]).mean())
        return {"loss": loss, "epochs": epochs}

    def train(self, condition: str, seed: int, rate: float) -> dict[str, Any]:
        """Losses after one training."""
        recipe = replace(self.setup.recipe, rate=rate)
        modules = self.draw(condition, seed)
        texts = self.texts(self.training)
        with fine_tuned(self.model, modules, texts, recipe, seed=seed) as epochs:
            losses = self._losses()
        n_weights = n_trained(self.model, modules, recipe.r)
        return {"losses": losses, "epochs": epochs, "modules": modules, "n_weights": n_weights}

    def _losses(self) -> dict[str, list[float]]:
        """Loss of every held-out prompt, by task."""
        return {t: text_losses_of(self, rows).tolist() for t, rows in self.held_out.items()}

    def describe(self) -> dict[str, Any]:
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
            "setup": asdict(self.setup),
            "n_training": len(self.training),
            "n_modules": len(self.targets),
            "targets": self.targets.head(len(self.modules["network"])).to_dict(orient="records"),
        }


def text_losses_of(experiment: Experiment, rows: pd.DataFrame) -> NDArray[np.float64]:
    """(n_prompts,) loss of some prompts."""
    return text_losses(experiment.model, experiment.texts(rows))
