"""Compare RDMs of every parcel with RDMs of what is known of the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llm2nifti import bids
from llm2nifti.bids import Session
from llm2nifti.experiments.journal import made_from
from llm2nifti.experiments.rsa.plan import RsaPlan
from llm2nifti.experiments.rsa.result import Explained, Matched, RsaResult
from llm2nifti.glm.fitting import one_thread
from llm2nifti.networks import properties as props
from llm2nifti.networks import representation as rep
from llm2nifti.parcels import Parcel, ParcelError, each, parcels_in, residuals_of, trials_of
from llm2nifti.progress import track
from llm2nifti.stimuli import WORDLESS

OF_PROMPTS = ("task", "topic", "question_frame", "length", "surprisal", "characters")
OF_TOPICS = ("task", "length", "surprisal", "characters")


@dataclass(frozen=True, eq=False)
class Rdms:
    """RDMs of all parcels, a column each."""

    prompts: dict[int, list[NDArray]] = field(default_factory=dict)  #: by run, (n_pairs,) each
    topics: list[NDArray] = field(default_factory=list)  #: crossnobis, over all runs
    ceilings: list[tuple[float, float]] = field(default_factory=list)


@one_thread()
def measure(session: Session, plan: RsaPlan, *, verbose: int = 1) -> RsaResult:
    """Explain RDMs over prompts and over topics; each property beyond all others.

    ParcelError if fewer than three topics appear in every run; PropertyError of a table that does
    not have all prompts.
    """
    words = [task for task in session.tasks if task != WORDLESS]  # or length is all there is
    session = session.only(plan.task or words)
    session.check_repeated()
    source = made_from(session, plan)
    if not plan.redo and (kept := RsaResult.kept(session, source)):
        return kept
    rep.required("rsatoolbox")
    trials, columns = _described(session, plan)
    parcels = parcels_in(session, plan.site)
    rdms = _rdms(session, trials, plan, verbose=verbose)
    copy = session.untrained if plan.untrained else None
    of_copy = None
    if copy:
        bare, about_copy = replace(plan, n_null=1), _described(copy, plan)[0]
        same = _rdms(copy, about_copy, plan, verbose=verbose)
        of_copy = _explained(same, about_copy, columns, bare, verbose=verbose)
    return RsaResult(
        parcels=[parcel.name for parcel in parcels],
        layers=[parcel.layer for parcel in parcels],
        sites=[parcel.site for parcel in parcels],
        n_prompts=int(trials["is_task"].sum()),
        n_topics=len(_topics(trials)),
        n_null=plan.n_null,
        n_boot=plan.n_boot,
        explained=_explained(rdms, trials, columns, plan, verbose=verbose),
        matched=_matched(rdms, trials, columns, plan),
        ceiling_low=[low for low, _ in rdms.ceilings],
        ceiling_high=[high for _, high in rdms.ceilings],
        untrained=of_copy,
        made_from=source,
    )


def _described(session: Session, plan: RsaPlan) -> tuple[pd.DataFrame, list[str]]:
    """Trials with what is known of their prompts, and the names of these properties."""
    trials = trials_of(session)
    surprisals = [
        -run.tokens.groupby("trial")["log_probability"].mean().reindex(range(len(run.events)))
        for run in session
    ]
    trials["length"] = trials["prompt"].str.len().astype(float)
    trials["surprisal"] = np.concatenate(surprisals)
    columns = [c for c in OF_PROMPTS if c != "surprisal" or trials[c].notna().all()]
    if plan.properties is None:
        return trials, columns
    table = bids.read_tsv(plan.properties, {"stim_id": str})
    told = table.drop_duplicates("stim_id").set_index("stim_id")
    missing = sorted(set(trials.loc[trials["is_task"], "stim_id"]) - set(told.index))
    if missing:
        raise props.PropertyError(
            f"{plan.properties} has no row for {len(missing)} prompts, such as {missing[0]}; it "
            "needs a column stim_id with those of the dataset's events"
        )
    new = [name for name in told if name not in trials]
    return trials.join(told[new], on="stim_id"), [*columns, *new]


def _topics(trials: pd.DataFrame) -> list[str]:
    """Topics of tasks that are in every run, with their task."""
    shown = trials[trials["is_task"]]
    names = (shown["task"] + ": " + shown["topic"]).where(shown["topic"] != "", "")
    return rep.repeated(names.tolist(), shown["run"].tolist(), most=len(names))


def _rdms(session: Session, trials: pd.DataFrame, plan: RsaPlan, *, verbose: int) -> Rdms:
    """RDMs of all parcels in one pass, noise whitened."""
    names = (trials["task"] + ": " + trials["topic"]).to_numpy(str)
    topics, run = _topics(trials), trials["run"].to_numpy()
    if len(topics) < 3:
        raise ParcelError(
            f"{len(topics)} topics are in every run, 3 are needed; scan more trials_per_block"
        )
    is_task = trials["is_task"].to_numpy()
    used = np.flatnonzero(is_task & np.isin(names, topics))
    rows = {int(n): np.flatnonzero(is_task & (run == n)) for n in np.unique(run)}
    residual, out = residuals_of(trials), Rdms({number: [] for number in rows})
    means = {n: _means(names[used], run[used] == n, topics) for n in rows}

    def of_parcel(_: Parcel, values: NDArray) -> tuple[NDArray, tuple[float, float], list[NDArray]]:
        centred = values - values.mean(axis=0)
        white = rep.whitened_products(centred, residual(centred))
        block = white[np.ix_(used, used)]
        by_run = [props.squared_distances(mean @ block @ mean.T) for mean in means.values()]
        prompts = [props.squared_distances(white[np.ix_(i, i)]) for i in rows.values()]
        topics_rdm = rep.crossnobis(block, names[used], run[used])
        return topics_rdm, props.noise_ceiling(np.stack(by_run)), prompts

    for rdm, ceiling, prompts in each(
        of_parcel, session, parcels_in(session, plan.site), verbose=verbose
    ):
        out.topics.append(rdm)
        out.ceilings.append(ceiling)
        for number, vector in zip(rows, prompts, strict=True):
            out.prompts[number].append(vector.astype(np.float32))
    return out


def _means(names: NDArray, is_here: NDArray[np.bool_], topics: list[str]) -> NDArray[np.float64]:
    """(n_topics, n_trials) weights that give the mean of each topic's trials in one run."""
    inside = (names == np.array(topics)[:, None]) & is_here
    return inside / inside.sum(axis=1, keepdims=True)


def _explained(
    rdms: Rdms, trials: pd.DataFrame, columns: list[str], plan: RsaPlan, *, verbose: int
) -> dict[str, Explained]:
    """What each property explains beyond all others, in runs held out, beside shuffled prompts."""
    tables = {n: trials[trials["is_task"] & (trials["run"] == n)] for n in rdms.prompts}
    models = {n: props.model_rdms(table, columns) for n, table in tables.items()}
    names = [name for name in columns if all(name in of_run for of_run in models.values())]
    X = {n: props.standardised(np.stack([m[k] for k in names], axis=1)) for n, m in models.items()}
    Y = {n: props.standardised(np.stack(vectors, axis=1)) for n, vectors in rdms.prompts.items()}
    products = {n: props.PairSums.of(X[n], Y[n]) for n in X}
    whole = _held_out(products, range(len(names)))
    out, rng = {}, np.random.default_rng(plan.seed)
    for i, name in enumerate(track(names, "properties", unit="property", verbose=verbose)):
        rest = _held_out(products, [k for k in range(len(names)) if k != i])
        null = []
        for _ in range(plan.n_null):
            moved = {}
            for n, x in X.items():
                column = _exchanged(x[:, i], len(tables[n]), rng)
                moved[n] = products[n].replaced(i, column, x, Y[n])
            null.append((_held_out(moved, range(len(names))) - rest).mean(axis=0).max())
        unique = (whole - rest).mean(axis=0)
        exceed = (np.array(null) >= unique[:, None]).sum(axis=1)
        out[name] = Explained(
            unique=unique.tolist(),
            low=(whole - rest).min(axis=0).tolist(),
            high=(whole - rest).max(axis=0).tolist(),
            alone=_held_out(products, [i]).mean(axis=0).tolist(),
            p=((1 + exceed) / (1 + plan.n_null)).tolist(),
            limit=float(np.percentile(null, 95)),
        )
    return out


def _held_out(products: dict[int, props.PairSums], kept: Sequence[int]) -> NDArray[np.float64]:
    """(n_runs, n_parcels) share explained in each run, learned from the others."""
    rows = []
    for held, test in products.items():
        train = [part for n, part in products.items() if n != held]
        rows.append(props.explained(train, test, kept))
    return np.stack(rows)


def _exchanged(vector: NDArray, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Model RDM with its prompts exchanged."""
    square, order = np.zeros((n, n)), rng.permutation(n)
    places = np.triu_indices(n, 1)
    square[places] = vector
    square += square.T
    return square[np.ix_(order, order)][places]


def _matched(
    rdms: Rdms, trials: pd.DataFrame, columns: list[str], plan: RsaPlan
) -> dict[str, Matched]:
    """Correlation of crossnobis RDMs of topics with model RDMs, with bootstrap intervals."""
    shown = trials[trials["is_task"]]
    shown = shown.assign(condition=shown["task"] + ": " + shown["topic"])
    groups = shown.groupby("condition")
    told = pd.DataFrame({"prompt": groups["prompt"].agg(" ".join)})
    for name in (c for c in columns if c in OF_TOPICS or c not in OF_PROMPTS):
        if name != "characters":
            is_number = pd.api.types.is_numeric_dtype(shown[name])
            told[name] = groups[name].mean() if is_number else groups[name].first()
    names = [c for c in (*told.columns, "characters") if c != "prompt"]
    models = props.model_rdms(told.loc[_topics(trials)], names)
    data = np.stack(rdms.topics)
    value, draws = props.correlations(models, data, n_boot=plan.n_boot, seed=plan.seed)
    low, high = np.nanpercentile(draws, [2.5, 97.5], axis=0)
    rows = zip(models, value.tolist(), low.tolist(), high.tolist(), strict=True)
    return {name: Matched(r, left, right) for name, r, left, right in rows}
