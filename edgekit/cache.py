"""What was built once, kept by the content that it was built from.

    .edgekit/
      prune-3f9a…/out/          the stage's output, as it flows to the next stage
      prune-3f9a…/entry.json    the parts of its key; size, mtime and sha256 of every file
      blobs/<sha256>            files of 1 MiB or more, hard-linked read-only into every entry that has them
      staging/  scratch/        a build under way; what it may resume from after a failure
      locks/                    one builder per key; entries in use, which gc leaves alone
      history/<recipe>.json     the keys of a recipe's last build, for `edgekit why`
      digests.json              sha256 of files seen before
      data/  training/          clips of generated data sets, states of `edgekit train`; gc leaves them
      results/<sha256>/         what devices brought back, see `edgekit adopt`; gc leaves them

An entry is published by one rename after its stage returned, so it is whole or absent. One
that was damaged afterwards counts as absent. Failures are never kept.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgekit import artifact
from edgekit.errors import EdgekitError, IntegrityError, ResourceError, UsageError
from edgekit.progress import note

DEFAULT_ROOT = Path(".edgekit")
BLOB_BYTES = 1 << 20
FORMAT = 1

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}


def key_of(parts: dict[str, Any]) -> str:
    """`stage-<sha256>`, the sha256 over canonical JSON of all parts.

    Args:
        parts: {stage, semantics, spec, inputs: {stage: digest}, files: {name: digest}, tools: {name: version}}.
    """
    return f"{parts['stage']}-{artifact.sha256_of(parts)}"


def require_folder(path: Path, option: str) -> None:
    """Refuse a place that is no folder and cannot become one, before hours of work go there.

    Raises:
        UsageError: it, or a parent of it, is a file.
    """
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists() or folder.is_symlink())
    if not nearest.is_dir():
        why = "not a folder" if nearest == path else f"cannot be made, {nearest} is not a folder"
        raise UsageError(f"{path}: {why}", f"give another place with `{option}`")


@dataclass(frozen=True)
class Entry:
    """A published stage output."""

    key: str
    path: Path
    parts: dict[str, Any]
    digest: str
    """Digest of `out`: what the next stage's key holds."""

    @property
    def out(self) -> Path:
        return self.path / "out"

    @property
    def stage(self) -> str:
        return self.key.partition("-")[0]


@dataclass(frozen=True)
class Staging:
    """Where a stage writes: `out` becomes the entry, `scratch` survives a failure."""

    out: Path
    scratch: Path


class Cache:
    """One cache folder. Use as a context manager: entries held in use are let go at its end."""

    def __init__(self, root: str | Path = DEFAULT_ROOT):
        self.root = Path(root)
        require_folder(self.root, "--cache")
        self._held: dict[str, IO] = {}
        artifact.MEMORY.attach(self.root / "digests.json")

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        for file in self._held.values():
            file.close()
        self._held.clear()
        artifact.MEMORY.save()

    # reading

    def find(self, key: str) -> Entry | None:
        """The entry of `key` if it is there and undamaged."""
        path = self.root / key
        record = _read_record(path, key)
        if record is None or _damage(path / "out", record["files"], read_all=False) is not None:
            return None
        return Entry(key, path, record["parts"], record["digest"])

    def entries(self) -> list[str]:
        """Keys of all entries, damaged ones too, least recently used first."""
        found = []
        if self.root.is_dir():
            for path in self.root.iterdir():
                record = path / "entry.json"
                if "-" in path.name and record.is_file():
                    found.append((record.stat().st_mtime_ns, path.name))
        return [name for _, name in sorted(found)]

    def listing(self) -> list[dict[str, Any]]:
        """One row per entry: {key, stage, bytes, used_at (seconds since 1970), recipes}."""
        recipes: dict[str, list[str]] = {}
        for path in sorted((self.root / "history").glob("*.json")):
            for stage in self.recall(path.stem)["stages"].values() if self.recall(path.stem) else ():
                recipes.setdefault(stage["key"], []).append(path.stem)
        return [
            {
                "key": key,
                "stage": key.partition("-")[0],
                "bytes": sum(_unique_files(self.root / key).values()),
                "used_at": _last_used_ns(self.root / key) // 10**9,
                "recipes": recipes.get(key, []),
            }
            for key in self.entries()
        ]

    # writing

    @contextlib.contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Only one process at a time works on `key`; a second one waits and finds the first one's entry."""
        with self._lock_file(f"{key}.build") as file:
            if not _try_lock(file, fcntl.LOCK_EX):
                note(f"another edgekit builds {key[:20]}, waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def hold(self, key: str) -> None:
        """Keep gc away from an entry until this cache is closed, and mark it as used now."""
        if key not in self._held:
            file = self._lock_file(f"{key}.use")
            fcntl.flock(file, fcntl.LOCK_SH)
            self._held[key] = file
        with contextlib.suppress(OSError):
            os.utime(self.root / key / "entry.json")

    @contextlib.contextmanager
    def staging(self, key: str, parts: dict[str, Any]) -> Iterator[Staging]:
        """An empty folder that becomes the entry of `key` when the block ends without an error.

        The caller holds `locked(key)`. After an error, nothing is published and `scratch` stays.

        Raises:
            ResourceError: no space or no permission, with the path.
        """
        folder = self.root / "staging" / f"{key}.{os.getpid()}"
        scratch = self.root / "scratch" / key
        with self.resources():
            for stale in (self.root / "staging").glob(f"{key}.*"):  # of killed builds: we have the lock
                shutil.rmtree(stale)
            (folder / "out").mkdir(parents=True)
            scratch.mkdir(parents=True, exist_ok=True)
            try:
                yield Staging(folder / "out", scratch)
                self._publish(folder, key, parts)
                shutil.rmtree(scratch, ignore_errors=True)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                with contextlib.suppress(OSError):
                    scratch.rmdir()  # nothing to resume from

    @contextlib.contextmanager
    def resources(self) -> Iterator[None]:
        """Say a full disk or a missing permission as what it is, whoever ran into it."""
        try:
            yield
        except EdgekitError:
            raise
        except Exception as error:
            found = _as_resource_error(error, self.root)
            if found is None:
                raise
            raise found from error

    def _publish(self, folder: Path, key: str, parts: dict[str, Any]) -> None:
        files = {}
        for name in artifact.tree(folder / "out"):
            path = folder / "out" / name
            sha256 = artifact.hash_file(path)
            if path.stat().st_size >= BLOB_BYTES:
                self._share(path, sha256)
            status = path.stat()
            files[name] = [status.st_size, status.st_mtime_ns, sha256]
        digest = artifact.digest_of_files({name: record[2] for name, record in files.items()})
        record = {"format": FORMAT, "key": key, "parts": parts, "digest": digest, "files": files}
        _write_synced(folder / "entry.json", json.dumps(record, indent=1, sort_keys=True))
        final = self.root / key
        if final.exists():  # damaged, or it would have been found
            final.rename(self.root / "staging" / f"{key}.damaged")
        folder.rename(final)
        shutil.rmtree(self.root / "staging" / f"{key}.damaged", ignore_errors=True)

    def _share(self, path: Path, sha256: str) -> None:
        """Make `path` a read-only hard link of blobs/<sha256>, or leave it alone where links don't work."""
        blob = self.root / "blobs" / sha256
        blob.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f"{path.name}.blob")
        try:
            if blob.is_file() and artifact.file_digest(blob) == sha256:
                os.link(blob, temporary)
                temporary.replace(path)
                # rename(2) between two links of one file does nothing: a stage may have linked an input through
                temporary.unlink(missing_ok=True)
                return
        except FileNotFoundError:
            pass  # gc was faster
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise
            return  # too many links, or a file system without them
        path.chmod(0o444)
        with contextlib.suppress(OSError):
            os.link(path, temporary)
            temporary.replace(blob)
            temporary.unlink(missing_ok=True)

    # keeping house

    def remember(self, recipe: str, parts_by_stage: dict[str, dict[str, Any]], **more: Any) -> None:
        """Note what a recipe's last build was made from; stages that it did not reach keep their older note."""
        before = self.recall(recipe)
        stages = {stage: {"key": key_of(parts), "parts": parts} for stage, parts in parts_by_stage.items()}
        history = {**before, **more, "stages": {**before.get("stages", {}), **stages}}
        if history == before:
            return
        with self.resources():
            path = self.root / "history" / f"{recipe}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_synced(path.with_suffix(f".{os.getpid()}"), json.dumps(history, indent=1, sort_keys=True))
            path.with_suffix(f".{os.getpid()}").replace(path)

    def recall(self, recipe: str) -> dict[str, Any]:
        """What `remember` noted, or {} after nothing or damage."""
        try:
            history = json.loads((self.root / "history" / f"{recipe}.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return history if isinstance(history, dict) and isinstance(history.get("stages"), dict) else {}

    def size(self) -> int:
        """Bytes of all that gc looks after, a hard-linked file once."""
        return sum(_unique_files(self.root).values()) if self.root.is_dir() else 0

    def gc(self, keep_bytes: int) -> tuple[list[str], int]:
        """Delete least recently used entries and old scratch until at most `keep_bytes` are left.

        Entries in use and builds under way are never touched; `data/`, `training/` and `results/` stay.

        Returns:
            (what was removed, bytes freed).
        """
        before = self.size()
        removed = []
        for staging in sorted((self.root / "staging").glob("*")):
            key = staging.name.rpartition(".")[0]
            with self._unless_in_use(key) as free:
                if free:
                    shutil.rmtree(staging, ignore_errors=True)
        victims = [self.root / key for key in self.entries()]
        victims += (self.root / "scratch").glob("*") if (self.root / "scratch").is_dir() else []
        victims.sort(key=_last_used_ns)
        self._drop_loose_blobs()
        size = self.size()
        for victim in victims:
            if size <= keep_bytes:
                break
            with self._unless_in_use(victim.name) as free:
                if free:
                    self._delete(victim)
                    removed.append(str(victim.relative_to(self.root)))
            self._drop_loose_blobs()
            size = self.size()
        return removed, max(0, before - size)

    def verify(self) -> list[str]:
        """Read every file of every entry; delete what is damaged, so that it is built again.

        Returns:
            One line per damaged entry.
        """
        damaged = []
        for blob in sorted((self.root / "blobs").glob("*")):
            if artifact.hash_file(blob) != blob.name:
                artifact.MEMORY.files.pop(os.path.abspath(blob), None)
                artifact.MEMORY.is_dirty = True
                blob.unlink()
        for key in self.entries():
            path = self.root / key
            record = _read_record(path, key)
            fault = "entry.json cannot be read" if record is None else _damage(path / "out", record["files"], read_all=True)
            if fault is not None:
                damaged.append(f"{path}: {fault}")
                with self._unless_in_use(key) as free:
                    if free:
                        self._delete(path)
        return damaged

    @contextlib.contextmanager
    def _unless_in_use(self, key: str) -> Iterator[bool]:
        with self._lock_file(f"{key}.build") as build, self._lock_file(f"{key}.use") as use:
            yield _try_lock(build, fcntl.LOCK_EX) and _try_lock(use, fcntl.LOCK_EX)

    def _delete(self, path: Path) -> None:
        """Out of sight by one rename first, so that a kill in between leaves no half entry."""
        trash = self.root / "staging" / f"{path.name}.trash"
        trash.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(trash, ignore_errors=True)
        path.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)

    def _drop_loose_blobs(self) -> None:
        for blob in (self.root / "blobs").glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if blob.stat().st_nlink == 1:
                    blob.unlink()

    def _lock_file(self, name: str) -> IO:
        # Lock files are never deleted: a second process could lock the deleted one.
        with self.resources():
            path = self.root / "locks" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("a")


def _read_record(path: Path, key: str) -> dict[str, Any] | None:
    try:
        record = json.loads((path / "entry.json").read_bytes())
    except (OSError, ValueError):
        return None
    is_ours = isinstance(record, dict) and record.get("format") == FORMAT and record.get("key") == key
    return record if is_ours and key_of(record["parts"]) == key else None


def _damage(out: Path, files: dict[str, list], read_all: bool) -> str | None:
    """What is wrong with an entry's files; each is read only if its size or mtime moved, or if asked."""
    try:
        present = set(artifact.tree(out))
        if missing := sorted(set(files) - present):
            return f"`{missing[0]}` is missing"
        if surplus := sorted(present - set(files)):
            return f"`{surplus[0]}` does not belong here"
        for name, (size, mtime_ns, sha256) in files.items():
            path = out / name
            status = path.stat()
            if status.st_size != size:
                return f"`{name}` has {status.st_size} bytes, expected {size}"
            if read_all and artifact.hash_file(path) != sha256:
                return f"`{name}` has another sha256 than when it was written"
            if status.st_mtime_ns != mtime_ns and artifact.file_digest(path) != sha256:
                return f"`{name}` was changed"
    except IntegrityError as error:
        return error.message
    except OSError as error:
        return f"{error.strerror}: {error.filename}"
    return None


def _as_resource_error(error: BaseException, root: Path) -> ResourceError | None:
    number = error.errno if isinstance(error, OSError) else None
    # Of a copy, `filename` is what was read and `filename2` what could not be written.
    path = (getattr(error, "filename2", None) or getattr(error, "filename", None)) or root
    # safetensors, torch and onnx report a full disk as errors of their own: believe the text only
    # for those, and the disk itself for the rest.
    text = str(error).lower()
    is_full = number in _NO_SPACE or any(words in text for words in ("no space left on device", "disk quota exceeded", "file too large"))
    if is_full or (not isinstance(error, OSError) and _is_disk_full(root) and "write" in text):
        hint = f"free some space, run `edgekit cache gc --keep 5GB`, or put the cache elsewhere with `--cache` (it is {root})"
        return ResourceError(f"{path}: no space left on the disk", hint)
    if number in _NO_PERMISSION or (number is None and "permission denied" in text):
        return ResourceError(f"{path}: no permission", "make it accessible to you, or put the cache elsewhere with `--cache`")
    return None


def _is_disk_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path).free < BLOB_BYTES
    except OSError:
        return False


def _try_lock(file: IO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _last_used_ns(path: Path) -> int:
    record = path / "entry.json"
    try:
        return (record if record.is_file() else path).stat().st_mtime_ns
    except OSError:
        return time.time_ns()


def _unique_files(folder: Path) -> dict[tuple[int, int], int]:
    """{(device, inode): bytes} below `folder`, without what gc does not look after."""
    sizes = {}
    for parent, folders, files in os.walk(folder):
        if parent == str(folder):
            folders[:] = [name for name in folders if name not in ("data", "training", "results")]
        for name in files:
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(parent, name))
                sizes[status.st_dev, status.st_ino] = status.st_size
    return sizes
