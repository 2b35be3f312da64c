"""The error of everything that is asked of a dataset and cannot be had."""

from __future__ import annotations


class ExperimentError(ValueError):
    """An experiment cannot be done with this dataset."""
