"""Who may write to a dataset? One process at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from llm2nifti.bids import manifest
from llm2nifti.bids.files import as_root
from llm2nifti.bids.manifest import WORK


class InUseError(ValueError):
    """The dataset cannot be written to now."""


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
        manifest.check(root)
        yield
    finally:
        with suppress(
            OSError, manifest.ManifestError
        ):  # a full disk: the manifest is longer than it need be
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
