"""What do all commands have in common? Their help, --json, --quiet, and how they print."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # --help stays fast
    from llm2nifti.bids import Run
    from llm2nifti.models import LoadedModel

Handler = Callable[[argparse.Namespace], Any]


def add_command(commands: Any, name: str, handler: Handler, text: str, example: str) -> Any:
    """Add a command with its example, ``--json`` and ``--quiet``.

    Parameters
    ----------
    commands : argparse subparsers
        Where to add it.
    name : str
        What to type.
    handler : callable
        Takes the parsed arguments.
    text : str
        One line of help.
    example : str
        A whole command.

    Returns
    -------
    argparse.ArgumentParser
    """
    parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"example: {example}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(handler=handler)
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument("--quiet", action="store_true", help="show no progress bars")
    return parser


def add_dataset(parser: Any) -> None:
    """Argument: the dataset."""
    parser.add_argument("dataset", type=Path, help="folder of the BIDS dataset")


def add_session(parser: Any) -> None:
    """Options that choose one model and session."""
    parser.add_argument("--subject", help="model (default: the only trained one)")
    parser.add_argument("--session", help="session of the model (default: the only one)")


def add_model(parser: Any) -> None:
    """Options that say which model a dataset came from, and where to put it."""
    add_session(parser)
    parser.add_argument("--model", help="where the model is, if the dataset does not say it")
    parser.add_argument("--device", default="cpu", help="torch device such as cuda")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run code from the model's repository"
    )


def load_model(args: argparse.Namespace, run: Run) -> LoadedModel:
    """Load the model of a run as the options of `add_model` say."""
    from llm2nifti.study.reloading import reload

    how = {"device": args.device, "trust_remote_code": args.trust_remote_code}
    return reload(run, name=args.model, **how)


def show(args: argparse.Namespace, content: Any, text: str) -> None:
    """Print JSON or text, as asked."""
    print(json.dumps(content, indent=2, ensure_ascii=False) if args.json else text)


def show_line(content: Any) -> None:
    """Print one JSON line at once, for whoever reads the other end of a pipe."""
    print(json.dumps(content, ensure_ascii=False), flush=True)
