"""Lesion every network, and measure what that does to held-out text of every task.

A network that is lesioned is made from all runs but one, and its effect is measured on prompts and
answers of the run that was left out. Every evaluation is kept in a file as soon as it is done, so
an interrupted sweep resumes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from llm2nifti import glm, networks
from llm2nifti.bids import Run
from llm2nifti.interventions import Controls, control_trials, lesion
from llm2nifti.models import LoadedModel
from llm2nifti.networks import Network
from llm2nifti.scanner.likelihood import Text, dialogues, log_likelihoods
from llm2nifti.study.evaluations import Evaluations
from llm2nifti.study.lock import StudyError

MODES = ("mean", "zero", "resample")
STREAM = ("embed", "resid", "norm")  # carry the stream; what is lesioned here, layers write again


@dataclass(frozen=True)
class Condition:
    """One way to lesion.

    Raises StudyError where a value makes no sense.

    Attributes
    ----------
    sites : tuple of str
        Where the units are; empty for all sites but those of the stream.
    mode : {"mean", "zero", "resample"}
        See `llm2nifti.interventions.lesion`.
    share : float or None
        Share of the units of these sites that respond most; None for networks that are given.
    """

    sites: tuple[str, ...] = ()
    mode: str = "mean"
    share: float | None = 0.01

    def __post_init__(self) -> None:
        """Check the values."""
        if self.mode not in MODES:
            raise StudyError(f"mode is {self.mode!r}; use mean, zero or resample")
        if self.share is not None and not 0 < self.share <= 0.5:
            raise StudyError(f"share is {self.share:g}; it must lie above 0 and be at most 0.5")


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Raises StudyError where a value makes no sense.

    Attributes
    ----------
    n_random : int
        Matched random networks for every network.
    n_prompts : int
        Prompts of each task and run.
    seed : int
        Seed of the random networks.
    """

    n_random: int = 5
    n_prompts: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("n_random", "n_prompts"):
            if getattr(self, name) < 1:
                raise StudyError(
                    f"{name.replace('_', '-')} is {getattr(self, name)}; it must be 1 or more"
                )


FULL = tuple(
    Condition(sites, mode, share)
    for sites in ((), ("resid",))
    for mode in ("mean", "zero")
    for share in (0.005, 0.01, 0.02, 0.05)
)


class Bench:
    """One model with its runs, ready for lesions.

    Parameters
    ----------
    model : LoadedModel
        The model of the runs.
    runs : sequence of Run
        At least 2 runs of every task.
    sizes : Sizes
        How much is measured.
    tasks : sequence of str
        Tasks whose networks, made from the runs, are lesioned; by default all.
    given : sequence of Network
        Networks to lesion instead.
    """

    def __init__(
        self,
        model: LoadedModel,
        runs: Sequence[Run],
        sizes: Sizes,
        *,
        tasks: Sequence[str] = (),
        given: Sequence[Network] = (),
    ) -> None:
        self.model = model
        self.runs = list(runs)
        self.sizes = sizes
        self.given = {network.name: network for network in given}
        self.brain = self.runs[0].brain
        self.folds = sorted({run.run for run in self.runs})
        if len(self.folds) < 2:
            raise StudyError(
                "lesions are measured on runs that made no network: they need 2 or more runs of "
                "each task"
            )
        self.names = list(self.given or tasks or dict.fromkeys(run.task for run in self.runs))
        self._intact: dict[int, NDArray[np.float64]] = {}
        self._controls: dict[int, Controls] = {}

    @cached_property
    def contrasts(self) -> dict[tuple[str, int], Any]:
        """Contrast of every run."""
        from llm2nifti.study.analysis import contrasts_of

        return contrasts_of(self.runs)

    def controls(self, fold: int) -> Controls:
        """Control trials of the other runs."""
        if fold not in self._controls:
            self._controls = {fold: control_trials([r for r in self.runs if r.run != fold])}
        return self._controls[fold]

    @cached_property
    def texts(self) -> dict[int, dict[str, list[Text]]]:
        """Texts of each run number, by task; control prompts come from the runs of all tasks."""
        out: dict[int, dict[str, list[Text]]] = {}
        for fold in self.folds:
            by_task: dict[str, list[Text]] = {}
            inside = [run for run in self.runs if run.run == fold]
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
        tokens = [list(t) for _, t in run.tokens.groupby("trial", sort=True)["token_id"]]
        return dialogues(
            self.model,
            [str(run.events["prompt"].iloc[row]) for row in rows],
            [tokens[row] for row in rows],
            template=run.sidecar["Settings"]["template"],
        )

    def network(self, condition: Condition, name: str, fold: int, kind: str) -> Network:
        """Units to lesion: of a network made without the fold, or of one of its controls."""
        network = self.given.get(name) or self._made(condition, name, fold, kind)
        if not kind.startswith("random"):
            return network
        seed = 1000 * self.sizes.seed + int(kind.removeprefix("random"))
        return networks.matched(network, self.controls(fold).activity, seed=seed)

    def _made(self, condition: Condition, task: str, fold: int, kind: str) -> Network:
        """Units that respond most, or least, to a task in the other runs."""
        assert condition.share is not None
        t = glm.t_map(
            [c for (name, run), c in self.contrasts.items() if name == task and run != fold]
        )
        names = condition.sites or default_sites(self.runs[0])
        inside = np.concatenate([np.full(s.n_units, s.name in names) for s in self.brain.sites])
        size = np.abs(t)
        scores = np.where(inside, -size if kind == "bottom" else size, -np.inf)
        chosen = networks.largest(scores, condition.share * inside.mean())
        signs = np.where(chosen, np.where(t < 0, -1, 1), 0).astype(np.int8)
        return Network(task, self.brain, signs, f"{kind} {condition.share:.1%} by |t|")

    def change(
        self, condition: Condition, name: str, fold: int, kind: str
    ) -> dict[str, list[float]]:
        """Change of every text's mean log probability under one lesion, by task."""
        by_task = self.texts[fold]
        texts = [text for some in by_task.values() for text in some]
        if fold not in self._intact:
            self._intact[fold] = log_likelihoods(self.model, texts)
        network = self.network(condition, name, fold, kind)
        controls = None if condition.mode == "zero" else self.controls(fold)
        with lesion(self.model, network, condition.mode, controls=controls):  # type: ignore[arg-type]
            change = log_likelihoods(self.model, texts) - self._intact[fold]
        ends = np.cumsum([len(some) for some in by_task.values()])[:-1]
        parts = np.split(change, ends)
        return {task: part.tolist() for task, part in zip(by_task, parts, strict=True)}


def default_sites(run: Run) -> tuple[str, ...]:
    """Sites that are lesioned together by default: all but those that carry the stream."""
    names = tuple(dict.fromkeys(site.name for site in run.brain.sites if site.name not in STREAM))
    if not names:
        raise StudyError(
            "the dataset has no units but those of the residual stream; choose them with "
            "--sites resid"
        )
    return names


def kinds(condition: Condition, sizes: Sizes) -> list[str]:
    """What is lesioned for every network: itself, its controls."""
    bottom = ["bottom"] if condition.share is not None else []
    return ["lesion", *bottom, *(f"random{i}" for i in range(sizes.n_random))]


def sweep(
    bench: Bench,
    conditions: Sequence[Condition],
    evaluations: Evaluations,
    *,
    quiet: bool = False,
) -> None:
    """Do every evaluation that is not there yet.

    Parameters
    ----------
    bench : Bench
        The model.
    conditions : sequence of Condition
        How to lesion.
    evaluations : Evaluations
        Where the changes go.
    quiet : bool, default=False
        Show no progress bar.
    """
    todo = list(_plan(bench, conditions))
    label = f"lesion sub-{bench.runs[0].subject}"
    for condition, fold, name, kind in tqdm(todo, desc=label, unit="lesion", disable=quiet or None):
        key = key_of(bench.runs[0].subject, condition, fold, name, kind)
        if key not in evaluations:
            evaluations.add(key, bench.change(condition, name, fold, kind))


def _plan(
    bench: Bench, conditions: Sequence[Condition]
) -> Iterator[tuple[Condition, int, str, str]]:
    """Evaluations of one model: fold by fold, because control trials are kept of one fold."""
    for condition in conditions:
        for fold in bench.folds:
            for name in bench.names:
                for kind in kinds(condition, bench.sizes):
                    yield condition, fold, name, kind


def key_of(subject: str, condition: Condition, fold: int, name: str, kind: str) -> str:
    """Name of one evaluation."""
    return json.dumps([subject, *asdict(condition).values(), fold, name, kind])


def results(bench: Bench, condition: Condition, evaluations: Evaluations) -> dict[str, Any]:
    """Effects of one condition in one model.

    Returns
    -------
    dict
        ``effects[network][task]`` (see `llm2nifti.networks.effect`) and, where there are networks
        of 2 or more tasks, ``selectivity`` and ``double_dissociations``.
    """
    changes = [_changes(bench, condition, name, evaluations) for name in bench.names]
    seed = bench.sizes.seed
    out: dict[str, Any] = {
        **asdict(condition),
        "sites": list(condition.sites or default_sites(bench.runs[0])),
        "effects": {
            c.network: {task: networks.effect(c, task, seed=seed) for task in c.lesion}
            for c in changes
        },
    }
    if not bench.given and len(changes) > 1:
        out["selectivity"] = networks.selectivity(changes, seed=seed)
        out["double_dissociations"] = networks.double_dissociations(changes, seed=seed)
    return out


def _changes(
    bench: Bench, condition: Condition, name: str, evaluations: Evaluations
) -> networks.Changes:
    """Changes of one network's lesions, the texts of all folds together."""
    subject = bench.runs[0].subject

    def of(kind: str) -> dict[str, NDArray[np.float64]]:
        folds: list[Mapping[str, Sequence[float]]] = [
            evaluations[key_of(subject, condition, fold, name, kind)] for fold in bench.folds
        ]
        return {task: np.concatenate([f[task] for f in folds]) for task in folds[0]}

    random = [of(f"random{i}") for i in range(bench.sizes.n_random)]
    stacked = {task: np.stack([r[task] for r in random]) for task in random[0]}
    bottom = of("bottom") if condition.share is not None else {}
    return networks.Changes(name, of("lesion"), stacked, bottom)


def evaluations_of(folder: Path, bench: Bench, *, overwrite: bool) -> Evaluations:
    """Evaluations of one model that are kept beside the results, or a new file for them.

    Raises
    ------
    StudyError
        If they were made with other settings.
    """
    first = bench.runs[0]
    settings = {
        "sizes": asdict(bench.sizes),
        "given": {name: _digest(network) for name, network in bench.given.items()},
        "weights": first.sidecar["Model"]["WeightsHash"],
        "runs": [[run.task, run.run] for run in bench.runs],
        "space": bench.brain.space,
    }
    kind = "masks" if bench.given else "lesions"
    path = folder / f"sub-{first.subject}_{kind}_evaluations.jsonl"
    return Evaluations(path, settings, overwrite=overwrite)


def _digest(network: Network) -> str:
    """What tells a network from another of the same name."""
    return hashlib.sha256(network.signs.tobytes()).hexdigest()
