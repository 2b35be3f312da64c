"""Does the quality of a design say what its events say?"""

from __future__ import annotations

import numpy as np
import planted
import pytest

from llm2nifti import bids, experiments
from llm2nifti.experiments.quality.result import QualityResult


def table(run: int, *, shift: float, topics: str):
    """Trials whose prompts differ by `shift` SDs in length between task and control."""
    rng = np.random.default_rng(run)
    out = planted.trials(n_blocks=4, n_on=24, n_off=32, levels=("a", "b"))
    is_on = (out["trial_type"] == "pain").to_numpy()
    tokens = rng.normal(10, 2, len(out))
    for rows, mean in ((is_on, 10 + 2 * shift), (~is_on, 10)):
        tokens[rows] += mean - tokens[rows].mean()
    out["topic"] = [f"{topics}{i % 4}" if on else f"other{i}" for i, on in enumerate(is_on)]
    out["prompt"] = [f"prompt number {i:03d}" for i in range(len(out))]
    return out.assign(tokens=tokens)


def dataset(root, *, shift=0.0, shared=False):
    """Two runs in which tokens drive half of the units, and the task none."""
    for run in (1, 2):
        trials = table(run, shift=shift, topics="pain" if shared else f"pain{run}")
        rng = np.random.default_rng(10 + run)
        values = rng.normal(size=(len(trials), 1, 60))
        values[:, 0, :30] += trials["tokens"].to_numpy()[:, None]
        planted.dataset_run(root, trials, values, number=run)
    return bids.session(root)


def test_matched_runs_with_topics_of_their_own_are_said_to_be_so(tmp_path):
    session = dataset(tmp_path)
    result = experiments.measure(session, experiments.QualityPlan(), verbose=0)
    text = " ".join(repr(result).split())
    assert max(abs(run.d["tokens"]) for run in result.runs) < 1e-6
    assert "All runs are within that." in text
    assert "no two runs of a task have one in common" in text
    assert QualityResult.read(session).content() == result.content()


def test_differences_are_cohens_d_and_named_where_they_are_large(tmp_path):
    session = dataset(tmp_path, shift=1.0, shared=True)
    result = experiments.measure(session, experiments.QualityPlan(), verbose=0)
    for run, of_run in zip(session, result.runs, strict=True):
        events = run.events
        on = events["trial_type"] != "control"
        a, b = events.loc[on, "tokens"], events.loc[~on, "tokens"]
        pooled = ((len(a) - 1) * a.var() + (len(b) - 1) * b.var()) / (len(a) + len(b) - 2)
        assert of_run.d["tokens"] == pytest.approx((a.mean() - b.mean()) / np.sqrt(pooled))
        assert (of_run.n_topics, of_run.n_shared_topics) == (4, 4)
    text = " ".join(repr(result).split())
    assert "Not within that: pain in tokens" in text
    assert "2 runs of 2 share topics with others" in text


def test_covariates_take_out_what_the_length_does(tmp_path):
    session = dataset(tmp_path, shift=1.0)
    active = experiments.measure(session, experiments.QualityPlan(), verbose=0).active["pain"]
    assert active.covariates == ("tokens",)
    assert active.share > 0.4
    assert active.share_given < 0.05


def test_figures_can_be_drawn(tmp_path):
    result = experiments.measure(dataset(tmp_path), experiments.QualityPlan(), verbose=0)
    (section,) = result.sections()
    for plot in section.plots:
        assert plot.draw().figure.get_axes()
    assert [plot.stem for plot in section.plots] == ["quality_differences", "design_matrix"]
    assert "<img" in result._repr_html_()
