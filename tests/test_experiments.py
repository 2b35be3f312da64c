"""Every question in one shape: plans, measures and results, and a new one in three touch points."""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import house
import numpy as np
import pytest
from tests_support import make_dataset

from llm2nifti import bids, cli, experiments, report, study
from llm2nifti.experiments.results import Result
from llm2nifti.plans import Plan, PlanError, hints_of
from llm2nifti.study.studyfile import read_study

FOLDER = Path(experiments.__file__).parent
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/plan.py"))
PAGE = Path(__file__).parents[1] / "docs" / "add_an_experiment.md"


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_is_plan_measure_result(name):
    plan, measure, result = (
        import_module(f"llm2nifti.experiments.{name}.{part}")
        for part in ("plan", "measure", "result")
    )
    takes = list(inspect.signature(measure.measure).parameters.values())
    assert [each.name for each in takes[:2]] == ["session", "plan"]
    assert all(each.kind is each.KEYWORD_ONLY for each in takes[2:])
    kinds = [k for k in vars(result).values() if isinstance(k, type) and issubclass(k, Result)]
    assert any(k.__module__ == result.__name__ for k in kinds)
    commands = [k for k in vars(plan).values() if getattr(k, "command", "")]
    assert commands
    for kind in commands:
        assert issubclass(kind, Plan)
        assert all(hint in kind.__doc__ or _inherited(kind, hint) for hint in hints_of(kind))


def _inherited(kind, name):
    return any(f"{name} :" in (base.__doc__ or "") for base in kind.__mro__)


@pytest.mark.parametrize("name", NAMES)
def test_experiments_never_import_each_other(name):
    for path in (FOLDER / name).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom):
                imported = re.match(r"llm2nifti\.experiments\.(\w+)", node.module or "")
                assert not imported or imported[1] not in set(NAMES) - {name}, path


def test_the_picture_of_the_house_is_that_of_the_code():
    assert house.PAGE.read_text("utf-8") == house.page()
    for name in NAMES:
        assert name in house.picture()


def test_plans_refuse_what_is_unknown_or_impossible():
    for kind in experiments.commands().values():
        needed = {
            f.name: "x" for f in fields(kind) if f.default.__class__.__name__ == "_MISSING_TYPE"
        }
        assert kind(**needed)
        with pytest.raises(PlanError, match="devcie is not known"):
            kind.of({**needed, "devcie": "cuda"})
        with pytest.raises(TypeError, match="devcie"):
            kind(**needed, devcie="cuda")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The experiment of the page, in a folder of its own."""
    text = PAGE.read_text("utf-8")
    blocks = re.findall(r"`llm2nifti/experiments/(size/\w+\.py)`.*?```python\n(.*?)```", text, re.S)
    assert [name for name, _ in blocks] == [
        f"size/{part}.py" for part in ("__init__", "plan", "measure", "result")
    ]
    for name, code in blocks:
        (tmp_path / "more" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "more" / name).write_text(code, "utf-8")
    monkeypatch.setattr(experiments, "__path__", [*experiments.__path__, str(tmp_path / "more")])
    caches = (experiments._folders, experiments.commands)
    for cached in caches:
        cached.cache_clear()
    yield "llm2nifti.experiments.size"
    monkeypatch.undo()
    for cached in caches:
        cached.cache_clear()
    for module in [m for m in sys.modules if m.startswith("llm2nifti.experiments.size")]:
        del sys.modules[module]


def test_a_new_experiment_has_three_touch_points(toy, tmp_path, capsys):
    root = make_dataset(tmp_path / "ds")
    assert cli.main(["size", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "Compare squares instead of absolute values." in told
    assert "Example: llm2nifti size ds --task pathology" in told
    assert cli.main(["siez", str(root)]) == 2
    assert "did you mean size?" in capsys.readouterr().err
    assert cli.main(["size", str(root), "--squared", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "How large are activations?" in printed
    content = json.loads((root / bids.DERIVATIVES / "size.json").read_text())
    value = content["ratios"]["pathology"]["value"]
    assert f"{value:.2f} [" in printed
    assert value == pytest.approx(by_hand(root), rel=1e-5)
    study.analyse(bids.session(root), n_null=2, verbose=0)
    page = report.write(root, verbose=0).read_text("utf-8")
    assert "How large are activations?" in page
    assert 'href="#size"' in page
    path = tmp_path / "study.toml"
    path.write_text('dataset = "ds"\n[size]\nsquared = true\n[[model]]\nname = "a"\n')
    plan_kind = experiments.SizePlan
    assert plan_kind is import_module(f"{toy}.plan").SizePlan
    assert "SizePlan" in dir(experiments)
    assert read_study(path).measured == (plan_kind(squared=True),)
    result = experiments.measure(bids.session(root), plan_kind(squared=True))
    assert "<h3>How large are activations?</h3>" in result._repr_html_()
    assert "data:image/png" in result._repr_html_()
    assert list(result.tables()["ratios"].columns) == ["task", "ratio", "low", "high"]


def by_hand(root):
    """Ratio of the geometric means of the prompts' mean squares."""
    sizes = {True: [], False: []}
    for run in bids.session(root).of("pathology"):
        for values, kind in zip(run.values(), run.events["trial_type"], strict=True):
            sizes[kind != "control"].append(float(np.mean(values.astype(float) ** 2)))
    means = {kind: np.exp(np.mean(np.log(values))) for kind, values in sizes.items()}
    return means[True] / means[False]
