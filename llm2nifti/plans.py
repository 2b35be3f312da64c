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

from llm2nifti import defaults

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
    return _listed(choices) if choices else _words(kinds.type_info(hint))


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
            return _listed([_words(t) for t in types if not isinstance(t, kinds.NoneType)])
        case kinds.DictType():
            return "a table"
        case kinds.VarTupleType(item_type=item) | kinds.ListType(item_type=item):
            return f"a list, each {_words(item)}"
    return "something else"


def _listed(names: list[str]) -> str:
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


# -- what is scanned -------------------------------------------------------------------------------

FRAMES = {"generate": ("token", "trial"), "read": ("trial", "token", "word", "last")}
Template = Literal["auto", "chat", "none"]


@dataclass(frozen=True)
class Settings(Plan):
    """How to record.

    Attributes
    ----------
    sites : str
        What to record: default, all, regex:PATTERN, or names such as attn,mlp; see
        `llm2nifti.models.sites.find_sites`.
    template : {"auto", "chat", "none"}
        Whether to use the model's chat template.
    batch_size : int or None
        Prompts computed together: runs that follow each other share a batch as far as it reaches,
        longer ones take several. By default 128 where the model generates text, fewer if these
        would take more than a gibibyte, and 64 elsewhere. Part of the plan, because another size
        changes values by rounding.
    temperature : float
        0 is greedy; otherwise tokens are sampled with one generator a trial.
    seed : int
        Seed of the design and of the sampling.
    mode : {"auto", "generate", "read"}
        Generate: a frame is a generated token. Read: show the stimulus and generate nothing. Auto
        generates where the model can.
    frames : {"auto", "token", "word", "trial", "last"}
        One volume is a token, a trial (the mean of its frames), a word or the last token. Auto is
        the token in generate and the trial in read; of an untrained copy that generates, it is the
        trial.
    fused_qkv : {"contiguous", "interleaved"} or None
        Layout of fused queries, keys and values; see `llm2nifti.models.weights`.
    """

    sites: str = "default"
    template: Template = "auto"
    batch_size: Count | None = None
    temperature: Annotated[float, Meta(ge=0)] = 0.0
    seed: Seed = 0
    mode: Literal["auto", "generate", "read"] = "auto"
    frames: Literal["auto", "token", "word", "trial", "last"] = "auto"
    fused_qkv: Literal["contiguous", "interleaved"] | None = None

    def __post_init__(self) -> None:
        """Check every value, and frames against the mode."""
        super().__post_init__()
        allowed = FRAMES.get(self.mode, FRAMES["read"])
        if self.frames not in ("auto", *allowed):
            names = _listed(["auto", *allowed])
            raise PlanError("frames", f"is {self.frames!r}; in mode {self.mode} use {names}")


@dataclass(frozen=True)
class Design(Plan):
    """What is shown, and how much of it.

    Attributes
    ----------
    tasks : tuple of str
        Tasks to show; empty for every task of the stimulus set.
    n_runs : int
        Runs of each task.
    n_blocks : int
        On-blocks of a run.
    trials_per_block : int
        Prompts of an on-block.
    n_frames : int
        Generated tokens of a prompt.
    seed : int
        Seed of the design and of the sampling.
    stimuli : str or None
        Your own TSV with columns task and prompt, image or audio.
    split : {"evaluation", "development"}
        Split of the stimuli.
    rest : int
        Trials of a rest run beside each run number: free generation from an empty prompt.
    rest_temperature : float
        Temperature at which tokens of rest runs are sampled.
    """

    tasks: Names = field(default=(), metadata={"option": "--task"})
    n_runs: Count = defaults.N_RUNS
    n_blocks: Count = defaults.N_BLOCKS
    trials_per_block: Count = defaults.TRIALS_PER_BLOCK
    n_frames: Count = defaults.N_FRAMES
    seed: Seed = 0
    stimuli: str | None = None
    split: Literal["evaluation", "development"] = "evaluation"
    rest: AnyCount = 0
    rest_temperature: Positive = 1.0


@dataclass(frozen=True)
class ModelChoice(Plan):
    """Which model to scan, on what, and what to call it.

    Attributes
    ----------
    name : str
        Bundled name, Hugging Face id, folder or .gguf file.
    device : str
        Torch device such as cuda, or auto for several.
    dtype : {"float32", "bfloat16", "float16"}
        Type of the weights.
    trust_remote_code : bool
        Run code from the model's repository.
    untrained : bool
        Also scan an untrained copy on the same tokens, as a baseline.
    revision : str or None
        Branch, tag or commit on the hub.
    subject : str or None
        What to call the model in the dataset; by default by its name.
    session : str
        Label of the session; empty if the model has one only.
    """

    name: str = field(default=defaults.DEFAULT_MODEL, metadata={"option": "--model"})
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    trust_remote_code: bool = False
    untrained: bool = True
    revision: str | None = None
    subject: str | None = None
    session: Annotated[str, "blank"] = ""


@dataclass(frozen=True, kw_only=True)
class Attribution(Plan):
    """Whose a dataset is; it decides nothing else.

    Attributes
    ----------
    author : tuple of str
        Author of the dataset; repeat it for several.
    license : str or None
        Licence that the dataset is given, such as CC0 or CC-BY-4.0.
    """

    author: Names = how(())
    license: str | None = how(None)


@dataclass(frozen=True)
class ScanPlan(Attribution):
    """Everything that decides the runs of one model and session, and whose the dataset is.

    Attributes
    ----------
    model : ModelChoice
        What is scanned.
    design : Design
        What it is shown.
    settings : Settings
        How it is recorded.
    compress : bool
        Write 4D images as ``.nii.gz``: slower, hardly smaller.
    """

    model: ModelChoice = field(default_factory=ModelChoice)
    design: Design = field(default_factory=Design)
    settings: Settings = field(default_factory=Settings)
    compress: bool = False
