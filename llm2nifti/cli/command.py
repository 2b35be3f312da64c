"""What do all commands have in common? Their help, --json, --quiet, and how they print."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # --help stays fast
    from llm2nifti.bids import Run
    from llm2nifti.models import LoadedModel

Handler = Callable[[argparse.Namespace], Any]


# Library messages name Python's arguments; on the command line these are options.
_ARGUMENT = re.compile(
    r"\b(batch_size|dtype|frames|fused_qkv|mode|model|overwrite|sites|spare_template|stimuli|template)="
    r"(True|\.\.\.|\d+|'[^']*'(?:(?:, | or )+'[^']*')*)"
)


def as_options(message: str) -> str:
    """Message in the words of the command line.

    Examples
    --------
    >>> as_options("replace it with overwrite=True, or use frames='trial' or 'last'")
    'replace it with --overwrite, or use --frames trial or last'
    """

    def option(match: re.Match[str]) -> str:
        name, value = f"--{match[1].replace('_', '-')}", match[2]
        if value in ("True", "..."):
            return name
        return f"{name} {value if ':' in value else value.replace(chr(39), '')}"

    return _ARGUMENT.sub(option, message)


def number(
    kind: type,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float = math.inf,
    below: float = math.inf,
) -> Callable[[str], Any]:
    """Type of an option that takes a finite number of a range.

    Parameters
    ----------
    kind : type
        int or float.
    low, above, high, below : float, optional
        Bounds; `low` and `high` are allowed themselves.

    Returns
    -------
    callable
        For argparse's ``type``.
    """
    words = ["a whole number" if kind is int else "a number"]
    words += [f"of at least {low}"] if low is not None else []
    words += [f"above {above}"] if above is not None else []
    words += [f"and at most {high}"] if high < math.inf else []
    words += [f"and below {below}"] if below < math.inf else []

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        least, open_end = (-math.inf if bound is None else bound for bound in (low, above))
        fits = least <= value <= high and open_end < value < below and math.isfinite(value)
        if not fits:
            raise argparse.ArgumentTypeError(f"{text!r} is not allowed; give {' '.join(words)}")
        return value

    return convert


COUNT = number(int, low=1)
ANY_COUNT = number(int, low=0)
SEED = number(int, low=0, below=2**32)
POSITIVE = number(float, above=0)
SHARE = number(float, above=0, high=1)
LEVEL = number(float, above=0, below=1)
FINITE = number(float)
TEMPLATES = ("auto", "chat", "none")


def words(text: str) -> str:
    """Type of an option that takes any text but an empty one, such as an unset variable is."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the value is empty; was a variable not set?")
    return text


def path(text: str) -> Path:
    """Type of an option that takes a folder or file: an empty one would be this folder."""
    return Path(words(text))


def image(text: str) -> Path:
    """Type of an option that takes a file that is there."""
    if not path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return Path(text)


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
    parser.set_defaults(handler=lambda args: _run(handler, args))
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument("--quiet", action="store_true", help="show no progress bars")
    return parser


def _run(handler: Handler, args: argparse.Namespace) -> None:
    """Call a command's handler; ``--quiet`` silences the bars of other libraries, too.

    These read the environment when they are imported, which the handler does.
    """
    switches = {"TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"} - os.environ.keys()
    added = dict.fromkeys(switches if args.quiet else (), "1")
    os.environ.update(added)
    try:
        handler(args)
    finally:
        for name in added:
            os.environ.pop(name, None)


def add_dataset(parser: Any) -> None:
    """Argument: the dataset."""
    parser.add_argument("dataset", type=path, help="folder of the BIDS dataset")


def add_session(parser: Any) -> None:
    """Options that choose one model and session."""
    parser.add_argument("--subject", type=words, help="model (default: the only trained one)")
    parser.add_argument("--session", help="session of the model (default: the only one)")


def add_model(parser: Any) -> None:
    """Options that say which model a dataset came from, and where to put it."""
    add_session(parser)
    parser.add_argument(
        "--model", type=words, help="where the model is, if the dataset does not say it"
    )
    parser.add_argument("--device", type=words, default="cpu", help="torch device such as cuda")
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
    """Print one JSON line at once, for whoever reads the other end of a pipe.

    What some readers take for the end of a line is escaped.
    """
    text = json.dumps(content, ensure_ascii=False)
    for mark in "\u0085\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    print(text, flush=True)
