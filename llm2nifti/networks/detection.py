"""Does a score tell one kind of prompt from another? ROC, bootstrap, and what a sceptic would try.

Trials come in folds (runs): everything that is learned for a trial comes from the other folds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

N_BOOT = 1000
GRID = np.linspace(0, 1, 101)  # false-positive rates at which ROC curves are averaged


class DetectionError(ValueError):
    """Detection cannot be evaluated with these runs."""


def roc(scores: NDArray, positive: NDArray[np.bool_], fold: NDArray) -> NDArray[np.float64]:
    """(101,) hit rates at false-positive rates of 0, .01, ... 1, averaged over folds."""
    from sklearn.metrics import roc_curve

    curves = []
    for inside in (fold == f for f in np.unique(fold)):
        false, hits, _ = roc_curve(positive[inside], scores[inside])
        curves.append(np.interp(GRID, false, hits))
    return np.mean(curves, axis=0)


class Bootstrap:
    """Prompts drawn `n` times with replacement, those of each kind and fold among themselves.

    `kind` and `fold` are (n_trials,) arrays. The same draws serve every score, so that differences
    and means of AUCs have intervals, too. What was learned is not learned again: the intervals are
    those of these detectors. Without any draws, areas are estimates alone.
    """

    def __init__(self, kind: NDArray, fold: NDArray, *, n: int = N_BOOT, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.fold = fold
        self.weights = np.ones((n + 1, len(kind)), np.float32)  # the first row draws each once
        for f in np.unique(fold):
            for k in np.unique(kind[fold == f]):
                rows = np.flatnonzero((fold == f) & (kind == k))
                even = np.full(len(rows), 1 / len(rows))
                self.weights[1:, rows] = rng.multinomial(len(rows), even, size=n)

    def areas(
        self, scores: NDArray, positive: NDArray[np.bool_], negative: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """(1 + n_draws,) AUC of (n_trials,) scores within folds: the estimate, then each draw's."""
        wins, pairs = np.zeros((2, len(self.weights)))
        for f in np.unique(self.fold):
            on = np.flatnonzero(positive & (self.fold == f))
            off = np.flatnonzero(negative & (self.fold == f))
            difference = scores[on][:, None] - scores[off][None]
            won = ((difference > 0) + 0.5 * (difference == 0)).astype(np.float32)
            w_on, w_off = self.weights[:, on], self.weights[:, off]
            wins += ((w_on @ won) * w_off).sum(axis=1)
            pairs += w_on.sum(axis=1) * w_off.sum(axis=1)
        return wins / np.maximum(pairs, 1)


def estimate(areas: NDArray) -> dict[str, float]:
    """Value and 95 % percentile interval of what `Bootstrap.areas` gives, or of a mean of such."""
    low, high = np.percentile(areas[1:], [2.5, 97.5])
    return {"value": float(areas[0]), "low": float(low), "high": float(high)}


def probe(
    gram: NDArray, on: NDArray[np.bool_], off: NDArray[np.bool_], train: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(n_trials,) scores of a logistic regression on activations, given their products alone.

    `gram` holds the (n_trials, n_trials) products of the trials' standardised activations, `on` and
    `off` the two classes, `train` the trials to learn from. An L2 penalty does not see rotations:
    on the coordinates of the training trials in the space that they span, scikit-learn's logistic
    regression is the one on all units, at a fraction of the cost.
    """
    from sklearn.linear_model import LogisticRegression

    rows = np.flatnonzero(train & (on | off))
    values, vectors = np.linalg.eigh(gram[np.ix_(rows, rows)].astype(np.float64))
    keep = values > 1e-6 * values[-1]
    features = gram[:, rows] @ (vectors[:, keep] / np.sqrt(values[keep]))
    model = LogisticRegression(max_iter=2000).fit(features[rows], on[rows])
    return model.decision_function(features)


def words(
    prompts: Sequence[str], on: NDArray[np.bool_], off: NDArray[np.bool_], train: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(n_trials,) scores of a logistic regression on scikit-learn's word counts; see `probe`."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    rows = np.flatnonzero(train & (on | off))
    model = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=2000))
    model.fit([prompts[int(i)] for i in rows], on[rows])
    return model.decision_function(list(prompts))
