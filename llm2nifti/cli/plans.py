"""What can be asked on the command line besides experiments? Plans, with their help."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from llm2nifti.defaults import DEFAULT_MODEL, N_FRAMES, N_RELABELLINGS
from llm2nifti.plans import Count, Level, Names, OnWorkers, Plan, Positive, Template, WithModel


class CommandPlan(Plan):
    """A plan whose command its class is named after."""

    def __init_subclass__(cls) -> None:
        """Name the command."""
        cls.command = cls.__name__.removesuffix("Options").lower()


@dataclass(frozen=True, kw_only=True)
class ScanOptions(CommandPlan, OnWorkers):
    """Record a model into a BIDS dataset.

    Attributes
    ----------
    compress : bool
        Write .nii.gz: slower, hardly smaller.
    overwrite : bool
        Delete the dataset's old content first.
    threads : int or None
        Threads that torch computes with; by default its own choice.
    preset : {"default", "thorough"}
        How much is shown where sizes are not given: thorough has 6 runs a task of
        32 prompts.

    Examples
    --------
    llm2nifti scan ds --task pathology --no-untrained
    """

    compress: bool = False
    overwrite: bool = False
    threads: Count | None = None
    preset: Literal["default", "thorough"] = "default"


@dataclass(frozen=True, kw_only=True)
class RunOptions(ScanOptions):
    """Scan, analyse and report: the whole experiment.

    Attributes
    ----------
    n_null : int
        Relabellings of the null.
    redo : bool
        Analyse also what did not change since it was analysed.

    Examples
    --------
    llm2nifti run ds; or: llm2nifti run study.toml --n-jobs 4
    """

    n_null: Count = N_RELABELLINGS
    redo: bool = False


@dataclass(frozen=True, kw_only=True)
class ReportOptions(CommandPlan):
    """Make the figures and the report of an analysed dataset.

    Examples
    --------
    llm2nifti report ds
    """


@dataclass(frozen=True, kw_only=True)
class CheckOptions(CommandPlan):
    """Say which files of a dataset are missing or damaged, and mend them.

    Attributes
    ----------
    repair : bool
        Scan damaged runs again, analyse again.
    accept : bool
        Take files that you changed on purpose as they are.
    model : str or None
        Where the model is, if it is a folder or file: to scan again.
    stimuli : str or None
        Where your own stimuli are: to scan again.

    Examples
    --------
    llm2nifti check ds --repair
    """

    repair: bool = False
    accept: bool = False
    model: str | None = None
    stimuli: str | None = None


@dataclass(frozen=True, kw_only=True)
class WhereOptions(CommandPlan):
    """Say which unit lives in a voxel, or which voxel holds a unit.

    Attributes
    ----------
    point : tuple of float
        X Y Z in mm.
    voxel : bool
        X Y Z is a voxel index, not mm.
    unit : str or None
        MODULE:UNIT, such as model.layers.3.mlp:17.

    Examples
    --------
    llm2nifti where ds --unit model.layers.3.mlp:17; or: llm2nifti where ds 12 0 40
    """

    point: tuple[float, ...] = field(default=(), metadata={"positional": True})
    voxel: bool = False
    unit: str | None = None


@dataclass(frozen=True, kw_only=True)
class MonitorOptions(WithModel, CommandPlan):
    """Answer prompts, one a line, and say as JSON lines which networks are active.

    Attributes
    ----------
    prompts : str
        Text file, one prompt a line; - is standard input.
    n_tokens : int
        Most tokens of an answer.
    threshold : float
        Share of control prompts that a network's threshold lets pass.
    stop_when : str or None
        End answers once this network is active.
    template : {"auto", "chat", "none"}
        Whether to use the chat template.

    Examples
    --------
    llm2nifti monitor ds prompts.txt; or: echo 'What is a senate?' | llm2nifti monitor ds
    """

    prompts: str = field(default="-", metadata={"positional": True})
    n_tokens: Count = N_FRAMES
    threshold: Level = 0.05
    stop_when: str | None = None
    template: Template = "auto"


@dataclass(frozen=True, kw_only=True)
class TargetOptions(WithModel, CommandPlan):
    """Rank modules by a network's mass, write peft's adapter_config.json.

    Attributes
    ----------
    network : str
        A task, or a NIfTI mask.
    top : int or None
        Modules to train; by default a tenth of all.
    r : int
        Rank of the LoRA updates.
    lora_alpha : float
        LoRA scale: lora_alpha / r.
    out : Path or None
        Folder for adapter_config.json and targets.tsv.
    overwrite : bool
        Replace earlier output.

    Examples
    --------
    llm2nifti target ds-units --network pathology --out adapter
    """

    network: str
    top: Count | None = None
    r: Count = 8
    lora_alpha: Positive = 16.0
    out: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelsOptions(CommandPlan):
    """List the models that are known and cached.

    Examples
    --------
    llm2nifti models
    """


@dataclass(frozen=True, kw_only=True)
class StimuliOptions(CommandPlan):
    """List the stimulus sets, or check and measure your own.

    Attributes
    ----------
    stimuli : str or None
        Your own TSV with columns task and prompt, image or audio.
    out : Path or None
        Write the prompts here with what controls are matched by: tokens, surprisal and, if wordfreq
        is installed, word frequency.
    model : str
        The model that tokens and surprisal are of.
    overwrite : bool
        Replace earlier output.

    Examples
    --------
    llm2nifti stimuli --stimuli mine.tsv --out measured.tsv
    """

    stimuli: str | None = None
    out: Path | None = None
    model: str = DEFAULT_MODEL
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class LocalizerScan(Plan):
    """What a localizer shows to a model that was not scanned yet.

    Attributes
    ----------
    conditions : tuple of str
        Conditions to compare: that of interest first.
    stimuli : str or None
        Your own TSV with columns task, prompt and condition.
    sites : str
        What to record: default, all, regex:PATTERN, or names such as attn,mlp.
    at : str
        Part of a prompt that is recorded: last (token), span, word:3 or all.
    template : {"none", "chat", "auto"}
        Whether to use the model's chat template; published localizers show bare text.
    threads : int or None
        Threads that torch computes with; by default its own choice.
    overwrite : bool
        Delete the dataset's old content first.
    """

    conditions: Names = ()
    stimuli: str | None = None
    sites: str = "default"
    at: str = "last"
    template: Template = "none"
    threads: Count | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Which(Plan):
    """One model and session.

    Attributes
    ----------
    subject : str or None
        Model; by default the only trained one.
    session : str or None
        Session of the model; by default the only one.
    """

    subject: str | None = None
    session: str | None = None


@dataclass(frozen=True, kw_only=True)
class Output(Plan):
    """How a command prints.

    Attributes
    ----------
    json : bool
        Print JSON instead of text.
    quiet : bool
        Show no progress bars.
    """

    json: bool = False
    quiet: bool = False
