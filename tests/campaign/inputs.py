"""Give commands bad inputs: one line that names what is wrong, exit 2 or 1, nothing changed.

    python tests/campaign/inputs.py           # those of the test suite
    python tests/campaign/inputs.py --long    # all of them, as docs/reliability.md tells

The inputs are data, in inputs.toml; what has to be made by a program is in damage.py. Commands run
in this process, one after the other, each on a fresh copy of a small dataset.

A damaged dataset may also do no harm: then the command prints and writes what it does on the sound
one. Or it is mended: one line says which file is not as it was written and where it is kept, and
everything else is as the command leaves the sound dataset. Files that a command does not read are
not counted; the interpreter's audit events say which it reads.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import random
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("LLM2NIFTI_DEBUG", None)

import damage
from kills import contents

TABLE = tomllib.loads((HERE / "inputs.toml").read_text("utf-8"))
OF_ANY = "--model {model} --n-runs 1 --n-blocks 2 --trials-per-block 4 --n-frames 1"
SIZES = {
    "sizes": f"{OF_ANY} --task pathology",
    "sizes_of_own": OF_ANY,
    "sizes_of_any": OF_ANY.replace("--model {model} ", "") + " --task pathology",
    "sizes_of_ds": "--model {model} --n-runs 2 --n-blocks 2 --trials-per-block 12 --n-frames 2"
    " --task pathology --task randomstrings --sites attn,mlp,heads,mlp_hidden --n-null 3",
}
REPLACED = "ds/.llm2nifti/replaced/"  # where a damaged file is kept that is written anew
HANGS = 900  # seconds; a command takes one or two, on a slow machine ten times as long


@dataclass(frozen=True)
class Case:
    """A command, what is prepared for it, and what the line on stderr has to name."""

    kind: str
    name: str
    words: str
    says: str
    prepare: Callable[[Path, dict[str, str]], Path | None] = lambda folder, names: None
    codes: tuple[int, ...] = (2,)
    damaged: str = ""  # a file of the dataset


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str
    read: set[str] = field(default_factory=set)


class Reads:
    """Files that are opened for reading while it is on."""

    def __init__(self) -> None:
        self.paths: set[str] | None = None
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple) -> None:
        if event == "open" and self.paths is not None and isinstance(args[0], str | os.PathLike):
            self.paths.add(os.path.realpath(args[0]))


@contextlib.contextmanager
def captured(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Send the process's output to files, whoever writes it."""
    paths = folder / "out", folder / "err"
    old, kept = (sys.stdout, sys.stderr), [os.dup(1), os.dup(2)]
    for number, path in zip((1, 2), paths, strict=True):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(handle, number)
        os.close(handle)
    raw = (io.FileIO(number, "w", closefd=False) for number in (1, 2))
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.BufferedWriter(file)) for file in raw)
    try:
        yield paths
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = old
        for number, handle in zip((1, 2), kept, strict=True):
            os.dup2(handle, number)
            os.close(handle)


class Campaign:
    """A sound dataset and model, and commands that are given something else.

    Parameters
    ----------
    base : Path
        A folder for everything.
    """

    def __init__(self, base: Path) -> None:
        import tiny

        self.base, self.reads, self._number = base, Reads(), 0
        self._expected: dict[str, tuple[str, dict[str, bytes]]] = {}
        self.model = tiny.save(base / "tiny-llama")
        self.sound = base / "sound"
        self.sound.mkdir()
        (self.sound / "empty").mkdir()
        ended = self.run(f"run ds {SIZES['sizes_of_ds']}", self.sound, {"model": str(self.model)})
        if ended.code:
            raise SystemExit(f"the sound dataset was not made: {ended.err}")

    def case(self, case: Case) -> list[str]:
        """Run a case; say what falls short."""
        folder, names = self.fresh()
        made = case.prepare(folder, names)
        names["file"] = str(made)
        before = contents(folder)
        ended = self.run(case.words, folder, names)
        after = contents(folder)
        names_of_all = sorted(before.keys() | after.keys())
        changed = [name for name in names_of_all if before.get(name) != after.get(name)]
        short = [f"{len(changed)} files changed, such as {changed[0]}"] if changed else []
        if ended.code == 0 and 0 in case.codes:
            ended.out, ended.err = (t.replace(f"{folder}/", "") for t in (ended.out, ended.err))
            short = self._harm(case, ended, before.get(case.damaged), after)
        else:
            short += judge(ended, case, names)
        if (folder / damage.RAN).exists():
            short.append("CODE RAN")
        shutil.rmtree(folder)
        return [what.replace(str(folder), "") for what in short]

    def _harm(
        self, case: Case, ended: Ended, content: bytes | None, after: dict[str, bytes]
    ) -> list[str]:
        """What is other than on the sound dataset; `content` is that of the damaged file."""
        if case.words not in self._expected:
            folder, names = self.fresh()
            out = self.run(case.words, folder, names).out.replace(f"{folder}/", "")
            self._expected[case.words] = out, contents(folder)
            shutil.rmtree(folder)
        out, made = self._expected[case.words]
        kept = {name: content for name, content in after.items() if name.startswith(REPLACED)}
        place = REPLACED + case.damaged.removeprefix("ds/")
        line = f"{case.damaged} is not as llm2nifti wrote it; it is kept as {place}\n"
        short = []
        if ended.err:  # mended
            short += [f"stderr: {ended.err}"] * (ended.err.partition(": ")[2] != line)
            short += ["the damaged file is not kept"] * (kept != {place: content})
        elif content is None:  # it was missing, and need not be any more
            content = made[case.damaged] if case.damaged in after else None
        made = made if ended.err else {**made, case.damaged: content}
        names_of_all = sorted((made.keys() | after.keys()) - (kept.keys() if ended.err else set()))
        other = [name for name in names_of_all if made.get(name) != after.get(name)]
        short += [f"exit 0, {len(other)} other files, such as {other[0]}"] if other else []
        return short if ended.out == out else [*short, f"exit 0, other numbers: {ended.out[-300:]}"]

    def fresh(self) -> tuple[Path, dict[str, str]]:
        """Copy of the sound folder, and the names of what is in it."""
        self._number += 1
        folder = self.base / f"case-{self._number}"
        shutil.copytree(self.sound, folder)
        mask = next((folder / "ds").rglob("*label-randomstrings_desc-network_mask.nii.gz"), "")
        names = {"file": "", "ds": folder / "ds", "empty": folder / "empty", "new": folder / "new"}
        return folder, {k: str(v) for k, v in {**names, "model": self.model, "mask": mask}.items()}

    def run(self, words: str, folder: Path, names: dict[str, str]) -> Ended:
        """Run a command in this process, and look at what it reads."""
        from llm2nifti.cli import main

        argv = [fill(word, names) for word in shlex.split(fill(words, SIZES))]
        argv.insert(1, "--quiet")
        before, output = Path.cwd(), Path(tempfile.mkdtemp(dir=self.base))
        os.chdir(folder)
        signal.alarm(HANGS)
        self.reads.paths = set()
        try:
            with captured(output) as (out, err):
                try:
                    code: Any = main(argv)
                except SystemExit as error:
                    code = error.code
        finally:
            signal.alarm(0)
            read, self.reads.paths = self.reads.paths, None
            os.chdir(before)
        texts = [path.read_text("utf-8", "replace") for path in (out, err)]
        shutil.rmtree(output)
        root = os.path.realpath(folder) + os.sep
        return Ended(code, *texts, {p.removeprefix(root) for p in read if p.startswith(root)})


def fill(text: str, names: dict[str, str]) -> str:
    """Replace ``{name}`` of known names, and leave other braces alone."""
    for name, value in names.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def judge(ended: Ended, case: Case, names: dict[str, str]) -> list[str]:
    """What falls short in how a command ended."""
    short, err = [], ended.err.strip()
    if ended.code not in case.codes:
        short.append(f"exit code {ended.code}")
    if len(err.splitlines()) != 1:
        short.append(f"{len(err.splitlines())} lines on stderr")
    if "Traceback" in err:
        short.append("a traceback")
    if ended.out and case.kind != "check":
        short.append("something on stdout")
    says = fill(case.says, names).split(" | ")
    if not any(text in err + ended.out for text in says):
        short.append(f"does not name {' or '.join(map(repr, says))}")
    return [*short, f"stderr: {err[-400:]}"] if short else []


def cases(todo: Campaign, *, is_long: bool) -> Iterator[Case]:
    """All cases, or those of the test suite."""
    for kind, make in (
        ("arguments", _of_arguments),
        ("stimuli", _of_text),
        ("study", _of_text),
        ("mask", _of_made),
        ("model", _of_made),
        ("media", _of_media),
        ("medium", _of_media),
        ("check", partial(_of_check, todo)),
    ):
        table = TABLE[kind]
        for row in table["rows"] if is_long else table["rows"][: table["short"]]:
            yield from make(kind, row, table.get("commands", ()), is_long)
    if is_long:
        yield from _of_datasets(todo)


def _of_arguments(
    kind: str, row: list[str], _commands: list[str], _is_long: bool
) -> Iterator[Case]:
    """Cases of a command line."""
    yield Case(kind, row[0], row[0], row[1])


def _of_text(kind: str, row: list[str], commands: list[str], is_long: bool) -> Iterator[Case]:
    """Cases of a text file."""
    name, content, says = row

    def prepare(folder: Path, names: dict[str, str]) -> Path:
        path = folder / f"{kind}{'.toml' if kind == 'study' else '.tsv'}"
        path.write_text(fill(re.sub("<(.*?)>", _sixty, content), names), "utf-8")
        return path

    for command in commands if is_long else commands[:1]:
        yield Case(kind, f"{name}: {command.split()[0]}", command, says, prepare)


def _sixty(row: re.Match) -> str:
    """Sixty rows like one."""
    return "".join(f"{row[1]}\n".replace("#", str(i)) for i in range(60))


def _of_made(kind: str, row: str, commands: list[str], is_long: bool) -> Iterator[Case]:
    """Cases of masks and models."""

    def prepare(folder: Path, names: dict[str, str]) -> Path:
        return getattr(damage, f"make_{kind}")(row, folder, names)

    for command in commands if is_long else commands[:1]:
        yield Case(kind, f"{row}: {command.split()[0]}", command, "broken", prepare, (1, 2))


def _of_media(kind: str, row: list[str], commands: list[str], _is_long: bool) -> Iterator[Case]:
    """Cases of images and sounds."""
    how, model, says = row

    def prepare(folder: Path, names: dict[str, str]) -> Path:
        return damage.make_media(how, folder, names, model)

    for command in commands:
        yield Case(kind, f"{how}, {model}: {command.split()[0]}", command, says, prepare)


def _of_check(
    todo: Campaign, kind: str, row: list[Any], commands: list[str], _is_long: bool
) -> Iterator[Case]:
    """Cases of the command that looks for damage."""
    pattern, ways, codes = row
    name = next(path.relative_to(todo.sound).as_posix() for path in todo.sound.glob(pattern))
    for how in ways:
        for command, code in zip(commands, codes, strict=True):
            says = f"{Path(name).name} | --model"
            yield _damaged(name, how, command, kind=kind, says=says, codes=(code,))


def _of_datasets(todo: Campaign) -> Iterator[Case]:
    """Cases of damaged datasets: one file of each kind that a command reads."""
    table = TABLE["dataset"]
    readers: dict[str, list[tuple[str, str]]] = {}
    for command in table["commands"]:
        folder, names = todo.fresh()
        there = contents(folder)
        ended = todo.run(command, folder, names)
        shutil.rmtree(folder)
        if ended.code:
            raise SystemExit(f"{command}: {ended.err}")
        read = sorted(ended.read & there.keys())
        for kind, name in {_kind(name): name for name in read}.items():
            readers.setdefault(kind, []).append((command, name))
    for reading in readers.values():
        for command, name in reading[: table["n_commands"]]:
            for how in table["damages"]:
                yield _damaged(name, how, command)


def _kind(name: str) -> str:
    """Name of a file without what tells it from others of its kind."""
    labels = "task-|run-|label-|contrast-|stat-|space-"
    return re.sub(f"(?:{labels})[^_]*_", "", name)


def _damaged(name: str, how: str, command: str, **changes: Any) -> Case:
    """Case of one file of a dataset, damaged."""

    def prepare(folder: Path, _names: dict[str, str]) -> None:
        damage.spoil(folder / name, how)

    label = f"{how}: {command.split(maxsplit=1)[0]}: {name}"
    settings = {"kind": "dataset", "says": Path(name).name, "codes": (0, 1, 2), **changes}
    return Case(name=label, words=command, prepare=prepare, damaged=name, **settings)


def main() -> int:
    """Run the campaign and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--long", action="store_true", help="all inputs")
    parser.add_argument("--only", default="", help="only this kind of input")
    parser.add_argument("--part", default="1/1", help="2/3 is the second of three parts")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin none after these")
    args = parser.parse_args()
    signal.signal(signal.SIGALRM, _hangs)
    base, began = Path(tempfile.mkdtemp(prefix="inputs-")), time.monotonic()
    n, n_short = Counter(), Counter()
    try:
        todo = Campaign(base)
        every = [c for c in cases(todo, is_long=args.long) if args.only in ("", c.kind)]
        random.Random(0).shuffle(every)  # what there is time for is a sample of all
        part, n_parts = map(int, args.part.split("/"))
        every = every[part - 1 :: n_parts]
        print(f"{len(every)} inputs", flush=True)
        for case in every:
            if time.monotonic() - began > 60 * args.minutes:
                break
            short = todo.case(case)
            n[case.kind] += 1
            if short:
                n_short[case.kind] += 1
                print(f"{case.kind}: {case.name}\n   {case.words}")
                print("".join(f"   - {what}\n" for what in short), end="", flush=True)
    finally:
        shutil.rmtree(base)
    print("\n| kind of input | inputs | fell short |\n|---|---|---|")
    for kind, number in n.items():
        print(f"| {kind} | {number} | {n_short[kind]} |")
    print(f"| all | {n.total()} | {n_short.total()} |")
    return 1 if n_short else 0


def _hangs(_number: int, _frame: object) -> None:
    raise SystemExit("hangs")


if __name__ == "__main__":
    raise SystemExit(main())
