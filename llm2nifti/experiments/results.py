"""What does every result have? It reads and writes its JSON, and tells itself once."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import msgspec
import pandas as pd

from llm2nifti import bids
from llm2nifti.bids.sessions import Sessions
from llm2nifti.plans import Json
from llm2nifti.tell import Section, as_html, as_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False, eq=False)
class Result:
    """What came out of an experiment."""

    file: ClassVar[str] = ""  #: in the session's `llm2nifti.bids.analysis_folder`, if it is kept
    rank: ClassVar[int] = 0  #: place of its section on the page
    whole: ClassVar[bool] = False  #: whether it is of all sessions of a dataset together

    @classmethod
    def of(cls, content: Json, path: Path | None = None) -> Self:
        """Result of the content of a JSON file; `path` is named where it is none."""
        try:
            return msgspec.convert(content, cls)
        except msgspec.ValidationError as error:
            path = path or Path(cls.file or "summary.json")
            raise bids.DamagedFileError(path, str(error)) from None

    @classmethod
    def read(cls, session: bids.Session | Sessions) -> Self | None:
        """Result that a session keeps, or None."""
        path = session.folder / cls.file
        return cls.of(bids.read_json(path), path)._of(session) if path.exists() else None

    @property
    def session(self) -> Any:
        """Whose result it is, if it was measured or read here: where its images are."""
        return vars(self).get("_session")

    def _of(self, session: Any) -> Self:
        """The same result, which knows whose it is."""
        object.__setattr__(self, "_session", session)
        return self

    @classmethod
    def kept(cls, session: bids.Session | Sessions, source: Json) -> Self | None:
        """Result that a session keeps, if it was made from the same; see `journal.made_from`."""
        result = cls.read(session) if source["runs"] else None
        return result if result and getattr(result, "made_from", None) == plain(source) else None

    def content(self) -> Json:
        """The result as JSON has it."""
        return plain(self)

    def keep(self, session: Any) -> None:
        """Write the result into the dataset of a session, or of all, if it is not there already."""
        path, content = session.folder / self._of(session).file, self.content()
        if self.file and not (path.exists() and bids.read_json(path) == content):
            bids.write_json(path, session.root, content)

    def sections(self) -> list[Section]:
        """Headings, sentences, tables and figures."""
        raise NotImplementedError

    def tables(self) -> dict[str, pd.DataFrame]:
        """The numbers as tidy tables: one row a measurement, with its interval."""
        raise NotImplementedError

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the main figure into `ax`, or into a new figure."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """What a terminal shows."""
        return as_text(*self.sections())

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return as_html(*self.sections(), level=3)


def plain(value: Any) -> Any:
    """Value as JSON has it; fields that are None are left out."""
    if hasattr(value, "__dataclass_fields__"):
        named = {f.name: getattr(value, f.name) for f in fields(value)}
        value = {name: item for name, item in named.items() if item is not None}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval."""

    value: float | None
    low: float | None = None
    high: float | None = None
