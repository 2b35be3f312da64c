"""A model with its runs, ready to be intervened in while it reads held-out text.

A network is made from all runs but one, and what an intervention does is measured on prompts and
answers of the run that was left out.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm2nifti import glm
from llm2nifti.bids import Run, Session
from llm2nifti.interventions.acts import InterventionError, control_trials
from llm2nifti.models import LoadedModel
from llm2nifti.networks import Controls
from llm2nifti.scanner.likelihood import Text, dialogues, log_likelihoods, read_beginning

ByTask = dict[str, NDArray[np.float64]]  # a value of each text


class Bench:
    """One model with its runs, ready for interventions.

    At least 2 runs of every task, each of whose numbers, the `folds`, is left out in turn; at most
    `n_prompts` prompts of each task and run. InterventionError if there are too few runs, or no
    text whose probability could be measured.
    """

    def __init__(self, model: LoadedModel, session: Session, n_prompts: int) -> None:
        self.model, self.session, self.n_prompts = model, session, n_prompts
        self.brain, self.folds = session.brain, session.folds
        if len(self.folds) < 2:
            raise InterventionError(
                "lesions are measured on runs that made no network: they need 2 or more runs of "
                "each task"
            )
        if model.kind == "seq2seq" and session.settings.get("mode") == "read":
            raise InterventionError(
                f"{model.name} only read: there is no answer whose probability could be measured; "
                "scan with mode='generate'"
            )
        self._intact: dict[int, ByTask] = {}
        self._controls: dict[int, Controls] = {}

    @cached_property
    def contrasts(self) -> dict[tuple[str, int], Any]:
        """Contrast of every run."""
        return glm.contrasts_of(self.session)

    def others(self, task: str, fold: int) -> list[Any]:
        """Contrasts of a task's other runs."""
        return [c for (name, run), c in self.contrasts.items() if name == task and run != fold]

    def effect(self, task: str, fold: int) -> NDArray[np.float64]:
        """(n_units,) mean effect of a task in its other runs, in the activations' units."""
        others = self.others(task, fold)
        return np.ravel(sum(others[1:], others[0]).effect_size()) / len(others)

    def controls(self, fold: int) -> Controls:
        """Control trials of the other runs; those of one fold are kept."""
        if fold not in self._controls:
            self._controls = {fold: control_trials(self.session.without(fold))}
        return self._controls[fold]

    @cached_property
    def texts(self) -> dict[int, dict[str, list[Text]]]:
        """Texts of each run number, by task; control prompts come from the runs of all tasks."""
        out: dict[int, dict[str, list[Text]]] = {}
        for fold in self.folds:
            inside = [run for run in self.session if run.run == fold]
            out[fold] = {run.task: self._spread(run, run.task, self.n_prompts) for run in inside}
            shares = np.array_split(np.arange(self.n_prompts), len(inside))
            out[fold][glm.CONTROL] = [
                text
                for run, share in zip(inside, shares, strict=True)
                for text in self._spread(run, glm.CONTROL, len(share))
            ]
        return out

    def _spread(self, run: Run, condition: str, n: int) -> list[Text]:
        """Texts of `n` trials of one condition, spread over the run."""
        rows = np.flatnonzero(glm.kinds(run.task, run.events) == condition)
        rows = rows[np.linspace(0, len(rows) - 1, min(n, len(rows))).round().astype(int)]
        if not len(rows):
            return []
        answers: list[list[int]] = [[]] * len(run.events)  # a model that read wrote none
        if run.sidecar["Settings"].get("mode", "generate") == "generate":
            answers = [list(t) for _, t in run.tokens.groupby("trial", sort=True)["token_id"]]
        return dialogues(
            self.model,
            [str(run.events["prompt"].iloc[row]) for row in rows],
            [answers[row] for row in rows],
            template=run.sidecar["Settings"]["template"],
        )

    def log_probabilities(
        self,
        fold: int,
        acting: AbstractContextManager[None] | None = None,
        *,
        spare_template: bool = False,
    ) -> ByTask:
        """Mean log probability of each text of one run under an intervention, by task.

        With `spare_template`, nothing is done while the model reads what all texts begin with.
        """
        by_task = self.texts[fold]
        texts = [text for of_task in by_task.values() for text in of_task]
        beginning = read_beginning(self.model, texts) if spare_template else None
        with acting or nullcontext():
            values = log_likelihoods(self.model, texts, beginning=beginning)
        ends = np.cumsum([len(of_task) for of_task in by_task.values()])[:-1]
        return dict(zip(by_task, np.split(values, ends), strict=True))

    def change(
        self, fold: int, acting: AbstractContextManager[None], *, spare_template: bool = False
    ) -> dict[str, list[float]]:
        """Change of each text's mean log probability under one intervention, by task."""
        if fold not in self._intact:
            self._intact[fold] = self.log_probabilities(fold)
        after = self.log_probabilities(fold, acting, spare_template=spare_template)
        return {task: (v - self._intact[fold][task]).tolist() for task, v in after.items()}

    def check_template(self) -> None:
        """Raise InterventionError if the texts have no beginning that could be spared."""
        texts = [text for of_fold in self.texts.values() for t in of_fold.values() for text in t]
        if read_beginning(self.model, texts) is None:
            raise InterventionError(
                f"{self.model.name} reads no template ahead of its texts, so there is nothing to "
                "spare; leave spare_template=True out"
            )
