"""What does a model lose with a network? Prune it, and compare with pruning as much otherwise.

Held-out text decides: prompts, and the model's own answers before anything was removed, of runs
that did not make the network. The others remove as many units of each site of each layer:
those with the smallest weights, random ones, and random ones that are as active.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from llm2nifti import bids, glm, networks, surgery
from llm2nifti.bids import Run
from llm2nifti.interventions import control_trials, lesion
from llm2nifti.models import LoadedModel
from llm2nifti.networks import Network
from llm2nifti.study.analysis import THRESHOLD, by_task
from llm2nifti.study.heldout import Text, log_likelihoods, texts_of
from llm2nifti.study.journal import Journal
from llm2nifti.study.lock import StudyError
from llm2nifti.study.losses import Rows, summarise

N_RANDOM = 3
N_TEXTS = 24  # texts of a task and run; of the control as many
N_PAIRS = 10


@dataclass(frozen=True)
class Choice:
    """What to prune, and how to judge it.

    Attributes
    ----------
    task : str or None
        The task whose network it is.
    mask : Path or None
        A NIfTI image in the model's space, instead.
    share : float or None
        Only this share of the units that can be pruned: those with the largest |t|, or of a mask
        the largest values. By default the network as the analysis thresholds it.
    keep : bool
        Remove all other units instead.
    n_random : int
        Random controls of each kind.
    n_texts : int
        Most held-out texts of each task and run.
    n_pairs : int
        Pairs of speed measurements; 0 measures none.
    """

    task: str | None = None
    mask: Path | None = None
    share: float | None = None
    keep: bool = False
    n_random: int = N_RANDOM
    n_texts: int = N_TEXTS
    n_pairs: int = N_PAIRS

    def check(self) -> None:
        """Raise StudyError unless the choice makes sense."""
        if (self.task is None) == (self.mask is None):
            raise StudyError("name one of --network TASK and --mask IMAGE")
        if self.share is not None and not 0 < self.share < 1:
            raise StudyError(f"--share is {self.share}; it must lie between 0 and 1")
        for name, least in (("n_random", 0), ("n_texts", 0), ("n_pairs", 0)):
            if getattr(self, name) < least:
                raise StudyError(f"{name} is {getattr(self, name)}; it cannot be negative")
        if self.n_pairs == 1:
            raise StudyError("n_pairs is 1; an interval needs at least 2")


def prune(
    runs: Sequence[Run],
    model: LoadedModel,
    choice: Choice,
    out: Path,
    *,
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Prune a network, measure what that does, and write the smaller model.

    Parameters
    ----------
    runs : sequence of Run
        Runs of one session of the model, scanned with ``--sites heads,mlp_hidden``.
    model : LoadedModel
        The model that was scanned.
    choice : Choice
        What to prune.
    out : Path
        New folder for the pruned model and ``prune.json``. Interrupted work beside it is resumed.
    overwrite : bool, default=False
        Replace an earlier pruned model there.
    quiet : bool, default=False
        Show no progress bar.

    Returns
    -------
    dict
        Content of ``prune.json``.

    Raises
    ------
    StudyError
        If the model is not the one that was scanned, or there are too few runs.
    llm2nifti.surgery.PruneError
        If the units own no weights, or the folder is there already.
    """
    choice.check()
    surgery.check_free(out, overwrite=overwrite)
    _check_model(runs, model)
    whole = network_of(runs, choice)
    surgery.to_remove(whole, keep=choice.keep)  # what cannot be done is said before long work
    digest = hashlib.sha256(whole.signs.tobytes()).hexdigest()
    settings = {"choice": _plain(choice), "units": digest, "model": model.source}
    with Journal(out.with_name(f".{out.name}.journal.jsonl"), settings) as journal:
        evaluation = _evaluation(runs, model, choice, journal, quiet=quiet)
        pruned = surgery.prune(model, whole, keep=choice.keep)
        record: dict[str, Any] = {"choice": _plain(choice), **evaluation}
        record["bytes_in_memory"] = [_n_bytes(model), _n_bytes(pruned.model)]
        if choice.n_pairs and model.kind == "causal":
            record["speed"] = surgery.compare_speed(model, pruned.model, n_pairs=choice.n_pairs)
        surgery.save(pruned, out, overwrite=overwrite, record=record)
    return {"folder": str(out), **pruned.summary(), "bytes": surgery.weight_bytes(out), **record}


def _plain(choice: Choice) -> dict[str, Any]:
    """Choice ready for JSON; of a mask only its name."""
    return asdict(choice) | {"mask": choice.mask.name if choice.mask else None}


def _n_bytes(model: LoadedModel) -> int:
    """Bytes of the weights in memory, tied ones once."""
    return sum(p.numel() * p.element_size() for p in model.module.parameters())


def _check_model(runs: Sequence[Run], model: LoadedModel) -> None:
    """Raise StudyError unless the runs are of this model."""
    scanned = runs[0].sidecar["Model"]["WeightsHash"]
    if model.source["WeightsHash"] != scanned:
        raise StudyError(
            f"{model.name} has weights {model.source['WeightsHash'][:12]}, the dataset was scanned "
            f"with {scanned[:12]}; name that model with --model"
        )


def network_of(runs: Sequence[Run], choice: Choice) -> Network:
    """Network that some runs make, restricted to units that can be pruned.

    Parameters
    ----------
    runs : sequence of Run
        Runs of any tasks.
    choice : Choice
        Its task or mask, and share.

    Returns
    -------
    Network

    Raises
    ------
    StudyError
        If there is no run of the task, or a binary mask has no order to take a share of.
    """
    brain = runs[0].brain
    if choice.mask is not None:
        name = choice.mask.name.removesuffix(".gz").removesuffix(".nii")
        network = networks.from_mask(brain, nib.load(choice.mask), name=name)
        if choice.share is None:
            return network
        if network.weights is None:
            raise StudyError(f"mask {name!r} is binary, so --share cannot choose among its units")
        return _top(network, network.strengths, choice.share)
    task = bids.label(str(choice.task))
    tasks = by_task(runs)
    if task not in tasks:
        raise StudyError(f"no task {choice.task!r} in the dataset; there are: {', '.join(tasks)}")
    maps = glm.fit(tasks[task], quiet=True).contrast(f"{task} - {glm.CONTROL}")
    sites = [site.name for site in surgery.prunable(brain)]
    threshold: dict[str, Any] = THRESHOLD
    network = replace(networks.threshold(maps, **threshold), name=task)
    if not sites:
        return network  # whose pruning raises, and says what to scan
    network = network.at(*dict.fromkeys(sites))
    if choice.share is None:
        return network
    everything = replace(network, signs=np.where(maps.t() < 0, -1, 1).astype(np.int8))
    return _top(everything.at(*dict.fromkeys(sites)), np.abs(maps.t()), choice.share)


def _top(network: Network, scores: NDArray, share: float) -> Network:
    """Units of a network with the largest scores: a share of all that can be pruned."""
    inside = np.zeros(network.brain.n_units, bool)
    for site in surgery.prunable(network.brain):
        inside[network.brain.slice_of(site)] = True
    inside &= network.units
    n = max(1, round(share * sum(site.n_units for site in surgery.prunable(network.brain))))
    order = np.argsort(-np.where(inside, scores, -np.inf), kind="stable")[: min(n, inside.sum())]
    signs = np.zeros_like(network.signs)
    signs[order] = network.signs[order]
    return replace(network, signs=signs, how=f"top {share:.1%} of heads and mlp_hidden")


def _evaluation(
    runs: Sequence[Run], model: LoadedModel, choice: Choice, journal: Journal, *, quiet: bool
) -> dict[str, Any]:
    """Perplexity of held-out text before and after, by task."""
    if not choice.n_texts:
        return {"evaluation": {}, "evaluation_notes": ["not measured"]}
    if model.kind != "causal":
        return {"evaluation": {}, "evaluation_notes": ["perplexity needs a causal model"]}
    numbers = sorted({run.run for run in runs})
    if choice.task is not None and len(numbers) < 2:
        raise StudyError(
            "a network is judged on runs that did not make it; scan 2 or more runs, or set "
            "--n-texts 0"
        )
    folds = []
    notes: list[str] = []
    n_variants = 3 + 2 * choice.n_random
    with tqdm(total=len(numbers) * n_variants, desc="prune", disable=quiet or None) as bar:
        for number in numbers:
            fold = _Fold(runs, number, model, choice)
            variants = fold.variants(notes)
            folds.append(
                {name: fold.measure(name, net, journal, bar.update) for name, net in variants}
            )
    if choice.mask is not None:
        notes.append("a mask is judged on all runs, whatever it was made from")
    return {"evaluation": summarise(folds), "evaluation_notes": list(dict.fromkeys(notes))}


class _Fold:
    """One held-out run of every task, and the network of the other runs."""

    def __init__(
        self, runs: Sequence[Run], number: int, model: LoadedModel, choice: Choice
    ) -> None:
        self.number = number
        self.model = model
        self.choice = choice
        self.others = [run for run in runs if run.run != number or choice.mask is not None]
        self.held_out = [run for run in runs if run.run == number]
        self._texts: dict[str, list[Text]] = {}

    def variants(self, notes: list[str]) -> list[tuple[str, Network | None]]:
        """What is removed, by name; nothing first."""
        network = network_of(self.others, self.choice)
        removed = surgery.to_remove(network, keep=self.choice.keep)
        seeds = range(self.choice.n_random)
        found: list[tuple[str, Network | None]] = [("before", None), ("network", removed)]
        found.append(("magnitude", surgery.smallest(self.model, removed)))
        found += [(f"random {seed}", surgery.at_random(removed, seed=seed)) for seed in seeds]
        activity = control_trials(self.others).activity
        try:
            for seed in seeds:
                matched = networks.matched(removed, activity, seed=seed)
                found.append((f"matched {seed}", matched))
        except networks.ThresholdError as error:
            notes.append(str(error))
        return found

    def measure(
        self, name: str, removed: Network | None, journal: Journal, done: Callable[[], Any]
    ) -> Rows:
        """Mean log probability of each held-out text, by task."""
        key = f"run {self.number}: {name}"
        if key not in journal:
            texts = self.texts
            if removed is None:
                rows = {task: log_likelihoods(self.model, some) for task, some in texts.items()}
            else:
                with lesion(self.model, removed, "zero"):
                    rows = {task: log_likelihoods(self.model, some) for task, some in texts.items()}
            journal[key] = {task: values.tolist() for task, values in rows.items()}
        done()
        return {task: np.array(values) for task, values in journal[key].items()}

    @property
    def texts(self) -> dict[str, list[Text]]:
        """Held-out texts by task; control trials of all runs together."""
        if not self._texts:
            control: list[Text] = []
            for run in self.held_out:
                is_control = (run.events["trial_type"] == glm.CONTROL).to_numpy()
                texts = texts_of(self.model, run)
                own = [t for t, c in zip(texts, is_control, strict=True) if not c]
                self._texts[run.task] = own[: self.choice.n_texts]
                control += [t for t, c in zip(texts, is_control, strict=True) if c]
            order = np.random.default_rng(self.number).permutation(len(control))
            some = order[: self.choice.n_texts]
            self._texts[glm.CONTROL] = [control[i] for i in some]
        return self._texts
