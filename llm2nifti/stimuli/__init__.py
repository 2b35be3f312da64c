"""What can be shown? Load, check and list stimulus sets.

A stimulus set is a TSV, one prompt a row. The bundled sets hold five disciplines and random
strings (the tasks of the experiment), a control over many unrelated topics, random strings without
question frames, six coherent everyday domains, and localizers with conditions of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from llm2nifti.media import MEDIA, medium_of
from llm2nifti.stimuli.measures import frequency
from llm2nifti.stimuli.tables import (
    COLUMNS,
    CONDITIONS,
    CONTROL,
    REST,
    SPLITS,
    TABLE,
    StimulusError,
    check,
    is_text,
    read,
)

__all__ = [
    "BUNDLED",
    "COLUMNS",
    "CONDITIONS",
    "CONTROL",
    "DOMAINS",
    "LOCALIZERS",
    "REST",
    "SPLITS",
    "TABLE",
    "TASKS",
    "WORDLESS",
    "StimulusError",
    "check",
    "data_folder",
    "describe",
    "load",
    "measured",
    "read",
]

TASKS = (
    "politicalscience",
    "medicalimaging",
    "paleontology",
    "archeology",
    "pathology",
    "randomstrings",
)
DOMAINS = ("cooking", "sports", "music", "law", "weather", "transport")
LOCALIZERS = {  # tasks with conditions of their own: what they compare
    "language": ("sentences", "nonwords"),
    "arithmetic": ("hard", "easy"),
    "beliefs": ("falsebelief", "falsephoto"),
    "physics": ("physics", "social"),
}
BUNDLED = (*TASKS, "rawstrings", *DOMAINS, *LOCALIZERS)
WORDLESS = "randomstrings"  # told apart by anything, so means over tasks are taken without it


def data_folder() -> Path:
    """Folder of the bundled sets: inside the installed package, else the checkout's ``data/``."""
    package = Path(__file__).resolve().parents[1]
    folders = [package / "data", package.parent / "data"]
    for folder in folders:
        if folder.is_dir():
            return folder
    where = " nor ".join(map(str, folders))
    raise StimulusError(f"bundled stimuli not found in {where}; reinstall")


def load(
    path: Path | str | None = None,
    *,
    split: str | None = "evaluation",
    tasks: Sequence[str] = (),
) -> pd.DataFrame:
    """Load stimuli: the bundled sets, or a user's own file.

    Parameters
    ----------
    path : path-like, optional
        A TSV with at least the columns ``task`` and ``prompt``; by default the bundled sets.
        Tasks other than ``control`` that the file brings are added to the bundled control where
        the file has no control rows of its own. A column ``image`` or ``audio`` names files,
        relative to the table; prompts are optional then, and control rows are needed. A folder is
        read by the ``stimuli.tsv`` in it.
    split : {"evaluation", "development", None}
        Keep one split of the bundled sets; None keeps both. A user's file without a ``split``
        column belongs to every split.
    tasks : sequence of str, optional
        Which of the `BUNDLED` sets to load, by default `TASKS`; a user's file is loaded whole.

    Returns
    -------
    DataFrame
        Columns as in `COLUMNS`; missing optional ones are filled in: ``frame`` is empty, and
        every prompt is its own topic and concept. Then those of `CONDITIONS` and any others that
        the tables have, such as measures of the prompts.

    Raises
    ------
    StimulusError
        If a column is missing or there twice, a prompt is empty or holds a control character, an
        identifier appears twice, two tasks would be called alike, an image or sound cannot be read,
        no row is of a task, the file is not UTF-8, or the split does not exist.

    Examples
    --------
    >>> sorted(load()["task"].unique())[:3]
    ['archeology', 'control', 'medicalimaging']
    """
    if split is not None and split not in SPLITS:
        raise StimulusError(f"split is {split!r}; use one of {', '.join(SPLITS)}")
    if path is None:
        table = _bundled(tasks)
    else:
        table = read(Path(path))
        if CONTROL not in set(table["task"]):
            medium = medium_of(table)
            if medium:
                raise StimulusError(f"{path}: {MEDIA[medium]} need rows of task {CONTROL!r}, too")
            control = read(data_folder() / f"{CONTROL}.tsv")
            both = _joined([table, control])
            table = check(both, f"{path} with the bundled control")
    if split is not None:
        table = table[table["split"].isin(["", split])]
    if (table["task"] == CONTROL).all():
        of = f" of split {split!r}" if split else ""
        raise StimulusError(
            f"{path}: every row{of} is of task {CONTROL!r}; add rows of a task to compare with it"
        )
    return table.reset_index(drop=True)


def _bundled(tasks: Sequence[str]) -> pd.DataFrame:
    """Bundled sets of these names, by default `TASKS`, and the control."""
    for name in tasks:
        if name not in BUNDLED:
            raise StimulusError(f"no task {name!r} in the stimuli; there are {', '.join(BUNDLED)}")
    names = [name for name in BUNDLED if name in (tasks or TASKS)]
    return _joined([read(data_folder() / f"{name}.tsv") for name in [*names, CONTROL]])


def _joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Rows of all tables; texts that a table has no column for are empty."""
    table = pd.concat(tables, ignore_index=True)
    texts = [name for name in table if is_text(table[name])]
    return table.assign(**{name: table[name].fillna("") for name in texts})


def measured(table: pd.DataFrame, measures: Callable[[list[str]], Mapping]) -> pd.DataFrame:
    """Table with the measures of its prompts that controls are matched by.

    Parameters
    ----------
    table : DataFrame
        Of `load`.
    measures : callable
        Gives ``tokens`` and ``surprisal`` of prompts, such as that of
        `llm2nifti.scanner.likelihood` with a model. Word frequency is added where the package
        wordfreq is installed: that of the concepts, or of prompts where these have none.
    """
    prompts = table["prompt"].tolist()
    values = {name: np.round(each, 4) for name, each in measures(prompts).items()}
    if find_spec("wordfreq"):
        named = table["concept"] != table["stim_id"]
        values["frequency"] = table["concept"].where(named, table["prompt"]).map(frequency).round(3)
    return table.assign(**values)


def describe(table: pd.DataFrame) -> pd.DataFrame:
    """Count the prompts, topics and question frames of each task and split, with an example."""
    named = table.assign(
        split=table["split"].replace("", "any"), frames=table["frame"].replace("", pd.NA)
    )
    return named.groupby(["task", "split"], sort=False, as_index=False).agg(
        prompts=("prompt", "size"),
        topics=("topic", "nunique"),
        frames=("frames", "nunique"),
        example=("prompt", "first"),
    )
