"""Two models: similarity of their parcels, and maps of one carried into the other.

`names` and `sides` are of two models, the latter their responses to `prompts`; `copy` are those of
the first one's untrained copy, if there is one, and `plan` is what is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from llm2nifti.experiments.group.parts import Carried, ModelPair
from llm2nifti.experiments.group.plan import GroupPlan
from llm2nifti.experiments.group.prompts import Responses, SharedPrompts, topics_of
from llm2nifti.experiments.group.shuffles import Independent, p_of, range_of
from llm2nifti.experiments.results import Interval
from llm2nifti.networks import alignment
from llm2nifti.networks import representation as rep

N_TOPIC_SHUFFLES = 100  # of an RDM, which cost next to nothing


def _best(matrix: NDArray[np.floating]) -> float:
    """Mean over rows of the largest value of a row."""
    return float(matrix.max(axis=1).mean())


def _depth_r(matrix: NDArray[np.floating], a: NDArray, b: NDArray) -> float:
    """Rank correlation of the depth of rows and of their most similar columns; 0 if undefined."""
    matched = b[matrix.argmax(axis=1)]
    if len(set(matched)) < 2 or len(set(a)) < 2:
        return 0.0
    return float(stats.spearmanr(a, matched).statistic)


def _depths(one: Responses) -> NDArray[np.float64]:
    """Relative depth of each parcel."""
    layers = np.array([parcel.layer for parcel in one.parcels], float)
    return layers / max(1.0, layers.max())


def compare(
    names: tuple[str, str],
    sides: tuple[Responses, Responses],
    prompts: SharedPrompts,
    plan: GroupPlan,
    copy: Responses | None = None,
) -> ModelPair:
    """Compare every parcel of one model with every parcel of another."""
    (a, b), rng = sides, np.random.default_rng(plan.seed)
    independent = Independent(prompts, np.ones(len(prompts.trials), bool))
    still = independent.rows()
    # What is exchanged is done anew each time: that of the model with fewer parcels.
    is_b = len(b.grams) <= len(a.grams)
    fixed = rep.off_diagonal(_turned(a if is_b else b, still))

    def shuffle(*, kinds: bool) -> NDArray[np.floating]:
        moved = _turned(b if is_b else a, independent.shuffled(rng, kinds=kinds))
        cka = fixed @ rep.off_diagonal(moved).T
        return cka if is_b else cka.T

    cka = fixed @ rep.off_diagonal(_turned(b if is_b else a, still)).T
    cka = cka if is_b else cka.T
    null = [shuffle(kinds=False) for _ in range(plan.n_null)]
    condition = [_best(shuffle(kinds=True)) for _ in range(min(5, plan.n_null))]
    limit = float(np.percentile([one.max() for one in null], 95))
    depths = _depths(a), _depths(b)
    depth_r, of_depth = _depth_r(cka, *depths), [_depth_r(one, *depths) for one in null]
    untrained = None
    if copy is not None:
        untrained = _best(rep.debiased_cka(_turned(copy, still), _turned(b, still)))
    topics = len(set(topics_of(prompts)[1])) if a.rdms and b.rdms else 0
    best = [_best(one) for one in null]
    return ModelPair(
        *names,
        cka=cka.astype(float).round(4).tolist(),
        mean=float(cka.mean()),
        best=_best(cka),
        best_null=range_of(best),
        best_p=p_of(_best(cka), best),
        condition=float(np.mean(condition)),
        limit=limit,
        share_above=float((cka > limit).mean()),
        depth_r=depth_r,
        depth_null=range_of(of_depth),
        depth_p=p_of(depth_r, of_depth),
        untrained=untrained,
        **(_rdms(a, b, topics, rng) if topics else {}),  # type: ignore[arg-type]
    )


def _turned(one: Responses, rows: NDArray[np.float64]) -> NDArray[np.float32]:
    """(n_parcels, m, m) products of independent rows."""
    narrow = rows.astype(np.float32)
    return np.stack([narrow @ gram @ narrow.T for gram in one.grams])


def _rdms(a: Responses, b: Responses, n: int, rng: np.random.Generator) -> dict[str, object]:
    """Similarity of RDMs of topics, beside that of exchanged topics."""
    first, second = np.stack(a.rdms), np.stack(b.rdms)
    rdm = rep.rdm_similarity(first, second)
    upper, square = np.triu_indices(n, 1), np.zeros((n, n), int)
    square[upper] = np.arange(len(upper[0]))
    square += square.T
    null = []
    for _ in range(N_TOPIC_SHUFFLES):
        order = rng.permutation(n)
        null.append(_best(rep.rdm_similarity(first, second[:, square[order][:, order][upper]])))
    return {
        "rdm": rdm.round(4).tolist(),
        "rdm_best": _best(rdm),
        "rdm_null": range_of(null),
        "rdm_p": p_of(_best(rdm), null),
        "n_topics": n,
    }


def carry(
    names: tuple[str, str],
    sides: tuple[Responses, Responses],
    prompts: SharedPrompts,
    plan: GroupPlan,
    copy: Responses | None = None,
) -> list[Carried]:
    """Carry every task's map from one model into another.

    The alignment has seen neither the held-out run nor any prompt of the task.
    """
    a, b = sides[0].whole, sides[1].whole
    tasks = list(dict.fromkeys(prompts.trials["task"]))
    numbers = prompts.trials["run"].to_numpy()
    out = []
    for task in tasks:
        rng, folds = np.random.default_rng(plan.seed), []
        for held in np.unique(numbers):
            one = Fold(prompts, tasks, task, numbers != held)
            judge = one.judge(b)
            true = judge(a, one.still)
            null = [judge(a, one.independent.shuffled(rng)).same for _ in range(plan.n_null)]
            random = judge(copy.whole, one.still).same if copy else None
            folds.append((true, null, one.repeat(b), random))
        values = [true.same for true, *_ in folds]
        null = np.mean([null for _, null, *_ in folds], axis=0)
        cross = [true.cross for true, *_ in folds]
        out.append(
            Carried(
                *names,
                task=task,
                cosine=Interval(float(np.mean(values)), min(values), max(values)),
                null=range_of(null),
                p=p_of(float(np.mean(values)), null),
                repeat=float(np.mean([repeat for *_, repeat, _ in folds])),
                cross=float(np.mean(cross)) if len(tasks) > 1 else None,
                penalty=float(np.median([true.penalty for true, *_ in folds])),
                untrained=float(np.mean([random for *_, random in folds])) if copy else None,
            )
        )
    return out


@dataclass(frozen=True)
class Judged:
    """How a carried map agrees with those of the target."""

    same: float
    cross: float
    penalty: float


class Fold:
    """A task and a run that are held out."""

    def __init__(
        self, prompts: SharedPrompts, tasks: list[str], task: str, inside: NDArray[np.bool_]
    ) -> None:
        self.independent = Independent(prompts, inside & (prompts.kinds != task))
        self.still = self.independent.rows()
        self.known = prompts.contrast(task, inside)
        self.goal = prompts.contrast(task, ~inside)
        self.others = [prompts.contrast(t, ~inside) for t in tasks if t != task]

    def repeat(self, b: NDArray[np.float64]) -> float:
        """Cosine of the target's maps of both parts."""
        return _cosine(b, self.known, self.goal)

    def judge(
        self, b: NDArray[np.float64]
    ) -> Callable[[NDArray[np.float64], NDArray[np.float64]], Judged]:
        """Function of A's products and rows that carries A's map and compares it with B's."""
        gram_b = self.still @ b @ self.still.T

        def carried(a: NDArray[np.float64], rows: NDArray[np.float64]) -> Judged:
            fitted = alignment.align(rows @ a @ rows.T, gram_b)
            mixture = self.still.T @ fitted.mixture(rows @ a @ self.known)
            cross = [_cosine(b, mixture, other) for other in self.others]
            same = _cosine(b, mixture, self.goal)
            return Judged(same, float(np.mean(cross)) if cross else 0.0, fitted.penalty)

        return carried


def _cosine(gram: NDArray[np.float64], x: NDArray, y: NDArray) -> float:
    """Cosine of two maps that are mixtures of prompts."""
    return alignment.cosine(x @ gram @ y, x @ gram @ x, y @ gram @ y)
