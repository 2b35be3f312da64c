"""What is wrong with a request? The error of everything that is asked of a dataset."""

from __future__ import annotations


class StudyError(ValueError):
    """A study or an experiment cannot be done with this dataset."""
