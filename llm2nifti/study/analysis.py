"""Analyse a dataset: maps and networks, similarity, identification, nulls. No model is needed.

Each function reads the dataset alone, writes its files, and returns numbers for ``summary.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from nilearn.glm.contrasts import Contrast
from numpy.typing import NDArray
from tqdm import tqdm

from llm2nifti import bids, glm, networks
from llm2nifti.bids import Run, Session
from llm2nifti.networks import Rule
from llm2nifti.networks.similarity import TOP, corrected

N_SHUFFLES = 20  # shuffled maps a run, for the null of repeatability

Maps = dict[tuple[str, int], NDArray[np.float64]]
Contrasts = Mapping[tuple[str, int], Contrast]


def check_repeated(session: Session) -> None:
    """Raise SimilarityError unless every task has the same runs, at least two."""
    numbers = {task: [run.run for run in session.of(task)] for task in session.tasks}
    if len({tuple(n) for n in numbers.values()}) > 1 or len(session.folds) < 2:
        raise networks.SimilarityError(
            f"comparisons between runs need the same 2 or more runs of every task; there are "
            f"{', '.join(f'{task}: {n}' for task, n in numbers.items())}. Finish the scan first"
        )


def analyse_maps(
    session: Session,
    rule: Rule | None = None,
    *,
    frames: glm.Frames = "trial",
    quiet: bool = False,
    mapper: glm.Mapper = map,
) -> dict[str, Any]:
    """Fit every task, select its network, and write maps and networks, a task and a run.

    Parameters
    ----------
    session : Session
        Runs of one model.
    rule : Rule, optional
        Which units are a network; by default `Rule()`.
    frames : {"trial", "token"}
        See `llm2nifti.glm.fit`.
    quiet : bool, default=False
        Show no progress bar.
    mapper : callable, default=map
        Fits the slabs of runs; see `llm2nifti.glm.fit`.

    Returns
    -------
    dict
        One entry a task: active units, shares, profile over layers and sites.
    """
    out = {}
    rule = rule or Rule()
    desc = bids.label("network" + ("" if frames == "trial" else "tokens") + rule.label)
    with tqdm(total=len(session), desc="glm", unit="run", disable=quiet or None) as bar:
        for task in session.tasks:
            bar.set_description(f"glm {task}")
            runs = session.of(task)
            fitted = glm.fit(runs, frames=frames, quiet=True, mapper=mapper)
            single = []
            for i, run in enumerate(runs):
                maps = fitted.of_run(i).contrast(f"{task} - {glm.CONTROL}")
                single.append(maps)
                network = networks.select(maps, rule, runs=[run])
                _write_maps(run, maps, network, rule, only_run=True, desc=desc)
            maps = fitted.contrast(f"{task} - {glm.CONTROL}")
            network = networks.select(maps, rule, runs=runs)
            _write_maps(runs.first, maps, network, rule, only_run=False, desc=desc)
            bar.update(len(runs))
            out[task] = _task_numbers(runs, maps, network, single)
            out[task] |= {"network": desc, "rule": asdict(rule)}
    return out


def _task_numbers(
    runs: Session, maps: glm.StatMaps, network: networks.Network, single: list[glm.StatMaps]
) -> dict[str, Any]:
    """Numbers of one task for the summary."""
    return {
        "n_runs": len(runs),
        "n_active": network.n_units,
        "share_active": network.n_units / network.brain.n_units,
        "n_more": int((network.signs > 0).sum()),
        "n_less": int((network.signs < 0).sum()),
        "threshold": network.how,
        "df": maps.df,
        "max_t": float(np.abs(maps.t()).max()),
        "n_constant": maps.n_constant,
        "share_below_05": maps.share_below(),
        "share_below_05_per_run": [m.share_below() for m in single],
        # Welch's test is of prompts: there is nothing to compare token-level tests with.
        "welch_disagreement": None if maps.note else glm.welch_disagreement(runs, maps),
        "profile": network.profile().to_dict(orient="records"),
        "note": maps.note,
    }


def _write_maps(
    run: Run,
    maps: glm.StatMaps,
    network: networks.Network,
    rule: Rule,
    *,
    only_run: bool,
    desc: str,
) -> None:
    """Write t, z and effect maps and the network mask, of one run or of all runs together."""
    root = run.paths.root
    kind = "tokens" if maps.note else ""  # there is a note on tokens only
    for name, img in (("t", maps.t_img), ("z", maps.z_img), ("effect", maps.effect_img)):
        path = run.paths.stat_map(name + kind, only_run=only_run)
        bids.write_img(path, root, img)
        sidecar = {"Contrast": maps.name, "Statistic": name, "DegreesOfFreedom": maps.df}
        bids.write_json(_beside(path), root, {**sidecar, "Note": maps.note or "n/a"})
    path = run.paths.network(only_run=only_run, desc=desc)
    bids.write_img(path, root, network.mask_img())
    sidecar = {
        "Type": "ROI",
        "Sources": [f"bids::{run.paths.trial_bold.relative_to(root / bids.DERIVATIVES)}"],
        "Description": f"Units that respond to {maps.name}: {network.how}.",
        "SpatialReference": run.sidecar["SpatialReference"],
        "Rule": asdict(rule),
    }
    bids.write_json(_beside(path), root, sidecar)


def _beside(path: Path) -> Path:
    """Sidecar of an image."""
    return path.with_name(path.name.removesuffix(".nii.gz") + ".json")


def analyse_similarity(
    session: Session,
    *,
    contrasts: Contrasts | None = None,
    intervals: bool = True,
    quiet: bool = False,
) -> dict[str, Any]:
    """How repeatable and how distinct the maps are, with jackknife intervals and nulls.

    Parameters
    ----------
    session : Session
        At least 2 runs of each task of one model.
    contrasts : mapping, optional
        Of `llm2nifti.glm.contrasts_of`, if they are there already.
    intervals : bool, default=True
        Compute jackknife intervals.
    quiet : bool, default=False
        Show no progress bar.

    Returns
    -------
    dict
        Matrices over tasks and figures with intervals.
    """
    check_repeated(session)
    contrasts = contrasts or glm.contrasts_of(session)
    maps: Maps = {key: glm.t_map([c]) for key, c in contrasts.items()}
    tasks = networks.tasks_of(maps)
    r = networks.matrix(maps)
    masks = networks.top_masks(maps)
    out: dict[str, Any] = {
        "tasks": tasks,
        "top_share": TOP,
        "r": r.tolist(),
        "r_corrected": _none_for_nan(corrected(r)),
        "dice": networks.matrix(masks, networks.dice).tolist(),
        "jaccard": networks.matrix(masks, networks.jaccard).tolist(),
        "dice_chance": TOP,
    }
    same, cross = networks.same_and_cross(r)
    out |= {"same_task_r": same, "cross_task_r": None, "same_minus_cross": None}
    out["shuffled_same_task_r"] = _shuffled(session, quiet=quiet)
    if intervals:
        out |= _intervals(session, maps, quiet=quiet)
    if len(tasks) > 1:
        out |= {"cross_task_r": cross, "same_minus_cross": same - cross}
        out["closest_pair"] = _closest_pairs(out)
    return out


def _intervals(runs: Sequence[Run], maps: Maps, *, quiet: bool) -> dict[str, Any]:
    """Jackknife intervals of the similarity figures, or why there are none."""
    try:
        without = {
            (run.task, run.run): glm.t_of_labels(run.values(), glm.without_blocks(run.events))
            for run in tqdm(runs, desc="jackknife maps", disable=quiet or None)
        }
        r = networks.jackknife(maps, without)
        masks = networks.top_masks(without)
        dice = networks.jackknife(networks.top_masks(maps), masks, networks.dice)
    except (glm.DesignError, networks.SimilarityError) as error:
        return {"intervals_not_possible": str(error)}
    names = [
        ("same_task_r", "same"),
        ("cross_task_r", "cross"),
        ("same_minus_cross", "same - cross"),
    ]
    figures = {task: r[task, task] for task in networks.tasks_of(maps)}
    figures |= {name: r[key] for name, key in names}
    figures |= {"same_dice": dice["same"], "cross_dice": dice["cross"]}
    pairs = [key for key in r if not isinstance(key, str) and key[0] != key[1]]
    figures |= {_pair_name(*key): r[key] for key in pairs}
    return {"intervals": {n: e.summary() for n, e in figures.items() if not np.isnan(e.value)}}


def _pair_name(a: str, b: str) -> str:
    """Name of a pair of tasks among the intervals."""
    return " - ".join(sorted((a, b)))


def _none_for_nan(values: NDArray) -> list[list[float | None]]:
    """Nested lists for JSON, which has no NaN."""
    return [[None if np.isnan(v) else float(v) for v in row] for row in values]


def _shuffled(runs: Sequence[Run], *, quiet: bool) -> dict[str, float]:
    """Same-task r when trial types are shuffled within runs."""
    shuffles = {
        (run.task, run.run): _shuffled_maps(run)
        for run in tqdm(runs, desc="shuffled maps", disable=quiet or None)
    }
    values = [
        networks.same_and_cross(networks.matrix({key: m[i] for key, m in shuffles.items()}))[0]
        for i in range(N_SHUFFLES)
    ]
    return {"mean": float(np.mean(values)), "largest": float(np.max(values))}


def _shuffled_maps(run: Run) -> NDArray[np.float64]:
    """(N_SHUFFLES, n_units) t maps of shuffled labels."""
    return glm.t_of_labels(run.values(), [glm.shuffled(run, n=N_SHUFFLES, seed=run.run)])


def _closest_pairs(similarity: dict[str, Any]) -> list[dict[str, Any]]:
    """Pairs of different tasks, most similar maps first, with the interval of r where known."""
    tasks, pairs = similarity["tasks"], []
    for i, task in enumerate(tasks):
        for j, other in enumerate(tasks[:i]):
            pair = {"pair": [task, other], "r": similarity["r"][i][j]}
            pair["dice"] = similarity["dice"][i][j]
            pair["interval"] = similarity.get("intervals", {}).get(_pair_name(task, other))
            pairs.append(pair)
    return sorted(pairs, key=lambda pair: -pair["r"])


def analyse_identification(
    session: Session, *, contrasts: Contrasts | None = None
) -> dict[str, Any]:
    """Name held-out runs and trials by maps of the other runs; also from the prompts alone.

    Parameters
    ----------
    session, contrasts
        See `analyse_similarity`.

    Returns
    -------
    dict
        ``runs``, ``trials``, ``prompts``; each for all tasks, and ``*_without_randomstrings``
        where that task is there.
    """
    check_repeated(session)
    contrasts = contrasts or glm.contrasts_of(session)
    trials = [_trial_set(run) for run in session]
    groups = {"": list(session.tasks)}
    if "randomstrings" in groups[""] and len(groups[""]) > 2:
        groups["_without_randomstrings"] = [t for t in groups[""] if t != "randomstrings"]
    out = {}
    for ending, tasks in groups.items():
        kept = {key: c for key, c in contrasts.items() if key[0] in tasks}
        templates = _training(kept, glm.t_map)
        maps = {key: glm.t_map([c]) for key, c in kept.items()}
        sets = [t for t in trials if t.task in tasks]
        out["runs" + ending] = networks.name_runs(maps, templates).summary()
        out["trials" + ending] = networks.name_trials(sets, _training(kept, _effect)).summary()
        if any(prompt for t in sets for prompt in t.prompts):  # images have no characters
            out["prompts" + ending] = networks.name_prompts(sets).summary()
    return out


def _effect(contrasts: list[Any]) -> NDArray:
    """(n_units,) effect summed over runs, in the activations' units."""
    return np.ravel(sum(c.effect for c in contrasts))


def _training(
    contrasts: Mapping[tuple[str, int], Any], combine: Callable[[list[Any]], NDArray]
) -> dict[int, dict[str, NDArray]]:
    """For each held-out run, the map of every task over the other runs."""
    tasks = networks.tasks_of(contrasts)
    return {
        held_out: {
            task: combine([c for (t, run), c in contrasts.items() if t == task and run != held_out])
            for task in tasks
        }
        for held_out in sorted({run for _, run in contrasts})
    }


def _trial_set(run: Run) -> networks.TrialSet:
    """Trials of a run for identification."""
    return networks.TrialSet(
        task=run.task,
        run=run.run,
        values=run.values(),
        is_task=(run.events["trial_type"] != glm.CONTROL).to_numpy(),
        frames=run.events["question_frame"].to_numpy(str),
        prompts=run.events["prompt"].to_list(),
    )


def analyse_null(
    session: Session, *, n: int = glm.N_RELABELLINGS, seed: int = 0, quiet: bool = False
) -> dict[str, Any]:
    """False positive rates where nothing is there, and what any coherent topic activates.

    Parameters
    ----------
    session : Session
        Runs of one model.
    n : int, default=200
        Relabellings and pseudo-tasks.
    seed : int, default=0
        Seed of both.
    quiet : bool, default=False
        Show no progress bar.

    Returns
    -------
    dict
        ``relabelled``, ``pseudo_tasks`` (with the single rates) and ``token_level``.
    """
    glm.check_count(n, seed)
    is_control = session.first.events["trial_type"] == glm.CONTROL
    sizes: dict[str, Any] = {"n_on": int((~is_control).sum()), "n_off": int(is_control.sum())}
    options: dict[str, Any] = {"n": n, "seed": seed, "quiet": quiet}
    experiments: dict[str, Callable[[], glm.NullRates]] = {
        "relabelled": lambda: glm.relabelled(session, **options),
        "pseudo_tasks": lambda: glm.pseudo_tasks(session, **sizes, **options),
        "token_level": lambda: glm.token_level(session.first),
    }
    out: dict[str, Any] = {}
    for name, experiment in experiments.items():
        try:
            rates = experiment()
        except glm.DesignError as error:  # a small dataset still gets all that it allows
            out[name] = {"not_possible": str(error)}
            continue
        out[name] = rates.summary()
        if name == "pseudo_tasks":
            out[name] |= {**sizes, "rates_below_05": rates.below_05.tolist()}
    return out
