"""Every question that is asked of a dataset: a plan, its measurement, a result that tells itself.

A question is a folder with three modules: ``plan`` has frozen plans, each with the name of its
command; ``measure`` has ``measure(session, plan)``; ``result`` has what that returns. Commands,
keys of study files and sections of the report are made from what the folders hold.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from llm2nifti.plans import Plan

if TYPE_CHECKING:  # --help stays fast
    from llm2nifti.bids import Session
    from llm2nifti.bids.sessions import Sessions
    from llm2nifti.experiments.results import Result

__all__ = ["commands", "kept_results", "measure"]


@cache
def _folders() -> tuple[str, ...]:
    """Names of the folders, in order."""
    return tuple(sorted(f"{__name__}.{info.name}" for info in iter_modules(__path__) if info.ispkg))


def _kinds(part: str, base: type) -> list[Any]:
    """Classes of one kind in the modules of this name, one a folder."""
    modules = [import_module(f"{folder}.{part}") for folder in _folders()]
    kinds = [k for module in modules for k in vars(module).values() if isinstance(k, type)]
    return list(dict.fromkeys(kind for kind in kinds if issubclass(kind, base)))


@cache
def commands() -> dict[str, type[Plan]]:
    """Plans by the name of their command; only light modules are imported."""
    return {kind.command: kind for kind in _kinds("plan", Plan) if kind.command}


def __getattr__(name: str) -> Any:
    """Plan of this name: every folder's plans are also ``experiments.LesionPlan`` and so on."""
    plans = {kind.__name__: kind for kind in commands().values()}
    if name not in plans:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return plans[name]


def __dir__() -> list[str]:
    """What completion offers."""
    return [*globals(), *(kind.__name__ for kind in commands().values())]


def kept_results(*, whole: bool = False) -> list[type[Result]]:
    """Results that are kept in a file of their own, in the order of the report's sections.

    Those of one session, or of the `whole` dataset.
    """
    from llm2nifti.experiments.results import Result

    kept = [kind for kind in _kinds("result", Result) if kind.file and kind.whole is whole]
    return sorted(kept, key=lambda kind: kind.rank)


def measure(
    session: Session | Sessions,
    plan: Plan,
    *,
    verbose: int = 1,
    is_locked: bool = False,
    **more: Any,
) -> Any:
    """Measure what a plan asks for, and keep the result with the dataset.

    Parameters
    ----------
    session : Session or Sessions
        One model's recording, from `llm2nifti.bids.session`; for a plan that is about the whole
        dataset, all of them, from `llm2nifti.bids.sessions.sessions`.
    plan : Plan
        What to measure, such as ``experiments.LesionPlan(share=(0.05,))``.
    verbose : int, default=1
        0 shows no progress.
    is_locked : bool, default=False
        The caller holds the dataset's lock.
    **more : dict
        What the experiment's own ``measure`` takes besides, such as a loaded model.

    Returns
    -------
    Result
        It shows itself in a notebook, and has ``tables()``, ``plot()`` and ``sections()``.

    Examples
    --------
    >>> plan = experiments.LesionPlan(share=(0.05,))  # doctest: +SKIP
    >>> experiments.measure(bids.session("ds"), plan)  # doctest: +SKIP
    """
    from llm2nifti.bids.dataset import ignore_all

    folder = type(plan).__module__.rpartition(".")[0]
    module = import_module(f"{folder}.measure")
    with nullcontext() if is_locked else session.lock():
        ignore_all(session.root)
        result = module.measure(session, plan, verbose=verbose, **more)
        result.keep(session)
    return result
