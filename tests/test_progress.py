"""A bar on a terminal, two lines a stage in a log, nothing where quiet is asked for."""

from __future__ import annotations

import io
import re

import pytest

from llm2nifti import cli
from llm2nifti.progress import stage, track


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, stream, **how):
    """What a stage of three steps writes to standard error."""
    monkeypatch.setattr("sys.stderr", stream)
    assert list(track("abc", "letters", unit="letter", **how)) == ["a", "b", "c"]
    with stage("parts", **how):
        pass
    return stream.getvalue()


def test_a_terminal_has_a_bar(monkeypatch):
    text = shown(monkeypatch, Terminal())
    assert re.search(r"letters: 100%.*3/3", text)
    assert "begins" not in text
    assert "parts" not in text


def test_a_log_has_a_line_when_a_stage_begins_and_one_when_it_ends(monkeypatch):
    lines = shown(monkeypatch, io.StringIO()).splitlines()
    expected = ["letters: begins", r"letters: done in \d+\.\d s"]
    expected += ["parts: begins", r"parts: done in \d+\.\d s"]
    assert len(lines) == len(expected)
    assert all(re.fullmatch(e, line) for e, line in zip(expected, lines, strict=True))


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_quiet_shows_nothing(monkeypatch, stream):
    assert shown(monkeypatch, stream(), verbose=0) == ""


def test_a_stage_that_fails_does_not_say_that_it_is_done(capsys):
    with pytest.raises(ZeroDivisionError), stage("division"):
        _ = 1 / 0
    assert capsys.readouterr().err == "division: begins\n"


def test_a_logged_run_names_every_stage(tiny_folders, tmp_path, capsys):
    sizes = ["--n-runs", "2", "--n-blocks", "2", "--trials-per-block", "4", "--n-frames", "2"]
    what = ["--task", "pathology", "--task", "archeology", "--model", str(tiny_folders["llama"])]
    assert cli.main(["run", str(tmp_path / "ds"), *what, *sizes, "--n-null", "3"]) == 0
    lines = capsys.readouterr().err.splitlines()
    begun = [line.removesuffix(": begins") for line in lines if line.endswith(": begins")]
    done = [line.partition(": done in ")[0] for line in lines if ": done in " in line]
    assert sorted(begun) == sorted(done)
    for name in (
        "scan sub-tinyllama",
        "scan sub-tinyllamauntrained",
        "glm",
        "similarity",
        "identification",
        "nulls",
        "untrained copy",
        "figures",
        "page",
    ):
        assert begun.count(name) == 1
