"""What do a plan's settings mean for a model?"""

from __future__ import annotations

from dataclasses import replace

from llm2nifti.models import LoadedModel, Mode
from llm2nifti.plans import FRAMES, Settings


class ScanError(ValueError):
    """A paradigm cannot be run through this model."""


def mode_for(settings: Settings, model: LoadedModel) -> Mode:
    """Mode in which a model is scanned; ScanError if it has no such mode."""
    for mode in model.modes():
        if settings.mode in ("auto", mode):
            return mode
    raise ScanError(f"{model.name} generates nothing; use mode='read'")


def resolved(settings: Settings, model: LoadedModel) -> Settings:
    """Settings with ``auto`` replaced by what it means for a model; see `mode_for`."""
    mode = mode_for(settings, model)
    auto = {"frames": FRAMES[mode][0]} if settings.frames == "auto" else {}
    return replace(settings, mode=mode, **auto)  # type: ignore[arg-type]
