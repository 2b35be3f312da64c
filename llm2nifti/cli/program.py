"""Which commands are there? Made from plans, and what becomes of an error."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from cyclopts import (
    App,
    CycloptsError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownCommandError,
    UnusedCliTokensError,
)

from llm2nifti import __version__
from llm2nifti.cli import commands
from llm2nifti.cli.options import as_options, example, plan_of, signature, typed
from llm2nifti.cli.stopping import Stop
from llm2nifti.plans import Plan, PlanError

_ABOUT = (
    "Task fMRI for language models: scan a transformer into a BIDS dataset and analyse it with "
    "nilearn."
)
_SCANNED = "folder of the BIDS dataset, or a study file (.toml)"
_DATASETS = {"models": None, "stimuli": None, "run": _SCANNED, "scan": _SCANNED}  # help, or none


def run(argv: Sequence[str] | None, stop: Stop) -> int:
    """Run a command and return its exit code; raise KeyboardInterrupt if a signal ended it."""
    argv = sys.argv[1:] if argv is None else list(argv)
    app, plans = build_app(), commands.plans_by_command()
    command = argv[0] if argv and argv[0] in plans else ""
    name = f"llm2nifti {command}".strip()
    try:
        call, bound, _ = app.parse_args(argv, exit_on_error=False, print_error=False)
        if not hasattr(call, "plans"):  # help, or the version
            call(*bound.args, **bound.kwargs)
            return 0
        given = {key: value for key, value in bound.arguments.items() if key != "dataset"}
        plan = plan_of(plans[command][0], given)
    except (CycloptsError, PlanError) as error:
        print(
            f"{name}: {_usage(error, plans.get(command, ()))}; see {name} --help", file=sys.stderr
        )
        return 2
    return _do(command, bound.arguments.get("dataset", ""), given, plan, stop)


def _do(command: str, dataset: str, given: Mapping[str, Any], plan: Plan, stop: Stop) -> int:
    """Do a command whose usage is right."""
    is_quiet, as_json = given.get("quiet", False), given.get("json", False)
    try:
        with _one_line_warnings(command), _quiet(is_quiet):
            handler = commands.handler_of(command)
            printed = handler(dataset, given, plan, verbose=int(not is_quiet))
            commands.print_result(printed, as_json=as_json)
    except BrokenPipeError:  # the reader of a pipe went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:  # whatever it is, a person gets one line
        if stop.number:  # it is what became of the interruption
            raise KeyboardInterrupt from error
        if os.environ.get("LLM2NIFTI_DEBUG"):
            raise
        commands.print_result(getattr(error, "printed", None), as_json=as_json)
        is_plan = isinstance(error, PlanError)  # values that do not go together
        what = _usage(error, commands.plans_by_command()[command]) if is_plan else _one_line(error)
        print(f"llm2nifti {command}: {what}", file=sys.stderr)
        # 2 if it is one of llm2nifti's own about what it was given.
        is_ours = type(error).__module__.startswith("llm2nifti")
        is_input = is_ours and isinstance(error, ValueError | LookupError)
        return getattr(error, "exit_code", 2 if is_input else 1)
    return 0


def build_app() -> App:
    """Application with all commands."""
    app = App(
        name="llm2nifti",
        help=_ABOUT,
        help_format="plaintext",
        help_epilogue="Example: llm2nifti run ds",
        version=f"llm2nifti {__version__}",
        version_flags=["--version"],
        result_action="return_value",
    )
    app.register_install_completion_command()
    for command, plans in commands.plans_by_command().items():
        epilogue = f"Example: {example(plans[0])}"
        app.command(_function(command, plans), name=command, help_epilogue=epilogue)
    return app


def _function(command: str, plans: Sequence[type[Plan]]) -> Any:
    """Function whose signature cyclopts reads; it is never called."""

    def function(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError

    dataset = _DATASETS.get(command, "folder of the BIDS dataset")
    function.__signature__ = signature(plans, dataset=dataset)  # type: ignore[attr-defined]
    function.__doc__ = (plans[0].__doc__ or "").splitlines()[0]
    function.plans = plans  # type: ignore[attr-defined]
    return function


def _usage(error: Exception, plans: Sequence[type[Plan]]) -> str:
    """What is wrong with what was typed, in one line."""
    reason = error if isinstance(error, PlanError) else error.__cause__
    if isinstance(reason, PlanError):
        names = {each.name: name for name, each in typed(plans).items()}
        return as_options(f"{names.get(reason.field, reason.field)} {reason.problem}")
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        name, typed_option = error.argument.name, error.keyword
        lower = name if name.startswith("--") else name.lower()
        return f"{typed_option} needs a value" if typed_option else f"{lower} is missing"
    if isinstance(error, UnknownCommandError):
        word = (error.unused_tokens or [""])[0]
        close = get_close_matches(word, commands.plans_by_command(), n=1)
        hint = f"did you mean {close[0]}?" if close else "llm2nifti --help lists them"
        return f"there is no command {word!r}; {hint}"
    if isinstance(error, RepeatArgumentError):
        return f"{error.token.keyword} is given twice"
    if isinstance(error, UnusedCliTokensError):
        return f"{(error.unused_tokens or [''])[0]!r} is one argument too many"
    said = " ".join(str(error).split()).rstrip(".")
    return said.replace(". Did you mean ", "; did you mean ")


@contextmanager
def _quiet(is_quiet: bool) -> Iterator[None]:
    """Silence the bars of other libraries, too.

    These read the environment when they are imported, which handlers do.
    """
    switches = {"TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"} - os.environ.keys()
    added = dict.fromkeys(switches if is_quiet else (), "1")
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


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


def _one_line(error: BaseException) -> str:
    """Message of an error on one line; a full disk says what to do."""
    if isinstance(error, OSError) and error.errno == 28:
        where = error.filename or "while writing"
        return f"the disk is full ({where}); free some space, then run the same command again"
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
    return as_options(text) or type(error).__name__
