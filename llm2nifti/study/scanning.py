"""Scan all runs of an experiment into a dataset; interrupted work is resumed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llm2nifti import bids, models, paradigm, stimuli
from llm2nifti.models import LoadedModel
from llm2nifti.paradigm import Paradigm
from llm2nifti.recording import Recording
from llm2nifti.scanner import ScanError, Settings
from llm2nifti.scanner import check as check_prompts
from llm2nifti.scanner import scan as scan_run
from llm2nifti.study.lock import StudyError

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
        found = [task for task in table["task"].unique() if task != stimuli.CONTROL]
        labels: dict[str, str] = {}
        for task in self.tasks or found:
            if labels.setdefault(bids.label(task), task) != task:
                raise StudyError(
                    f"tasks {labels[bids.label(task)]!r} and {task!r} have the same BIDS label "
                    f"{bids.label(task)!r}; rename one"
                )
        return paradigm.experiment(
            self.tasks or found,
            n_runs=self.n_runs,
            n_blocks=self.n_blocks,
            trials_per_block=self.trials_per_block,
            n_frames=self.n_frames,
            seed=self.seed,
            table=table,
        )


@dataclass(frozen=True)
class ModelChoice:
    """Which model to scan, and on what.

    Attributes
    ----------
    name, device, dtype : str
        See `llm2nifti.models.load`.
    trust_remote_code : bool
        Run code that the model's repository brings along.
    untrained : bool
        Scan an untrained copy too, replaying the trained model's tokens.
    """

    name: str = models.DEFAULT_MODEL
    device: str = "cpu"
    dtype: str = "float32"
    trust_remote_code: bool = False
    untrained: bool = True

    def load(self, *, untrained: bool = False) -> LoadedModel:
        """Load the model or its untrained copy."""
        return models.load(
            self.name,
            untrained=untrained,
            device=self.device,
            dtype=self.dtype,
            trust_remote_code=self.trust_remote_code,
        )


@dataclass(frozen=True)
class Plan:
    """Everything that decides a dataset.

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


def scan(root: Path, plan: Plan, *, overwrite: bool = False, quiet: bool = False) -> None:
    """Record every run of the plan that the dataset does not have yet; call it inside `locked`.

    Parameters
    ----------
    root : Path
        Root of the dataset; created if needed.
    plan : Plan
        What to do. It is kept in the dataset, and a dataset with another plan is refused.
    overwrite : bool, default=False
        Delete what llm2nifti wrote to this folder before, and start anew.
    quiet : bool, default=False
        Show no progress bar.

    Raises
    ------
    StudyError
        If the folder holds a dataset with another plan, or is in use.
    """
    root = Path(root)
    designs = check(root, plan)
    name = models.short_name(plan.model.name)
    model = None
    if overwrite or not all(_has_run(root, name, design) for design in designs):
        # Before anything is written or deleted: a wrong name or prompt changes nothing.
        model = plan.model.load()
        _check_model(plan, designs, model)
    if overwrite:
        bids.remove_dataset(root)
    bids.write_dataset_files(root)
    _keep_plan(root, plan)
    _scan_all(root, plan, designs, model, quiet=quiet)


def check(root: Path, plan: Plan) -> list[Paradigm]:
    """Design all runs and look at the folder, before anything is written."""
    bids.check_folder(root)
    return plan.design.paradigms()


def _keep_plan(root: Path, plan: Plan) -> None:
    """Write the plan, or compare it with the one that is there."""
    path = root / PLAN_FILE
    content = {**asdict(plan), "stimuli_sha256": plan.design.stimuli_hash()}
    is_begun = any(any((root / f).glob("sub-*")) for f in (bids.DERIVATIVES, bids.WORK))
    if not path.exists() or not is_begun:
        if is_begun:
            raise StudyError(
                f"{root} holds runs that were not made by llm2nifti scan or run, so their prompts "
                "could appear again; choose another folder, or --overwrite to start anew"
            )
        bids.write_json(path, root, content)
        return
    old = json.loads(path.read_text("utf-8"))
    changed = _differences(old, json.loads(json.dumps(content)))
    if changed:
        raise StudyError(
            f"{root} was made with other settings ({'; '.join(changed)}). Use the same settings "
            "to resume, another folder, or --overwrite to start anew"
        )


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Settings that differ, as text."""
    out = []
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            out += _differences(before, value, f"{prefix}{key}.")
        elif value != before:
            out.append(f"{prefix}{key} was {before!r}, now {value!r}")
    return out


def _scan_all(
    root: Path,
    plan: Plan,
    designs: Sequence[Paradigm],
    model: LoadedModel | None,
    *,
    quiet: bool,
) -> None:
    """Scan the model, then its untrained copy on the same tokens."""
    copies = [False, True] if plan.model.untrained else [False]
    n_trials = sum(design.n_trials for design in designs) * len(copies)
    with tqdm(total=n_trials, unit="trial", disable=quiet or None) as bar:
        for untrained in copies:
            name = models.short_name(plan.model.name) + ("-untrained" if untrained else "")
            model = None if untrained else model
            for design in designs:
                bar.set_description(f"scan {name}: {design.task} run {design.run}")
                if _has_run(root, name, design):
                    bar.update(design.n_trials)
                    continue
                model = model or plan.model.load(untrained=untrained)
                _check_weights(root, model)
                _scan_one(root, plan, design, model, bar)


def _check_model(plan: Plan, designs: Sequence[Paradigm], model: LoadedModel) -> None:
    """Before hours of work: the model has the sites, and every prompt fits it."""
    for design in designs:
        try:
            check_prompts(model, design, plan.settings)
        except ScanError as error:
            place = f"task {design.task}, run {design.run}"
            raise ScanError(f"{error} ({place}{plan.design.row_of(str(error))})") from None


def _check_weights(root: Path, model: LoadedModel) -> None:
    """Raise StudyError if the dataset's other runs were made with other weights."""
    people = root / "participants.tsv"
    if not people.exists():
        return
    hashes = bids.read_tsv(people).set_index("participant_id")["weights_hash"]
    before = hashes.get(f"sub-{bids.label(model.name)}", model.source["WeightsHash"])
    if before != model.source["WeightsHash"]:
        raise StudyError(
            f"the weights of {model.name} changed since this dataset was begun ({before[:12]}... "
            f"then, {model.source['WeightsHash'][:12]}... now); use another folder or --overwrite"
        )


def _has_run(root: Path, name: str, design: Paradigm) -> bool:
    """Whether the dataset has this run, complete."""
    folder = root / bids.DERIVATIVES / f"sub-{bids.label(name)}" / "func"
    pattern = f"*_task-{bids.label(design.task)}_run-{design.run}_space-*_desc-trial_bold.json"
    return any(folder.glob(pattern))


def _scan_one(root: Path, plan: Plan, design: Paradigm, model: LoadedModel, bar: tqdm) -> None:
    """Record one run in the work folder, write it, and drop the working copy."""
    name = f"sub-{bids.label(model.name)}_task-{bids.label(design.task)}_run-{design.run}"
    folder = root / bids.WORK / name
    replay = None
    if model.name != models.short_name(plan.model.name):
        source = str(model.source["Name"])
        trained = bids.read(root, task=design.task, run=design.run, subject=source)
        ids = trained.tokens.groupby("trial")["token_id"]
        replay = [list(map(int, tokens)) for _, tokens in ids]
    recording: Recording = scan_run(
        model,
        design,
        settings=plan.settings,
        folder=folder,
        replay=replay,
        on_trials=bar.update,
    )
    bids.write(recording, root, compress=plan.compress)
    shutil.rmtree(folder)
