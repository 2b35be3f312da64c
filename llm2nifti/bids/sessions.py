"""What did several models do? All sessions of a dataset that are analysed, as one thing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm2nifti.bids.files import locked
from llm2nifti.bids.paths import DERIVATIVES
from llm2nifti.bids.reading import analysed
from llm2nifti.bids.session import Session, session


@dataclass(frozen=True, eq=False)
class Sessions(Sequence[Session]):
    """The sessions of a dataset that are analysed: of trained models, or of all if none is."""

    root: Path
    members: tuple[Session, ...]  #: sorted by model and session; at least one

    def __getitem__(self, index: Any) -> Any:
        """A session by its place, or some of them."""
        return self.members[index]

    def __len__(self) -> int:
        """Number of sessions."""
        return len(self.members)

    @property
    def folder(self) -> Path:
        """Where results of all of them together are: the dataset's derivatives."""
        return self.root / DERIVATIVES

    def only(self, tasks: Iterable[str]) -> Sessions:
        """The runs of some tasks; see `Session.only`."""
        tasks = tuple(tasks)
        return replace(self, members=tuple(one.only(tasks) for one in self.members))

    def lock(self) -> AbstractContextManager[None]:
        """Keep other processes from writing to the dataset; see `llm2nifti.bids.locked`."""
        return locked(self.root)

    def __repr__(self) -> str:
        """Say whose sessions they are."""
        return f"Sessions: {', '.join(one.name for one in self.members)}"


def sessions(root: Path | str) -> Sessions:
    """Open all sessions of a dataset that are analysed.

    Examples
    --------
    >>> from llm2nifti import sessions
    >>> sessions("ds")  # doctest: +SKIP
    Sessions: sub-minilm, sub-smollm2135m
    """
    who = analysed(root)
    members = tuple(session(root, subject=one, session=label) for one, label in who)
    return Sessions(Path(root), members)
