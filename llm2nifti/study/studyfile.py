"""What does a study file ask for? One TOML file becomes the plans of all models and sessions."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

from llm2nifti import bids, experiments, models
from llm2nifti.experiments.nulls.plan import NullPlan
from llm2nifti.plans import (
    Attribution,
    Count,
    Design,
    Json,
    ModelChoice,
    Plan,
    PlanError,
    ScanPlan,
    Settings,
    checked,
    hints_of,
    unknown,
)
from llm2nifti.study.plans import check_together, paradigms
from llm2nifti.study.sessions import StudyError

FACTORS = ("name", "revision", "dtype", "seed", "temperature")  # lists of these become sessions
_SAMPLING = {name: hints_of(Settings)[name] for name in ("seed", "temperature")}
_MODEL = {**hints_of(ModelChoice), **_SAMPLING}
del _MODEL["session"]
_RECORDING = {k: v for k, v in hints_of(Settings).items() if k not in _SAMPLING}
_RECORDING["compress"] = bool
_TABLES = {"dataset": str, "n_null": Count, "design": dict, "recording": dict, "model": list[dict]}

Table = Mapping[str, Any]


@dataclass(frozen=True)
class StudyFile:
    """What a study file asks for: a plan a model and session, and what each is measured by."""

    root: Path
    plans: tuple[ScanPlan, ...]
    measured: tuple[Plan, ...] = ()


def read_study(path: Path | str) -> StudyFile:
    """Read a TOML file with ``dataset``, one or more ``[[model]]``, and as wanted other tables.

    These are ``author``, ``license``, ``n_null``, ``[design]``, ``[recording]``, and one named by
    the command of each experiment of every session. Paths are relative to the file's folder.
    Lists of a model's `FACTORS` are crossed: each combination is a session, named by what varies.
    A StudyError names file and key.
    """
    path = Path(path)
    if not path.is_file():
        raise StudyError(f"there is no study file {path}")
    try:
        study = _read(path)
        paradigms(study.plans[0].design)  # for its checks
    except ValueError as error:  # many checks do not know of the file
        raise StudyError(f"{path}: {error}") from None
    return study


def _read(path: Path) -> StudyFile:
    """Study of a file."""
    content = tomllib.loads(path.read_text("utf-8"))
    commands = experiments.commands()
    _check(content, {**_TABLES, **hints_of(Attribution), **dict.fromkeys(commands, dict)}, "")
    for key in ("dataset", "model"):
        if not content.get(key):
            raise StudyError(f"{key} is missing; the file needs dataset and at least one [[model]]")
    shown, recording = content.get("design", {}), dict(content.get("recording", {}))
    _check(shown, hints_of(Design), "[design] ")
    _check(recording, _RECORDING, "[recording] ")
    if "stimuli" in shown:
        shown = {**shown, "stimuli": str(path.parent / shown["stimuli"])}
    design, compress = Design(**shown), recording.pop("compress", False)
    whose = {key: content[key] for key in hints_of(Attribution) if key in content}
    plans = []
    for number, table in enumerate(content["model"], start=1):
        for one in _sessions(table, recording, f"[[model]] {number} ", path.parent):
            sampling = {key: one.pop(key) for key in _SAMPLING if key in one}
            settings = Settings(**recording, **sampling)
            plans.append(ScanPlan(ModelChoice(**one), design, settings, compress, **whose))
    check_together(plans)
    measured = [
        _plan(commands[name], content[name], f"[{name}] ") for name in commands if name in content
    ]
    together = [plan.command for plan in measured if plan.whole]
    if together and len(plans) < 2:
        raise StudyError(f"[{together[0]}] compares sessions, and the file asks for one only")
    if "n_null" in content:
        measured.insert(0, NullPlan(n=content["n_null"]))
    return StudyFile(path.parent / content["dataset"], tuple(plans), tuple(measured))


def _check(table: Table, hints: Mapping[str, Any], place: str) -> None:
    """Raise StudyError unless every key is known and every value of its kind."""
    for key, value in table.items():
        if key not in hints:
            raise StudyError(f"{place}{unknown(key, list(hints))}")
        try:
            checked(key, value, hints[key])
        except PlanError as error:
            raise StudyError(f"{place}{error}") from None


def _plan(kind: type[Plan], table: Table, place: str) -> Plan:
    """Plan of an experiment's table; where the model is, [[model]] says."""
    hints = {f.name: hints_of(kind)[f.name] for f in fields(kind) if not f.metadata.get("how")}
    _check(table, hints, place)
    return kind(**table)


def _factors(table: Table, place: str, folder: Path) -> dict[str, list[Any]]:
    """Values of a model's factors, checked; folders and files as they are from the study file."""
    factors = {}
    for key in FACTORS:
        if key in table:
            values = list(table[key]) if isinstance(table[key], list) else [table[key]]
            for value in values:
                _check({key: value}, _MODEL, place)
            twice = [value for i, value in enumerate(values) if value in values[:i]]
            if twice:
                raise StudyError(f"{place}{key} holds {twice[0]!r} twice")
            if not values:
                raise StudyError(f"{place}{key} is an empty list; give at least one value")
            factors[key] = values
    _check({key: value for key, value in table.items() if key not in FACTORS}, _MODEL, place)
    if "name" not in factors:
        raise StudyError(f"{place}name is missing; give a model's name, identifier or file")
    for i, name in enumerate(factors["name"]):
        if name not in models.BUNDLED and (folder / name).exists():
            factors["name"][i] = str((folder / name).resolve())
    return factors


def _check_factors(
    table: Table, factors: Mapping[str, list[Any]], many: list[str], recording: Table, place: str
) -> None:
    """Raise StudyError if sessions would differ in nothing but their name, or share none."""
    if "name" in many and "subject" not in table:
        raise StudyError(f"{place}subject is missing: several names need one label to share")
    sampled = [key for key in many if key in _SAMPLING]
    if sampled and recording.get("mode") == "read":
        raise StudyError(
            f"{place}{sampled[0]} is a list, but in mode read nothing is generated, so all of its "
            "sessions would be the same; give one value"
        )
    if "seed" in many and 0 in factors.get("temperature", [0]):
        raise StudyError(
            f"{place}seed is a list, but temperature 0 is greedy and uses no seed; give a "
            "temperature above 0, or one seed"
        )
    here = [name for name in factors["name"] if name in models.BUNDLED or Path(name).exists()]
    if here and "revision" in many:
        raise StudyError(
            f"{place}revision is a list, but {here[0]} is not read from a hub and has no "
            "revisions; give the folder of each as a list of names"
        )


def _sessions(table: Table, recording: Table, place: str, folder: Path) -> list[Json]:
    """Every combination of a model's factors, with its label under ``session``."""
    factors = _factors(table, place, folder)
    varying = [key for key, values in factors.items() if len(values) > 1]
    _check_factors(table, factors, varying, recording, place)
    out: list[Json] = []
    for combination in product(*factors.values()):
        one = {**table, **dict(zip(factors, combination, strict=True))}
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
        value = models.short_name(value)
    if key == "temperature":
        value = f"{value:g}".replace(".", "p")
    prefix = {"revision": "rev", "seed": "seed", "temperature": "temp"}.get(key, "")
    return prefix + bids.label(str(value))
