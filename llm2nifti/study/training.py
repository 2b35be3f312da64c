"""Does it matter which modules are trained? A network's, random ones, or all, on one task's text.

LoRA fine-tuning on the development split's prompts of one task; the loss is that of the tokens of
the concept, because question frames are shared by all tasks. It is measured on prompts of the
evaluation split that did not make the network: of its task, of the other tasks, and of control. The
splits share no topic and no concept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from llm2nifti import bids
from llm2nifti.bids import Run, Session
from llm2nifti.models import LoadedModel
from llm2nifti.progress import stage
from llm2nifti.study.evaluations import Evaluations
from llm2nifti.study.experiment import RATES, Experiment, Setup, owning
from llm2nifti.study.masks import read_network
from llm2nifti.study.reloading import reload
from llm2nifti.study.training_results import CONDITIONS, best_rate, summarise
from llm2nifti.surgery.feeding import check_owning
from llm2nifti.surgery.targets import target_modules

__all__ = ["RATES", "Experiment", "Setup", "rank_modules", "train"]

RESULTS = "training.json"
N_BEYOND = 2  # learning rates that are tried beyond the ends of those


def rank_modules(
    session: Session, network: str, *, model: str | LoadedModel | None = None
) -> pd.DataFrame:
    """Rank the modules of a dataset's model by the mass of a network.

    Parameters
    ----------
    session : Session
        Runs of one model.
    network : str
        A task, or the path of a mask image; see `llm2nifti.study.masks.read_network`.
    model : str or LoadedModel, optional
        The model, or where it is, if the dataset does not say it.

    Returns
    -------
    DataFrame
        See `llm2nifti.surgery.target_modules`; units that own no weights are left out.
    """
    chosen = owning(read_network(session, network))
    check_owning(chosen)
    return target_modules(chosen, model=_loaded(session.first, model))


def train(
    session: Session,
    task: str,
    *,
    setup: Setup | None = None,
    model: str | LoadedModel | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Fine-tune on one task's text: the network's modules, random ones, all.

    Every finished training is kept beside the results until all are done, so that an interrupted
    experiment goes on where it was.

    Parameters
    ----------
    session : Session
        Runs of one model, scanned with ``heads`` and ``mlp_hidden``.
    task : str
        What to train on, and whose network.
    setup : Setup, optional
        See there.
    model : str or LoadedModel, optional
        The model, or where it is, if the dataset does not say it.
    overwrite : bool, default=False
        Replace earlier results of the task.
    quiet : bool, default=False
        Show no progress bar.

    Returns
    -------
    dict
        What `llm2nifti.study.training_results.summarise` makes; it is also written to
        ``training.json``, under the task's name. Results of the very same training are returned
        as they are there.

    Raises
    ------
    StudyError
        If there is no such task, no unit of its network owns weights, or the stimuli have no
        development split.
    llm2nifti.bids.ExistsError
        If the task has results of another training already.
    """
    label, path = bids.label(task), session.folder / RESULTS
    setup = setup or Setup()
    setup.check()
    done = _read(path).get(label)
    experiment = Experiment(session, _loaded(session.first, model), label, setup)
    experiment.check()
    with session.lock():
        journal = _Journal(path, experiment)
        is_same = done is not None and done.get("made_from") == journal.made_from
        if done and is_same and (len(journal.kept) or not overwrite):
            journal.kept.finish()  # it was stopped at the very end, or nothing changed since
            return done
        if done and not overwrite:
            raise bids.ExistsError(
                f"{path} has results of {label!r}; replace them with overwrite=True"
            )
        rates, pieces = _train_all(experiment, journal, quiet=quiet)
        base = journal.get(experiment.base)
        content = summarise(experiment.describe(), rates, base, pieces)
        content["made_from"] = journal.made_from
        bids.write_json(path, session.root, {**_read(path), label: content})
        journal.kept.finish()
    return content


def _loaded(run: Run, model: str | LoadedModel | None) -> LoadedModel:
    """The model itself, or by its name."""
    return model if isinstance(model, LoadedModel) else reload(run, name=model)


def _read(path: Path) -> dict[str, Any]:
    """Results by task; empty where there are none."""
    return bids.read_json(path) if path.exists() else {}


def _train_all(experiment: Experiment, journal: _Journal, *, quiet: bool) -> tuple[dict, dict]:
    """Try the learning rates, then train with the best of each condition."""
    setup = experiment.setup
    pieces = {}
    with stage("train", total=len(CONDITIONS), unit="training", quiet=quiet) as bar:
        rates = {
            condition: _search(experiment, journal, condition, bar) for condition in CONDITIONS
        }
        bar.total = bar.n + len(CONDITIONS) * setup.n_seeds
        for condition, tried in rates.items():
            best = best_rate(tried)
            for seed in range(setup.n_seeds):
                bar.set_description(f"{condition}, seed {seed}")
                pieces[condition, seed] = journal.get(experiment.train, condition, seed, best)
                bar.update()
    return rates, pieces


def _search(
    experiment: Experiment, journal: _Journal, condition: str, bar: Any
) -> dict[float, dict[str, Any]]:
    """Try learning rates: the given ones and, while the best lies at an end, one beyond it."""
    todo = sorted(set(experiment.setup.rates))
    if len(todo) == 1:  # needs no trial
        return {todo[0]: {"loss": None}}
    tried: dict[float, dict[str, Any]] = {}
    for _ in range(1 + N_BEYOND):
        for rate in todo:
            bar.set_description(f"{condition}, rate {rate:g}")
            tried[rate] = journal.get(experiment.try_rate, condition, rate)
            bar.update()
        low, *_, high = sorted(tried)
        step = experiment.setup.step
        todo = {low: [low / step], high: [high * step]}.get(best_rate(tried), [])
    return tried


class _Journal:
    """Results of finished trainings, kept until the experiment is done."""

    def __init__(self, path: Path, experiment: Experiment) -> None:
        shown = [experiment.training, *experiment.held_out.values()]
        settings = {
            "setup": asdict(replace(experiment.setup, n_seeds=0)),  # more seeds can be added
            "weights": experiment.model.source.get("WeightsHash"),
            "subject": [experiment.session.subject, experiment.session.session],
            "modules": experiment.modules["network"],
            "prompts": [rows["prompt"].tolist() for rows in shown],
        }
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
        name = f"{path.stem}-{experiment.task}-{digest[:8]}_evaluations.jsonl"
        self.kept = Evaluations(path.with_name(name), {"settings": digest})
        self.made_from = f"{digest} with {experiment.setup.n_seeds} seeds"

    def get(self, make: Callable[..., dict[str, Any]], *key: Any) -> dict[str, Any]:
        """Result of ``make(*key)``, from the journal where it is there."""
        name = " ".join([make.__name__, *(f"{part}" for part in key)])
        if name not in self.kept:
            self.kept.add(name, make(*key))
        return self.kept[name]
