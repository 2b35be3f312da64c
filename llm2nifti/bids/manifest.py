"""Which files did llm2nifti write to a dataset, and are they as it wrote them? The manifest.

The manifest is a table in the dataset: path, size and SHA-256 of each file. A line is appended
before a file gets its name and another one after it, so that whatever moment a process is killed
at, no file of ours is unknown; `settle` then keeps one line a file, sorted, and a last one with the
hash of the lines above, by which damage of the manifest itself is seen. `root` is the dataset and
`path` a file in it. A dataset that was begun without a manifest gets none.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, count
from pathlib import Path, PurePosixPath

WORK = ".llm2nifti"  # temporary files and unfinished recordings, inside the dataset's root
ASIDE = Path(WORK) / "replaced"  # files of others that stood where one of ours belongs
MANIFEST = Path("code") / "llm2nifti_manifest.tsv"
_HEADER = "path\tsize\tsha256\n"
_PENDING = "pending"  # a fourth cell: the file may not have its name yet
_DELETED = "deleted"  # instead of a hash
_GROWING = "n/a"  # instead of size and hash


class ForeignFileWarning(UserWarning):
    """A file is not as llm2nifti wrote it, so it was kept."""


class ManifestError(ValueError):
    """The manifest is not as llm2nifti wrote it."""


@dataclass(frozen=True)
class Content:
    """What was written to a file: its size in bytes and the hash of them.

    The size is -1 for a journal, which grows while work goes on, so that any content is right.
    """

    size: int
    sha256: str

    def is_in(self, path: Path) -> bool:
        """Whether a file has this content."""
        if not path.is_file():
            return False
        return self.size < 0 or (path.stat().st_size == self.size and hash_of(path) == self.sha256)

    def line(self, name: str, *state: str) -> str:
        """Row of the table."""
        size = str(self.size) if self.size >= 0 else _GROWING
        return "\t".join([name, size, self.sha256, *state]) + "\n"


@dataclass
class _Log:
    """The manifest in memory; what was appended since is read when it is asked for."""

    path: Path
    files: dict[str, Content] = field(default_factory=dict)
    pending: dict[str, list[Content]] = field(default_factory=dict)
    _inode: int = 0
    _offset: int = 0

    def read(self) -> _Log:
        """Bring it up to date."""
        stat = self.path.stat() if self.path.exists() else None
        if stat is None or stat.st_ino != self._inode or stat.st_size < self._offset:
            self.files, self.pending, self._offset = {}, {}, 0
        if stat is None:
            return self
        self._inode = stat.st_ino
        if stat.st_size > self._offset or not self._offset:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                text = file.read()
            begin = 0 if self._offset else self._take_settled(text)
            end = max(begin, text.rfind(b"\n") + 1)  # a line cut off by a kill is dropped
            for row in _rows(text[begin:end]):
                self._add(*row)
            self._offset += end
        return self

    def _take_settled(self, text: bytes) -> int:
        """Take in the settled part that a manifest begins with; return its length."""
        header, last = _HEADER.encode(), f"\n{MANIFEST.as_posix()}\t{_GROWING}\t".encode()
        if not text.startswith(header):
            raise self._damaged()
        above, mark, rest = text.partition(last)
        if not mark:
            return len(header)
        digest = rest.partition(b"\n")[0]
        if hashlib.sha256(above + b"\n").hexdigest().encode() != digest:
            raise self._damaged()
        self.files = {name: content for name, content, _ in _rows(above[len(header) :])}
        return len(above) + len(mark) + len(digest) + 1

    def _add(self, name: str, content: Content, state: list[str]) -> None:
        """Take in one line of what was appended."""
        pending = self.pending.setdefault(name, [])
        if state == [_PENDING]:
            pending.append(content)
            return
        self.files.pop(name, None)
        if content.sha256 == _DELETED:
            pending.clear()
            return
        if content.size >= 0:
            if content not in pending:
                raise self._damaged()  # a settled part whose last line is lost
            pending.remove(content)
        self.files[name] = content

    def _damaged(self) -> ManifestError:
        """Error that says what can be done."""
        self._offset = 0
        return ManifestError(
            f"{self.path} is damaged: restore it, or delete it, after which nothing tells changed "
            "files from others and the dataset cannot be overwritten"
        )


def _rows(text: bytes) -> Iterator[tuple[str, Content, list[str]]]:
    """Path, content and state of each line, but for those that are cut off or lead elsewhere."""
    for line in text.decode("utf-8", "replace").splitlines():
        cells = line.split("\t")
        name, size, digest, *state = cells + [""] * (3 - len(cells))
        path = PurePosixPath(name)  # anyone can edit the table: it may not lead out of the dataset
        is_inside = bool(path.parts) and not path.is_absolute() and ".." not in path.parts
        if is_inside and (size == _GROWING or size.isdecimal()):
            yield name, Content(-1 if size == _GROWING else int(size), digest), state


_opened = lru_cache(maxsize=64)(_Log)


def _log(root: Path) -> _Log:
    """Manifest of a dataset, up to date."""
    return _opened((root / MANIFEST).absolute()).read()


def hash_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def begin(root: Path) -> None:
    """Start the manifest of a new dataset; the caller has the lock of shared files.

    Its folder gets its name with the header inside: one without a manifest is not known as ours.
    """
    if has_manifest(root):
        return
    path = root / MANIFEST
    temporary = root / WORK / path.relative_to(root)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(_HEADER, "utf-8")
    temporary.parent.rename(path.parent)


def has_manifest(root: Path) -> bool:
    """Whether the dataset knows which files are its own."""
    return (root / MANIFEST).exists()


def written(root: Path) -> Mapping[str, Content]:
    """Files that llm2nifti wrote and did not delete, by name; ManifestError if it is damaged."""
    return _log(root).files


def _append(root: Path, text: str) -> None:
    """Append lines in one piece, so that several processes can; a line cut off before is closed."""
    if has_manifest(root):
        with (root / MANIFEST).open("a+b", buffering=0) as file:
            size = file.tell()
            is_cut = size and os.pread(file.fileno(), 1, size - 1) != b"\n"
            file.write((b"\n" if is_cut else b"") + text.encode())


def announce(root: Path, path: Path, file: Path) -> Content | None:
    """Say that a file, now under a temporary name, is about to become `path`."""
    if not has_manifest(root):
        return None
    content = Content(file.stat().st_size, hash_of(file))
    _append(root, content.line(name_of(root, path), _PENDING))
    return content


def confirm(root: Path, path: Path, content: Content | None) -> None:
    """Say that `path` has the content that was announced."""
    if content is not None:
        _append(root, content.line(name_of(root, path)))


def record_journal(path: Path) -> None:
    """Say that `path` is a journal, which grows, of the dataset it is in; its content is free."""
    root = _dataset_of(path)
    name, journal = name_of(root, path), Content(-1, _GROWING)
    if written(root).get(name) != journal:
        _append(root, journal.line(name))


def delete_journal(path: Path) -> None:
    """Delete a journal, which may be in no dataset."""
    delete(_dataset_of(path), path)


def _dataset_of(path: Path) -> Path:
    """Dataset with a manifest that a file is in; where there is none, the file's folder."""
    return next(filter(has_manifest, path.parents), path.parent)


def name_of(root: Path, path: Path) -> str:
    """Path in the dataset, as the table has it."""
    return path.relative_to(root).as_posix()


def is_as_written(root: Path, path: Path) -> bool:
    """Whether a file has the content that llm2nifti gave it."""
    log, name = _log(root), name_of(root, path)
    known = [log.files[name]] if name in log.files else []
    return any(content.is_in(path) for content in known + log.pending.get(name, []))


def set_aside(root: Path, path: Path) -> None:
    """Move a file that is not as llm2nifti wrote it out of the way, and say where it is."""
    if has_manifest(root) and path.exists() and not is_as_written(root, path):
        keep(root, path, Path.replace)


def keep(root: Path, path: Path, bring: Callable[[Path, Path], object]) -> None:
    """Bring a file that others wrote or changed to a new path under `ASIDE`, and warn of it."""
    place = root / ASIDE / path.relative_to(root)
    place.parent.mkdir(parents=True, exist_ok=True)
    numbered = (place.with_name(f"{path.name}.{number}") for number in count(2))
    place = next(p for p in chain([place], numbered) if not p.exists())
    bring(path, place)
    text = f"{path} is not as llm2nifti wrote it; it is kept as {place}"
    warnings.warn(text, ForeignFileWarning, stacklevel=5)


def remove(root: Path, paths: Iterable[Path]) -> None:
    """Delete files as far as they are as llm2nifti wrote them; without a manifest, all of them."""
    for path in paths:
        if not has_manifest(root) or is_as_written(root, path):
            delete(root, path)


def delete(root: Path, path: Path) -> None:
    """Delete a file, whatever is in it; folders that get empty go, too."""
    path.unlink(missing_ok=True)
    _append(root, Content(0, _DELETED).line(name_of(root, path)))
    with suppress(OSError):  # not empty
        for folder in path.relative_to(root).parents[:-1]:
            (root / folder).rmdir()


def settle(root: Path) -> None:
    """Rewrite the manifest with one line a file, sorted; no other process writes."""
    if not has_manifest(root):
        return
    log = _log(root)
    announced = ((name, content) for name, contents in log.pending.items() for content in contents)
    files = log.files | {name: content for name, content in announced if content.is_in(root / name)}
    text = _HEADER + "".join(files[name].line(name) for name in sorted(files))
    last = Content(-1, hashlib.sha256(text.encode()).hexdigest())
    text += last.line(MANIFEST.as_posix())
    path = root / MANIFEST
    if path.read_bytes() == text.encode():
        return
    temporary = root / WORK / path.name
    temporary.parent.mkdir(exist_ok=True)
    temporary.write_text(text, "utf-8")
    temporary.replace(path)
    with suppress(OSError):  # not empty
        temporary.parent.rmdir()
