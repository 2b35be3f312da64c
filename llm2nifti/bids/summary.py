"""The numbers of an analysis: one ``summary.json`` a session, and one of a dataset of several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm2nifti.bids import manifest
from llm2nifti.bids.dataset import SUMMARY
from llm2nifti.bids.files import write_json
from llm2nifti.bids.paths import DERIVATIVES
from llm2nifti.bids.readers import DamagedFileError, read_json
from llm2nifti.bids.reading import analysis_folder
from llm2nifti.plans import Json

Who = tuple[str, str]  # labels of a model and of its session, the latter empty if it has none


def read_summary(root: Path, who: Who | None = None) -> Json:
    """Content of a dataset's, or of one session's, summary.json; empty if there is none."""
    root = Path(root)
    path = _folder(root, who) / SUMMARY.name
    if not path.exists():
        return {}
    is_ours = path.relative_to(root).as_posix() in manifest.written(root)
    if is_ours and not manifest.is_as_written(root, path):
        raise DamagedFileError(path, "not what was written")
    return read_json(path)


def update_summary(root: Path, who: Who | None = None, **parts: Any) -> Json:
    """Replace parts of a summary, or remove those that are None, and return the whole.

    Parameters
    ----------
    root : Path
        Root of the dataset.
    who : (str, str), optional
        Labels of a model and of its session; by default the dataset's own summary.
    **parts : dict
        What to replace.
    """
    content = {**read_summary(root, who), **parts}
    content = {key: content[key] for key in sorted(content) if content[key] is not None}
    write_json(_folder(Path(root), who) / SUMMARY.name, Path(root), content)
    return content


def _folder(root: Path, who: Who | None) -> Path:
    """Where a summary is."""
    return analysis_folder(root, *who) if who else root / DERIVATIVES
