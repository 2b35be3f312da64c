"""How do plans become options? With the names, help, defaults and bounds that they have."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, get_args, get_origin

from cyclopts import Parameter, Token

from llm2nifti.plans import Plan, checked, hints_of

_ATTRIBUTE = re.compile(r"^(\w+) : .*\n((?:    .*\n?|\n)+)", re.M)
_POSITIONAL, _OPTION = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.KEYWORD_ONLY
_REFERENCE = re.compile(r"[;,] see `[^`]*`")  # to the library
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
        name, value = option_of(match[1]), match[2]
        if value in ("True", "..."):
            return name
        return f"{name} {value if ':' in value else value.replace(chr(39), '')}"

    return _ARGUMENT.sub(option, message)


def option_of(name: str) -> str:
    """Option of a field's name."""
    return f"--{name.replace('_', '-')}"


def typed(plans: Sequence[type[Plan]]) -> dict[str, Field[Any]]:
    """Fields of plans by what is typed; what several plans have is one option."""
    out: dict[str, Field[Any]] = {}
    for plan in plans:
        for each in sorted(fields(plan), key=lambda f: _depth(plan, f.name)):
            name = each.metadata.get("option", option_of(each.name))
            out.setdefault(each.name if each.metadata.get("positional") else name, each)
    return out


def _depth(plan: type[Plan], name: str) -> int:
    """How far up the plan that has a field is: what is a plan's own comes first."""
    return min(
        i for i, kind in enumerate(plan.__mro__) if name in vars(kind).get("__annotations__", {})
    )


def plan_of(plan: type[Plan], given: Mapping[str, Any]) -> Plan:
    """Plan of what was typed, by field."""
    return plan(**{each.name: given[each.name] for each in fields(plan) if each.name in given})


def signature(plans: Sequence[type[Plan]], *, dataset: str | None) -> inspect.Signature:
    """Signature that cyclopts makes a command of.

    Parameters
    ----------
    plans : sequence of type
        Whose fields are options.
    dataset : str or None
        Help of the first argument; None if there is none.
    """
    parameters: list[inspect.Parameter] = []
    rest: list[inspect.Parameter] = []
    if dataset is not None:
        told: Any = Annotated[str, Parameter(help=dataset, converter=_converter("dataset", str))]
        parameters.append(inspect.Parameter("dataset", _POSITIONAL, annotation=told))
    for plan in plans:
        hints, helps = hints_of(plan), _helps(plan)
        for name, each in typed([plan]).items():
            if each.name in [p.name for p in [*parameters, *rest]]:
                continue
            is_option = name.startswith("--")
            hint: Any = hints[each.name]
            if isinstance(each.default, tuple) and not is_option:
                hint = get_args(hint)[0]
            told = Annotated[hint, _parameter(name, each, hint, helps.get(each.name, ""))]
            made = _made(each, told, is_option=is_option)
            (rest if is_option else parameters).append(made)
    return inspect.Signature([*parameters, *rest])


def _made(each: Field[Any], told: Any, *, is_option: bool) -> inspect.Parameter:
    """Parameter of a function; several words are ``*words``, which options may stand between."""
    if isinstance(each.default, tuple) and not is_option:
        return inspect.Parameter(each.name, inspect.Parameter.VAR_POSITIONAL, annotation=told)
    default = inspect.Parameter.empty if each.default is MISSING else each.default
    kind = _OPTION if is_option else _POSITIONAL
    return inspect.Parameter(each.name, kind, default=default, annotation=told)


def _parameter(name: str, each: Field[Any], hint: Any, text: str) -> Parameter:
    """How cyclopts reads and shows one field."""
    names = (name,) if name.startswith("--") else None
    if hint is bool:
        negative = f"--no-{name[2:]}" if each.default else ()
        return Parameter(name=names, help=text, negative=negative, show_default=bool(each.default))
    shown = each.default not in (None, (), MISSING)
    default = ", ".join(map(str, each.default)) if isinstance(each.default, tuple) else each.default
    return Parameter(
        name=names,
        help=text,
        negative=(),
        show_default=(lambda _: str(default)) if shown else False,
        converter=_converter(each.name, hint),
        accepts_keys=False,
    )


def _converter(name: str, hint: Any) -> Callable[[Any, Sequence[Token]], Any]:
    """Reads what was typed as a field's type has it."""
    plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    items = get_args(plain)[0] if get_origin(plain) is tuple else None

    def convert(_: Any, tokens: Sequence[Token]) -> Any:
        texts = [token.value for token in tokens]
        if items is None:
            return checked(name, texts[0], hint, is_text=True)
        for text in texts:
            checked(name, text, items, is_text=True)
        return checked(name, texts, hint, is_text=True)

    return convert


def _helps(plan: type[Plan]) -> dict[str, str]:
    """What the docstrings of a plan and of those it extends say of each field."""
    out: dict[str, str] = {}
    for kind in reversed(plan.__mro__):
        for name, text in _ATTRIBUTE.findall(inspect.getdoc(kind) or ""):
            out[name] = _REFERENCE.sub("", " ".join(text.split()))
    return out


def example(plan: type[Plan]) -> str:
    """Commands that a plan's docstring gives."""
    text = (inspect.getdoc(plan) or "").rpartition("Examples\n--------\n")[2]
    return " ".join(text.split())
