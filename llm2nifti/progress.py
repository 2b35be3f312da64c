"""How far is it? A bar on a terminal; in a log, a line when a stage begins and one when it ends.

A stage has a `name` and `total` steps of a `unit`, `initial` of them done before; without a total,
a terminal shows no bar either: parts of the stage may have some. `verbose` 0 shows nothing.
"""

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
    name: str, *, total: int | None = None, unit: str = "it", initial: int = 0, verbose: int = 1
) -> Iterator[tqdm[Any]]:
    """Show how far a stage of the work is, with a bar to be updated."""
    is_terminal, start = sys.stderr.isatty(), time.monotonic()
    has_bar, has_lines = verbose and is_terminal and total is not None, verbose and not is_terminal
    if has_lines:
        _say(f"{name}: begins")
    with tqdm(total=total, desc=name, unit=unit, initial=initial, disable=not has_bar) as bar:
        yield bar
    if has_lines:
        _say(f"{name}: done in {time.monotonic() - start:.1f} s")


def track(items: Iterable[Item], name: str, *, unit: str = "it", **how: Any) -> Iterator[Item]:
    """Go through items, each of them a step of a stage; `how` is of `stage`."""
    if isinstance(items, Sized):
        how.setdefault("total", len(items))
    with stage(name, unit=unit, **how) as bar:
        for item in items:
            yield item
            bar.update()


def _say(line: str) -> None:
    """Write a line to standard error, at once."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
