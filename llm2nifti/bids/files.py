"""How is a file written? Whole or not at all, the same bytes each time, and by whom? Locks.

`path` is a file, `root` the dataset it is in, `table` what it holds, `sidecar` the content of the
JSON file beside it, and `merged` whether what is written has in it what others wrote to the file.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain, cycle
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from isal import igzip
from numpy.typing import NDArray

from llm2nifti.bids import manifest
from llm2nifti.bids.manifest import WORK
from llm2nifti.bids.paths import as_root, label
from llm2nifti.geometry import ModelBrain, set_header

# Control characters, line separators, halves of characters; prompts are shown again from the table.
_UNKEPT = [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0xD800, 0xE000)]
_SPELLED = dict.fromkeys(_UNKEPT, "\N{REPLACEMENT CHARACTER}")
_SPELLED |= str.maketrans({"\t": r"\t", "\n": r"\n", "\r": r"\r"})
_BUFFER = 2**22  # bytes that go to the disk at once


class ExistsError(ValueError):
    """The output is there already."""


class InUseError(ValueError):
    """The dataset cannot be written to now."""


@contextmanager
def atomic(path: Path, root: Path, *, merged: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the dataset's work folder that becomes `path` on success.

    Every process and thread has a folder of its own, so that several can write to one dataset. A
    file of others at `path` is moved out of the way, unless what is written was merged with it.
    """
    owner = f"tmp-{label(socket.gethostname())}-{os.getpid()}-{threading.get_ident()}"
    folder = root / WORK / owner
    _make(folder)
    temporary = folder / "_".join(path.relative_to(root).parts)
    try:
        yield temporary
        path.parent.mkdir(parents=True, exist_ok=True)
        if not merged:
            manifest.set_aside(root, path)
        content = manifest.announce(root, path, temporary)
        temporary.replace(path)
        manifest.confirm(root, path, content)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        with suppress(OSError):  # in use: a lock or an unfinished recording lies there
            folder.rmdir()
            folder.parent.rmdir()


def _make(folder: Path) -> None:
    """Create a folder and its parents, also while another process removes an empty parent."""
    for _ in range(100):
        with suppress(FileNotFoundError):
            folder.mkdir(parents=True, exist_ok=True)
            return
    folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def shared(root: Path) -> Iterator[None]:
    """Wait for other processes that write files which belong to several runs."""
    _make(root / WORK)
    with FileLock(root / WORK / "shared.lock"):
        yield


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Keep other processes from writing to the same dataset.

    Raises
    ------
    InUseError
        If another process is writing to it, or the folder can't be written.
    """
    root = as_root(root)
    try:
        is_new = not root.exists()
        (root / WORK).mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / WORK / "lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise InUseError(
            f"another llm2nifti is writing to {root}; wait for it or choose another folder"
        ) from None
    except OSError as error:
        reason = error.strerror or error
        raise InUseError(f"cannot write to {root} ({reason}); choose another folder") from None
    try:
        manifest.written(root)  # for its error
        yield
    finally:
        # A full disk: the manifest is longer than it need be.
        with suppress(OSError, manifest.ManifestError):
            manifest.settle(root)
        # While it is held: who opened it before finds it gone and begins again, so that no two
        # processes hold files of the same name.
        with suppress(OSError):
            (root / WORK / "lock").unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):  # what failed before it wrote anything leaves no folder behind
            (root / WORK).rmdir()
            if is_new:
                root.rmdir()


def write_bytes(path: Path, root: Path, content: bytes, *, merged: bool = False) -> None:
    """Write bytes."""
    with atomic(path, root, merged=merged) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, root: Path, text: str, *, merged: bool = False) -> None:
    """Write UTF-8 text."""
    write_bytes(path, root, text.encode(), merged=merged)


def write_json(path: Path, root: Path, content: Mapping[str, object]) -> None:
    """Write JSON; refuses NaN, which is not JSON."""
    write_text(path, root, as_json(content))


def as_json(content: Mapping[str, object]) -> str:
    """Text of a JSON file; refuses NaN, which is not JSON."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_tsv(
    path: Path,
    root: Path,
    table: pd.DataFrame,
    sidecar: Mapping[str, object] | None = None,
    *,
    merged: bool = False,
) -> None:
    r"""Write a BIDS table: tabs, ``n/a`` for missing values.

    Inside cells, ``\t``, ``\n`` and ``\r`` are spelled out, other control characters replaced.
    """
    table = table.copy()
    for column in table.select_dtypes(include=["object", "string"]):
        table[column] = [_cell(value) for value in table[column]]
    text = table.to_csv(sep="\t", index=False, na_rep="n/a", lineterminator="\n")
    write_text(path, root, text, merged=merged)
    _write_sidecar(path, root, sidecar)


def _write_sidecar(path: Path, root: Path, content: Mapping[str, object] | None) -> None:
    """Write the JSON file beside a table or image, where there is something to say."""
    if content is not None:
        write_json(path.with_name(f"{path.name.partition('.')[0]}.json"), root, content)


def _cell(value: object) -> str:
    """Text that stays inside one cell; empty as n/a."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "n/a"
    text = str(value).translate(_SPELLED)
    return text if text.strip() else "n/a"


def write_img(
    path: Path, root: Path, img: nib.Nifti1Image, sidecar: Mapping[str, object] | None = None
) -> None:
    """Write an image; float64 is stored as float32, ``.gz`` without time stamp or file name."""
    data = np.asanyarray(img.dataobj)
    stored_as = {"f": np.float32, "b": np.uint8}.get(data.dtype.kind, data.dtype)
    stored = nib.Nifti1Image(data.astype(stored_as, copy=False), img.affine, img.header)
    stored.set_data_dtype(stored_as)
    stored.header.set_slope_inter(1, 0)
    raw = set_header(stored).to_bytes()
    with _image_file(path, root) as file:
        file.write(raw)
    _write_sidecar(path, root, sidecar)


@contextmanager
def _image_file(path: Path, root: Path) -> Iterator[Any]:
    """Open a new ``.nii`` or ``.nii.gz``; the bytes of the latter depend on its content alone."""
    with atomic(path, root) as temporary, temporary.open("wb") as file:
        if path.suffix == ".gz":
            with igzip.IGzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
                yield packed
        else:
            yield file


def write_frames(
    path: Path,
    root: Path,
    brain: ModelBrain,
    parts: Iterable[np.ndarray],
    *,
    n_volumes: int,
    t_r: float,
) -> None:
    """Write unit values as a 4D image, part after part.

    Parameters
    ----------
    brain, n_volumes, t_r
        Geometry, how many volumes there are, and seconds a volume.
    parts : iterable of (n, n_units) float32 array
        Volumes in order; together they may be larger than memory.
    """
    shape = (*brain.shape, n_volumes)
    empty = nib.Nifti1Image(np.broadcast_to(np.float32(0), shape), brain.affine)
    header = set_header(empty, t_r=t_r).header
    header.set_slope_inter(1, 0)
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    with _image_file(path, root) as file:
        file.write(header.binaryblock + b"\0" * 4)
        _write_volumes(file, brain, chain.from_iterable(parts))


def _write_volumes(file: Any, brain: ModelBrain, rows: Iterator[np.ndarray]) -> None:
    """Write (n_units,) rows as volumes; one buffer is filled while the other goes to the disk."""
    voxels = np.ravel_multi_index(tuple(brain.voxels.T), brain.shape, order="F")  # x is fastest
    n_voxels = int(np.prod(brain.shape))
    n_volumes = max(1, _BUFFER // (4 * n_voxels))
    buffers = [np.zeros((n_volumes, n_voxels), np.float32) for _ in range(2)]
    with ThreadPoolExecutor(max_workers=1) as disk:
        writing: Future[Any] = disk.submit(int)  # nothing yet
        for buffer in cycle(buffers):
            n_filled = 0
            for volume, row in zip(buffer, rows, strict=False):
                volume[voxels] = row
                n_filled += 1
            writing.result()
            if not n_filled:
                return
            writing = disk.submit(_write_rows, file, buffer[:n_filled], voxels)


def _write_rows(file: Any, volumes: np.ndarray, voxels: NDArray[np.int64]) -> None:
    """Write volumes; in a plain file, the empty planes around the units are holes: no disk."""
    if isinstance(file, igzip.IGzipFile):
        file.write(volumes.data)
        return
    start, stop = int(voxels.min()), int(voxels.max()) + 1
    for volume in volumes:
        file.seek(start * volume.itemsize, os.SEEK_CUR)
        file.write(volume[start:stop].data)
        file.seek((len(volume) - stop) * volume.itemsize, os.SEEK_CUR)
    file.truncate()  # to here: the last hole is part of the file
