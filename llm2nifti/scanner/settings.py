"""How is a run recorded?"""

from __future__ import annotations

from dataclasses import dataclass, replace

from llm2nifti.defaults import BATCH_SIZE
from llm2nifti.models import LoadedModel, Mode
from llm2nifti.models.fused import LAYOUTS
from llm2nifti.models.loaded import TEMPLATES

FRAMES = {"generate": ("token", "trial"), "read": ("trial", "token", "word", "last")}


class ScanError(ValueError):
    """A paradigm cannot be run through this model."""


@dataclass(frozen=True)
class Settings:
    """How to record.

    Attributes
    ----------
    sites : str
        What to record; see `llm2nifti.models.sites.find_sites`.
    template : {"auto", "chat", "none"}
        Whether prompts are wrapped in the model's chat template.
    batch_size : int
        Trials recorded together. It is part of the plan: another size changes values by rounding.
    temperature : float
        0 is greedy; otherwise tokens are sampled with one generator a trial.
    seed : int
        Seed of the sampling.
    mode : {"auto", "generate", "read"}
        ``generate``: a frame is a generated token. ``read``: the stimulus is shown, nothing is
        generated. ``auto`` generates where the model can.
    frames : {"auto", "token", "word", "trial", "last"}
        What one volume is. In ``generate``: a ``token`` (the default), or the ``trial``, reduced to
        the mean of its frames on the device. In ``read``: the mean over the stimulus (``trial``,
        the default), its ``last`` token, every ``token``, or every ``word`` (the mean of its
        tokens). A study keeps the ``trial`` of an untrained copy that generates, unless ``token``
        is asked for.
    fused_qkv : {"contiguous", "interleaved"} or None
        Layout of a fused query-key-value projection; see `llm2nifti.models.fused`.
    """

    sites: str = "default"
    template: str = "auto"
    batch_size: int = BATCH_SIZE
    temperature: float = 0.0
    seed: int = 0
    mode: str = "auto"
    frames: str = "auto"
    fused_qkv: str | None = None

    def __post_init__(self) -> None:
        """Check the numbers and words."""
        if self.batch_size < 1:
            raise ScanError(f"batch_size is {self.batch_size}; it must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise ScanError(f"temperature is {self.temperature}; it must be 0 or more")
        if self.seed < 0:
            raise ScanError(f"seed is {self.seed}; it must be 0 or more")
        if self.mode not in ("auto", *FRAMES):
            raise ScanError(f"mode is {self.mode!r}; use auto, {' or '.join(FRAMES)}")
        if self.template not in TEMPLATES:
            raise ScanError(f"template is {self.template!r}; use {', '.join(TEMPLATES)}")
        if self.fused_qkv not in (None, *LAYOUTS):
            raise ScanError(f"fused_qkv is {self.fused_qkv!r}; use {' or '.join(LAYOUTS)}")
        allowed = FRAMES.get(self.mode, FRAMES["read"])
        if self.frames not in ("auto", *allowed):
            raise ScanError(
                f"frames is {self.frames!r}; in mode {self.mode} use auto, {', '.join(allowed)}"
            )

    def mode_for(self, model: LoadedModel) -> Mode:
        """Mode in which a model is scanned."""
        for mode in model.modes():
            if self.mode in ("auto", mode):
                return mode
        raise ScanError(f"{model.name} generates nothing; use mode='read'")

    def resolved(self, model: LoadedModel) -> Settings:
        """Settings with ``auto`` replaced by what it means for a model that can be scanned so."""
        mode = self.mode_for(model)
        frames = FRAMES[mode][0] if self.frames == "auto" else self.frames
        return replace(self, mode=mode, frames=frames)
