"""Is what is shown balanced, never repeated, and refused when the stimuli do not suffice?"""

from __future__ import annotations

from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
import pytest
from tests_support import count_calls

from llm2nifti import paradigm, stimuli
from llm2nifti.paradigm import ParadigmError, blocks, experiment
from llm2nifti.stimuli import CONTROL, TASKS

SIZES = [(1, 2), (2, 2), (3, 5), (2, 4), (4, 6), (8, 3)]  # on-blocks, trials in each


@pytest.fixture(scope="module")
def whole() -> list[paradigm.Paradigm]:
    return experiment(TASKS, n_runs=3, n_blocks=4, trials_per_block=6)


def halves(design: paradigm.Paradigm) -> tuple[pd.DataFrame, pd.DataFrame]:
    is_off = design.trials["trial_type"] == CONTROL
    return design.trials[~is_off], design.trials[is_off]


def plain_table(**n_prompts: int) -> pd.DataFrame:
    """A user's table of bare prompts."""
    rows = [(task, f"{task} {i}") for task, n in n_prompts.items() for i in range(n)]
    return stimuli.check(pd.DataFrame(rows, columns=["task", "prompt"]))


@pytest.mark.parametrize(("n_blocks", "trials_per_block"), SIZES)
def test_blocks_alternate_and_begin_and_end_with_control(n_blocks, trials_per_block):
    design = blocks("archeology", n_blocks=n_blocks, trials_per_block=trials_per_block)
    trials = list(zip(design.trials["block"], design.trials["trial_type"], strict=True))
    shown = [trials[0], *(after for before, after in pairwise(trials) if after != before)]
    kinds = [CONTROL, "archeology"] * n_blocks + [CONTROL]
    assert shown == list(enumerate(kinds, start=1))


@pytest.mark.parametrize(("n_blocks", "trials_per_block"), SIZES)
def test_blocks_have_the_asked_size(n_blocks, trials_per_block):
    design = blocks("archeology", n_blocks=n_blocks, trials_per_block=trials_per_block)
    on, off = halves(design)
    assert set(Counter(on["block"]).values()) == {trials_per_block}
    sizes = Counter(off["block"]).values()
    assert max(sizes) - min(sizes) <= 1
    assert len(off) / len(on) <= 1.5
    one_more_of_each_frame = len(off) + 8
    assert min(sizes) >= trials_per_block or one_more_of_each_frame / len(on) > 1.5
    assert design.n_trials == len(on) + len(off)
    assert f"{len(on)} task and {len(off)} control" in repr(design)


@pytest.mark.parametrize(("n_blocks", "trials_per_block"), SIZES)
def test_question_frames_differ_by_one_trial_at_most(n_blocks, trials_per_block):
    design = blocks("archeology", n_blocks=n_blocks, trials_per_block=trials_per_block)
    frames = set(stimuli.load().query("task == 'archeology'")["frame"])
    for rows in halves(design):
        times = [(rows["question_frame"] == frame).sum() for frame in frames]
        assert sum(times) == len(rows)
        assert max(times) - min(times) <= 1


def test_question_frames_are_equally_frequent_in_both_conditions(whole):
    for design in whole:
        on, off = halves(design)
        shares = off["question_frame"].value_counts(normalize=True).to_dict()
        assert on["question_frame"].value_counts(normalize=True).to_dict() == shares


def test_controls_of_bare_strings_have_every_question_frame_equally_often():
    table = stimuli.load(tasks=["rawstrings"])
    on, off = halves(blocks("rawstrings", table=table))
    assert set(on["question_frame"]) == {""}
    assert len(set(off["question_frame"].value_counts())) == 1


def test_control_trials_of_a_run_are_all_of_different_topics(whole):
    for design in whole:
        _, off = halves(design)
        assert off["topic"].is_unique


def test_runs_of_a_task_have_topics_of_their_own_which_together_are_all(whole):
    table = stimuli.load()
    for task in TASKS:
        topics = [set(halves(d)[0]["topic"]) for d in whole if d.task == task]
        assert sum(map(len, topics)) == len(set().union(*topics))
        assert set().union(*topics) == set(table.loc[table["task"] == task, "topic"])


def test_topics_of_a_run_are_shown_about_equally_often(whole):
    for design in whole:
        counts = halves(design)[0]["topic"].value_counts()
        assert counts.max() - counts.min() <= 1 + (design.task == "randomstrings")


def test_runs_share_topics_only_where_these_do_not_suffice():
    rows = [("music", f"topic {i % 2}", f"song {i}") for i in range(40)]
    rows += [("control", f"other {i}", f"thing {i}") for i in range(80)]
    table = pd.DataFrame(rows, columns=["task", "topic", "concept"])
    table = stimuli.check(table.assign(prompt=table["concept"]))
    sizes = {"n_blocks": 2, "trials_per_block": 4, "table": table}
    first, second = experiment(["music"], n_runs=2, **sizes)
    assert set(halves(first)[0]["topic"]).isdisjoint(halves(second)[0]["topic"])
    for design in experiment(["music"], n_runs=3, **sizes):
        assert len(halves(design)[0]) == 8


def test_no_concept_is_shown_twice_in_an_experiment(whole):
    assert [(d.run, d.task) for d in whole] == [(run, t) for run in (1, 2, 3) for t in TASKS]
    shown = [{c.casefold() for c in design.trials["concept"]} for design in whole]
    assert [len(concepts) for concepts in shown] == [design.n_trials for design in whole]
    assert all(a.isdisjoint(b) for a, b in combinations(shown, 2))


def test_trials_are_rows_of_the_evaluation_split(whole):
    rows = stimuli.load(split="evaluation").set_index("stim_id")
    for design in (*whole, blocks("pathology")):
        told = design.trials.set_index("stim_id")
        columns = {"trial_type": "task", "question_frame": "frame"}
        source = rows.loc[told.index]
        for name in ("trial_type", "topic", "concept", "question_frame", "prompt"):
            assert told[name].tolist() == source[columns.get(name, name)].tolist()


def test_seed_decides_what_is_shown():
    same = [blocks("pathology", seed=3).trials for _ in range(2)]
    pd.testing.assert_frame_equal(*same)
    other = blocks("pathology", seed=4).trials
    assert set(other["stim_id"]) != set(same[0]["stim_id"])
    assert other["question_frame"].tolist() != same[0]["question_frame"].tolist()
    orders = [
        [d.trials["stim_id"].tolist() for d in experiment(n_runs=1, seed=s)] for s in (0, 0, 1)
    ]
    assert orders[0] == orders[1]
    assert all(a != b for a, b in zip(orders[0], orders[2], strict=True))


@pytest.mark.parametrize("n_frames", [1, 5])
def test_events_follow_each_other_without_a_gap(n_frames):
    designs = [blocks("pathology", n_frames=n_frames)]
    designs += experiment(["pathology"], n_runs=1, n_frames=n_frames)
    for design in designs:
        onset = 0.0
        assert design.n_frames == n_frames
        assert list(design.events.columns[:2]) == ["onset", "duration"]
        for event in design.events.itertuples():
            assert (event.onset, event.duration) == (onset, n_frames * design.t_r)
            onset += event.duration
        assert onset == design.n_trials * n_frames * design.t_r
        pd.testing.assert_frame_equal(design.events.iloc[:, 2:], design.trials)


def test_slower_frames_last_longer():
    trials = blocks("pathology").trials
    events = paradigm.Paradigm("pathology", 1, n_frames=4, trials=trials, t_r=0.5).events
    assert events["onset"].tolist()[:3] == [0.0, 2.0, 4.0]


def test_used_concepts_are_not_shown_again():
    used: set[str] = set()
    first, second = (blocks("pathology", used=used).trials["concept"] for _ in range(2))
    assert {c.casefold() for c in (*first, *second)} == used
    assert len(used) == len(first) + len(second)


def test_users_table_needs_no_question_frames_or_topics():
    table = plain_table(music=16, control=36)
    before = table.copy()
    designs = experiment(["music"], n_runs=2, n_blocks=2, trials_per_block=4, table=table)
    for design in designs:
        on, off = halves(design)
        assert (len(on), len(off)) == (8, 12)
        assert set(design.trials["question_frame"]) == {""}
    shown = pd.concat([design.trials for design in designs])
    assert shown["prompt"].is_unique
    assert set(table.loc[table["task"] == "music", "prompt"]) < set(shown["prompt"])
    assert set(shown["prompt"]) < set(table["prompt"])
    pd.testing.assert_frame_equal(table, before)


def test_control_keeps_to_the_question_frames_of_the_task():
    rows = [("music", f"m{i}", f"m{i}", "abc"[i % 2]) for i in range(8)]
    rows += [(CONTROL, f"t{i}", f"c{i}", "abc"[i % 3]) for i in range(36)]
    table = pd.DataFrame(rows, columns=["task", "topic", "concept", "frame"])
    table = stimuli.check(table.assign(prompt=table["concept"] + table["frame"]))
    _, off = halves(blocks("music", n_blocks=2, trials_per_block=4, table=table))
    assert Counter(off["question_frame"]) == {"a": 6, "b": 6}


def test_control_lasts_where_topics_are_unequally_large():
    topics = [f"large {i % 6}" for i in range(12)] + [f"small {i}" for i in range(12)]
    table = plain_table(music=16, control=24)
    table.loc[table["task"] == CONTROL, "topic"] = topics
    designs = experiment(["music"], n_runs=2, n_blocks=2, trials_per_block=4, table=table)
    assert all(halves(design)[1]["topic"].is_unique for design in designs)


@pytest.mark.parametrize(
    ("n_prompts", "pool", "needed"),
    [
        ({"music": 3 * 8 - 1, CONTROL: 100}, "music", 3 * 8),
        ({"music": 100, CONTROL: 3 * 8}, CONTROL, 3 * 12),
        ({"music": 100, "poetry": 100, CONTROL: 6 * 8}, CONTROL, 6 * 12),
    ],
)
def test_running_out_says_how_many_are_needed(n_prompts, pool, needed):
    tasks = [task for task in n_prompts if task != CONTROL]
    sizes = {"n_runs": 3, "n_blocks": 2, "trials_per_block": 4}
    said = rf"'{pool}'.*run 3 of 3.*needs {needed} of them, the set has {n_prompts[pool]}\."
    with pytest.raises(ParadigmError, match=said):
        experiment(tasks, **sizes, table=plain_table(**n_prompts))
    enough = plain_table(**{**n_prompts, pool: needed})
    assert len(experiment(tasks, **sizes, table=enough)) == 3 * len(tasks)


def test_single_run_that_is_too_long_says_what_is_left():
    with pytest.raises(ParadigmError, match=r"'music' has 7 unused prompts, a run needs 8 "):
        blocks("music", n_blocks=2, trials_per_block=4, table=plain_table(music=7, control=100))


@pytest.mark.parametrize("name", ["n_blocks", "trials_per_block", "n_frames", "n_runs"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_below_one_are_refused(name, value):
    with pytest.raises(ParadigmError, match=f"{name} is {value}; it must be at least 1"):
        experiment(["pathology"], **{name: value})


def test_too_few_trials_for_the_off_blocks_are_refused():
    with pytest.raises(ParadigmError, match="9 off-blocks; use more trials_per_block"):
        blocks("pathology", n_blocks=8, trials_per_block=1)


@pytest.mark.parametrize("task", ["astrology", CONTROL])
def test_unknown_task_is_refused_with_the_known_ones(task):
    with pytest.raises(ParadigmError, match=f"no task '{task}'.*pathology, randomstrings"):
        blocks(task)


def test_doubled_task_is_refused():
    with pytest.raises(ParadigmError, match="'pathology' is given twice"):
        experiment(["pathology", "archeology", "pathology"])


def random_table(rng, n_tasks, *, framed=True):
    """Tasks and controls with clashing concepts in upper and lower case, uneven topics, frames."""
    rows = []
    for task in [*(f"task{i}" for i in range(n_tasks)), CONTROL]:
        n_topics, n = (24, 80 * n_tasks) if task == CONTROL else (3, 80)
        for i in range(n):
            name = f"word{i // 2}" if i % 10 == 0 else f"{task} word{i // 2}"
            concept = [name, name.title(), name.upper()][int(rng.integers(3))]
            topic = f"{task} {int(rng.integers(n_topics) ** 0.9)}"
            rows.append((task, topic, concept, "ba"[int(rng.integers(2))] if framed else ""))
    table = pd.DataFrame(rows, columns=["task", "topic", "concept", "frame"])
    return stimuli.check(table.assign(prompt=[f"prompt {i}" for i in range(len(table))]))


@pytest.mark.parametrize("framed", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_designs_of_uneven_tables_are_balanced_and_show_nothing_twice(seed, framed):
    table = random_table(np.random.default_rng(seed), 3, framed=framed)
    tasks = ["task2", "task0", "task1"]
    sizes = {"n_runs": 2, "n_blocks": 2, "trials_per_block": 4, "seed": seed}
    for design in experiment(tasks, **sizes, table=table):
        on, off = halves(design)
        assert (len(on), len(off)) == (8, 12)
        assert set(on["trial_type"]) == {design.task}
        assert off["topic"].is_unique
        for rows in (on, off):
            counts = rows["question_frame"].value_counts()
            assert counts.max() - counts.min() <= 1
    shown = pd.concat([d.trials for d in experiment(tasks, **sizes, table=table)])
    assert shown["concept"].str.casefold().is_unique
    source = table.set_index("stim_id").loc[shown["stim_id"]]
    for name, column in {"task": "trial_type", "concept": "concept", "prompt": "prompt"}.items():
        assert shown[column].tolist() == source[name].tolist()


def test_the_work_of_a_design_grows_with_the_number_of_tasks_and_not_faster():
    calls = []
    for n in (10, 20, 40):
        table = plain_table(**{f"task{i}": 16 for i in range(n)}, control=24 * n)
        sizes = {"n_runs": 2, "n_blocks": 2, "trials_per_block": 4, "table": table}
        calls.append(
            count_calls(lambda n=n, s=sizes: experiment([f"task{i}" for i in range(n)], **s))
        )
    assert calls[2] < 4.2 * calls[0]
