"""``llm2nifti monitor``: prompts in, JSON lines out, while a tiny model answers."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
import pytest

from llm2nifti import bids, cli, models, paradigm, scanner
from llm2nifti.evidence import gather
from llm2nifti.networks.readout import running_means

PROMPTS = "What is a bone?\n\n   \nWho sits in a senate?\n"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, tiny_model):
    root = tmp_path_factory.mktemp("monitoring") / "ds"
    designs = paradigm.experiment(
        ["pathology", "politicalscience"], n_runs=2, n_blocks=2, trials_per_block=8, n_frames=3
    )
    for design in designs:
        bids.write(scanner.scan(tiny_model, design), root)
    return root


@pytest.fixture
def ask(capsys, monkeypatch, dataset, tiny_folders):
    def call(*options, text=PROMPTS, model=True):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        is_named = not model or "--model" in options
        where = [] if is_named else ["--model", tiny_folders["llama"]]
        args = ["monitor", dataset, "--quiet", *where, *options]
        code = cli.main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return code, [json.loads(line) for line in out.splitlines()], err

    return call


def test_every_prompt_gets_a_line_with_the_scores_of_every_network(ask, dataset, tmp_path):
    code, lines, _ = ask("--n-tokens", "4")
    assert code == 0
    assert [line["prompt"] for line in lines] == ["What is a bone?", "Who sits in a senate?"]
    for line in lines:
        assert list(line) == ["prompt", "response", "scores", "top"]
        assert set(line["scores"]) == {"pathology", "politicalscience"}
        assert line["top"] in (None, "pathology", "politicalscience")
    path = tmp_path / "prompts.txt"
    path.write_text(PROMPTS, "utf-8")
    assert ask("--n-tokens", "4", path, text="")[1] == lines


def test_scores_are_those_of_the_prompts_that_were_scanned(ask, dataset):
    run = bids.read(dataset, task="pathology", run=1)
    prompts = list(run.events["prompt"][:3])
    _, lines, _ = ask("--n-tokens", "3", text="\n".join(prompts))
    evidence = gather(bids.session(dataset), verbose=0)
    readout = evidence.readout(evidence.numbers)
    frames = run.frame_values().reshape(len(run.events), 3, -1)[:3]
    expected = running_means(readout.scores(frames))[:, -1]
    found = [[line["scores"][name] for name in readout.names] for line in lines]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert [line["response"] for line in lines] == list(run.events["response"][:3])


def test_a_high_rate_stops_answers_and_a_low_one_does_not(ask):
    options = ("--n-tokens", "5", "--stop-when", "pathology")
    many = "\n".join(f"What is a {word}?" for word in ("bone", "senate", "city", "river", "song"))
    _, loose, _ = ask(*options, "--threshold", "0.95", text=many)
    _, strict, _ = ask(*options, "--threshold", "0.02", text=many)
    assert sum(line["stopped"] for line in loose) > sum(line["stopped"] for line in strict)
    for short, long in zip(loose, strict, strict=True):
        assert long["response"].startswith(short["response"]) or short["stopped"] is False


def test_lines_come_before_the_input_ends(dataset, tiny_folders):
    command = [sys.executable, "-m", "llm2nifti.cli", "monitor", str(dataset)]
    command += ["--quiet", "--model", str(tiny_folders["llama"])]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        process.stdin.write("What is a bone?\n")
        process.stdin.flush()
        line = process.stdout.readline()  # while standard input is still open
        process.stdin.close()
        assert process.wait() == 0
    assert json.loads(line)["prompt"] == "What is a bone?"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--n-tokens", "0"],
            "--n-tokens is '0'; it must be a whole number of at least 1",
        ),
        (["missing.txt"], "cannot read prompts from missing.txt"),
        (["--stop-when", "joy"], "no network 'joy'; there are: pathology, politicalscience"),
        (
            ["--threshold", "2"],
            "--threshold is '2'; it must be a number above 0 and below 1",
        ),
        (["--threshold", "0.001"], "control trials cannot show a rate of 0.001"),
        (["--template", "chat"], "has no chat template; use --template none"),
    ],
)
def test_errors_are_one_clear_line(ask, options, message):
    code, lines, err = ask(*options)
    assert (code, lines) == (2, [])
    assert message in err
    assert err.count("\n") == 1


def test_a_model_that_cannot_be_found_again_is_asked_for(ask):
    code, _, err = ask(model=False)
    assert code == 2
    assert "say where it is with --model" in err


def test_other_weights_are_warned_of_and_another_architecture_is_refused(
    ask, tiny_folders, tmp_path
):
    other = models.load(str(tiny_folders["llama"]), untrained=True, seed=1)
    other.module.save_pretrained(tmp_path)
    other.tokenizer.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="has other weights .* than those that sub-"):
        code, lines, _ = ask("--model", tmp_path)
    assert (code, len(lines)) == (0, 2)
    with pytest.warns(UserWarning, match="has other weights"):
        code, _, err = ask("--model", tiny_folders["gpt2"])
    assert code == 2
    assert "use the model that was scanned" in err


def test_trial_means_have_no_tokens_to_calibrate_on(ask, tiny_folders, tmp_path, capsys):
    sizes = ["--n-runs", "2", "--n-blocks", "2", "--trials-per-block", "4", "--n-frames", "2"]
    what = ["--model", str(tiny_folders["llama"]), "--task", "pathology", "--frames", "trial"]
    where = str(tmp_path / "ds")
    assert cli.main(["scan", where, *what, *sizes, "--no-untrained", "--quiet"]) == 0
    assert cli.main(["monitor", where, *what[:2], "--quiet"]) == 2
    assert "scan with --frames token" in capsys.readouterr().err


def test_a_line_that_cannot_be_answered_gets_an_error_and_the_next_an_answer(
    ask, dataset, tmp_path
):
    path = tmp_path / "prompts.txt"
    good = "What is a bone?"
    lines = [good.encode(), b"What \xff is", b"why " * 5000, "Was ist ein\u2028Senat?".encode()]
    path.write_bytes(b"\n".join(lines))
    code, found, err = ask("--n-tokens", "3", path, text="")
    assert (code, err) == (0, "")
    assert [list(line) for line in found[1:3]] == [["prompt", "error"]] * 2
    assert found[1]["error"] == "the prompt is no text: byte 6 is not UTF-8 (invalid start byte)"
    assert "reads at most" in found[2]["error"]
    assert [line["prompt"] for line in found] == [
        good,
        "What \N{REPLACEMENT CHARACTER} is",
        ("why " * 5000).strip(),
        "Was ist ein\u2028Senat?",
    ]
    assert found[0] == ask("--n-tokens", "3", text=good)[1][0]
    assert "response" in found[3]
