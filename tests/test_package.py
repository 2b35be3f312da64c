"""The wheel works from any folder, and brings its stimuli."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = (
    "from llm2nifti import stimuli; print(stimuli.data_folder()); "
    "print(len(stimuli.load(split=None)))"
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder with the wheel's content and nothing else of the checkout."""
    base = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", base / "dist", ROOT], check=True)
    wheel = next((base / "dist").glob("*.whl"))
    subprocess.run([*pip, "install", "--no-deps", "--target", base / "site", wheel], check=True)
    return base / "site"


def test_wheel_loads_its_stimuli_from_an_empty_folder(installed, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folder, rows = done.stdout.split()
    assert Path(folder) == installed / "llm2nifti" / "data"
    assert int(rows) >= 6 * 128 + 1024


def test_wheel_brings_the_report_template_and_type_marker(installed):
    names = {p.name for p in (installed / "llm2nifti").rglob("*")}
    assert {"report.html.j2", "py.typed"} <= names


def test_checkout_loads_the_same_stimuli(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.split()[0]) == ROOT / "data"


def test_every_runtime_dependency_is_explained_in_the_readme():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["cluster"]
    names = [re.split(r"[<>=]", text)[0] for text in needed]
    readme = (ROOT / "README.md").read_text("utf-8")
    assert not [name for name in names if f"`{name}`" not in readme]


def test_constraints_pin_every_runtime_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["cluster"]
    names = {re.split(r"[<>=]", text)[0].lower() for text in needed}
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().split()
    }
    assert names <= pinned


def shown_code():
    """Python of the README, the documentation and the notebooks, by file."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = "\n".join(re.findall(r"```python\n(.*?)```", path.read_text("utf-8"), re.S))
        yield path.name, text
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        lines = [line for c in cells if c["cell_type"] == "code" for line in c["source"]]
        yield path.name, "".join(f"{line.rstrip()}\n" for line in lines if line[0] != "%")


@pytest.mark.parametrize(("name", "code"), list(shown_code()), ids=lambda value: value[:24])
def test_what_shown_code_imports_is_there(name, code):
    made = {"llm2nifti.experiments.size"}  # by the page that adds an experiment
    for node in ast.walk(ast.parse(code)):
        module = getattr(node, "module", None) if isinstance(node, ast.ImportFrom) else None
        if module and module.startswith("llm2nifti") and module.rpartition(".")[0] not in made:
            there = importlib.import_module(module)
            gone = [a.name for a in node.names if not has(there, a.name)]
            assert not gone, f"{name} imports {gone} from {module}"


def has(module, name):
    """Whether a name can be imported from a module: what it holds, or a module in it."""
    inside = hasattr(module, "__path__") and importlib.util.find_spec(f"{module.__name__}.{name}")
    return hasattr(module, name) or bool(inside)


def test_the_verbs_of_the_package_are_those_of_its_modules():
    import llm2nifti
    from llm2nifti import bids, experiments, measure, run, scan, session, study

    assert (session, scan, run, measure) == (
        bids.session,
        study.scan,
        study.run,
        experiments.measure,
    )
    assert {"session", "scan", "run", "measure"} <= set(dir(llm2nifti))
    with pytest.raises(AttributeError, match="no attribute 'sacn'"):
        llm2nifti.sacn  # noqa: B018
