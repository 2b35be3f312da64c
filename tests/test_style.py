"""Does the code keep the budgets of its design?"""

from __future__ import annotations

import ast
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import llm2nifti

PACKAGE = Path(llm2nifti.__file__).resolve().parent
ROOT = PACKAGE.parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted(Path(__file__).parent.glob("*.py"))
MODULES = sorted(
    path.stem
    for path in PACKAGE.iterdir()
    if (path.suffix == ".py" or (path / "__init__.py").exists())
    and path.stem not in ("__init__", "defaults")
)
MAY_PRINT = {
    "cli/__init__.py",
    "cli/program.py",
    "cli/stopping.py",
    "cli/commands.py",
    "models/cache.py",
}  # the cache says on stderr that it downloads
Function = ast.FunctionDef | ast.AsyncFunctionDef
each_source = pytest.mark.parametrize(
    "path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix()
)


def n_lines(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def functions(path: Path) -> list[Function]:
    """All functions, nested ones as their own."""
    return [node for node in ast.walk(tree(path)) if isinstance(node, Function)]


def body_length(function: Function) -> int:
    """Lines of the body, without the docstring and without functions inside it."""
    body = function.body[ast.get_docstring(function) is not None :]
    if not body:
        return 0
    lines = set(range(body[0].lineno, body[-1].end_lineno + 1))
    for node in ast.walk(function):
        if isinstance(node, Function) and node is not function:
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def public(nodes: list[ast.stmt]) -> list[Function | ast.ClassDef]:
    """Functions, classes and methods that users see; the class explains its ``__init__``."""
    found = []
    for node in nodes:
        named = isinstance(node, Function | ast.ClassDef)
        if named and not re.match("_(?!_)|__init__", node.name):
            found.append(node)
            # The members of a protocol only repeat what other classes explain.
            if isinstance(node, ast.ClassDef) and "Protocol" not in map(ast.unparse, node.bases):
                found += public(node.body)
    return found


def arguments(function: Function) -> list[ast.arg]:
    args = function.args
    named = [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]
    return [arg for arg in named if arg is not None and arg.arg not in ("self", "cls")]


def parameters_section(docstring: str) -> set[str]:
    """Names before the colons of a numpydoc Parameters section; empty where there is none."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[^\n]*\n---|\Z)", docstring, re.M | re.S)
    heads = re.findall(r"^[\w*][\w*, ]*", section.group(1), re.M) if section else []
    return {name.strip().lstrip("*") for head in heads for name in head.split(",")}


@each_source
def test_file_has_at_most_400_lines(path):
    assert n_lines(path) <= 400


@each_source
def test_function_bodies_have_at_most_60_lines(path):
    long = {f.name: body_length(f) for f in functions(path) if body_length(f) > 60}
    assert long == {}


def test_most_function_bodies_are_short():
    lengths = [body_length(function) for path in SOURCES for function in functions(path)]
    assert len(lengths) > 100
    assert statistics.median(lengths) <= 10
    assert statistics.quantiles(lengths, n=10)[-1] <= 30


@each_source
def test_everything_public_has_a_docstring(path):
    module = tree(path)
    bare = [node.name for node in public(module.body) if not ast.get_docstring(node)]
    assert bare == []
    assert ast.get_docstring(module)


@each_source
def test_parameters_are_explained_where_there_are_many(path):
    module = tree(path)
    shared = set(re.findall(r"(?<!`)`(\w+)`(?!`)", ast.get_docstring(module) or ""))
    for function in public(module.body):
        if isinstance(function, Function):
            takes = {arg.arg for arg in arguments(function)}
            told = parameters_section(ast.get_docstring(function) or "")
            assert told <= takes, function.name
            assert takes <= told | shared or (not told and len(takes) <= 4), function.name


@each_source
def test_annotations_are_complete(path):
    for function in functions(path):
        assert function.returns is not None, function.name
        bare = [arg.arg for arg in arguments(function) if arg.annotation is None]
        assert bare == [], function.name


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_its_test_file(module):
    assert (ROOT / "tests" / f"test_{module}.py").exists()


@each_source
def test_only_the_command_line_prints(path):
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    prints = [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
    assert prints == [] or path.relative_to(PACKAGE).as_posix() in MAY_PRINT


def test_importing_the_package_loads_nothing_heavy():
    heavy = ["torch", "transformers", "pandas", "nibabel", "nilearn", "numpy", "scipy"]
    code = f"import sys, llm2nifti; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_no_tracked_file_names_a_path_of_this_machine():
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    # Spelled in parts, so that this file does not find itself.
    local = re.compile(rb"(?<![\w.~<>/-])/(?:" + b"|".join([b"root", b"work", b"home"]) + rb")\b/?")
    found = [f.name for f in files if f.is_file() and local.search(f.read_bytes())]
    assert len(files) > len(SOURCES)
    assert found == []


def n_code_lines(path: Path) -> int:
    """Lines that hold code: numpydoc docstrings and comments are not what tests have to match."""
    docstrings = {
        line
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, node.end_lineno + 1)
    }
    lines = enumerate(path.read_text("utf-8").splitlines(), start=1)
    return sum(
        1 for n, text in lines if n not in docstrings and text.strip() and text.strip()[0] != "#"
    )


# Analyses that came after the house was rebuilt.
ANALYSES = ("connectivity", "decoding", "decomposition", "fir", "group", "localizer", "rsa")


def test_tests_are_about_as_long_as_the_code():
    code, tests = (sum(map(n_code_lines, paths)) for paths in (SOURCES, TESTS))
    assert 0.7 <= tests / code <= 1.4, (
        f"{tests} lines of tests to {code} of code: {tests / code:.2f}"
    )


def test_the_package_keeps_its_budgets():
    """What issue after issue may not undo; the goal for the lines before analyses is 17,000."""
    analyses = [path for path in SOURCES if path.parent.name in ANALYSES]
    assert analyses
    assert sum(n_lines(path) for path in SOURCES if path not in analyses) <= 26_500
    assert max(map(n_lines, analyses)) <= 250
    text = "".join(path.read_text("utf-8") for path in SOURCES)
    assert text.count("dict[str, Any]") <= 25
    for path in SOURCES:
        for node in tree(path).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                assert len(ast.literal_eval(node.value)) <= 30, path


def test_no_two_classes_have_one_name():
    names = [n.name for p in SOURCES for n in ast.walk(tree(p)) if isinstance(n, ast.ClassDef)]
    assert not {name for name in names if names.count(name) > 1}


def test_variables_say_what_they_hold():
    for path in SOURCES:
        names = {getattr(node, "id", getattr(node, "arg", "")) for node in ast.walk(tree(path))}
        assert not names & {"found", "some", "own"}, path
