"""Run a command and count what it does to files; at one of these operations, send a signal.

    python counted.py 'settings as JSON' run ds ...

The settings: ``folder`` (only what lies in it counts), ``log`` (a file that gets a line an
operation), ``at`` (the number of an operation, from 1; 0 is none) and ``signal`` (its name; SIGINT
goes to the whole group of processes, as Ctrl-C does). Operations of worker processes count as well:
a worker that multiprocessing spawns runs this file again, under another name. With ``workers`` only
theirs count, and the signal goes to the worker whose operation it is.

An operation is counted before it is done, by the interpreter's own audit events: no part of the
package knows of it, and its number does not depend on the machine's speed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")
VARIABLE = "LLM2NIFTI_CAMPAIGN"  # tells the settings to worker processes
CODES = {"SIGKILL": -9, "SIGTERM": 143, "SIGINT": 1, "SIGHUP": 129}  # what a command ends with
LINE = 256  # bytes that the log gets an operation: its size is their number
TO_ALL = ("SIGINT", "SIGHUP")  # what a terminal sends, it sends to the whole group


def run(words: list[str], folder: Path, **settings: Any) -> tuple[subprocess.CompletedProcess, int]:
    """Run a command of llm2nifti in a new process; say how it ended, after how many operations."""
    log = folder.with_name(f"{folder.name}.log")
    for path in (log, Path(f"{log}.sent")):
        path.unlink(missing_ok=True)
    settings = {"folder": str(folder), "log": str(log), "at": 0, "signal": "", **settings}
    start = [sys.executable, __file__, json.dumps(settings)]
    done = subprocess.run([*start, *words], capture_output=True, text=True, check=False)
    return done, n_operations(log)


def n_operations(log: Path) -> int:
    """Operations that a log tells of."""
    return log.stat().st_size // LINE if log.exists() else 0


def default_signals() -> None:
    """Forget what was inherited: a shell's background ignores SIGINT, nohup SIGHUP."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def count(settings: dict[str, Any]) -> None:
    """Count from now on, in this process."""
    folder = os.path.realpath(settings["folder"]) + os.sep
    log = os.open(settings["log"], os.O_CREAT | os.O_RDWR | os.O_APPEND)

    def hook(event: str, args: tuple) -> None:
        path = _changed(event, args)
        if path is None or not os.path.realpath(path).startswith(folder):
            return
        line = f"{event} {os.path.relpath(path, folder)}".encode()[: LINE - 1]
        os.write(log, line.ljust(LINE - 1) + b"\n")
        if 0 < settings["at"] <= os.fstat(log).st_size // LINE and _is_first(settings["log"]):
            _send(settings)

    sys.addaudithook(hook)


def _send(settings: dict[str, Any]) -> None:
    """Send the signal."""
    number = getattr(signal, settings["signal"])
    if settings.get("workers"):
        os.kill(os.getpid(), number)
    elif settings["signal"] in TO_ALL:
        os.killpg(settings["pid"], number)
    else:
        os.kill(settings["pid"], number)


def _is_first(log: str) -> bool:
    """Whether no process has sent the signal yet."""
    try:
        os.close(os.open(f"{log}.sent", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _changed(event: str, args: tuple) -> str | None:
    """Path of the file that an operation changes."""
    if event == "open":
        path, mode, flags = args
        writes = set(mode) & set("wax+") if mode else flags & WRITES
        return os.fsdecode(path) if writes and isinstance(path, str | bytes | os.PathLike) else None
    return os.fsdecode(args[0]) if event in CHANGES else None


def begin(settings: dict[str, Any]) -> None:
    """Count in this process, which leads a group of its own, and in its workers."""
    default_signals()
    given = {**settings, "pid": os.getpid()}
    os.environ[VARIABLE] = json.dumps(given)
    if not settings.get("workers"):
        count(given)


def begin_worker() -> None:
    """Count in a process that multiprocessing spawned."""
    if VARIABLE in os.environ:
        count(json.loads(os.environ[VARIABLE]))


if __name__ == "__mp_main__":
    begin_worker()

if __name__ == "__main__":
    if os.getpgrp() != os.getpid():
        os.setsid()
    begin(json.loads(sys.argv[1]))
    sys.argv[1:] = sys.argv[2:]

    from llm2nifti.cli import main

    raise SystemExit(main())
