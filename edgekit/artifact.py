"""What enters a cache key: the content of files and directories, never their paths.

A file's sha256 is remembered by (path, size, mtime_ns, inode), so that a 400 MB checkpoint
is hashed once and not in every plan. The memory is a plain JSON file which may be deleted
at any time; `cache.Cache` says where it lives.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgekit.errors import DataError, IntegrityError

# A file written within the last 2 s could change again without its mtime moving (coarse
# clocks: FAT has 2 s), so it is hashed again rather than remembered.
_SETTLED_NS = 2_000_000_000
_MEMORY_LIMIT = 50_000  # files; about 10 MB of JSON


class Source(Protocol):
    """A file or data set outside the cache that a stage reads."""

    def digest(self) -> str:
        """Hex sha256 of the content; equal content has equal digests wherever it lies."""
        ...


@dataclass(frozen=True)
class FileSource:
    """One file that the recipe names."""

    path: Path

    def digest(self) -> str:
        return file_digest(self.path)


@dataclass(frozen=True)
class FolderSource:
    """A folder, by the content of its files."""

    path: Path

    def digest(self) -> str:
        return directory_digest(self.path)


@functools.cache
def tool_version(distribution: str) -> str | None:
    """The installed version of a distribution, None if there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def canonical_json(value: Any) -> bytes:
    """The one spelling of `value` as UTF-8 JSON: sorted keys, no spaces, no NaN.

    Raises:
        TypeError: something that JSON lacks, such as a Path (it would put a machine's path in a key).
        ValueError: NaN or infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_of(value: Any) -> str:
    """Hex sha256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def tree(directory: Path) -> Iterator[str]:
    """Relative posix paths of all files below `directory`, sorted; empty folders do not count.

    Raises:
        IntegrityError: a symlink or a device: its content is not the directory's own.
    """
    found = []
    pending = [(directory, "")]
    while pending:
        folder, prefix = pending.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                relative = f"{prefix}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    pending.append((Path(entry.path), f"{relative}/"))
                elif entry.is_file(follow_symlinks=False):
                    found.append(relative)
                else:
                    what = "a link" if entry.is_symlink() else "a device or socket"
                    raise IntegrityError(f"{directory}: {relative!a} is {what}, expected plain files only", "remove it")  # !a: a hostile name
    yield from sorted(found)


def directory_digest(directory: Path) -> str:
    """Hex sha256 over the sorted (relative path, sha256) of every file below `directory`."""
    return digest_of_files({name: file_digest(directory / name) for name in tree(directory)})


def digest_of_files(sha256_by_name: dict[str, str]) -> str:
    """The digest of a directory whose files have these digests."""
    return sha256_of(sorted(sha256_by_name.items()))


def hash_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, always read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digest(path: Path) -> str:
    """Hex sha256 of a file, read only if it changed since it was last read.

    Raises:
        DataError: there is no such file, or it is a folder.
    """
    path = Path(path)
    try:
        before = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path}: no such file", "check the spelling; paths are relative to the recipe") from None
    if not stat.S_ISREG(before.st_mode):
        raise DataError(f"{path}: not a plain file", "give the path of a file")
    key = os.path.abspath(path)
    mark = [before.st_size, before.st_mtime_ns, before.st_ino]
    known = MEMORY.files.get(key)
    if known is not None and known[:3] == mark:
        return known[3]
    digest = hash_file(path)
    after = path.stat()
    unchanged = mark == [after.st_size, after.st_mtime_ns, after.st_ino]
    if unchanged and time.time_ns() - after.st_mtime_ns > _SETTLED_NS:
        MEMORY.files[key] = [*mark, digest]
        MEMORY.is_dirty = True
    return digest


class DigestMemory:
    """sha256 of files seen before: {absolute path: [size, mtime_ns, inode, sha256]}."""

    def __init__(self) -> None:
        self.files: dict[str, list] = {}
        self.path: Path | None = None
        self.is_dirty = False

    def attach(self, path: Path) -> None:
        """Remember in `path` from now on. A missing or damaged file is an empty memory."""
        if self.path == path:
            return
        self.path = path
        try:
            loaded = json.loads(path.read_bytes())
        except (OSError, ValueError):
            return
        if isinstance(loaded, dict):
            self.files = {name: mark for name, mark in loaded.items() if _is_mark(mark)} | self.files

    def save(self) -> None:
        """Write the memory by rename. It is only a shortcut, so failing to write it is no error."""
        if self.path is None or not self.is_dirty:
            return
        newest = dict(list(self.files.items())[-_MEMORY_LIMIT:])
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(newest))
            temporary.replace(self.path)
            self.is_dirty = False
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()


def _is_mark(mark: Any) -> bool:
    return isinstance(mark, list) and len(mark) == 4 and all(type(v) is int for v in mark[:3]) and isinstance(mark[3], str)


MEMORY = DigestMemory()
