"""What is scanned, what is it shown, and how is it recorded?"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from llm2nifti import defaults
from llm2nifti.plans.fields import (
    AnyCount,
    Count,
    Names,
    Plan,
    PlanError,
    Positive,
    Seed,
    how,
    listed,
)

_AT = re.compile(r"last|span|word:[1-9]\d*")
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
    at : str or None
        In mode read, the part of a prompt that is a volume: last (token), span (the words in the
        column span of your stimuli) or word:3.
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
    at: str | None = None
    fused_qkv: Literal["contiguous", "interleaved"] | None = None

    def __post_init__(self) -> None:
        """Check every value, and frames against the mode."""
        super().__post_init__()
        if self.at is not None:
            self._read_at(self.at)
        allowed = FRAMES.get(self.mode, FRAMES["read"])
        if self.frames not in ("auto", *allowed):
            names = listed(["auto", *allowed])
            raise PlanError("frames", f"is {self.frames!r}; in mode {self.mode} use {names}")

    def _read_at(self, at: str) -> None:
        """Read, and take one volume a trial."""
        if not _AT.fullmatch(at):
            raise PlanError("at", f"is {at!r}; it must be last, span or word:N, such as word:3")
        if self.mode == "generate":
            raise PlanError("at", f"is {at!r}, a part of the prompt; it needs mode read")
        frames = "last" if at == "last" else "trial"
        if self.frames not in ("auto", frames):
            raise PlanError("at", f"is {at!r}, which is one volume; leave out frames")
        object.__setattr__(self, "mode", "read")
        object.__setattr__(self, "frames", frames)
        object.__setattr__(self, "at", None if at == "last" else at)


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
    order : {"blocks", "events", "mixed"}
        Blocks in turn; all trials in random order; or blocks of controls alone and with the task.
    conditions : tuple of str
        Conditions to compare, of tasks that have their own: the task's first, then its control.
    factors : tuple of str
        Columns of your stimuli whose combinations are the conditions.
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
    order: Literal["blocks", "events", "mixed"] = "blocks"
    conditions: Names = ()
    factors: Names = ()
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
