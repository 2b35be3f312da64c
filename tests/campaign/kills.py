"""Kill commands at exact file operations, run them again, compare all bytes.

    python tests/campaign/kills.py           # two kills: a part of the test suite
    python tests/campaign/kills.py --long    # all of them, as docs/reliability.md tells

Each command of `COMMANDS` is run once without interruption, which says what the result is and how
many file operations lead to it. Then it is ended at one of these operations (see counted.py), and
the same command is run again. Nothing may differ from the uninterrupted result, no lock, temporary
file or process may be left, and what is not killed outright says in one line that it was ended.

Every run is a process of its own, forked from one that has done nothing but import, which saves the
seconds that imports take; tests/test_study.py kills whole commands.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import counted

if __name__ == "__mp_main__":
    counted.begin_worker()

SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGKILL", "SIGHUP", "SIGTERM")
HANGS = 3600  # seconds; no command takes a hundredth of it, on however slow a machine
SIZES = "--n-runs 2 --n-blocks 2 --trials-per-block 6 --n-frames 2 --batch-size 6"
TASKS = "--task pathology --task archeology"
STUDY = """
dataset = "ds"
n_null = 3
[design]
tasks = ["pathology", "archeology"]
n_runs = 2
n_blocks = 2
trials_per_block = 6
n_frames = 2
[recording]
batch_size = 6
[[model]]
name = "{model}"
seed = [0, 1]
temperature = 0.9
"""


@dataclass(frozen=True)
class Command:
    """What is run, in a folder that holds what some commands before it made."""

    name: str
    words: str
    before: tuple[str, ...] = ()
    n_kills: int = 8
    damaged: str = ""  # a file that is cut off before: warned of, kept elsewhere and made anew


RUN = f"run ds --model {{model}} {SIZES} {TASKS} --n-null 3"
SCAN = (  # enough for units that own weights to pass a threshold
    "scan ds --model {model} --n-runs 2 --n-blocks 2 --trials-per-block 12 --n-frames 2"
    " --task pathology --task randomstrings --sites attn,mlp,heads,mlp_hidden --batch-size 12"
)
COMMANDS = (
    Command("run", RUN, n_kills=14),
    Command("run --n-jobs 2", "run study.toml --n-jobs 2 --threads 1", n_kills=6),
    Command("glm", "glm ds --height-control top --share 0.2", (RUN,)),
    Command("report", "report ds", (RUN,), n_kills=6),
    Command(
        "lesion",
        "lesion ds --model {model} --share 0.1 --n-random 2 --n-prompts 2",
        (SCAN,),
    ),
    Command(
        "prune",
        "prune ds --model {model} --network randomstrings --share 0.1 --out small --n-random 1"
        " --n-prompts 2 --n-pairs 0",
        (SCAN,),
        n_kills=12,
    ),
    Command(
        "train",
        "train ds --model {model} --task randomstrings --seeds 1 --epochs 1 --n-texts 4 "
        "--learning-rate 0.01",
        (SCAN,),
    ),
    Command(
        "check --repair",
        "check ds --repair --model {model}",
        (RUN,),
        damaged="ds/sub-tinyllama/func/sub-tinyllama_task-pathology_run-1_bold.nii",
    ),
)


@dataclass(frozen=True)
class Ended:
    """How a process ended, and after how many file operations."""

    code: int
    err: str
    n: int


def run(words: list[str], folder: Path, *, at: int = 0, signal: str = "") -> Ended:
    """Run a command in a folder, in a process of its own that may be ended."""
    log = folder.with_name(f"{folder.name}.log")
    for path in (log, Path(f"{log}.sent")):
        path.unlink(missing_ok=True)
    settings = {"folder": str(folder), "log": str(log), "at": at, "signal": signal}
    err = folder.with_name(f"{folder.name}.err")
    pid = os.fork()
    if not pid:
        _be_command(words, folder, settings, err)
    status = _wait(pid)
    _wait_for_workers(pid)
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, err.read_text("utf-8"), counted.n_operations(log))


def _be_command(words: list[str], folder: Path, settings: dict, err: Path) -> None:
    """Become the command, and end as it does."""
    os.setsid()
    os.chdir(folder)
    for number, path in ((1, Path(os.devnull)), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    sys.argv[1:] = [*words, "--quiet"]
    counted.begin(settings)
    from llm2nifti.cli import main

    raise SystemExit(main())


def _wait(pid: int) -> int:
    """Wait for a process; one that hangs is ended."""
    limit = time.monotonic() + HANGS
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        if time.monotonic() > limit:
            os.killpg(pid, 9)
            raise SystemExit(f"process {pid} hangs")
        time.sleep(0.005)


def _wait_for_workers(group: int) -> None:
    """Wait until no process of a group is left; they end by themselves or fall short."""
    limit = time.monotonic() + 60
    while (left := list(_running(group))) and time.monotonic() < limit:
        time.sleep(0.05)
    if left:
        os.killpg(group, 9)
        raise SystemExit(f"processes {left} outlived their command")


def _running(group: int) -> Iterator[int]:
    """Processes of a group that are no mere zombies."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # ended meanwhile
            continue
        if int(of_group) == group and state not in "ZX":
            yield int(path.parent.name)


def contents(root: Path) -> dict[str, bytes]:
    """Every file of a folder, and every empty folder."""
    paths = [path for path in root.rglob("*") if path.is_file() or not any(path.iterdir())]
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else b""
        for path in paths
    }


class Campaign:
    """All commands, killed again and again.

    Parameters
    ----------
    base : Path
        A folder for everything.
    """

    def __init__(self, base: Path) -> None:
        import tiny

        self.base = base
        self.model = tiny.save(base / "tiny-llama")
        self._made: dict[tuple[str, ...], Path] = {}

    def words(self, text: str) -> list[str]:
        """Words of a command line."""
        return text.format(model=self.model).split()

    def start(self, before: tuple[str, ...]) -> Path:
        """Folder that holds what some commands made."""
        if before not in self._made:
            folder = self.base / f"start-{len(self._made)}"
            folder.mkdir()
            (folder / "study.toml").write_text(STUDY.format(model=self.model))
            for text in before:
                ended = run(self.words(text), folder)
                if ended.code:
                    raise SystemExit(f"{text}: {ended.err}")
            self._made[before] = folder
        return self._made[before]

    def whole(self, command: Command) -> tuple[dict[str, bytes], int]:
        """What an uninterrupted run makes, and its number of file operations."""
        folder = self._fresh(command, "whole")
        ended = run(self.words(command.words), folder)
        if ended.code or _lines(command, ended):
            raise SystemExit(f"{command.words}: {ended.code} {ended.err}")
        return contents(folder), ended.n

    def kill(self, command: Command, expected: dict[str, bytes], at: int, signal: str) -> list[str]:
        """Kill a command at an operation, run it again; say what falls short."""
        folder = self._fresh(command, "killed")
        words = self.words(command.words)
        first = run(words, folder, at=at, signal=signal)
        short = []
        if first.code != counted.CODES[signal]:
            short.append(f"exit code {first.code}: {first.err.strip()[-300:]}")
        n_lines = len(_lines(command, first))
        if n_lines != 1 and signal != "SIGKILL":  # nobody can speak after it
            short.append(f"{n_lines} lines on stderr: {first.err.strip()[-300:]}")
        again = run(words, folder)
        if again.code or _lines(command, again):
            return [*short, f"again: exit code {again.code}: {again.err.strip()[-300:]}"]
        made = contents(folder)
        short += [f"missing: {name}" for name in expected if name not in made]
        short += [f"left over: {name}" for name in made if name not in expected]
        return short + [
            f"differs: {name}" for name in expected if made.get(name, b"") != expected[name]
        ]

    def _fresh(self, command: Command, name: str) -> Path:
        """New folder in which a command begins; always of one path, which may be in the result."""
        start = self.start(command.before)
        folder = self.base / "work"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(start, folder)
        if command.damaged:
            path = folder / command.damaged
            path.write_bytes(path.read_bytes()[:-5])
        return folder


def _lines(command: Command, ended: Ended) -> list[str]:
    """Lines on stderr, but for the one that says where the damaged file is kept."""
    kept = f"{command.damaged} is not as llm2nifti wrote it; it is kept as "
    lines = ended.err.splitlines()
    return [line for line in lines if not (command.damaged and kept in line)]


def campaign(base: Path, *, is_long: bool, only: str) -> list[tuple[str, int, int, int]]:
    """Kill all; a row a command: its name, operations, kills, and how many fell short."""
    todo, rows, number = Campaign(base), [], 0
    for command in COMMANDS if is_long else COMMANDS[:1]:
        if only and command.name != only:
            continue
        expected, n = todo.whole(command)
        n_kills, n_short = command.n_kills if is_long else 2, 0
        for i in range(n_kills):
            at, signal = round((i + 0.5) * n / n_kills), SIGNALS[number % len(SIGNALS)]
            number += 1
            began = time.monotonic()
            fell = todo.kill(command, expected, at, signal)
            took = time.monotonic() - began
            print(
                f"{command.name}, {signal} at {at} of {n}: {'fell short' if fell else 'ok'}", end=""
            )
            print(f" ({took:.0f} s)", *fell, sep="\n   - ", flush=True)
            n_short += bool(fell)
        rows.append((command.name, n, n_kills, n_short))
    return rows


def main() -> int:
    """Run the campaign and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--long", action="store_true", help="all commands")
    parser.add_argument("--only", default="", help="only this command")
    args = parser.parse_args()
    # What a command needs, before any is forked; nothing is computed, so no threads are there.
    import distributed  # noqa: F401
    import peft  # noqa: F401

    from llm2nifti import experiments, report, study, surgery  # noqa: F401
    from llm2nifti.study import repairing, scanning  # noqa: F401

    experiments.kept_results()  # imports them

    base, this = Path(tempfile.mkdtemp(prefix="kills-")), os.getpid()
    try:
        rows = campaign(base, is_long=args.long, only=args.only)
    finally:
        if os.getpid() == this:  # and none of the commands
            shutil.rmtree(base)
    print("\n| command | file operations | kills | fell short |\n|---|---|---|---|")
    for name, n, n_kills, n_short in rows:
        print(f"| `{name}` | {n} | {n_kills} | {n_short} |")
    n_short = sum(row[3] for row in rows)
    print(f"| all | | {sum(row[2] for row in rows)} | {n_short} |")
    return 1 if n_short else 0


if __name__ == "__main__":
    raise SystemExit(main())
