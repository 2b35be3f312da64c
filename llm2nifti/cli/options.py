"""How do plans become options? With the names, help, defaults and bounds that they have."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, get_args, get_origin

from cyclopts import Parameter, Token

from llm2nifti.plans import Json, Plan, checked, hints_of

_ATTRIBUTE = re.compile(r"^(\w+) : .*\n((?:    .*\n?|\n)+)", re.M)
_REFERENCE = re.compile(r"[;,] see `[^`]*`")  # to the library
# Library messages name Python's arguments; on the command line these are options.
_ARGUMENT = re.compile(
    r"\b(at|batch_size|dtype|frames|fused_qkv|mode|model|overwrite|sites|spare_template|stimuli|template)="
    r"(True|\.\.\.|\d+|'[^']*'(?:(?:, | or )+'[^']*')*)"
)


def as_options(message: str) -> str:
    """Message in the words of the command line."""

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
        known = {each.name: each for each in fields(plan)}
        for kind in plan.__mro__:  # what is a plan's own comes first
            for each in filter(None, map(known.get, vars(kind).get("__annotations__", {}))):
                name = each.metadata.get("option", option_of(each.name))
                out.setdefault(each.name if each.metadata.get("positional") else name, each)
    return out


def plan_of(plan: type[Plan], given: Mapping[str, Any]) -> Plan:
    """Plan of what was typed, by field."""
    return plan(**{each.name: given[each.name] for each in fields(plan) if each.name in given})


def signature(plans: Sequence[type[Plan]], *, dataset: str | None) -> inspect.Signature:
    """Signature that cyclopts makes a command of; `dataset` is help of the first argument."""
    parameters = []
    if dataset is not None:
        told: Any = Annotated[str, Parameter(help=dataset, converter=_converter("dataset", str))]
        first = inspect.Parameter("dataset", inspect.Parameter.POSITIONAL_ONLY, annotation=told)
        parameters.append(first)
    for plan in plans:
        hints, helps = hints_of(plan), _helps(plan)
        for name, each in typed([plan]).items():
            if each.name not in [p.name for p in parameters]:
                hint, text = hints[each.name], helps.get(each.name, "")
                parameters.append(_parameter(name, each, hint, text))
    return inspect.Signature(sorted(parameters, key=lambda p: p.kind))


def _parameter(name: str, each: Field[Any], hint: Any, text: str) -> inspect.Parameter:
    """How cyclopts reads and shows a field; options may stand between several words."""
    kind: Any = inspect.Parameter.KEYWORD_ONLY
    is_option, default = name.startswith("--"), each.default
    if not is_option:
        kind = inspect.Parameter.POSITIONAL_ONLY
        if isinstance(default, tuple):
            kind, hint, default = inspect.Parameter.VAR_POSITIONAL, get_args(hint)[0], MISSING
    if hint is bool:
        how: Json = {"negative": f"--no-{name[2:]}" if default else ()}
        how["show_default"] = bool(default)
    else:
        shown = ", ".join(map(str, default)) if isinstance(default, tuple) else default
        has_default = default not in (None, (), MISSING)
        how = {"negative": (), "converter": _converter(each.name, hint), "accepts_keys": False}
        how["show_default"] = (lambda _: str(shown)) if has_default else False
    told: Any = Annotated[hint, Parameter(name=name if is_option else None, help=text, **how)]
    default = inspect.Parameter.empty if default is MISSING else default
    return inspect.Parameter(each.name, kind, default=default, annotation=told)


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
