"""Command line: arguments become one library call.

Exit codes: 0 done, 2 wrong usage or input, 1 failure.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from llm2nifti import __version__
from llm2nifti.cli import analysis, intervening, lookup, monitoring, pruning, scanning, training
from llm2nifti.cli.command import Parser, as_options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = build_parser()
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parser.parse_args(argv, argparse.Namespace(argv=argv))
    try:
        args.handler(args)
    except KeyboardInterrupt:
        hint = "" if getattr(args, "overwrite", False) else "; the same command resumes"
        print(f"interrupted{hint}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of a pipe went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, LookupError) as error:
        if os.environ.get("LLM2NIFTI_DEBUG"):
            raise
        print(f"llm2nifti {args.command}: {_one_line(error)}", file=sys.stderr)
        is_ours = type(error).__module__.startswith("llm2nifti")
        return getattr(error, "exit_code", 2 if is_ours else 1)
    except Exception as error:  # whatever it is, a person gets one line
        if os.environ.get("LLM2NIFTI_DEBUG"):
            raise
        print(f"llm2nifti {args.command}: {_one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _one_line(error: BaseException) -> str:
    """Message of an error on one line; a full disk says what to do."""
    if isinstance(error, OSError) and error.errno == 28:
        where = error.filename or "while writing"
        return f"the disk is full ({where}); free some space, then run the same command again"
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
    return as_options(text) or type(error).__name__


def build_parser() -> argparse.ArgumentParser:
    """Parser of all commands."""
    parser = Parser(
        prog="llm2nifti",
        description="Task fMRI for language models: scan a transformer into a BIDS dataset and "
        "analyse it with nilearn.",
        epilog="example: llm2nifti run ds",
    )
    parser.add_argument("--version", action="version", version=f"llm2nifti {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parts = (scanning, analysis, intervening, monitoring, pruning, training, lookup)
    for part in parts:
        part.add_commands(commands)
    return parser
