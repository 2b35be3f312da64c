"""Which commands are there? Their parser, and what becomes of an error."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from llm2nifti import __version__
from llm2nifti.cli import (
    analysis,
    checking,
    intervening,
    lookup,
    monitoring,
    pruning,
    scanning,
    training,
)
from llm2nifti.cli.command import as_options
from llm2nifti.cli.stopping import Stop


def run(argv: Sequence[str] | None, stop: Stop) -> int:
    """Run a command and return its exit code; raise KeyboardInterrupt if a signal ended it."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        args = build_parser().parse_args(argv, argparse.Namespace(argv=argv))
    except SystemExit as end:  # help was asked for, or the usage is wrong
        return int(end.code or 0)
    try:
        with _one_line_warnings(args.command):
            args.handler(args)
    except BrokenPipeError:  # the reader of a pipe went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:  # whatever it is, a person gets one line
        if stop.number:  # it is what became of the interruption
            raise KeyboardInterrupt from error
        if os.environ.get("LLM2NIFTI_DEBUG"):
            raise
        print(f"llm2nifti {args.command}: {_one_line(error)}", file=sys.stderr)
        return _exit_code(error)
    return 0


@contextmanager
def _one_line_warnings(command: str) -> Iterator[None]:
    """Print warnings of llm2nifti as one line, without the place in the code."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def one_line(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if category.__module__.startswith("llm2nifti"):
                print(f"llm2nifti {command}: {as_options(str(message))}", file=sys.stderr)
            else:
                show(message, category, *place)

        warnings.showwarning = one_line  # type: ignore[assignment]
        yield


def _exit_code(error: Exception) -> int:
    """2 if it is one of llm2nifti's own about what it was given, otherwise 1."""
    is_input = isinstance(error, ValueError | LookupError)
    is_ours = is_input and type(error).__module__.startswith("llm2nifti")
    return getattr(error, "exit_code", 2 if is_ours else 1)


def _one_line(error: BaseException) -> str:
    """Message of an error on one line; a full disk says what to do."""
    if isinstance(error, OSError) and error.errno == 28:
        where = error.filename or "while writing"
        return f"the disk is full ({where}); free some space, then run the same command again"
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
    return as_options(text) or type(error).__name__


class _Parser(argparse.ArgumentParser):
    """Parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and where help is."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """Parser of all commands."""
    parser = _Parser(
        prog="llm2nifti",
        description="Task fMRI for language models: scan a transformer into a BIDS dataset and "
        "analyse it with nilearn.",
        epilog="example: llm2nifti run ds",
    )
    parser.add_argument("--version", action="version", version=f"llm2nifti {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parts = (scanning, analysis, checking, intervening, monitoring, pruning, training, lookup)
    for part in parts:
        part.add_commands(commands)
    return parser
