"""How does a pruned model get onto disk? As a folder that plain transformers loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from llm2nifti import __version__, bids
from llm2nifti.models.loading import quiet
from llm2nifti.plans import Json
from llm2nifti.surgery.pruning import Pruned, PruneError

RECORD = "prune.json"


def save(
    pruned: Pruned,
    folder: Path | str,
    *,
    overwrite: bool = False,
    record: Json | None = None,
) -> Path:
    """Write a pruned model as safetensors, with its config, tokenizer and ``prune.json``.

    Parameters
    ----------
    pruned : Pruned
        From `prune`.
    folder : path-like
        New folder; it appears when all of it is written.
    overwrite : bool, default=False
        Replace a folder that `save` wrote before.
    record : dict, optional
        What else to put into ``prune.json``.

    Returns
    -------
    Path
        The folder: ``transformers.AutoModelForCausalLM.from_pretrained(folder)``, or
        ``llm2nifti ... --model folder``.

    Raises
    ------
    PruneError
        If the folder is there and may not be replaced.

    Examples
    --------
    >>> surgery.save(surgery.prune(model, network), "small")  # doctest: +SKIP
    """
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}-new")
    old = folder.with_name(f".{folder.name}-old")
    _tidy(folder, temporary, old)  # what a killed process left
    check_free(folder, overwrite=overwrite)
    try:
        temporary.mkdir(parents=True)
        with quiet():
            for part in (pruned.model.module, pruned.model.tokenizer, pruned.model.processor):
                if part is not None:
                    part.save_pretrained(temporary)
        sizes = {"bytes": weight_bytes(temporary), "llm2nifti": __version__}
        content = {**pruned.summary(), **sizes, **(record or {})}
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        (temporary / RECORD).write_text(text + "\n", "utf-8")
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
    finally:
        _tidy(folder, temporary, old)
    return folder


def _tidy(folder: Path, temporary: Path, old: Path) -> None:
    """Leave one model in place: the new one or, where it is not complete, the old one."""
    shutil.rmtree(temporary, ignore_errors=True)
    if old.exists() and not folder.exists():  # stopped between the two renames
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Raise PruneError unless a folder can be written; before long work."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / RECORD).exists():
        raise PruneError(f"{folder} is there and holds no pruned model; choose another folder")
    if not overwrite:
        raise PruneError(f"{folder} is there already; use overwrite=True, or another folder")


def read_record(folder: Path) -> Json:
    """Content of ``prune.json``; empty where there is none."""
    path = folder / RECORD
    return bids.read_json(path) if path.exists() else {}


def weight_bytes(folder: Path) -> int:
    """Bytes of the safetensors in a folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
