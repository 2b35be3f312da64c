"""Commands that are ended, killed or given what is wrong: a part of the two campaigns.

docs/reliability.md tells of the whole of them.
"""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from campaign import counted

from llm2nifti.bids import locked

CAMPAIGN = Path(__file__).parent / "campaign"
# Sends itself a signal once a module is imported for the first time.
AT_IMPORT = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == sys.argv[1]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), getattr(signal, sys.argv[2]))
sys.meta_path.insert(0, Finder())
from llm2nifti.cli import main
raise SystemExit(main(sys.argv[3:]))
"""
ON_TERMINAL = """
import os, signal
os.login_tty(0)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from llm2nifti.cli import main
raise SystemExit(main())
"""


@pytest.mark.parametrize("script", ["kills.py", "inputs.py"])
def test_the_short_campaigns_find_nothing_that_falls_short(script):
    done = subprocess.run(
        [sys.executable, CAMPAIGN / script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 |" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("module", ["llm2nifti.cli.stopping", "cyclopts", "torch", "pandas"])
def test_an_interruption_of_the_imports_is_one_line(module, tmp_path):
    command = [sys.executable, "-c", AT_IMPORT, module, "SIGINT", "run", str(tmp_path / "ds")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, preexec_fn=counted.default_signals
    )
    assert (done.returncode, done.stderr) == (1, "interrupted; the same command resumes\n")
    assert not (tmp_path / "ds").exists()


@pytest.mark.parametrize(
    ("name", "code", "options", "line"),
    [
        ("SIGTERM", 143, [], "ended by SIGTERM; the same command resumes\n"),
        ("SIGHUP", 129, [], "ended by SIGHUP; the same command resumes\n"),
        ("SIGTERM", 143, ["--overwrite"], "ended by SIGTERM\n"),
    ],
)
def test_signals_of_batch_systems_are_one_line_and_a_code(name, code, options, line, tmp_path):
    command = [sys.executable, "-c", AT_IMPORT, "torch", name, "run", str(tmp_path / "ds")]
    done = subprocess.run(
        [*command, *options],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=counted.default_signals,
    )
    assert (done.returncode, done.stderr) == (code, line)


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_what_was_ignored_from_the_beginning_stays_ignored(name, tmp_path):
    command = [sys.executable, "-c", AT_IMPORT, "pandas", name, "stimuli"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(getattr(signal, name), signal.SIG_IGN),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "randomstrings" in done.stdout


def test_a_closed_terminal_ends_a_command_as_a_signal_does(tiny_folders, tmp_path):
    """Nothing can be written any more, be it a progress bar or the last line."""
    # Long enough that it cannot be over when the terminal closes; with buffers that stay full then.
    sizes = ["--task", "pathology", "--n-runs", "1", "--n-blocks", "2", "--n-frames", "40"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    words = ["scan", str(tmp_path / "ds"), "--model", str(tiny_folders["llama"]), *sizes]
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    process = subprocess.Popen(
        [sys.executable, "-c", ON_TERMINAL, *words],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=buffered,
    )
    os.close(slave)
    shown = b""
    while b"trial/s" not in shown:  # the progress bar of the scan
        shown += os.read(master, 1000)
    os.close(master)
    assert process.wait() == 129
    with locked(tmp_path / "ds"):
        pass


def test_a_signal_that_a_finaliser_swallows_is_raised_again():
    code = (
        "import os, signal, time, sys\n"
        "from llm2nifti.cli.stopping import Stop\n"
        "class Careless:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(1)\n"
        "with Stop() as stop:\n"
        "    try:\n"
        "        Careless()\n"
        "        while True: time.sleep(1)\n"
        "    except KeyboardInterrupt:\n"
        "        sys.exit(stop.tell([]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (143, "ended by SIGTERM; the same command resumes\n")


def test_a_folder_that_was_there_outlives_its_lock(tmp_path):
    with locked(tmp_path / "new"):
        pass
    (tmp_path / "empty").mkdir()
    with locked(tmp_path / "empty"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
