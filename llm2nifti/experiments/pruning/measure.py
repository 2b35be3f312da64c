"""Prune a network, and compare with pruning as much otherwise.

Held-out text decides: prompts, and the model's own answers before anything was removed, of runs
that did not make the network. The others remove as many units of each site of each layer: those
with the smallest weights, random ones, and random ones that are as active.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm2nifti import glm, networks, surgery
from llm2nifti.bids import Session
from llm2nifti.experiments.errors import ExperimentError
from llm2nifti.experiments.journal import ResultJournal, hash_texts
from llm2nifti.experiments.pruning.plan import PrunePlan
from llm2nifti.experiments.pruning.result import PruningResult
from llm2nifti.interventions import lesion
from llm2nifti.interventions.bench import Bench, ByTask
from llm2nifti.interventions.reloading import image_network, reload, tasks_or_images
from llm2nifti.models import LoadedModel
from llm2nifti.networks import Network, Rule
from llm2nifti.networks.dissociation import draws_beyond
from llm2nifti.plans import Json
from llm2nifti.progress import stage

N_BOOTSTRAPS = 2000


def measure(
    session: Session, plan: PrunePlan, *, model: LoadedModel | None = None, verbose: int = 1
) -> PruningResult:
    """Prune a network, measure what that does, and write the smaller model.

    The session was scanned with ``--sites heads,mlp_hidden``. Interrupted work, kept beside the new
    folder, is resumed; the result is also in the folder's ``prune.json``. ExperimentError or
    InterventionError if the model is not the one that was scanned, or there are too few runs;
    `llm2nifti.surgery.PruneError` if the units own no weights, or the folder is there already.
    """
    whole, out = network_of(session, plan), plan.out
    model = model or reload(session.first, plan)
    told = {**plan.asked, "network": Path(plan.network).name}
    settings = {
        "plan": told,
        "units": hashlib.sha256(whole.signs.tobytes()).hexdigest(),
        "weights": model.source["WeightsHash"],
        "texts": hash_texts(session),
    }
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    journal = ResultJournal(out.with_name(f".{out.name}-{digest[:8]}.jsonl"), settings)
    is_written = surgery.read_record(out).get("made_from") == digest
    if not (len(journal) and is_written):  # else it was stopped at the very end
        surgery.check_free(out, overwrite=plan.overwrite)
        surgery.to_remove(whole, keep=plan.keep)  # what can't be done is said before long work
        record: Json = {"plan": told, "made_from": digest}
        record |= _evaluation(session, model, plan, journal, verbose=verbose)
        pruned = surgery.prune(model, whole, keep=plan.keep)
        weights = [each.module.parameters() for each in (model, pruned.model)]  # tied ones once
        record["bytes_in_memory"] = [sum(p.nbytes for p in each) for each in weights]
        if plan.n_pairs and model.kind == "causal":
            record["speed"] = surgery.compare_speed(model, pruned.model, n_pairs=plan.n_pairs)
        surgery.save(pruned, out, overwrite=plan.overwrite, record=record)
    journal.finish()
    return PruningResult.of({"folder": str(out), **surgery.read_record(out)}, out)


def network_of(session: Session, plan: PrunePlan) -> Network:
    """Network of a plan that some runs make, restricted to units that can be pruned.

    InterventionError if there is neither such a task nor such a file; ExperimentError if a binary
    mask has no order to take a share of.
    """
    brain = session.brain
    sites = tuple(dict.fromkeys(site.name for site in surgery.owning_sites(brain)))
    rule = Rule(sites=sites)  # none: pruning raises, and says what to scan
    if plan.share is not None:
        rule = Rule("top", share=plan.share, sites=sites)
    tasks, _ = tasks_or_images(session, [plan.network])
    if tasks:
        runs = session.of(tasks[0])
        maps = glm.fit(runs, verbose=0).contrast(glm.task_contrast(runs.first.events))
        return networks.select(maps, rule, name=tasks[0])
    network = image_network(brain, plan.network)
    if plan.share is None:
        return network
    if network.weights is None:
        raise ExperimentError(
            f"mask {network.name!r} is binary, so a share cannot choose among its units"
        )
    largest = networks.ranked(network.name, brain, network.strengths, rule)
    return replace(network, signs=network.signs * largest.units, how=largest.how)


def _evaluation(
    session: Session, model: LoadedModel, plan: PrunePlan, journal: ResultJournal, *, verbose: int
) -> Json:
    """Perplexity of held-out text before and after, by task."""
    if not plan.n_prompts:
        return {"evaluation": {}, "evaluation_notes": ["perplexity was not measured"]}
    if "generate" not in model.modes():
        return {"evaluation": {}, "evaluation_notes": [f"{model.name} predicts no tokens"]}
    bench, notes = Bench(model, session, plan.n_prompts), []
    if tasks_or_images(session, [plan.network])[1]:
        notes.append("a mask is judged on all runs, whatever it was made from")
    folds, total = [], len(bench.folds) * (3 + 2 * plan.n_random)
    with stage("prune", total=total, verbose=verbose) as bar:
        for fold in bench.folds:
            rows: dict[str, ByTask] = {}
            for name, removed in variants(bench, fold, plan, notes):
                values = journal.get(f"run {fold}: {name}", partial(_read, bench, fold, removed))
                rows[name] = {task: np.array(of_task) for task, of_task in values.items()}
                bar.update()
            folds.append(rows)
    return {"evaluation": summarise(folds), "evaluation_notes": list(dict.fromkeys(notes))}


def variants(
    bench: Bench, fold: int, plan: PrunePlan, notes: list[str]
) -> Iterator[tuple[str, Network | None]]:
    """What is removed, by name: nothing, the network of the other runs, and as much otherwise.

    `notes` gets the reason where something cannot be had.
    """
    removed = surgery.to_remove(network_of(bench.session.without(fold), plan), keep=plan.keep)
    yield "before", None
    yield "network", removed
    yield "magnitude", surgery.smallest(bench.model, removed)
    for seed in range(plan.n_random):
        yield f"random {seed}", surgery.at_random(removed, seed=seed)
    activity = bench.controls(fold).activity
    try:
        for seed in range(plan.n_random):
            yield f"matched {seed}", networks.matched(removed, activity, seed=seed)
    except networks.ThresholdError as error:
        notes.append(str(error))


def _read(bench: Bench, fold: int, removed: Network | None) -> dict[str, list[float]]:
    """Mean log probability of each held-out text, by task."""
    acting = None if removed is None else lesion(bench.model, removed, "zero")
    return {t: v.tolist() for t, v in bench.log_probabilities(fold, acting).items()}


def summarise(folds: Sequence[dict[str, ByTask]]) -> Json:
    """Perplexities and their differences by task, the prompts of all folds together.

    Each fold, a held-out run, has the mean log probabilities of each text by variant and task. Of
    each task: perplexities; ``delta``, the mean loss of log probability a token in nats under the
    network's removal, with its 95 % bootstrap ``interval`` over prompts; and ``beyond``, by how
    much that exceeds the loss of each other way, whose random draws are resampled, too.
    """
    common = [name for name in folds[0] if all(name in fold for fold in folds)]
    out = {}
    for task in folds[0]["before"]:
        values = {name: np.concatenate([fold[name][task] for fold in folds]) for name in common}
        out[task] = _one_task(values)
    return out


def _one_task(values: ByTask) -> Json:
    """Numbers of one task from (n_prompts,) mean log probabilities."""
    perplexity = {name: float(np.exp(-v.mean())) for name, v in values.items()}
    loss = {name: values["before"] - v for name, v in values.items()}
    out: Json = {"n_prompts": len(values["before"])}
    out |= {name: perplexity[name] for name in ("before", "network", "magnitude")}
    out["delta"], out["interval"] = float(loss["network"].mean()), _interval(loss["network"])
    out["beyond"] = {}
    for kind in ("magnitude", "random", "matched"):
        names = [name for name in values if name.split(" ")[0] == kind]
        if kind != "magnitude":
            out[kind] = [perplexity[name] for name in names]
        if names:
            others = np.stack([loss[name] for name in names])
            value = float(loss["network"].mean() - others.mean())
            out["beyond"][kind] = {"value": value, "interval": _interval(loss["network"], others)}
    return out


def _interval(values: NDArray, others: NDArray | None = None) -> list[float]:
    """95 % percentile bootstrap interval of the mean over prompts, minus that of other sets."""
    rng = np.random.default_rng(20231110)
    rows = rng.integers(len(values), size=(N_BOOTSTRAPS, len(values)))
    if others is None:
        draws = values[rows].mean(axis=1)
    else:
        sets = rng.integers(len(others), size=(len(others), N_BOOTSTRAPS))
        draws = draws_beyond(values, others, rows, sets)
    return np.quantile(draws, [0.025, 0.975]).tolist()
