"""What is asked for: frozen plans, whose fields, defaults, bounds and words are the only ones.

The command line with its help and the keys of study files are made from these classes, so this
module imports nothing heavy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta
from msgspec import inspect as kinds

Json = dict[str, Any]  # content of a JSON file
Count = Annotated[int, Meta(ge=1)]
AnyCount = Annotated[int, Meta(ge=0)]
Seed = Annotated[int, Meta(ge=0, lt=2**32)]
Level = Annotated[float, Meta(gt=0, lt=1)]  # of a test
Share = Annotated[float, Meta(gt=0, le=1)]  # of some units
Positive = Annotated[float, Meta(gt=0)]
Names = Annotated[tuple[str, ...], "comma"]  # "a,b" is two of them

_WHOLE = re.compile(r"[+-]?\d+")
_SHORT = re.compile(r"[+-]?(\d+\.|\.\d+)")
_HINTS: dict[type, dict[str, Any]] = {}
_BOUNDS = {"ge": "of at least", "gt": "above", "le": "at most", "lt": "below"}


class PlanError(ValueError):
    """The value of a field is not allowed: it ``is 0; it must be a whole number of at least 1``."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field, self.problem = field, problem


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Something that can be asked for; unknown names and impossible values raise PlanError."""

    command: ClassVar[str] = ""  # of the command line that asks for it
    whole: ClassVar[bool] = False  # whether it is about all sessions of a dataset together

    def __post_init__(self) -> None:
        """Check every value, and keep it as its type says: lists as tuples, whole as real."""
        for name, hint in hints_of(type(self)).items():
            object.__setattr__(self, name, checked(name, getattr(self, name), hint))

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """Plan of names and values, such as a table of a TOML or JSON file."""
        known = [each.name for each in fields(cls)]
        for name in content:
            if name not in known:
                raise unknown(name, known)
        return cls(**content)

    @property
    def asked(self) -> Json:
        """Values as JSON has them; those that say only how to get there are left out."""
        kept = [f for f in fields(self) if not f.metadata.get("how")]
        return {f.name: msgspec.to_builtins(getattr(self, f.name), enc_hook=str) for f in kept}


def unknown(name: str, known: list[str]) -> PlanError:
    """Error of a name that no field has."""
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return PlanError(name, f"is not known; {hint}allowed are {', '.join(known)}")


def how(default: Any = MISSING) -> Any:
    """Field of a plan that says how to get there, and changes nothing about the result."""
    return field(default=default, metadata={"how": True})


def hints_of(plan: type[Plan]) -> dict[str, Any]:
    """Type of every field, with its bounds."""
    if plan not in _HINTS:
        hints = get_type_hints(plan, include_extras=True)
        _HINTS[plan] = {each.name: hints[each.name] for each in fields(plan)}
    return _HINTS[plan]


def checked(name: str, value: Any, hint: Any, *, is_text: bool = False) -> Any:
    """Value as a field's type has it; PlanError if it does not fit. With `is_text` it was typed."""
    if isinstance(value, Plan):
        return value
    plain = value.item() if hasattr(value, "item") else value  # of numpy
    marks, wrong = getattr(hint, "__metadata__", ()), f"is {value!r}; it must be {words(hint)}"
    if "comma" in marks and isinstance(plain, str | list | tuple):
        texts = [plain] if isinstance(plain, str) else plain
        plain = [part.strip() for text in texts for part in str(text).split(",")]
    is_whole = hint is int or int in get_args(hint)  # which msgspec also reads from ``1e3``
    if is_text and plain == value and is_whole and not _WHOLE.fullmatch(str(value)):
        raise PlanError(name, wrong)
    if is_text and _has_float(hint):
        plain = [_full(text) for text in plain] if isinstance(plain, list) else _full(plain)
    try:
        out = msgspec.convert(plain, hint, strict=not is_text, dec_hook=_decoded)
    except msgspec.ValidationError:
        raise PlanError(name, wrong) from None
    parts = out if isinstance(out, tuple) else (out,)
    if any(isinstance(part, float) and not math.isfinite(part) for part in parts):
        raise PlanError(name, wrong)
    texts = plain if isinstance(plain, list | tuple) else [plain]
    if "blank" not in marks and any(isinstance(t, str) and not t.strip() for t in texts):
        raise PlanError(name, f"is {value!r}: the value is empty; was a variable not set?")
    return out


def _has_float(hint: Any) -> bool:
    """Whether a value is a number that need not be whole, or several of them."""
    return hint is float or any(_has_float(part) for part in get_args(hint))


def _full(text: Any) -> Any:
    """Number as msgspec reads it: ``.1`` and ``1.`` get their zero."""
    return str(float(text)) if isinstance(text, str) and _SHORT.fullmatch(text) else text


def _decoded(kind: type, value: Any) -> Any:
    """Value of a type that msgspec does not know."""
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    raise NotImplementedError(kind)


@cache
def words(hint: Any) -> str:
    """What a value has to be."""
    choices = _choices(hint)  # in their own order, which msgspec does not keep
    return listed(choices) if choices else _words(kinds.type_info(hint))


def _choices(hint: Any) -> list[str]:
    """Words that a value may be, where these are all."""
    if get_origin(hint) is Literal:
        return [str(value) for value in get_args(hint)]
    first, *rest = get_args(hint) or (hint,)
    return _choices(first) if rest == [NoneType] else []


def _words(kind: kinds.Type) -> str:  # noqa: PLR0911 - one line a kind of type
    """What a value of a type has to be."""
    match kind:
        case kinds.Metadata(type=inner):
            return _words(inner)
        case kinds.BoolType():
            return "true or false"
        case kinds.StrType():
            return "text"
        case kinds.CustomType():
            return "a file or folder"
        case kinds.IntType() | kinds.FloatType():
            noun = "a whole number" if isinstance(kind, kinds.IntType) else "a number"
            ends = [(text, getattr(kind, end)) for end, text in _BOUNDS.items()]
            told = [f"{text} {end:.12g}" for text, end in ends if end is not None]
            return " ".join([noun, " and ".join(told)]).strip()
        case kinds.UnionType(types=types):
            return listed([_words(t) for t in types if not isinstance(t, kinds.NoneType)])
        case kinds.DictType():
            return "a table"
        case kinds.VarTupleType(item_type=item) | kinds.ListType(item_type=item):
            return f"a list, each {_words(item)}"
    return "something else"


def listed(names: list[str]) -> str:
    """Words with ``or`` before the last."""
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else "".join(names)


@dataclass(frozen=True, kw_only=True)
class OfTasks(Plan):
    """A plan that may ask about part of the tasks only.

    Attributes
    ----------
    task : tuple of str
        Only runs of these tasks.
    """

    task: Names = ()


@dataclass(frozen=True, kw_only=True)
class OnWorkers(Plan):
    """A plan whose work several processes can do.

    Attributes
    ----------
    n_jobs : int
        Processes that do the work; -1 is one for each core.
    dask : str or None
        Address of a Dask scheduler whose workers do it instead.
    """

    n_jobs: int = how(1)
    dask: str | None = how(None)


@dataclass(frozen=True, kw_only=True)
class WithModel(Plan):
    """A plan that needs the dataset's model.

    Attributes
    ----------
    model : str or None
        Where the model is, if the dataset does not say it.
    device : str
        Torch device, such as cuda.
    trust_remote_code : bool
        Run code from the model's repository.
    """

    model: str | None = how(None)
    device: str = how("cpu")
    trust_remote_code: bool = how(False)
