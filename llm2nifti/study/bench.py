"""One model with its runs, ready to be lesioned or steered, and to read held-out text meanwhile.

A network is made from all runs but one, and what its lesion does is measured on prompts and answers
of the run that was left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm2nifti import geometry, glm, networks
from llm2nifti.bids import Run, Session
from llm2nifti.interventions import control_trials, lesion, steer
from llm2nifti.models import LoadedModel
from llm2nifti.networks import Controls, Network
from llm2nifti.scanner.likelihood import Text, dialogues, log_likelihoods, read_beginning
from llm2nifti.study.conditions import Condition, Sizes
from llm2nifti.study.errors import StudyError


class Bench:
    """One model with its runs, ready for lesions.

    Parameters
    ----------
    model : LoadedModel
        The model of the runs.
    session : Session
        At least 2 runs of every task.
    sizes : Sizes
        How much is measured.
    tasks : sequence of str
        Tasks whose networks, made from the runs, are lesioned; by default all.
    given : sequence of Network
        Networks to lesion instead.

    Raises
    ------
    StudyError
        If there are too few runs, or no text whose probability could be measured.
    """

    def __init__(
        self,
        model: LoadedModel,
        session: Session,
        sizes: Sizes,
        *,
        tasks: Sequence[str] = (),
        given: Sequence[Network] = (),
    ) -> None:
        self.model = model
        self.session = session
        self.sizes = sizes
        self.given = {network.name: network for network in given}
        self.brain = session.brain
        self.folds = session.folds
        if len(self.folds) < 2:
            raise StudyError(
                "lesions are measured on runs that made no network: they need 2 or more runs of "
                "each task"
            )
        if model.kind == "seq2seq" and session.settings.get("mode") == "read":
            raise StudyError(
                f"{model.name} only read: there is no answer whose probability could be measured; "
                "scan with mode='generate'"
            )
        self.names = list(self.given or tasks or session.tasks)
        self._intact: dict[int, NDArray[np.float64]] = {}
        self._controls: dict[int, Controls] = {}

    @cached_property
    def contrasts(self) -> dict[tuple[str, int], Any]:
        """Contrast of every run."""
        return glm.contrasts_of(self.session)

    def controls(self, fold: int) -> Controls:
        """Control trials of the other runs."""
        if fold not in self._controls:
            self._controls = {fold: control_trials(self.session.without(fold))}
        return self._controls[fold]

    @cached_property
    def texts(self) -> dict[int, dict[str, list[Text]]]:
        """Texts of each run number, by task; control prompts come from the runs of all tasks."""
        out: dict[int, dict[str, list[Text]]] = {}
        for fold in self.folds:
            by_task: dict[str, list[Text]] = {}
            inside = [run for run in self.session if run.run == fold]
            for run in inside:
                by_task[run.task] = self._some(run, run.task, self.sizes.n_prompts)
            shares = np.array_split(np.arange(self.sizes.n_prompts), len(inside))
            by_task[glm.CONTROL] = [
                text
                for run, share in zip(inside, shares, strict=True)
                for text in self._some(run, glm.CONTROL, len(share))
            ]
            out[fold] = by_task
        return out

    def _some(self, run: Run, condition: str, n: int) -> list[Text]:
        """Texts of `n` trials of one condition, spread over the run."""
        rows = np.flatnonzero((run.events["trial_type"] == condition).to_numpy())
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

    def network(self, condition: Condition, name: str, fold: int, kind: str) -> Network:
        """Units to lesion: of a network made without the fold, or of one of its controls.

        Parameters
        ----------
        condition : Condition
            How to intervene.
        name : str
            A task, or a network that was given.
        fold : int
            Run that takes no part.
        kind : str
            ``lesion``, ``bottom``, or ``random`` with a number; see `kinds`.
        """
        network = self.given.get(name) or self._made(condition, name, fold, kind)
        if not kind.startswith("random"):
            return network
        seed = 1000 * self.sizes.seed + int(kind.removeprefix("random"))
        return networks.matched(network, self.controls(fold).activity, seed=seed)

    def _made(self, condition: Condition, task: str, fold: int, kind: str) -> Network:
        """Units that respond most, or least, to a task in the other runs."""
        t = glm.t_map(self._others(task, fold))
        rule = condition.rule(self.brain)
        if kind == "bottom":
            rule = replace(rule, height_control="bottom")
        return networks.ranked(task, self.brain, t, rule)

    def _others(self, task: str, fold: int) -> list[Any]:
        """Contrasts of a task's other runs."""
        return [c for (name, run), c in self.contrasts.items() if name == task and run != fold]

    def change(
        self, condition: Condition, name: str, fold: int, kind: str
    ) -> dict[str, list[float]]:
        """Change of every text's mean log probability under one intervention, by task.

        Parameters
        ----------
        condition, name, fold, kind
            See `network`; the texts are those of the fold.
        """
        by_task = self.texts[fold]
        texts = [text for of_task in by_task.values() for text in of_task]
        if fold not in self._intact:
            self._intact[fold] = log_likelihoods(self.model, texts)
        before = read_beginning(self.model, texts) if condition.spare_template else None
        with self._acting(condition, name, fold, kind):
            after = log_likelihoods(self.model, texts, beginning=before)
        change = after - self._intact[fold]
        ends = np.cumsum([len(of_task) for of_task in by_task.values()])[:-1]
        parts = np.split(change, ends)
        return {task: part.tolist() for task, part in zip(by_task, parts, strict=True)}

    def check(self, condition: Condition) -> None:
        """Raise StudyError if the texts have no beginning that could be spared."""
        texts = [
            text
            for by_task in self.texts.values()
            for of_task in by_task.values()
            for text in of_task
        ]
        if condition.spare_template and read_beginning(self.model, texts) is None:
            raise StudyError(
                f"{self.model.name} reads no template ahead of its texts, so there is nothing to "
                "spare; leave spare_template=True out"
            )

    def _acting(
        self, condition: Condition, name: str, fold: int, kind: str
    ) -> AbstractContextManager[None]:
        """Do one intervention."""
        network = self.network(condition, name, fold, kind)
        if condition.mode != "steer":
            controls = None if condition.mode == "zero" else self.controls(fold)
            return lesion(self.model, network, condition.mode, controls=controls)  # type: ignore[arg-type]
        effect = self._effect(condition, name, fold, network, kind)
        img = geometry.to_img(self.brain, effect)
        return steer(self.model, img, condition.strength, brain=self.brain)

    def _effect(
        self, condition: Condition, task: str, fold: int, network: Network, kind: str
    ) -> NDArray[np.float64]:
        """What is added to each unit: the task's effect; of random units, that of the network's.

        In each site of a layer, random units get the values of the network's units there, shuffled:
        as much is added, in other places.
        """
        others = self._others(task, fold)
        mean = np.ravel(sum(others[1:], others[0]).effect_size()) / len(others)
        if not kind.startswith("random"):
            return np.where(network.units, mean, 0)
        members = self.network(condition, task, fold, "lesion").units
        rng = np.random.default_rng([self.sizes.seed, int(kind.removeprefix("random"))])
        effect = np.zeros(self.brain.n_units)
        for site in self.brain.sites:
            inside = self.brain.slice_of(site)
            values = rng.permutation(mean[inside][members[inside]])
            effect[inside][network.units[inside]] = values
        return effect
