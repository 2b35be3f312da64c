"""How far is it? A bar on a terminal; in a log, a line when a stage begins and one when it ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


@contextmanager
def stage(
    name: str,
    *,
    total: int | None = None,
    unit: str = "it",
    initial: int = 0,
    verbose: int = 1,
) -> Iterator[tqdm[Any]]:
    """Show how far a stage of the work is.

    Parameters
    ----------
    name : str
        What is done.
    total : int, optional
        Steps that it has; without, there is no bar on a terminal either: its parts may have some.
    unit : str
        What a step is.
    initial : int, default=0
        Steps that were done before.
    verbose : int, default=1
        0 shows no progress.

    Yields
    ------
    tqdm
        To be updated; it does nothing where no bar is shown.

    Examples
    --------
    >>> with stage("scan", total=2, unit="trial", verbose=0) as bar:
    ...     bar.update(2)
    """
    is_terminal, start = sys.stderr.isatty(), time.monotonic()
    has_bar, has_lines = is_terminal and total is not None, not is_terminal
    if has_lines and verbose:
        _say(f"{name}: begins")
    with tqdm(
        total=total, desc=name, unit=unit, initial=initial, disable=not (verbose and has_bar)
    ) as bar:
        yield bar
    if has_lines and verbose:
        _say(f"{name}: done in {time.monotonic() - start:.1f} s")


def track(
    items: Iterable[Item],
    name: str,
    *,
    total: int | None = None,
    unit: str = "it",
    verbose: int = 1,
) -> Iterator[Item]:
    """Go through items, each of them a step of a stage.

    Parameters
    ----------
    items : iterable
        What to go through.
    name, unit, verbose
        See `stage`.
    total : int, optional
        How many there are, where their number is not known.

    Yields
    ------
    object
        One item after another.

    Examples
    --------
    >>> list(track("ab", "letters", verbose=0))
    ['a', 'b']
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with stage(name, total=total, unit=unit, verbose=verbose) as bar:
        for item in items:
            yield item
            bar.update()


def _say(line: str) -> None:
    """Write a line to standard error, at once."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
