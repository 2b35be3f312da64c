"""Do the BIDS Stats Models of a dataset describe the analysis that we do?

pybids reads them here: it makes the design of each run, and says which runs are combined.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import planted
import pytest
from tests_support import contents, make_dataset

from llm2nifti import bids, experiments, glm, study
from llm2nifti.bids import checking, manifest, statsmodel
from llm2nifti.experiments.maps.plan import GlmPlan
from llm2nifti.plans import Design, ModelChoice, ScanPlan

DOCS = Path(__file__).resolve().parents[1] / "docs" / "first_level.md"
FITLINS = os.environ.get("LLM2NIFTI_FITLINS", "")
LENGTHS = tuple(range(1, 5)) * 7  # frames of 28 trials


def framed_trials(case: str) -> pd.DataFrame:
    """Trials with unbalanced question frames in both conditions, in control alone, or nowhere."""
    if case == "none":
        return planted.trials(levels=())
    table = planted.trials(levels=("a", "a", "b", "c", "b"))
    if case == "control":
        table.loc[table["trial_type"] == "pain", "question_frame"] = ""
    return table


def planted_dataset(root: Path, case: str, *, sessions=("",), **how) -> Path:
    """Two runs a session, in which task and question frames change all units."""
    for place, session in enumerate(sessions):
        for number in (1, 2):
            rng, table = np.random.default_rng([place, number]), framed_trials(case)
            values = rng.normal(size=(len(table), 4, 24)) + rng.normal(size=24)
            for column in ("trial_type", "question_frame"):
                for _, rows in table.groupby(column).indices.items():
                    values[rows] += rng.normal(size=24)
            planted.dataset_run(root, table, values, number=number, session=session, **how)
    for session in sessions:
        events = [run.events for run in bids.session(root, session=session or None)]
        statsmodel.write(root, "pain", events)
    return root


def graph_of(root: Path, **options):
    """What pybids makes of the model of the only task."""
    from bids import BIDSLayout, BIDSLayoutIndexer
    from bids.modeling import BIDSStatsModelsGraph

    indexer = BIDSLayoutIndexer(**options)
    layout = BIDSLayout(root, derivatives=root / bids.DERIVATIVES, indexer=indexer)
    graph = BIDSStatsModelsGraph(layout, json.loads(statsmodel.path(root, "pain").read_text()))
    graph.load_collections()
    return graph


def fixed_effects(root: Path, graph) -> dict[str, list[np.ndarray]]:
    """t maps by session: of each run and then of all, by numpy from what pybids says."""
    node, outputs, fits = graph.root_node, [], {}
    for output in node.run(group_by=node.group_by):
        (contrast,) = output.contrasts
        session = contrast.entities.get("session")
        run = bids.read(root, task="pain", run=contrast.entities["run"], session=session)
        weights = np.zeros(output.X.shape[1])
        weights[list(output.X).index(contrast.conditions[0])] = contrast.weights[0]
        # Read plainly: that the model is about this file is said by the model.
        values = nib.load(run.paths.trial_bold).get_fdata()[tuple(run.brain.voxels.T)].T
        X = output.X.to_numpy(float)
        fits[session, contrast.entities["run"]] = planted.lstsq_contrast(X, weights, values)
        outputs.append(contrast)
    (edge,) = node.children
    maps = {}
    for combined in edge.destination.run(outputs, group_by=edge.destination.group_by):
        session = combined.entities.get("session")
        parts = [fits[session, number] for number in sorted(combined.metadata["run"])]
        maps[session or ""] = [effect / np.sqrt(variance) for effect, variance, _ in parts]
        effects, variances = (sum(part[i] for part in parts) for i in (0, 1))
        maps[session or ""].append(effects / np.sqrt(variances))
    return maps


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("case", "how", "options"),
    [
        ("both", {"sessions": ("one", "two")}, {}),
        ("control", {"compress": True}, {}),
        ("none", {}, {}),
        # The events of the raw run are of its tokens.
        ("both", {"counts": LENGTHS}, {"ignore": [re.compile(r"_run-[0-9]+_events")]}),
    ],
)
def test_pybids_and_numpy_make_our_t_maps_of_it(case, how, options, tmp_path):
    root = planted_dataset(tmp_path / "ds", case, **how)
    maps = fixed_effects(root, graph_of(root, **options))
    assert sorted(maps) == sorted(how.get("sessions", [""]))
    for session, (*each, both) in maps.items():
        fitted = glm.fit(bids.session(root, session=session or None), verbose=0)
        for i, t in enumerate(each):
            ours = fitted.of_run(i).contrast("pain - control").t()
            np.testing.assert_allclose(t, ours, rtol=1e-9, atol=1e-9)
        ours = fitted.contrast("pain - control").t()
        np.testing.assert_allclose(both, ours, rtol=1e-9, atol=1e-9)


def test_it_has_what_the_specification_asks_for():
    """Required keys and controlled words of the BIDS Stats Models Specification 1.0."""
    model = json.loads(json.dumps(statsmodel.content("pain", [framed_trials("both")])))
    assert {"Name", "BIDSModelVersion", "Input", "Nodes"} <= set(model)
    assert model["Input"] == {"task": ["pain"], "desc": ["trial"]}
    assert [node["Level"] for node in model["Nodes"]] == ["Run", "Subject"]
    names = [node["Name"] for node in model["Nodes"]]
    assert model["Edges"] == [{"Source": names[0], "Destination": names[1]}]
    for node in model["Nodes"]:
        assert {"Level", "Name", "GroupBy", "Model"} <= set(node)
        # fitlins 0.11 and its examples write Meta, and pybids takes both.
        assert node["Model"]["Type"].lower() in ("glm", "meta")
        for contrast in node.get("Contrasts", []):
            assert set(contrast["ConditionList"]) <= set(node["Model"]["X"])
            assert len(contrast["Weights"]) == len(contrast["ConditionList"])
            assert contrast["Test"] == "t"
    assert model["Nodes"][1]["Model"]["Type"] == "Meta"
    for step in model["Nodes"][0]["Transformations"]["Instructions"]:
        assert {"Name", "Input"} <= set(step)


@pytest.mark.parametrize("frames", [["", ""], ["a", "a"], ["a", ""]])
def test_a_question_frame_that_all_share_is_no_nuisance(frames):
    trials = pd.DataFrame({"trial_type": ["control", "pain"], "question_frame": frames})
    assert len(glm.design_matrix(trials).columns) == 2
    model = statsmodel.content("pain", [trials])
    assert model["Nodes"][0]["Model"]["X"] == [1, "trial_type.pain"]


def test_a_scan_writes_it_once_and_again_where_it_is_lost(tiny_folders, tmp_path):
    sizes = {"n_runs": 1, "n_blocks": 2, "trials_per_block": 4, "n_frames": 1}
    design = Design(("pathology", "randomstrings"), **sizes)
    plan, root = ScanPlan(ModelChoice(name=str(tiny_folders["llama"])), design), tmp_path / "ds"
    study.scan(root, plan, verbose=0)
    before = contents(root)
    paths = [statsmodel.path(root, task) for task in ("pathology", "randomstrings")]
    assert sorted(root.glob("code/model-*_smdl.json")) == paths
    assert {manifest.name_of(root, path) for path in paths} <= set(manifest.written(root))
    for path in paths:
        assert "question_frame.*" in json.loads(path.read_text())["Nodes"][0]["Model"]["X"]
    paths[0].unlink()
    assert [problem.text for problem in checking.problems(root)] == ["missing"]
    study.scan(root, plan, verbose=0)
    assert contents(root) == before
    study.scan(root, plan, verbose=0)
    assert contents(root) == before


def test_glm_writes_it_to_a_dataset_that_has_none(tmp_path, validate):
    root = make_dataset(tmp_path / "ds")
    assert not list(root.glob("code/model-*"))  # as datasets of before
    assert checking.problems(root) == []
    session = bids.session(root)
    experiments.measure(session, GlmPlan(), verbose=0)
    paths = [statsmodel.path(root, task) for task in session.tasks]
    expected = {path: path.read_bytes() for path in paths}
    assert sorted(root.glob("code/model-*_smdl.json")) == sorted(paths)
    assert checking.problems(root) == []
    validate(root)
    paths[0].write_text("{}\n")  # of the user, who may have good reasons
    experiments.measure(session, GlmPlan(), verbose=0)
    assert paths[0].read_text() == "{}\n"
    assert paths[1].read_bytes() == expected[paths[1]]


def launcher() -> str:
    """The program of the documentation that runs fitlins with ordinary least squares."""
    section = DOCS.read_text("utf-8").partition("## fitlins\n")[2]
    return re.search(r"```python\n(.*?)```", section, re.S)[1]


@pytest.mark.skipif(not FITLINS, reason="LLM2NIFTI_FITLINS names no fitlins executable")
def test_fitlins_makes_our_maps(tmp_path):
    root, out = planted_dataset(tmp_path / "ds", "both"), tmp_path / "out"
    program = tmp_path / "fitlins_ols.py"
    program.write_text(launcher())
    space = bids.session(root).brain.space
    words = [root, out, "participant", "-m", "code/model-pain_smdl.json", "--desc-label", "trial"]
    words += ["--space", space, "--estimator", "nilearn", "--n-cpus", "1", "-w", tmp_path / "work"]
    alone = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [Path(FITLINS).with_name("python"), program, *words],
        cwd=tmp_path,
        env=alone,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    session = bids.session(root)
    fitted, start = glm.fit(session, verbose=0), "sub-planted_"
    end = "contrast-painVsControl_stat-t_statmap.nii.gz"
    for fit, node, name in [
        (fitted.of_run(0), "run", "run-1_"),
        (fitted.of_run(1), "run", "run-2_"),
        (fitted, "subject", ""),
    ]:
        path = out / f"node-{node}" / "sub-planted" / f"{start}{name}{end}"
        t = nib.load(path).get_fdata()[tuple(session.brain.voxels.T)]
        np.testing.assert_allclose(t, fit.contrast("pain - control").t(), rtol=1e-5, atol=1e-5)
