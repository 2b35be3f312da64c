"""What is a study to record? Plans, one a model and session, and the file that keeps them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from llm2nifti import bids, models, paradigm, stimuli
from llm2nifti.bids import checking
from llm2nifti.media import medium_of
from llm2nifti.models import LoadedModel
from llm2nifti.models.cache import sha256
from llm2nifti.paradigm import Paradigm
from llm2nifti.scanner import Settings
from llm2nifti.study.errors import StudyError

PLAN_FILE = Path("code") / "llm2nifti_plan.json"


@dataclass(frozen=True)
class Design:
    """Sizes of the experiment.

    Attributes
    ----------
    tasks : tuple of str
        What is shown; empty for every task of the stimulus set.
    n_runs, n_blocks, trials_per_block, n_frames, seed : int
        See `llm2nifti.paradigm.experiment`.
    stimuli_path : str or None
        A user's own stimulus file.
    split : str
        Split of the bundled stimuli.
    """

    tasks: tuple[str, ...] = ()
    n_runs: int = paradigm.N_RUNS
    n_blocks: int = paradigm.N_BLOCKS
    trials_per_block: int = paradigm.TRIALS_PER_BLOCK
    n_frames: int = paradigm.N_FRAMES
    seed: int = 0
    stimuli_path: str | None = None
    split: str = "evaluation"

    def stimuli_hash(self) -> str:
        """SHA-256 of the stimuli, so that an edited file is noticed."""
        table = stimuli.load(self.stimuli_path, split=self.split)
        medium = medium_of(table)
        if medium:
            table[medium] = [sha256(Path(name)) for name in table[medium]]
        return hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()

    def row_of(self, message: str) -> str:
        """Name the row of a user's own file whose stim_id a message quotes."""
        if self.stimuli_path is None:
            return ""
        table = stimuli.read(Path(self.stimuli_path))
        rows = [i + 2 for i, name in enumerate(table["stim_id"]) if repr(name) in message]
        return f", {self.stimuli_path} row {rows[0]}" if rows else ""

    def paradigms(self) -> list[Paradigm]:
        """All runs."""
        table = stimuli.load(self.stimuli_path, split=self.split)
        known = [task for task in table["task"].unique() if task != stimuli.CONTROL]
        if medium_of(table):
            bids.stimulus_names(table)  # for its checks
        return paradigm.experiment(
            self.tasks or known,
            n_runs=self.n_runs,
            n_blocks=self.n_blocks,
            trials_per_block=self.trials_per_block,
            n_frames=self.n_frames,
            seed=self.seed,
            table=table,
        )


@dataclass(frozen=True)
class ModelChoice:
    """Which model to scan, on what, and what to call it.

    Attributes
    ----------
    name, device, dtype : str
        See `llm2nifti.models.load`.
    trust_remote_code : bool
        Run code that the model's repository brings along.
    untrained : bool
        Scan an untrained copy too, replaying the trained model's tokens.
    revision : str or None
        Branch, tag or commit on the hub.
    subject : str or None
        What to call the model in the dataset; by default by its name.
    session : str
        Label of the session; empty if the model has one only.
    """

    name: str = models.DEFAULT_MODEL
    device: str = "cpu"
    dtype: str = "float32"
    trust_remote_code: bool = False
    untrained: bool = True
    revision: str | None = None
    subject: str | None = None
    session: str = ""

    @property
    def title(self) -> str:
        """What the model is called."""
        return self.subject or models.short_name(self.name)

    def label(self, *, untrained: bool = False) -> str:
        """BIDS label of the model or of its untrained copy."""
        return bids.label(self.title + ("-untrained" if untrained else ""))

    def weights(self) -> ModelChoice:
        """What decides the loaded weights: equal for sessions that can share a loaded model."""
        return replace(self, subject=self.title, session="", untrained=False)

    def load(self, *, untrained: bool = False) -> LoadedModel:
        """Load the model or its untrained copy."""
        model = models.load(
            self.name,
            untrained=untrained,
            device=self.device,
            dtype=self.dtype,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
        )
        return replace(model, name=self.title + ("-untrained" if untrained else ""))


@dataclass(frozen=True)
class Plan:
    """Everything that decides the runs of one model and session.

    Attributes
    ----------
    model : ModelChoice
        What is scanned.
    design : Design
        What it is shown.
    settings : Settings
        How it is recorded.
    compress : bool
        Write 4D images as ``.nii.gz``.
    """

    model: ModelChoice = field(default_factory=ModelChoice)
    design: Design = field(default_factory=Design)
    settings: Settings = field(default_factory=Settings)
    compress: bool = False

    @property
    def who(self) -> str:
        """Model and session as in file names."""
        return "_".join(bids.folder_of(self.model.label(), self.model.session).parts)


def check_shared(plans: Sequence[Plan]) -> None:
    """Raise StudyError unless all plans show the same and compress alike: a dataset has one way."""
    for plan in plans:
        for name in ("design", "compress"):
            first, other = getattr(plans[0], name), getattr(plan, name)
            if other != first:
                raise StudyError(
                    f"all plans of a dataset have one {name}; {plans[0].who} has {first}, "
                    f"{plan.who} {other}"
                )


def check_labels(plans: Sequence[Plan]) -> None:
    """Raise StudyError unless every model and session, and every untrained copy, is named apart."""
    seen: dict[str, Plan] = {}
    for plan in plans:
        # Some file systems do not tell upper from lower case.
        other = seen.setdefault(plan.who.casefold(), plan)
        if other is not plan:
            raise StudyError(
                f"{_described(other)} and {_described(plan)} have the same BIDS label {plan.who}; "
                "give one another subject"
            )
    sessions: dict[str, set[bool]] = {}
    for plan in plans:
        sessions.setdefault(plan.model.label().casefold(), set()).add(bool(plan.model.session))
    for plan in plans:
        if len(sessions[plan.model.label().casefold()]) > 1:
            raise StudyError(
                f"model {plan.model.title!r} is there with sessions and without; give one another "
                "subject"
            )
        copy = plan.model.label(untrained=True)
        if plan.model.untrained and copy.casefold() in sessions:
            raise StudyError(
                f"the untrained copy of {plan.model.title!r} and another model have the same BIDS "
                f"label sub-{copy}; give one another subject"
            )


def _described(plan: Plan) -> str:
    """Name and session of a model."""
    return " ".join(filter(None, [repr(plan.model.name), plan.model.session]))


def keep_plans(root: Path, plans: Sequence[Plan]) -> None:
    """Write the plans into the dataset, or compare them with those that are there.

    Raises
    ------
    StudyError
        If the dataset was begun with other settings. Further models and sessions are welcome.
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
        kept = bids.read_json(path, {"design": dict, "scans": dict})
        changed = _changes(_completed(kept), content)
        if changed:
            raise StudyError(
                f"{root} was made with other settings ({'; '.join(changed)}). Use the same "
                "settings to resume, another folder, or overwrite=True to start anew"
            )
        if kept == content:
            return
    bids.write_json(path, root, content)


def _content(plans: Sequence[Plan]) -> dict[str, Any]:
    """Content of the file: what all plans share, and what each scan has of its own."""
    design = asdict(plans[0].design)
    if design["stimuli_path"]:  # the hash tells whether it is the same; a path is this machine's
        design["stimuli_path"] = Path(design["stimuli_path"]).name
    scans = {}
    for plan in plans:
        model = {**asdict(plan.model), "name": models.short_name(plan.model.name)}
        del model["subject"], model["session"]  # they are the key
        scans[plan.who] = {"model": model, "settings": asdict(plan.settings)}
    return {
        "design": design,
        "stimuli_sha256": plans[0].design.stimuli_hash(),
        "compress": plans[0].compress,
        "scans": scans,
    }


def plans_of(root: Path, *, model: str | None = None, stimuli: str | None = None) -> list[Plan]:
    """Plans that a dataset keeps.

    Parameters
    ----------
    root : Path
        Root of the dataset.
    model, stimuli : str, optional
        Where the only model and the stimuli are; a plan keeps the names of local files alone.

    Raises
    ------
    StudyError
        If one of them is needed and not given.
    """
    path = root / PLAN_FILE
    content = _completed(bids.read_json(path, {"design": dict, "scans": dict}))
    design = content["design"]
    if design["stimuli_path"] and stimuli is None:
        raise StudyError(
            f"{path} names stimuli {design['stimuli_path']}; say where they are with stimuli=..."
        )
    design = Design(**{**design, "tasks": tuple(design["tasks"]), "stimuli_path": stimuli})
    names = {kept["model"]["name"] for kept in content["scans"].values()}
    if model and len(names) > 1:
        raise StudyError(
            f"{path} has several models ({', '.join(sorted(names))}); repeat the command that made "
            "the dataset instead"
        )
    plans = []
    for who, kept in content["scans"].items():
        subject, _, session = who.removeprefix("sub-").partition("_ses-")
        name = model or kept["model"]["name"]
        choice = ModelChoice(**{**kept["model"], "name": name}, session=session)
        if choice.label() != subject:
            choice = replace(choice, subject=subject)
        plans.append(Plan(choice, design, Settings(**kept["settings"]), content["compress"]))
    return plans


def _completed(content: dict[str, Any]) -> dict[str, Any]:
    """Content as `_content` makes it: what was no setting then had the value now the default."""
    model, settings = asdict(ModelChoice()), asdict(Settings())
    del model["subject"], model["session"]
    scans = {
        who: {"model": {**model, **kept["model"]}, "settings": {**settings, **kept["settings"]}}
        for who, kept in content["scans"].items()
    }
    return {**content, "design": {**asdict(Design()), **content["design"]}, "scans": scans}


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs, as text; scans that are new do not count."""
    out = []
    for name in old["scans"]:
        if name not in new["scans"]:
            out.append(f"{name} was scanned, now it is not asked for")
    common = {name: new["scans"][name] for name in old["scans"] if name in new["scans"]}
    out += _differences(old["scans"], common, "")
    rest = {key: value for key, value in new.items() if key != "scans"}
    return out + _differences(old, rest, "")


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str) -> list[str]:
    """Settings that differ, as text."""
    out = []
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            out += _differences(before, value, f"{prefix}{key}.")
        elif value != before:
            out.append(f"{prefix}{key} was {before!r}, now {value!r}")
    return out
