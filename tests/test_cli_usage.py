"""Usage errors: one line that names option, value and what is allowed, before anything is done."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
from tests_support import assert_same, contents, make_dataset, make_recording

from llm2nifti import bids, cli, experiments, scanner
from llm2nifti.cli import commands, plans
from llm2nifti.cli.options import as_options
from llm2nifti.experiments.nulls.plan import NullPlan
from llm2nifti.plans import PlanError

DATASET = ["run", "scan", "glm", "repeatability", "identification", "null", "report", "where"]
DATASET += [
    "fir",
    "localize",
    "quality",
    "topics",
    "lesion",
    "steer",
    "detect",
    "prune",
    "target",
    "train",
    "check",
    "monitor",
]
DATASET += ["connectivity", "decode", "decompose", "group", "rsa"]
NEEDED = {
    "prune": ["--network", "pathology", "--out", "small"],
    "target": ["--network", "pathology"],
    "train": ["--task", "pathology"],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in: nothing may appear there."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


def refused(capsys, *args):
    """What is said of wrong usage: one line, exit code 2."""
    code = cli.main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1), err
    return err


@pytest.mark.parametrize("name", DATASET)
@pytest.mark.parametrize("empty", ["", "   "])
def test_an_empty_dataset_is_refused_by_every_command(name, empty, folder, capsys):
    err = refused(capsys, name, empty, *NEEDED.get(name, []))
    assert f"llm2nifti {name}: dataset is {empty!r}: the value is empty" in err


def test_every_command_with_a_dataset_is_in_that_list():
    assert set(commands.plans_by_command()) == {*DATASET, "models", "stimuli"}


MISTYPED = {
    "leison ds": "there is no command 'leison'; did you mean lesion?",
    "glm ds other": "'other' is one argument too many",
    "glm ds --alpa 0.1": "Unknown option: --alpa; did you mean --alpha?",
    "glm ds --alpha 0.1 --alpha 0.2": "--alpha is given twice",
    "glm ds --alpha": "--alpha needs a value",
    "prune ds": "--network is missing",
    "lesion": "dataset is missing",
}


@pytest.mark.parametrize("typed", MISTYPED)
def test_a_mistyped_command_line_is_refused_with_what_was_meant(typed, folder, capsys):
    assert MISTYPED[typed] in refused(capsys, *typed.split())


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_dataset_is_refused_in_python_and_in_study_files(empty, folder, capsys):
    with pytest.raises(bids.paths.EmptyPathError, match="name the folder of the dataset"):
        bids.write(make_recording(), empty)
    with pytest.raises(bids.paths.EmptyPathError, match="name the folder of the dataset"):
        bids.runs(empty)
    path = folder / "study.toml"
    path.write_text(f'dataset = "{empty}"\n[[model]]\nname = "x"\n')
    assert "study.toml: dataset is '" in refused(capsys, "run", path)
    path.unlink()


NUMBERS = {  # of every command: its numeric options, and what each refuses
    "scan": {
        **dict.fromkeys(["n-runs", "n-blocks", "trials-per-block", "n-frames"], "0 -1 1.5 nan x"),
        "batch-size": "0",
        "threads": "0 -1",
        "seed": "-1 nan 1e3 99999999999",
        "temperature": "-1 nan inf",
        "fused-qkv": "foo",
        "mode": "foo",
        "frames": "foo",
        "template": "foo",
        "dtype": "foo",
        "split": "foo",
        "order": "foo",
        "preset": "foo",
    },
    "run": {"n-null": "0 -3"},
    "glm": {
        "alpha": "0 1 -1 nan inf x",
        "share": "0 nan 2",
        "height-control": "foo",
        "frames": "foo",
    },
    "null": {"n": "0 -1 x", "seed": "-1"},
    "identification": {"method": "foo", "n-boot": "-1"},
    "fir": {"alpha": "0 1", "n-null": "0 -1", "seed": "-1"},
    "localize": {"share": "0 1.1 nan", "n-splits": "0", "seed": "-1", "dtype": "foo"},
    "topics": {"alpha": "0 1", "n-null": "-1", "n-perm": "-1 x", "seed": "-1"},
    "lesion": {
        "share": "0 0.6 nan",
        "n-random": "0",
        "n-prompts": "0",
        "seed": "-1",
        "mode": "foo",
    },
    "steer": {"strength": "nan inf", "n-tokens": "0"},
    "detect": {"share": "0 1.1 nan", "threshold": "0 1 nan", "n-boot": "0"},
    "connectivity": {"n-null": "0 -1", "seed": "-1"},
    "decode": {"n-null": "0", "n-boot": "0 x"},
    "rsa": {"n-null": "0", "n-boot": "0", "seed": "-1"},
    "prune": {
        "share": "0 1 nan",
        "n-random": "0",
        "n-prompts": "-1",
        "n-pairs": "-1",
    },
    "target": {"top": "0 -1", "r": "0 -1", "lora-alpha": "0 -1 nan inf"},
    "train": {
        **dict.fromkeys(["top", "r", "seeds", "epochs", "n-texts", "threads"], "0 -1"),
        **dict.fromkeys(["lora-alpha", "learning-rate"], "0 -1 nan inf"),
    },
}


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name, options in NUMBERS.items() for option in options]
)
def test_values_that_make_no_sense_are_named(name, option, folder, capsys):
    for value in NUMBERS[name][option].split():
        err = refused(capsys, name, "ds", *NEEDED.get(name, []), f"--{option}={value}")
        assert err.startswith(f"llm2nifti {name}: --{option} is {value!r}; it must be ")


@pytest.mark.parametrize(
    "option", ["--subject", "--model", "--stimuli", "--task", "--out", "--author", "--license"]
)
def test_an_unset_variable_is_no_value(option, folder, capsys):
    commands_of = {"--stimuli": "run", "--task": "glm", "--author": "scan", "--license": "run"}
    name = commands_of.get(option, "target")
    needed = [] if option == "--out" else NEEDED.get(name, [])
    needed = ["--network", "pathology"] if option == "--out" else needed
    err = refused(capsys, name, "ds", option, "", *needed)
    assert f"{option} is '': the value is empty" in err


@pytest.mark.parametrize("args", [["--voxel", "1", "1", "1"], ["1", "1", "1", "--voxel"]])
def test_where_takes_a_voxel_in_either_order(args, tmp_path, capsys):
    root = make_dataset(tmp_path / "ds")
    voxel = bids.read(root, task="pathology").brain.voxels[3].tolist()
    args = [str(voxel.pop(0)) if arg == "1" else arg for arg in args]
    assert cli.main(["where", str(root), *args, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unit"] == 3


def test_python_callers_get_a_value_error_in_pythons_words(tmp_path):
    bids.write(make_recording(), tmp_path)
    with pytest.raises(bids.ExistsError, match="overwrite=True"):  # README's first lines, again
        bids.write(make_recording(), tmp_path)
    for wrong in ({"fused_qkv": "foo"}, {"template": "foo"}, {"seed": -1}):
        (name,) = wrong
        with pytest.raises(PlanError, match=f"{name} is"):
            scanner.Settings(**wrong)
    before = contents(tmp_path)
    for wrong in ({"n": 0}, {"seed": -1}):
        with pytest.raises(PlanError, match="at least"):
            experiments.measure(bids.session(tmp_path), NullPlan(**wrong))
    assert_same(tmp_path, before)


@pytest.mark.parametrize(
    ("python", "shell"),
    [
        ("replace it with overwrite=True", "replace it with --overwrite"),
        ("use mode='read'", "use --mode read"),
        ("use frames='trial', 'token' or 'last'.", "use --frames trial, token or last."),
        ("use batch_size=1", "use --batch-size 1"),
        ("record by sites='regex:...'", "record by --sites 'regex:...'"),
        ("say where it is with model=...", "say where it is with --model"),
        ("the formula a=True", "the formula a=True"),
        ("contrast 'my_mode=True'", "contrast 'my_mode=True'"),
    ],
)
def test_messages_are_translated_for_the_command_line(python, shell):
    assert as_options(python) == shell


@pytest.mark.parametrize("quiet", [True, False])
def test_quiet_silences_the_bars_of_other_libraries(quiet):
    code = """if True:
        import sys
        from llm2nifti import cli
        from llm2nifti.cli import commands, plans
        def handler(*_, **__):
            import tqdm.auto
            from transformers.utils import logging
            list(tqdm.auto.tqdm(range(3)))
            list(logging.tqdm(range(3)))
        commands.handler_of = lambda _: handler
        cli.main(sys.argv[1:])
    """
    options = ["--quiet"] if quiet else []
    call = [sys.executable, "-c", code, "models", *options]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    assert ("3/3" in done.stderr) is not quiet


def test_json_lines_hold_no_other_line_ends(capsys, monkeypatch):
    text = "a\u2028b\u2029c\u0085d\x0be\x1cf\n"
    commands.print_line({"prompt": text})
    line = capsys.readouterr().out
    assert len(line.splitlines()) == 1
    assert json.loads(line) == {"prompt": text}
    assert len(list(io.StringIO(line))) == 1


@pytest.mark.parametrize(
    ("args", "n_runs"),
    [([], 3), (["--preset", "thorough"], 6), (["--preset", "thorough", "--n-runs", "4"], 4)],
)
def test_a_preset_gives_the_sizes_that_are_not_given(args, n_runs):
    given = {"n_runs": int(args[3])} if len(args) > 2 else {}
    options = plans.ScanOptions(preset=args[1] if args else "default")
    (plan,) = commands._what("ds", given, options).plans
    assert plan.design.n_runs == n_runs
