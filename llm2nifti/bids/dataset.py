"""What does a dataset say of itself, its models and their sessions? What may be deleted?

`root` is a dataset, `subject` and `session` are BIDS labels (the latter empty where there are no
sessions) and `info` is what a recording says of its model and settings.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Collection, Mapping
from itertools import filterfalse
from pathlib import Path
from typing import Any

import pandas as pd

from llm2nifti import __version__
from llm2nifti.bids import manifest
from llm2nifti.bids.files import ExistsError, as_json, shared, write_json, write_text, write_tsv
from llm2nifti.bids.paths import DERIVATIVES, DESCRIPTION, folder_of
from llm2nifti.bids.readers import DamagedFileError, read_json, read_text_tsv
from llm2nifti.plans import Attribution, Json

SUMMARY = DERIVATIVES / "summary.json"
VALIDATOR_CONFIG = ".bids-validator-config.json"
_MOST_NAMED = 10  # files in a message
_HERE = Path(__file__).parent
# Columns of our tables as BIDS describes them, by the last word of the table's name.
COLUMNS = json.loads((_HERE / "columns.json").read_text("utf-8"))
# Results of experiments lie beside the summary, a file each, and are hours of work.
GROUP = "group"  # folder of the derivatives: maps of several models together
NO_RESULTS = (DESCRIPTION, VALIDATOR_CONFIG, SUMMARY.name)
_IGNORED = (_HERE / "bidsignore_derivative").read_text("utf-8").splitlines()
PARTICIPANTS = "participants.tsv"
SESSIONS = "_sessions.tsv"
# Keys of info["Model"] that are not the name of their column with a capital letter.
_KEYS = {"model": "Name", "dtype": "DType", "weights_hash": "WeightsHash"}


def write_dataset_files(root: Path) -> None:
    """Write the files that do not depend on a run, unless they are there; under `files.shared`."""
    check_folder(root)
    if not is_begun(root):
        manifest.begin(root)
    contents = {root / "participants.json": as_json(COLUMNS["participants"])}
    kinds = {"raw": (root, [f"{manifest.WORK}/"]), "derivative": (root / DERIVATIVES, _IGNORED)}
    for kind, (folder, ignored) in kinds.items():
        contents |= {
            folder / DESCRIPTION: as_json(_description(root, kind)),
            folder / "README.md": (_HERE / f"readme_{kind}.md").read_text("utf-8"),
            folder / ".bidsignore": "\n".join(ignored) + "\n",
            folder / VALIDATOR_CONFIG: (_HERE / "validator_config.json").read_text("utf-8"),
        }
    for path in filterfalse(Path.exists, contents):
        write_text(path, root, contents[path])


def ignore_all(root: Path) -> None:
    """Let the validator ignore what this version writes and an older one did not know of."""
    path = root / DERIVATIVES / ".bidsignore"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    if missing := [line for line in _IGNORED if line not in lines]:
        write_text(path, root, "\n".join([*lines, *missing]) + "\n", merged=True)


def results_of(folder: Path) -> list[Path]:
    """Results of experiments in a session's folder, or in that of the whole dataset."""
    paths = [*sorted(folder.glob("*.json")), *sorted(folder.glob(f"{GROUP}/*"))]
    return [path for path in paths if path.name not in NO_RESULTS]


def _description(root: Path, kind: str) -> Json:
    """Content of a new dataset_description.json; where there is the other one, of its authors."""
    content = json.loads((_HERE / "description.json").read_text("utf-8"))
    content = content["common"] | content[kind]
    content["GeneratedBy"][0]["Version"] = __version__
    for path in filter(Path.exists, (root / DESCRIPTION, root / DERIVATIVES / DESCRIPTION)):
        content |= {k: v for k, v in read_json(path).items() if k in ("Authors", "License")}
    return content


def attribute(root: Path, attribution: Attribution) -> None:
    """Say whose a dataset and its derivatives are; what is not given stays as it is."""
    given: Json = {"Authors": list(attribution.author), "License": attribution.license}
    with shared(root):
        for path in (root / DESCRIPTION, root / DERIVATIVES / DESCRIPTION):
            _change(path, root, {key: value for key, value in given.items() if value})


def _change(path: Path, root: Path, parts: Json) -> None:
    """Replace parts of a description, whose rest may be of others."""
    before = read_json(path)
    if before | parts != before:
        write_text(path, root, as_json(before | parts), merged=True)


def is_begun(root: Path) -> bool:
    """Whether the folder holds a dataset."""
    return (root / DESCRIPTION).exists()


def check_folder(root: Path) -> None:
    """Raise ExistsError unless the folder is new, empty or an llm2nifti dataset."""
    if not root.exists():
        return
    if not root.is_dir():
        raise ExistsError(f"{root} is a file; choose a new folder")
    if all(path.name == manifest.WORK for path in root.iterdir()):  # nothing but unfinished work
        return
    is_ours, why = manifest.has_manifest(root), ""  # it may be begun by us and not yet described
    if is_begun(root):
        makers = read_json(root / DESCRIPTION).get("GeneratedBy") or []
        is_ours = "llm2nifti" in [m.get("Name") for m in makers if isinstance(m, dict)]
        why = f": {DESCRIPTION} names it nowhere under GeneratedBy"
    if not is_ours:
        raise ExistsError(
            f"{root} is not empty and is not an llm2nifti dataset{why}; choose a new folder"
        )


def remove_dataset(root: Path) -> None:
    """Delete what llm2nifti wrote to a dataset, as far as it is as it was written.

    Whatever else is there stays, and is named in a `ForeignFileWarning`. Nothing is deleted, with
    an ExistsError, where the folder holds something else, or a dataset that does not know its
    files or has some of them in a folder somewhere else.
    """
    check_folder(root)
    if not manifest.has_manifest(root):
        if not is_begun(root):  # an empty folder
            return
        raise ExistsError(
            f"{root} has no {manifest.MANIFEST}, so nothing tells which files are its own; delete "
            "the folder yourself, or choose another"
        )
    ours = manifest.written(root)
    inside = {root / folder for name in ours for folder in Path(name).parents[:-1]}
    links = [folder for folder in inside if folder.is_symlink()]
    if links:
        raise ExistsError(
            f"{min(links)} is a link to another folder, where nothing is deleted; remove the link, "
            "or choose another folder"
        )
    tables = [root / name for name in ours if name == PARTICIPANTS or name.endswith(SESSIONS)]
    for table in tables:
        drop_rows(table, root, {part for name in ours for part in Path(name).parts})
    # The description stays: it says that the folder is ours to write to, and whose it is.
    if is_begun(root):
        _change(root / DESCRIPTION, root, {"SourceDatasets": []})
    spared = {root / DESCRIPTION, *tables}
    manifest.remove(root, [path for path in map(root.joinpath, ours) if path not in spared])
    for work in (root / manifest.WORK).glob("*"):
        if work.is_dir() and work != root / manifest.ASIDE:
            shutil.rmtree(work, ignore_errors=True)
    _name_what_stays(root)


def _name_what_stays(root: Path) -> None:
    """Warn of the files that are left."""
    spared = {root / DESCRIPTION, root / manifest.MANIFEST}
    paths = [path for path in sorted(root.rglob("*")) if path.is_symlink() or path.is_file()]
    inside = root / manifest.WORK
    left = [str(p) for p in paths if p not in spared and not p.is_relative_to(inside)]
    if left:
        more = f" and {len(left) - _MOST_NAMED} more" if len(left) > _MOST_NAMED else ""
        text = "kept what llm2nifti did not write, or not as it is now: "
        text += ", ".join(left[:_MOST_NAMED]) + more
        warnings.warn(text, manifest.ForeignFileWarning, stacklevel=3)


def describe_model(root: Path, subject: str, session: str, info: Mapping[str, Any]) -> None:
    """Describe a model in participants.tsv, and its session in the model's table of sessions.

    A session, and a model without sessions, that is there already is left alone. Where the
    sessions of one model differ in a column, participants.tsv says n/a. The public address of a
    model, where it has one, is a source of the dataset.
    """
    model, named = info.get("Model", {}), read_json(root / DESCRIPTION).get("SourceDatasets", [])
    source = {"URL": model.get("URL", "n/a"), "Version": model.get("Revision", "n/a")}
    if source["URL"] != "n/a" and source not in named:
        _change(root / DESCRIPTION, root, {"SourceDatasets": sorted([*named, source], key=str)})
    is_random = str(model.get("WeightsHash", "")).startswith("random")
    path, name = _row_of(root, subject)
    row = {"participant_id": name, "untrained": "yes" if is_random else "no"}
    _add_row(path, root, row, info, merge=bool(session))
    if session:
        path, name = _row_of(root, subject, session)
        if not path.with_suffix(".json").exists():
            write_json(path.with_suffix(".json"), root, COLUMNS["sessions"])
        settings = info.get("Settings", {})
        row = {"session_id": name, **{k: settings.get(k) for k in ("seed", "temperature")}}
        _add_row(path, root, row, info, merge=False)


def _row_of(root: Path, subject: str, session: str = "") -> tuple[Path, str]:
    """Table that describes a model or session, and the name of its row."""
    if session:
        return root / folder_of(subject) / f"sub-{subject}{SESSIONS}", f"ses-{session}"
    return root / PARTICIPANTS, f"sub-{subject}"


def weights_hash(root: Path, subject: str, session: str = "") -> str | None:
    """What identifies the weights that a model's runs were made with; None if it has no runs."""
    path, name = _row_of(root, subject, session)
    if not path.exists():
        return None
    table = read_text_tsv(path)
    if "weights_hash" not in table:
        raise DamagedFileError(path, "the column weights_hash is missing")
    hashes = table.loc[table.iloc[:, 0] == name, "weights_hash"]
    return None if hashes.empty else str(hashes.iloc[0])


def _add_row(
    path: Path, root: Path, row: Mapping[str, object], info: Mapping[str, Any], *, merge: bool
) -> None:
    """Add a row to a sorted table, or keep what is equal of the row that is there.

    The rest of the row is what `info` says of the model. Columns that others added stay.
    """
    columns, model = COLUMNS[path.stem.split("_")[-1]], info.get("Model", {})
    described = {name: model.get(_KEYS.get(name, name.capitalize())) for name in columns}
    new = {k: "n/a" if value is None else str(value) for k, value in {**described, **row}.items()}
    table = read_text_tsv(path) if path.exists() else pd.DataFrame(columns=[*columns], dtype=str)
    table = table.reindex(columns=list(dict.fromkeys([*columns, *table])), fill_value="n/a")
    key = table.columns[0]
    is_there = table[key] == new[key]
    if is_there.any():
        old = table[is_there].iloc[0].to_dict()
        same = {name: cell if new.get(name, cell) == cell else "n/a" for name, cell in old.items()}
        if not merge or same == old:
            return
        table, new = table[~is_there], same
    table = pd.concat([table, pd.DataFrame([dict.fromkeys(table, "n/a") | new])])
    write_tsv(path, root, table.sort_values(key), merged=True)


def drop_rows(path: Path, root: Path, names: Collection[str]) -> None:
    """Take rows out of a table; without a row of others it goes.

    What others added to it, be it a column or a cell, is kept as a copy.
    """
    if not path.exists():
        return
    table, ours = read_text_tsv(path), set(COLUMNS[path.stem.split("_")[-1]])
    if not manifest.is_as_written(root, path) or set(table) != ours:
        manifest.keep(root, path, shutil.copyfile)
    others = table[~table.iloc[:, 0].isin(names)]
    if others.empty:
        manifest.delete(root, path)
    else:
        write_tsv(path, root, others, merged=True)
