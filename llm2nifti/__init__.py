"""Task fMRI for language models.

llm2nifti shows block-designed prompts to a Hugging Face transformer, writes what its layers did as
4D NIfTI runs in a BIDS dataset, and hands them to nilearn. The submodules are the API::

    from llm2nifti import bids, glm, models, networks, paradigm, scanner

and its verbs are here::

    from llm2nifti import measure, run, scan, session, sessions

Nothing is imported here until it is asked for, so that ``import llm2nifti`` and
``llm2nifti --help`` stay fast.
"""

from typing import Any

__version__ = "0.1.0"

_VERBS = {
    "session": "bids",
    "sessions": "bids.sessions",
    "scan": "study",
    "run": "study",
    "measure": "experiments",
}


def __getattr__(name: str) -> Any:
    """One of the verbs, imported when it is first asked for."""
    if name not in _VERBS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_VERBS[name]}"), name)


def __dir__() -> list[str]:
    """What completion offers."""
    return [*globals(), *_VERBS]
