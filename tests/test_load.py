"""Does a dataset of many tasks stay quick to analyse and easy to read?"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests_support import count_calls, make_recording

from llm2nifti import bids, paradigm, plotting, report, stimuli, study
from llm2nifti.experiments.identification.measure import measure as identify
from llm2nifti.experiments.identification.plan import IdentificationPlan
from llm2nifti.experiments.maps import result as maps
from llm2nifti.experiments.maps.measure import measure as fit
from llm2nifti.experiments.maps.plan import GlmPlan
from llm2nifti.experiments.repeatability import result as repeatability
from llm2nifti.experiments.repeatability.measure import measure as compare
from llm2nifti.experiments.repeatability.plan import RepeatabilityPlan

CONTROL = stimuli.CONTROL


def make_runs(root: Path, n_tasks: int) -> list[bids.Run]:
    """Two runs of each of many tasks, the later ones with the stronger effects."""
    counts = {**{f"task{i:02d}": 16 for i in range(n_tasks)}, CONTROL: 30 * n_tasks}
    rows = [
        (task, f"{task} {i % (20 if task == CONTROL else 4)}", f"{task} prompt {i}")
        for task, n in counts.items()
        for i in range(n)
    ]
    table = stimuli.check(pd.DataFrame(rows, columns=["task", "topic", "prompt"]))
    tasks = list(counts)[:-1]
    sizes = {"n_runs": 2, "n_blocks": 2, "trials_per_block": 4, "n_frames": 1}
    for i, design in enumerate(paradigm.experiment(tasks, **sizes, table=table)):
        random = make_recording(seed=i)
        n = design.n_trials
        values = random.values[:n]
        values[(design.trials["trial_type"] != CONTROL).to_numpy(), :12] += i % n_tasks
        parts = {"responses": random.responses[:n], "rendered": random.rendered[:n]}
        tokens = random.tokens[:n].assign(trial=range(n))
        bids.write(replace(random, paradigm=design, values=values, tokens=tokens, **parts), root)
    return bids.session(root)


def test_the_work_of_an_analysis_grows_with_the_number_of_tasks_and_not_faster(tmp_path):
    calls = []
    for n_tasks in (4, 8, 16):
        runs = make_runs(tmp_path / str(n_tasks), n_tasks)
        steps = ((fit, GlmPlan), (compare, RepeatabilityPlan), (identify, IdentificationPlan))
        work = sum(
            count_calls(lambda step=step, plan=plan, r=runs: step(r, plan(), verbose=0))
            for step, plan in steps
        )
        calls.append(work - n_tasks**2)  # a call for each pair of tasks, which is output
    assert calls[2] - calls[1] < 2.2 * (calls[1] - calls[0])


@pytest.fixture(scope="module")
def page_and_summary(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    """Page of ten tasks where maps of three and 41 pairs are shown, and its numbers."""
    root = tmp_path_factory.mktemp("load") / "ds"
    make_runs(root, 10)
    summary = study.analyse(bids.session(root), n_null=10, verbose=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maps, "MOST_MAPS", 3)
        patch.setattr(repeatability, "MOST_PAIRS", 41)
        return report.write(root, verbose=0).read_text("utf-8"), summary


def test_a_page_of_many_tasks_shows_the_maps_of_the_largest_networks_and_says_so(page_and_summary):
    page, summary = page_and_summary
    shown = re.findall(r"<h3>(task\d+)</h3>", page)
    sizes = {task: numbers.n_active for task, numbers in summary.tasks.items()}
    assert len(shown) == 3
    assert shown == sorted(shown)
    others = [size for task, size in sizes.items() if task not in shown]
    assert min(sizes[task] for task in shown) >= max(others)
    assert "Of 10 tasks, maps, example prompts and bars are shown of the 3 with the" in page
    examples = page.split('aria-label="Example prompts and responses"')[1].split("</table>")[0]
    assert set(re.findall(r">(task\d+)<", examples)) == set(shown)


def test_tables_of_a_page_have_all_tasks_and_long_ones_scroll(page_and_summary):
    page, _ = page_and_summary
    for name in ("Result of each task", "Checks of each task's model"):
        found = page.split(f'aria-label="{name}"'.replace("'", "&#39;"))[1].split("</table>")[0]
        assert len(re.findall(r'<th scope="row">task\d+</th>', found)) == 10
    before, pairs = page.split('aria-label="Pairs of tasks by similarity"')
    assert before.endswith('<div class="scroll long" role="region" ')
    assert pairs.split("</table>")[0].count('<th scope="row">') == 41
    assert "The first 41 of 45 pairs" in page
    assert page.count('class="scroll long"') == 1


def test_a_large_matrix_is_a_picture_with_some_of_its_names():
    names = [f"task{i:03d}" for i in range(200)]
    values = np.random.default_rng(0).normal(size=(200, 200))
    ax = plotting.plot_matrix(values, names)
    assert not ax.texts
    np.testing.assert_array_equal(ax.images[0].get_array(), values)
    shown = [label.get_text() for label in ax.get_yticklabels()]
    assert 20 <= len(shown) <= 40
    assert [names[int(place)] for place in ax.get_yticks()] == shown
    assert max(ax.figure.get_size_inches()) < 12
