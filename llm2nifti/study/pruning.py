"""What does a model lose with a network? Prune it, and compare with pruning as much otherwise.

Held-out text decides: prompts, and the model's own answers before anything was removed, of runs
that did not make the network. The others remove as many units of each site of each layer:
those with the smallest weights, random ones, and random ones that are as active.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from llm2nifti import glm, networks, surgery
from llm2nifti.bids import Session
from llm2nifti.interventions import lesion
from llm2nifti.models import LoadedModel
from llm2nifti.networks import Network, Rule
from llm2nifti.progress import stage
from llm2nifti.scanner.likelihood import log_likelihoods
from llm2nifti.study.bench import Bench
from llm2nifti.study.conditions import Sizes
from llm2nifti.study.errors import StudyError
from llm2nifti.study.evaluations import Evaluations, hash_texts
from llm2nifti.study.losses import Rows, summarise
from llm2nifti.study.masks import image_network

N_RANDOM = 3
N_PROMPTS = 8
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
    n_prompts : int
        Held-out prompts of each task and run; 0 measures no perplexity.
    n_pairs : int
        Pairs of speed measurements; 0 measures none.
    """

    task: str | None = None
    mask: Path | None = None
    share: float | None = None
    keep: bool = False
    n_random: int = N_RANDOM
    n_prompts: int = N_PROMPTS
    n_pairs: int = N_PAIRS

    def check(self) -> None:
        """Raise StudyError unless the choice makes sense."""
        if (self.task is None) == (self.mask is None):
            raise StudyError("name either a task, whose network is pruned, or a mask")
        if self.mask is not None and not Path(self.mask).is_file():
            raise StudyError(f"there is no mask image {self.mask}")
        if self.share is not None and not 0 < self.share < 1:
            raise StudyError(f"share is {self.share}; it must lie between 0 and 1")
        if self.n_random < 1:
            raise StudyError(f"n_random is {self.n_random}; it must be 1 or more")
        if self.n_prompts < 0:
            raise StudyError(f"n_prompts is {self.n_prompts}; it must be 0 or more")
        if self.n_pairs < 0 or self.n_pairs == 1:
            raise StudyError(f"n_pairs is {self.n_pairs}; it must be 0, or 2 or more")


def prune(
    session: Session,
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
    session : Session
        The model's recording, scanned with ``--sites heads,mlp_hidden``.
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
    whole = network_of(session, choice)
    settings = {
        "choice": _plain(choice),
        "units": hashlib.sha256(whole.signs.tobytes()).hexdigest(),
        "weights": model.source["WeightsHash"],
        "texts": hash_texts(session),
    }
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    kept = Evaluations(out.with_name(f".{out.name}-{digest[:8]}.jsonl"), settings)
    if len(kept) and surgery.read_record(out).get("made_from") == digest:  # stopped at the very end
        kept.finish()
        return {"folder": str(out), **surgery.read_record(out)}
    surgery.check_free(out, overwrite=overwrite)
    surgery.to_remove(whole, keep=choice.keep)  # what cannot be done is said before long work
    record: dict[str, Any] = {"choice": _plain(choice), "made_from": digest}
    record |= _evaluation(session, model, choice, kept, quiet=quiet)
    pruned = surgery.prune(model, whole, keep=choice.keep)
    record["bytes_in_memory"] = [_n_bytes(model), _n_bytes(pruned.model)]
    if choice.n_pairs and model.kind == "causal":
        record["speed"] = surgery.compare_speed(model, pruned.model, n_pairs=choice.n_pairs)
    surgery.save(pruned, out, overwrite=overwrite, record=record)
    kept.finish()
    return {"folder": str(out), **surgery.read_record(out)}


def _plain(choice: Choice) -> dict[str, Any]:
    """Choice ready for JSON; of a mask only its name."""
    return asdict(choice) | {"mask": choice.mask.name if choice.mask else None}


def _n_bytes(model: LoadedModel) -> int:
    """Bytes of the weights in memory, tied ones once."""
    return sum(p.numel() * p.element_size() for p in model.module.parameters())


def network_of(session: Session, choice: Choice) -> Network:
    """Network that some runs make, restricted to units that can be pruned.

    Parameters
    ----------
    session : Session
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
    brain = session.brain
    sites = tuple(dict.fromkeys(site.name for site in surgery.owning_sites(brain)))
    rule = Rule() if choice.share is None else Rule("top", share=choice.share)
    rule = replace(rule, sites=sites)  # none: pruning raises, and says what to scan
    if choice.mask is None:
        runs = session.of(str(choice.task))
        task = runs.first.task
        maps = glm.fit(runs, quiet=True).contrast(f"{task} - {glm.CONTROL}")
        return networks.select(maps, rule, name=task)
    network = image_network(brain, choice.mask)
    if choice.share is None:
        return network
    if network.weights is None:
        raise StudyError(
            f"mask {network.name!r} is binary, so a share cannot choose among its units"
        )
    largest = networks.ranked(network.name, brain, network.strengths, rule)
    return replace(network, signs=network.signs * largest.units, how=largest.how)


def _evaluation(
    session: Session, model: LoadedModel, choice: Choice, kept: Evaluations, *, quiet: bool
) -> dict[str, Any]:
    """Perplexity of held-out text before and after, by task."""
    if not choice.n_prompts:
        return {"evaluation": {}, "evaluation_notes": ["perplexity was not measured"]}
    if "generate" not in model.modes():
        return {"evaluation": {}, "evaluation_notes": [f"{model.name} predicts no tokens"]}
    given = [network_of(session, choice)] if choice.mask is not None else []
    sizes = Sizes(choice.n_random, choice.n_prompts)
    bench = Bench(model, session, sizes, tasks=[choice.task or ""], given=given)
    notes = ["a mask is judged on all runs, whatever it was made from"] if given else []
    folds = []
    total = len(bench.folds) * (3 + 2 * choice.n_random)
    with stage("prune", total=total, quiet=quiet) as bar:
        for fold in bench.folds:
            rows: dict[str, Rows] = {}
            for name, removed in variants(bench, fold, choice, notes):
                key = f"run {fold}: {name}"
                if key not in kept:
                    kept.add(key, _measure(bench, fold, removed))
                rows[name] = {task: np.array(values) for task, values in kept[key].items()}
                bar.update()
            folds.append(rows)
    return {"evaluation": summarise(folds), "evaluation_notes": list(dict.fromkeys(notes))}


def variants(
    bench: Bench, fold: int, choice: Choice, notes: list[str]
) -> Iterator[tuple[str, Network | None]]:
    """What is removed, by name: nothing, the network, and as much otherwise.

    Parameters
    ----------
    bench : Bench
        Model and runs.
    fold : int
        Number of the run that is held out: the network is made from the others.
    choice : Choice
        What to prune.
    notes : list of str
        Gets the reason where something cannot be had.
    """
    removed = surgery.to_remove(network_of(bench.session.without(fold), choice), keep=choice.keep)
    yield "before", None
    yield "network", removed
    yield "magnitude", surgery.smallest(bench.model, removed)
    for seed in range(choice.n_random):
        yield f"random {seed}", surgery.at_random(removed, seed=seed)
    activity = bench.controls(fold).activity
    try:
        for seed in range(choice.n_random):
            yield f"matched {seed}", networks.matched(removed, activity, seed=seed)
    except networks.ThresholdError as error:
        notes.append(str(error))


def _measure(bench: Bench, fold: int, removed: Network | None) -> dict[str, list[float]]:
    """Mean log probability of each held-out text, by task."""
    by_task = bench.texts[fold]
    texts = [text for of_task in by_task.values() for text in of_task]
    if removed is None:
        values = log_likelihoods(bench.model, texts)
    else:
        with lesion(bench.model, removed, "zero"):
            values = log_likelihoods(bench.model, texts)
    ends = np.cumsum([len(of_task) for of_task in by_task.values()])[:-1]
    return {t: v.tolist() for t, v in zip(by_task, np.split(values, ends), strict=True)}
