"""The command line: help with examples, JSON, exit codes, one clear line an error."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests_support import make_dataset

from llm2nifti import bids, cli, geometry, glm, networks, study
from llm2nifti.cli.commands import plans_by_command

COMMANDS = ["run", "scan", "glm", "repeatability", "identification", "null", "report", "where"]
COMMANDS += [
    "models",
    "stimuli",
    "lesion",
    "steer",
    "monitor",
    "detect",
    "prune",
    "fir",
    "localize",
    "quality",
    "target",
    "topics",
    "train",
    "check",
    "decompose",
    "connectivity",
    "decode",
    "rsa",
    "group",
]
README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("cli") / "ds")


def call(capsys, *args):
    code = cli.main([str(arg) for arg in args])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_readme_mentions_the_command(command, capsys):
    assert cli.main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert f"Example: llm2nifti {command}" in " ".join(printed.split())
    assert "--json" in printed
    assert f"llm2nifti {command}" in README.read_text("utf-8")


def test_every_command_is_listed_in_the_tests():
    assert set(plans_by_command()) == set(COMMANDS)


def test_help_imports_no_heavy_library():
    code = (
        "import sys, contextlib, io\n"
        "from llm2nifti import cli\n"
        "for args in (['--help'], ['run', '--help']):\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        cli.main(args)\n"
        "heavy = {'torch', 'transformers', 'nilearn', 'pandas', 'numpy', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_analysis_commands_load_no_torch(dataset):
    code = (
        "import sys\nfrom llm2nifti import cli\n"
        f"assert cli.main(['null', {str(dataset)!r}, '--n', '2', '--quiet', '--json']) == 0\n"
        "assert 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("args", "keys"),
    [
        (["glm", "--quiet"], {"tasks"}),
        (["repeatability", "--quiet"], {"tasks", "r", "dice", "same_task_r"}),
        (["identification", "--quiet"], {"runs", "trials", "prompts"}),
        (["null", "--n", "5", "--quiet"], {"relabelled", "pseudo_tasks", "token_level"}),
        (["where", "--unit", "h.1.mlp:3"], {"layer", "site", "module", "unit", "voxel", "mm"}),
    ],
)
def test_json_and_text_outputs(args, keys, dataset, capsys):
    command, *options = args
    code, out, _ = call(capsys, command, dataset, *options, "--json")
    assert code == 0
    assert keys <= set(json.loads(out))
    code, out, _ = call(capsys, command, dataset, *options)
    assert code == 0
    assert out.strip()


def test_where_finds_the_unit_of_a_voxel_and_of_a_point(dataset, capsys):
    _, out, _ = call(capsys, "where", dataset, "--unit", "h.2.attn:5", "--json")
    address = json.loads(out)
    _, by_voxel, _ = call(capsys, "where", dataset, *address["voxel"], "--voxel", "--json")
    _, by_mm, _ = call(capsys, "where", dataset, *address["mm"], "--json")
    assert json.loads(by_voxel) == json.loads(by_mm) == address


def test_token_level_says_how_far_it_is_from_nominal(dataset, capsys):
    code, out, _ = call(capsys, "glm", dataset, "--frames", "token", "--quiet")
    assert code == 0
    assert "nominal 5 %" in out


@pytest.mark.parametrize("method", ["bonferroni", "fpr", "top", "permutation"])
def test_every_threshold_runs(method, dataset, capsys):
    args = ["glm", dataset, "--height-control", method, "--task", "pathology", "--quiet"]
    code, out, _ = call(capsys, *args)
    assert code == 0
    assert "pathology" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["glm", "{ds}", "--height-control", "magic"], "'magic'"),
        (
            ["glm", "{ds}", "--alpha", "7"],
            "--alpha is '7'; it must be a number above 0 and below 1",
        ),
        (["glm", "{ds}", "--task", "astrology"], "'astrology'"),
        (["glm", "{ds}", "--frames", "word"], "'word'"),
        (["repeatability", "{ds}", "--subject", "nobody"], "'nobody'"),
        (
            ["glm", "{ds}", "--height-control", "permutation", "--alpha", "0"],
            "--alpha is '0'",
        ),
        (["glm", "{ds}", "--height-control", "permutation", "--frames", "token"], "not tokens"),
        (
            ["null", "{ds}", "--n", "0"],
            "--n is '0'; it must be a whole number of at least 1",
        ),
        (["scan", "{empty}", "--seed", "-1"], "--seed is '-1'; it must be a whole number"),
        (["run", "{empty}", "--n-null", "0"], "--n-null is '0'"),
        (["where", "{ds}", "999", "0", "0"], "no unit at mm"),
        (["where", "{ds}", "1"], "1 coordinates"),
        (["where", "{ds}", "--unit", "h.9.mlp:3"], "h.9.mlp:3"),
        (["glm", "{empty}"], "no recorded runs"),
        (["report", "{empty}"], "llm2nifti"),
        (["scan", "{empty}", "--n-runs", "0"], "--n-runs is '0'"),
        (["scan", "{empty}", "--n-frames", "0"], "--n-frames is '0'"),
        (["scan", "{empty}", "--batch-size", "0"], "--batch-size is '0'"),
        (["scan", "{empty}", "--task", "astrology"], "'astrology'"),
        (["scan", "{empty}", "--split", "secret"], "'secret'"),
        (["scan", "{empty}", "--stimuli", "/nowhere.tsv"], "/nowhere.tsv"),
        (["stimuli", "--stimuli", "/nowhere.tsv"], "/nowhere.tsv"),
        (["where", "{ds}", "--voxel", "1"], "1 coordinates"),
        (["where", "{ds}", "--voxel", "1", "2", "nan"], "point is 'nan'; it must be a number"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(args, message, dataset, tmp_path, capsys):
    filled = [arg.format(ds=dataset, empty=tmp_path / "empty") for arg in args]
    code, out, err = call(capsys, *filled, "--quiet")
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not out
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["dance"], "'dance'"),
        (["glm", "ds", "--alpha", "x"], "'x'"),
        (["glm"], "dataset is missing"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(args, message, capsys):
    assert cli.main(args) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "--help" in err
    assert len(err.splitlines()) == 1


def test_broken_dataset_is_one_line(dataset, tmp_path, capsys):
    copy = tmp_path / "ds"
    shutil.copytree(dataset, copy)
    for path in copy.rglob("*desc-trial_bold.nii"):
        path.write_bytes(path.read_bytes()[:400])
    code, _, err = call(capsys, "glm", copy, "--quiet")
    assert code == 2
    assert len(err.strip().splitlines()) == 1


def test_models_and_stimuli_are_listed(capsys):
    _, out, _ = call(capsys, "models", "--json")
    assert json.loads(out)[0]["name"] == "smollm2-135m"
    _, out, _ = call(capsys, "stimuli")
    assert "randomstrings" in out


def test_glm_with_another_threshold_keeps_summary_and_maps_together(dataset, tmp_path, capsys):
    copy = tmp_path / "ds"
    shutil.copytree(dataset, copy)
    study.analyse(bids.session(copy), n_null=3, verbose=0)
    args = ["glm", copy, "--height-control", "top", "--share", "0.2", "--quiet"]
    assert call(capsys, *args)[0] == 0
    tasks = bids.read_summary(copy)["tasks"]
    assert {numbers["threshold"] for numbers in tasks.values()} == {"top 20% by t, two-sided"}
    for task, numbers in tasks.items():  # the rule that is kept makes the same network
        runs = bids.session(copy).of(task)
        kept = {**numbers["rule"], "sites": tuple(numbers["rule"]["sites"])}
        path = runs.first.paths.network(desc=numbers["network"])
        assert (
            bids.read_json(path.parent / path.name.replace(".nii.gz", ".json"))["Rule"]
            == (numbers["rule"])
        )
        maps = glm.fit(runs).contrast(f"{task} - control")
        mask = geometry.from_img(runs.brain, bids.read_img(path)) > 0
        assert np.array_equal(networks.select(maps, networks.Rule(**kept)).units, mask)
    assert call(capsys, "report", copy, "--quiet")[0] == 0


def test_one_sided_networks_hold_no_unit_that_responds_less(dataset, capsys):
    args = ["glm", dataset, "--height-control", "fpr", "--one-sided", "--json", "--quiet"]
    _, out, _ = call(capsys, *args)
    assert all(numbers["n_less"] == 0 for numbers in json.loads(out)["tasks"].values())
