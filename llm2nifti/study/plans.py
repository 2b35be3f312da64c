"""What is a study to record? Its plans, one a model and session, and the file that keeps them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from llm2nifti import bids, models, paradigm, stimuli
from llm2nifti.bids import checking
from llm2nifti.defaults import BATCH_SIZE, DEFAULT_MODEL
from llm2nifti.media import medium_of
from llm2nifti.models import LoadedModel
from llm2nifti.models.cache import sha256
from llm2nifti.paradigm import Paradigm
from llm2nifti.plans import Design, Json, ModelChoice, ScanPlan, Settings
from llm2nifti.study.sessions import StudyError

PLAN_FILE = Path("code") / "llm2nifti_plan.json"
_OF_REST = ("rest", "rest_temperature")  # of a design
_THEIRS = ("subject", "session")  # of a model's settings: the key of a scan in the file


def title(choice: ModelChoice) -> str:
    """What a model is called."""
    return choice.subject or models.short_name(choice.name)


def label(choice: ModelChoice, *, untrained: bool = False) -> str:
    """BIDS label of a model or of its untrained copy."""
    return bids.label(title(choice) + ("-untrained" if untrained else ""))


def who(plan: ScanPlan, *, untrained: bool = False) -> str:
    """Model and session as in file names."""
    folder = bids.folder_of(label(plan.model, untrained=untrained), plan.model.session)
    return "_".join(folder.parts)


def weights_of(choice: ModelChoice) -> ModelChoice:
    """What decides the loaded weights: equal for sessions that can share a loaded model."""
    return replace(choice, subject=title(choice), session="", untrained=False)


def load(choice: ModelChoice, *, untrained: bool = False) -> LoadedModel:
    """Load a model or its untrained copy."""
    names = ("device", "dtype", "revision", "trust_remote_code")
    how = {name: getattr(choice, name) for name in names}
    model = models.load(choice.name, untrained=untrained, **how)
    return replace(model, name=title(choice) + ("-untrained" if untrained else ""))


def paradigms(design: Design, reader: ModelChoice | None = None) -> list[Paradigm]:
    """All runs of a design; controls are matched in the tokens of the model that reads them.

    By default in those that the stimuli bring.
    """
    table = stimuli.load(design.stimuli, split=design.split, tasks=design.tasks)
    if reader and not (design.stimuli is None and reader.name == DEFAULT_MODEL):
        table = _with_tokens(table, reader)
    known = [task for task in table["task"].unique() if task != stimuli.CONTROL]
    if medium_of(table):
        bids.writing.stimulus_names(table)  # for its checks
    names = ("n_runs", "n_blocks", "trials_per_block", "n_frames", "seed")
    sizes = {name: getattr(design, name) for name in names}
    how: Json = {name: getattr(design, name) for name in ("order", "conditions", "factors")}
    tasks = [paradigm.Task(name, **how) for name in design.tasks or known]
    runs = paradigm.experiment(tasks, **sizes, table=table)
    if design.rest:
        numbers = range(1, design.n_runs + 1)
        n_frames = design.n_frames
        runs += [paradigm.rest(design.rest, run=number, n_frames=n_frames) for number in numbers]
    return runs


def _with_tokens(table: pd.DataFrame, reader: ModelChoice) -> pd.DataFrame:
    """Table whose tokens are those of a model, if it has a tokenizer and they are prompts."""
    if medium_of(table):
        return table
    how: Json = {"revision": reader.revision, "trust_remote_code": reader.trust_remote_code}
    tokens = models.count_tokens(reader.name, table["prompt"].tolist(), **how)
    return table if tokens is None else table.assign(tokens=tokens)


def reader_of(root: Path, plans: Sequence[ScanPlan], *, overwrite: bool) -> ModelChoice | None:
    """The model in whose tokens a dataset's controls are matched: the first that it was begun with.

    None for a dataset of before there was such a model.
    """
    kept: str | None = who(plans[0])
    if (root / PLAN_FILE).exists() and not overwrite:
        kept = _read(root).get("tokens_by")
    return next((plan.model for plan in plans if who(plan) == kept), None)


def localizer_design(asked: Design, *, n_runs: int = 2) -> Design:
    """All prompts of a localizer in random order, an equal part in each run.

    With several tasks, each shows as many as the smallest condition has.
    """
    table = stimuli.load(asked.stimuli, split=asked.split, tasks=asked.tasks)
    sizes = []
    for name in asked.tasks:
        rows = table[table["task"] == name]
        shown = paradigm.conditions_of(rows, paradigm.Task(name, conditions=asked.conditions))
        if not shown:
            raise StudyError(
                f"task {name!r} has no conditions of its own to compare; bundled localizers are "
                f"{', '.join(stimuli.LOCALIZERS)}"
            )
        sizes += [len(rows) for rows in shown.values()]
    each = min(sizes) // n_runs
    return replace(asked, n_runs=n_runs, order="events", n_blocks=1, trials_per_block=each)


def row_of(design: Design, message: str) -> str:
    """Name the row of a user's stimuli whose stim_id a message quotes."""
    if design.stimuli is None:
        return ""
    table = stimuli.read(Path(design.stimuli))
    rows = [i + 2 for i, name in enumerate(table["stim_id"]) if repr(name) in message]
    return f", {design.stimuli} row {rows[0]}" if rows else ""


def check_together(plans: Sequence[ScanPlan]) -> None:
    """Raise StudyError unless plans fit into one dataset.

    They show the same, compress alike and have the same authors and licence; every model, session
    and untrained copy has a label of its own; some file systems do not tell upper from lower case.
    """
    for plan in plans:
        for name in ("design", "compress", "author", "license"):
            first, other = getattr(plans[0], name), getattr(plan, name)
            if other != first:
                raise StudyError(
                    f"all plans of a dataset have one {name}; {who(plans[0])} has {first}, "
                    f"{who(plan)} {other}"
                )
    seen: dict[str, ScanPlan] = {}
    sessions: dict[str, set[bool]] = {}
    for plan in plans:
        other = seen.setdefault(who(plan).casefold(), plan)
        if other is not plan:
            both = [f"{p.model.name!r} {p.model.session}".rstrip() for p in (other, plan)]
            raise StudyError(
                f"{' and '.join(both)} have the same BIDS label {who(plan)}; give one another "
                "subject"
            )
        sessions.setdefault(label(plan.model).casefold(), set()).add(bool(plan.model.session))
    for plan in plans:
        if len(sessions[label(plan.model).casefold()]) > 1:
            raise StudyError(
                f"model {title(plan.model)!r} is there with sessions and without; give one another "
                "subject"
            )
        copy = label(plan.model, untrained=True)
        if plan.model.untrained and copy.casefold() in sessions:
            raise StudyError(
                f"the untrained copy of {title(plan.model)!r} and another model have the same BIDS "
                f"label sub-{copy}; give one another subject"
            )


def keep_plans(root: Path, plans: Sequence[ScanPlan]) -> None:
    """Write the plans into the dataset; StudyError if it was begun with other settings.

    Further models and sessions are welcome, and rest where there was none; it need not be asked for
    again.
    """
    path = root / PLAN_FILE
    content = json.loads(json.dumps(_content(plans)))
    is_begun = any((root / bids.WORK).glob("sub-*")) or checking.has_runs(root)
    if not path.exists() and is_begun:
        raise StudyError(
            f"{root} holds runs that were not made by llm2nifti scan or run, so their prompts "
            "could appear again; choose another folder, or overwrite=True to start anew"
        )
    if is_begun:
        kept = _read(root)
        content["tokens_by"] = kept.get("tokens_by")
        if content["tokens_by"] is None:  # begun before there was such a model
            del content["tokens_by"]
        rest = {name: kept["design"][name] for name in _OF_REST}
        if not content["design"]["rest"]:  # what is there stays
            content["design"] |= rest
        asked = dict(content)
        if not rest["rest"]:
            asked["design"] = asked["design"] | rest
        old, new = kept["scans"], asked.pop("scans")
        gone = [f"{name} was scanned, now it is not asked for" for name in old if name not in new]
        common = {name: new[name] for name in old if name in new}
        changed = gone + _differences(old, common) + _differences(kept, asked)
        if changed:
            raise StudyError(
                f"{root} was made with other settings ({'; '.join(changed)}). Use the same "
                "settings to resume, another folder, or overwrite=True to start anew"
            )
        if kept == content:
            return
    bids.write_json(path, root, content)


def with_kept_batches(root: Path, plans: Sequence[ScanPlan]) -> list[ScanPlan]:
    """Plans with the batch sizes of the dataset, where they leave these open."""
    scans = _read(root)["scans"] if (root / PLAN_FILE).exists() else {}
    sizes = {name: kept["settings"]["batch_size"] for name, kept in scans.items()}
    return [with_batch(plan, sizes.get(who(plan))) for plan in plans]


def with_batch(plan: ScanPlan, size: int | None) -> ScanPlan:
    """Plan with a batch size, where it leaves that open."""
    if size is None or plan.settings.batch_size is not None:
        return plan
    return replace(plan, settings=replace(plan.settings, batch_size=size))


def _content(plans: Sequence[ScanPlan]) -> Json:
    """Content of the file: what all plans share, and what each scan has of its own."""
    first = plans[0]
    shown = first.design
    table = stimuli.load(shown.stimuli, split=shown.split, tasks=shown.tasks)
    medium = medium_of(table)
    if medium:
        table[medium] = [sha256(Path(name)) for name in table[medium]]
    scans = {}
    for plan in plans:
        model = {k: v for k, v in plan.model.asked.items() if k not in _THEIRS}
        model["name"] = models.short_name(plan.model.name)
        scans[who(plan)] = {"model": model, "settings": plan.settings.asked}
    return {
        "design": _design(first.design),
        "tokens_by": who(first),
        "stimuli_sha256": hashlib.sha256(table.to_csv(index=False).encode()).hexdigest(),
        "compress": first.compress,
        "scans": scans,
    }


def _design(design: Design) -> Json:
    """Design as in the file; a path of this machine says less than the hash of what is there."""
    content = design.asked
    name = content.pop("stimuli")
    return {**content, "stimuli_path": Path(name).name if name else None}


def has_design(root: Path, design: Design) -> bool:
    """Whether a dataset was begun with this design."""
    return (root / PLAN_FILE).exists() and bool(_read(root)["design"] == _design(design))


def _read(root: Path) -> Json:
    """Content of the file; what was no setting then had the value now the default."""
    content = bids.read_json(root / PLAN_FILE, {"design": dict, "scans": dict})
    model = {k: v for k, v in ModelChoice().asked.items() if k not in _THEIRS}
    scans = {}
    for name, kept in content["scans"].items():
        settings = {**Settings(batch_size=BATCH_SIZE).asked, **kept["settings"]}
        scans[name] = {"model": {**model, **kept["model"]}, "settings": settings}
    return {**content, "design": {**_design(Design()), **content["design"]}, "scans": scans}


def plans_of(root: Path, *, model: str | None = None, stimuli: str | None = None) -> list[ScanPlan]:
    """Plans that a dataset keeps, with the names of local files alone.

    `model` and `stimuli` say where the only model and the stimuli are; StudyError without stimuli
    that are needed.
    """
    path, content = root / PLAN_FILE, _read(root)
    shown = dict(content["design"])
    name = shown.pop("stimuli_path")
    if name and stimuli is None:
        raise StudyError(f"{path} names stimuli {name}; say where they are with stimuli=...")
    design = Design.of({**shown, "stimuli": stimuli})
    names = {kept["model"]["name"] for kept in content["scans"].values()}
    if model and len(names) > 1:
        raise StudyError(
            f"{path} has several models ({', '.join(sorted(names))}); repeat the command that made "
            "the dataset instead"
        )
    plans = []
    for key, kept in content["scans"].items():
        subject, _, session = key.removeprefix("sub-").partition("_ses-")
        name = model or kept["model"]["name"]
        choice = ModelChoice.of({**kept["model"], "name": name, "session": session})
        if label(choice) != subject:
            choice = replace(choice, subject=subject)
        settings = Settings.of(kept["settings"])
        plans.append(ScanPlan(choice, design, settings, content["compress"]))
    return plans


def _differences(old: Json, new: Json, prefix: str = "") -> list[str]:
    """Settings that differ, as text."""
    out = []
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            out += _differences(before, value, f"{prefix}{key}.")
        elif value != before:
            out.append(f"{prefix}{key} was {before!r}, now {value!r}")
    return out
