"""Do localizers, event-related, mixed and factorial designs show what they say?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from llm2nifti import stimuli
from llm2nifti.paradigm import (
    ParadigmError,
    Task,
    event_related,
    experiment,
    factorial,
    localizer,
    mixed,
)


@pytest.fixture(scope="module")
def bundled() -> pd.DataFrame:
    return stimuli.load(tasks=list(stimuli.LOCALIZERS))


def crossed(n: int = 8) -> pd.DataFrame:
    """Stimuli of two factors."""
    rows = [
        ("verbs", f"{kind} {tense} {i}", kind, tense)
        for kind in ("animate", "in-animate")
        for tense in ("past", "present")
        for i in range(n)
    ]
    table = pd.DataFrame(rows, columns=["task", "prompt", "kind", "tense"])
    return stimuli.check(table)


def test_localizer_shows_its_conditions_equally_often_in_blocks(bundled):
    run = localizer("language", n_blocks=3, trials_per_block=5, table=bundled)
    trials = run.trials
    assert trials["trial_type"].value_counts().to_dict() == {"sentences": 15, "nonwords": 15}
    assert (trials.groupby("block")["trial_type"].nunique() == 1).all()
    assert trials["block"].value_counts().tolist() == [5] * 6
    roles = trials.groupby("trial_type")["role"].unique().map(list).to_dict()
    assert roles == {"sentences": ["task"], "nonwords": ["control"]}
    assert (trials["trial_type"] == trials["condition"]).all()
    assert "15 task and 15 control trials" in repr(run)


def test_conditions_that_are_asked_for_are_shown_the_first_as_the_task(bundled):
    run = localizer("language", ["words", "nonwords", "sentences"], table=bundled)
    sides = dict(zip(run.trials["trial_type"], run.trials["role"], strict=True))
    assert sides == {"words": "task", "nonwords": "control", "sentences": "control"}


def test_localizer_of_pairs_shows_both_members_in_one_run_and_no_pair_twice(bundled):
    sizes = {"n_runs": 2, "n_blocks": 2, "trials_per_block": 10}
    runs = experiment(["arithmetic", "beliefs"], **sizes, table=bundled)
    for run in runs:
        by_pair = run.trials.groupby("pair")["trial_type"].agg(set)
        assert len(by_pair) == 20
        assert by_pair.map(len).eq(2).all()
    for task in ("arithmetic", "beliefs"):
        first, second = (set(run.trials["pair"]) for run in runs if run.task == task)
        assert not first & second


def test_seeds_decide_which_pairs_and_prompts_are_shown(bundled):
    for task in ("arithmetic", "language"):
        first, second = (
            set(localizer(task, seed=seed, table=bundled).trials["stim_id"]) for seed in (0, 1)
        )
        assert len(first & second) < len(first) / 2


def test_bundled_localizers_compare_conditions_that_their_tables_have(bundled):
    for task, conditions in stimuli.LOCALIZERS.items():
        known = set(bundled.loc[bundled["task"] == task, "condition"])
        assert set(conditions) <= known
        assert len(conditions) == 2


def test_event_related_trials_are_in_an_order_that_seeds_decide(bundled):
    one, other = (event_related("pathology", seed=seed) for seed in (0, 1))
    kinds = [(run.trials["trial_type"] == "pathology").to_numpy() for run in (one, other)]
    assert (kinds[0] != kinds[1]).any()
    for kind, run in zip(kinds, (one, other), strict=True):
        changes = np.flatnonzero(np.diff(kind)) + 1
        assert np.array_equal(np.flatnonzero(np.diff(run.trials["block"])) + 1, changes)
        assert len(changes) > 15  # blocks of the default design change 8 times
        assert kind.sum() == 24
    again = event_related("pathology", seed=0)
    assert again.trials["stim_id"].tolist() == one.trials["stim_id"].tolist()
    own = event_related("arithmetic", n_trials=9, table=bundled).trials
    assert own["trial_type"].value_counts().to_dict() == {"hard": 9, "easy": 9}


def test_mixed_blocks_hold_task_trials_among_controls():
    run = mixed("pathology", n_blocks=3, trials_per_block=6)
    is_task = run.trials["trial_type"] == "pathology"
    by_block = run.trials.assign(is_task=is_task).groupby("block")
    assert by_block["is_task"].mean().gt(0).tolist() == [False, True] * 3 + [False]
    assert by_block["is_task"].mean().lt(1).all()
    assert (by_block["sustained"].first() == [0, 1] * 3 + [0]).all()
    assert by_block["sustained"].nunique().eq(1).all()
    # Task trials are among the others, not after them.
    inside = run.trials[run.trials["sustained"] == 1]
    assert np.diff(is_task[inside.index].astype(int)).astype(bool).sum() > 6


def test_factorial_designs_show_every_combination_equally_often():
    run = factorial("verbs", ["kind", "tense"], n_blocks=2, trials_per_block=3, table=crossed())
    names = ["animate_past", "animate_present", "inanimate_past", "inanimate_present"]
    assert run.trials["trial_type"].value_counts().to_dict() == dict.fromkeys(names, 6)
    for name in names:
        rows = run.trials[run.trials["trial_type"] == name]
        assert set(rows["role"]) == {"task" if name.startswith("animate") else "control"}
        assert set(rows["tense"]) == {name.partition("_")[2]}


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (Task("language", conditions=("sentences", "noise")), "no condition 'noise'; there are"),
        (Task("language", conditions=("words",)), "condition 'words' alone: give two"),
        (Task("language", order="mixed"), "a mixed design needs the common control"),
        (Task("pathology", conditions=("a", "b")), "no condition 'a'; it has none of its own"),
        (Task("verbs", factors=("mood",)), "no column 'mood'"),
        (Task("verbs", factors=("split",)), "no column 'split'"),
        (Task("gaps", factors=("kind", "tense")), "no prompt of 'gaps' is b and past"),
        (Task("gaps", factors=("tense", "task")), "factor 'task' of 'gaps' has one level"),
        (
            Task("clash", factors=("kind", "tense")),
            "two conditions of 'clash' are called 'ab_past'",
        ),
        (Task("digits", factors=("kind",)), "condition '1' has no ASCII letter"),
    ],
)
def test_conditions_that_cannot_be_shown_are_named(task, said, bundled):
    gaps = [("gaps", "a", "past"), ("gaps", "a", "present"), ("gaps", "b", "present")]
    gaps += [("digits", "1", ""), ("digits", "2", "")]
    gaps += [("clash", kind, tense) for kind in ("a-b", "ab") for tense in ("past", "present")]
    more = pd.DataFrame(gaps, columns=["task", "kind", "tense"])
    more["prompt"] = [f"gap {i}" for i in range(len(more))]
    control = stimuli.load(tasks=["pathology"])
    table = pd.concat([bundled, crossed(), stimuli.check(more), control], ignore_index=True)
    table = table.drop_duplicates("stim_id")
    texts = ["condition", "kind", "tense"]
    table = table.assign(**{name: table[name].fillna("") for name in texts})
    with pytest.raises(ParadigmError, match=said):
        experiment([task], n_runs=1, n_blocks=1, trials_per_block=1, table=table)


def test_too_few_prompts_of_a_condition_say_how_many_there_are(bundled):
    with pytest.raises(ParadigmError, match=r"needs 4000 of them, the set has 120. Use fewer"):
        experiment(["arithmetic"], n_runs=4, n_blocks=10, trials_per_block=100, table=bundled)


def test_localizers_take_nothing_from_the_controls_of_other_tasks(bundled):
    table = stimuli.load(tasks=["pathology", "language"])
    alone = experiment(["pathology"], n_runs=1, table=table)[0]
    both = experiment(["language", "pathology"], n_runs=1, table=table)
    assert [run.task for run in both] == ["language", "pathology"]
    assert both[1].trials["stim_id"].tolist() == alone.trials["stim_id"].tolist()
