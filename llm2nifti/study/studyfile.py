"""What does a study file ask for? One TOML file becomes the plans of all models and sessions."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any, get_type_hints

from llm2nifti import bids, models
from llm2nifti.defaults import N_RELABELLINGS
from llm2nifti.scanner import Settings
from llm2nifti.study.errors import StudyError
from llm2nifti.study.plans import Design, ModelChoice, Plan, check_labels

FACTORS = ("name", "revision", "dtype", "seed", "temperature")  # lists of these become sessions

Table = Mapping[str, Any]


@dataclass(frozen=True)
class StudyFile:
    """What a study file asks for.

    Attributes
    ----------
    root : Path
        Root of the dataset.
    plans : tuple of Plan
        One a model and session.
    n_null : int
        Relabellings of the null experiments.
    """

    root: Path
    plans: tuple[Plan, ...]
    n_null: int


@dataclass(frozen=True)
class _Kind:
    """What a value has to be."""

    words: str
    fits: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TEXT = _Kind("text", lambda value: isinstance(value, str) and bool(value.strip()))
_WHOLE = _Kind("a whole number", lambda value: _is_number(value) and isinstance(value, int))
_NUMBER = _Kind("a number", _is_number)
_SWITCH = _Kind("true or false", lambda value: isinstance(value, bool))
_TEXTS = _Kind("a list of texts", lambda v: isinstance(v, list) and all(map(_TEXT.fits, v)))
_TABLE = _Kind("a table", lambda value: isinstance(value, dict))
_TABLES = _Kind(
    "a list of tables, each begun by [[model]]",
    lambda value: isinstance(value, list) and bool(value) and all(map(_TABLE.fits, value)),
)
_OF_TYPE = {
    str: _TEXT,
    str | None: _TEXT,
    int: _WHOLE,
    float: _NUMBER,
    bool: _SWITCH,
    tuple[str, ...]: _TEXTS,
}


def _kinds(cls: type, renamed: Mapping[str, str], left_out: Iterable[str] = ()) -> dict[str, _Kind]:
    """Keys of a table that hold the fields of a dataclass."""
    hints = get_type_hints(cls)
    names = [f.name for f in fields(cls) if f.name not in left_out]
    return {renamed.get(name, name): _OF_TYPE[hints[name]] for name in names}


_FILE = {"dataset": _TEXT, "n_null": _WHOLE, "design": _TABLE, "recording": _TABLE}
_FILE["model"] = _TABLES
_DESIGN = _kinds(Design, {"stimuli_path": "stimuli"})
_RECORDING = {**_kinds(Settings, {}, ("seed", "temperature")), "compress": _SWITCH}
_MODEL = {**_kinds(ModelChoice, {}, ("session",)), "seed": _WHOLE, "temperature": _NUMBER}


def read_study(path: Path | str) -> StudyFile:
    """Read a study file.

    Parameters
    ----------
    path : path-like
        A TOML file with ``dataset``, one or more ``[[model]]``, and as wanted ``n_null``,
        ``[design]`` and ``[recording]``. Paths in it are relative to its folder.

    Returns
    -------
    StudyFile
        Lists of a model's ``name``, ``revision``, ``dtype``, ``seed`` and ``temperature`` are
        crossed: each combination is a session, named by what varies.

    Raises
    ------
    StudyError
        If the file is not there or not TOML, has an unknown key or a value of another kind, or
        two sessions would get one label. The message names file and key.
    """
    path = Path(path)
    if not path.is_file():
        raise StudyError(f"there is no study file {path}")
    try:
        study = _read(path)
        study.plans[0].design.paradigms()  # for its checks
    except ValueError as error:  # many checks do not know of the file
        raise StudyError(f"{path}: {error}") from None
    return study


def _read(path: Path) -> StudyFile:
    """Study of a file."""
    content = tomllib.loads(path.read_text("utf-8"))
    _check_table(content, _FILE, "")
    for key in ("dataset", "model"):
        if key not in content:
            raise StudyError(f"{key} is missing; the file needs dataset and at least one [[model]]")
    design, recording = content.get("design", {}), content.get("recording", {})
    _check_table(design, _DESIGN, "[design] ")
    _check_table(recording, _RECORDING, "[recording] ")
    plans = []
    for number, table in enumerate(content["model"], start=1):
        place = f"[[model]] {number} "
        _check_model(table, place)
        _check_sampling(table, recording, place)
        table["name"] = [_found(name, path.parent) for name in _values(table, "name")]
        _check_revisions(table, place)
        plans += [
            Plan(
                _choice(one),
                _design(design, path.parent),
                _settings(recording, one),
                recording.get("compress", False),
            )
            for one in _sessions(table, place)
        ]
    check_labels(plans)
    return StudyFile(
        root=path.parent / content["dataset"],
        plans=tuple(plans),
        n_null=content.get("n_null", N_RELABELLINGS),
    )


def _check_table(table: Table, kinds: Mapping[str, _Kind], place: str) -> None:
    """Raise StudyError unless every key is known and every value of its kind."""
    for key, value in table.items():
        if key not in kinds:
            raise StudyError(f"{place}{key} is not known; allowed are {', '.join(kinds)}")
        if not kinds[key].fits(value):
            raise StudyError(f"{place}{key} is {value!r}; it must be {kinds[key].words}")


def _check_model(table: Table, place: str) -> None:
    """Raise StudyError unless a model is described as it should be."""
    for key in FACTORS:
        values = _values(table, key)
        for value in values:
            _check_table({key: value}, _MODEL, place)
        if not values and key in table:
            raise StudyError(f"{place}{key} is an empty list; give at least one value")
        twice = [value for i, value in enumerate(values) if value in values[:i]]
        if twice:
            raise StudyError(f"{place}{key} holds {twice[0]!r} twice")
    _check_table({key: v for key, v in table.items() if key not in FACTORS}, _MODEL, place)
    if "name" not in table:
        raise StudyError(f"{place}name is missing; give a model's name, identifier or file")
    if len(_values(table, "name")) > 1 and "subject" not in table:
        raise StudyError(f"{place}subject is missing: several names need one label to share")


def _check_sampling(table: Table, recording: Table, place: str) -> None:
    """Raise StudyError if sessions would differ in nothing but their name."""
    for key in ("seed", "temperature"):
        if len(_values(table, key)) > 1 and recording.get("mode") == "read":
            raise StudyError(
                f"{place}{key} is a list, but in mode read nothing is generated, so all of its "
                "sessions would be the same; give one value"
            )
    if len(_values(table, "seed")) > 1 and 0 in (_values(table, "temperature") or [0]):
        raise StudyError(
            f"{place}seed is a list, but temperature 0 is greedy and uses no seed; give a "
            "temperature above 0, or one seed"
        )


def _check_revisions(table: Table, place: str) -> None:
    """Raise StudyError if files of this machine are asked for in several revisions."""
    here = [name for name in table["name"] if name in models.BUNDLED or Path(name).exists()]
    if here and len(_values(table, "revision")) > 1:
        raise StudyError(
            f"{place}revision is a list, but {here[0]} is not read from a hub and has no "
            "revisions; give the folder of each as a list of names"
        )


def _values(table: Table, key: str) -> list[Any]:
    """Values of a factor: a list, or one value."""
    value = table.get(key, [])
    return value if isinstance(value, list) else [value]


def _sessions(table: Table, place: str) -> list[dict[str, Any]]:
    """Every combination of the factors, with its label under ``session``."""
    lists = {key: _values(table, key) for key in FACTORS if key in table}
    varying = [key for key, values in lists.items() if len(values) > 1]
    out: list[dict[str, Any]] = []
    for combination in product(*lists.values()):
        one = {**table, **dict(zip(lists, combination, strict=True))}
        one["session"] = "".join(_part(key, one[key]) for key in varying)
        clash = [other for other in out if other["session"].lower() == one["session"].lower()]
        if clash:
            a, b = (" ".join(str(o[key]) for key in varying) for o in (clash[0], one))
            raise StudyError(
                f"{place}{', '.join(varying)}: {a!r} and {b!r} have the same BIDS label "
                f"ses-{one['session']}; labels keep only letters and digits, so rename one or "
                "describe it as a model with a subject of its own"
            )
        out.append(one)
    return out


def _part(key: str, value: Any) -> str:
    """Part of a session's label."""
    if key == "name":
        return bids.label(models.short_name(value))
    if key == "temperature":
        return f"temp{bids.label(f'{value:g}'.replace('.', 'p'))}"
    prefix = {"revision": "rev", "dtype": "", "seed": "seed"}[key]
    return prefix + bids.label(str(value))


def _found(name: str, folder: Path) -> str:
    """Name of a model; a folder or file is found from where the study file is."""
    path = folder / name
    return str(path.resolve()) if path.exists() and name not in models.BUNDLED else name


def _choice(table: Table) -> ModelChoice:
    """Model of one session."""
    names = [f.name for f in fields(ModelChoice)]
    return ModelChoice(**{name: table[name] for name in names if name in table})


def _design(table: Table, folder: Path) -> Design:
    """Design that all sessions share."""
    given = {key: value for key, value in table.items() if key != "stimuli"}
    if "stimuli" in table:
        given["stimuli_path"] = str(folder / table["stimuli"])
    return Design(**{**given, "tasks": tuple(table.get("tasks", ()))})


def _settings(table: Table, model: Table) -> Settings:
    """How a session is recorded."""
    sampling = {key: model[key] for key in ("seed", "temperature") if key in model}
    return Settings(**{key: v for key, v in table.items() if key != "compress"}, **sampling)
