"""What edgekit delivers: a folder, or the same folder as `.tar.zst`, with the sha256 of every file.

A bundle comes from somewhere else, so opening one trusts nothing in it: names cannot leave the
folder, links and devices are refused, sizes are bounded before they are believed, and no code runs.
"""

from __future__ import annotations

import json
import os
import tarfile
import tempfile
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from edgekit.artifact import hash_file, sha256_of, tree
from edgekit.errors import DataError, IntegrityError, ResourceError, ToolMissing

MANIFEST = "manifest.json"
# What finish.sh adds beside the files of the host; never part of the bundle itself.
RESULT = "result"
_OF_THE_DEVICE = (f"{RESULT}/", f"{RESULT}.part/")
_LOCK = f"{RESULT}.lock"
# Held-out clips for a device that finishes the artifact; beside the bundle NAME they are NAME.heldout.tar.
HELDOUT = "heldout.tar"

MAX_TOTAL_BYTES = 16 << 30
MAX_FILES = 20_000
_MAX_JSON_BYTES = 64 << 20
_MAX_READ_BYTES = 1 << 20  # one read; a header that asks for more is a bomb


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. Use it in a `with` block when it may be an archive: leaving removes the extracted copy."""

    path: Path
    """Folder that holds the files."""
    source: str
    """What was opened, for messages."""
    _temporary: tempfile.TemporaryDirectory | None = field(default=None, repr=False, compare=False)

    @property
    def manifest(self) -> dict[str, Any]:
        """manifest.json: name, target, verdict, versions, provenance and `files: {path: {sha256, size}}`."""
        if not (self.path / MANIFEST).is_file():
            failed = (self.path / "report.json").is_file()
            raise IntegrityError(
                f"{self.source}: no {MANIFEST}, this is no bundle",
                "a build whose gates did not pass leaves its report only" if failed else "is it the folder of `build/`?",
            )
        manifest = self._json(MANIFEST)
        if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
            raise IntegrityError(f"{self.source}/{MANIFEST}: `files` must map paths to sha256 and size")
        return manifest

    @property
    def report(self) -> dict[str, Any]:
        """report.json."""
        report = self._json("report.json")
        if not isinstance(report, dict):
            raise IntegrityError(f"{self.source}/report.json: not a report")
        return report

    def verify(self) -> None:
        """Check every file against the manifest, and that there is no other.

        Raises:
            IntegrityError: names the files that are missing, extra or changed.
        """
        listed = self.manifest["files"]
        for name, entry in listed.items():
            fault = _name_fault(name)
            if fault is None and not (isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and type(entry.get("size")) is int):
                fault = "has no sha256 and size"
            if fault is not None:
                raise IntegrityError(f"{self.source}/{MANIFEST}: {_shown(name)} {fault}")
        if not _is_sealed(self.manifest):
            raise IntegrityError(f"{self.source}/{MANIFEST}: does not match its own sha256", "get the bundle again, and do not flash this one")
        found = {name for name in files_of(self.path) if name not in (MANIFEST, _LOCK) and not name.startswith(_OF_THE_DEVICE)}
        faults = [f"{_shown(n)} is missing" for n in sorted(listed.keys() - found)]
        faults += [f"{_shown(n)} is not in the manifest" for n in sorted(found - listed.keys())]
        for name in sorted(found & listed.keys()):
            size = (self.path / name).stat().st_size
            if size != listed[name]["size"]:
                faults.append(f"{_shown(name)} has {size} bytes, the manifest says {listed[name]['size']}")
            elif hash_file(self.path / name) != listed[name]["sha256"]:
                faults.append(f"{_shown(name)} does not match its sha256")
        if faults:
            more = f"; and {len(faults) - 8} more" if len(faults) > 8 else ""
            raise IntegrityError(f"{self.source}: {'; '.join(faults[:8])}{more}", "get the bundle again, and do not flash this one")

    def close(self) -> None:
        """Remove what was extracted; a folder that was opened in place stays."""
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _json(self, name: str) -> Any:
        path = self.path / name
        try:
            with path.open("rb") as file:
                text = file.read(_MAX_JSON_BYTES + 1)
            if len(text) > _MAX_JSON_BYTES:
                raise IntegrityError(f"{self.source}/{name}: larger than {_MAX_JSON_BYTES >> 20} MiB")
            return json.loads(text)
        except (OSError, ValueError, RecursionError) as e:
            raise IntegrityError(f"{self.source}/{name}: cannot be read: {e}") from e


def open_bundle(path: str | Path, into: str | Path | None = None, max_bytes: int = MAX_TOTAL_BYTES) -> Bundle:
    """Open a bundle folder in place, or extract a `.tar.zst`. Nothing is hashed yet: call `verify`.

    Args:
        into: where an archive is extracted, an empty or missing folder; by default a temporary one.
        max_bytes: refuse archives that unpack to more.

    Raises:
        DataError: there is nothing at `path`.
        IntegrityError: damaged, or it holds something that could leave the folder or fill the disk.
    """
    path = Path(path)
    if path.is_dir():
        for _ in files_of(path):
            pass  # refuses links before anything follows one
        return Bundle(path, str(path))
    if not path.is_file():
        raise DataError(f"{path}: no such bundle", "give the folder `build/<recipe>` or `build/<recipe>.tar.zst`")
    parent = None if into is None else Path(into).parent
    if into is not None and Path(into).exists() and (not Path(into).is_dir() or any(Path(into).iterdir())):
        raise DataError(f"{into}: exists and is not an empty folder", "extract into a new folder")
    try:
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix="edgekit-bundle-", dir=parent)
        try:
            folder = Path(temporary.name) / "bundle"
            folder.mkdir()
            _extract(path, folder, max_bytes)
            if into is None:
                return Bundle(folder, str(path), temporary)
            folder.replace(into)  # at once, so that a bad archive leaves nothing
            temporary.cleanup()
            return Bundle(Path(into), str(path))
        except BaseException:
            temporary.cleanup()
            raise
    except OSError as e:
        raise ResourceError(f"{path}: cannot be extracted: {e.strerror or e}", "is there space left, and permission?") from e


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with the sha256 of its canonical JSON, so that damage to the manifest itself shows too. It is no signature."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return {**rest, "sha256": sha256_of(rest)}


def _is_sealed(manifest: dict[str, Any]) -> bool:
    try:
        return sealed(manifest) == manifest
    except (ValueError, RecursionError):  # NaN, half a surrogate pair, or a bomb: nothing that we write
        return False


def file_table(folder: Path) -> dict[str, dict[str, Any]]:
    """`{path: {sha256, size}}` of every file in `folder`, as the manifest lists it."""
    return {
        name: {"sha256": hash_file(folder / name), "size": (folder / name).stat().st_size}
        for name in files_of(folder)
        if name != MANIFEST
    }


def pack(folder: Path, archive: Path) -> str:
    """Write `folder` as `.tar.zst`: equal folders give equal bytes. Returns the archive's sha256.

    The archive appears by rename, so that a crash leaves no half-written one.
    """
    zstandard = _zstandard()
    part = archive.with_name(f"{archive.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as raw, zstandard.ZstdCompressor(level=6).stream_writer(raw) as compressed:
            with tarfile.open(fileobj=compressed, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                for name in files_of(folder):
                    member = tarfile.TarInfo(name)
                    member.size = (folder / name).stat().st_size
                    # Owner, time and mode of the build machine are nobody's business on the device.
                    member.mode = 0o755 if name.endswith(".sh") else 0o644
                    with (folder / name).open("rb") as file:
                        tar.addfile(member, file)
        digest = hash_file(part)
        part.replace(archive)
    except OSError as e:
        raise ResourceError(f"{archive}: cannot be written: {e.strerror or e}", "free some disk space") from e
    finally:
        part.unlink(missing_ok=True)
    return digest


def files_of(folder: Path) -> list[str]:
    """Relative posix paths of all files below `folder`, sorted, and no link or device among them."""
    return list(tree(folder))


class _Bounded:
    """A seekable file that refuses single reads no honest header needs.

    tarfile reads an extended header whole, by the size that the archive claims for it.
    """

    def __init__(self, file: BinaryIO):
        self.file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_READ_BYTES:
            raise IntegrityError(f"a header claims {size} bytes")
        return self.file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()


def _extract(archive: Path, folder: Path, max_bytes: int) -> None:
    zstandard = _zstandard()
    with tempfile.TemporaryFile(dir=folder.parent) as plain:
        try:
            with archive.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as stream:
                # Headers take room too; a kilobyte per file is generous.
                _copy(stream, plain, None, max_bytes + (MAX_FILES << 10), f"{archive}: unpacks to more than {max_bytes} bytes")
        except zstandard.ZstdError as e:
            raise IntegrityError(f"{archive}: not a whole zstd file: {e}", "get the bundle again") from e
        plain.seek(0)
        extract_tar(plain, str(archive), folder, max_bytes)


def extract_tar(plain: BinaryIO, archive: str, folder: Path, max_bytes: int = MAX_TOTAL_BYTES) -> None:
    """Extract a plain tar from somewhere else into an empty folder.

    Args:
        plain: seekable, at its start.
        archive: what it is called in messages.

    Raises:
        IntegrityError: damaged, or it holds something that could leave the folder or fill the disk.
    """
    try:
        with tarfile.open(fileobj=_Bounded(plain), mode="r:") as tar:  # type: ignore[arg-type]
            _extract_members(archive, tar, folder, max_bytes)
    # What tarfile lets through from garbage: numbers out of range, chains of headers.
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as e:
        raise IntegrityError(f"{archive}: not a whole tar file: {e}", "get the bundle again") from e
    except IntegrityError as e:
        raise e if e.message.startswith(archive) else IntegrityError(f"{archive}: {e.message}", e.hint) from e


def _extract_members(archive: str, tar: tarfile.TarFile, folder: Path, max_bytes: int) -> None:
    taken: dict[str, str] = {}  # folded path of every file and folder so far -> its spelling
    files: set[str] = set()
    total = 0
    for count, member in enumerate(tar, start=1):
        name = member.name.rstrip("/") if member.isdir() else member.name
        if count > MAX_FILES:
            raise IntegrityError(f"{archive}: more than {MAX_FILES} entries")
        if not (member.isdir() or member.isreg()) or member.issparse():
            raise IntegrityError(f"{archive}: {_shown(name)} is {_kind_of(member)}, a bundle holds plain files only")
        fault = _name_fault(name)
        if fault is not None:
            raise IntegrityError(f"{archive}: {_shown(name)} {fault}")
        total += member.size
        if member.size < 0 or total > max_bytes:
            raise IntegrityError(f"{archive}: unpacks to more than {max_bytes} bytes")
        parts = name.split("/")
        for depth in range(1, len(parts) + 1):
            spelling = "/".join(parts[:depth])
            known = taken.setdefault(_folded(spelling), spelling)
            is_leaf_file = depth == len(parts) and member.isreg()
            if known != spelling:
                raise IntegrityError(f"{archive}: {_shown(spelling)} and {_shown(known)} differ only in case")
            if spelling in files or (is_leaf_file and (folder / spelling).exists()):
                raise IntegrityError(f"{archive}: {_shown(spelling)} is there twice")
        if member.isdir():
            (folder / name).mkdir(parents=True, exist_ok=True)
            continue
        files.add(name)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with tar.extractfile(member) as source, (folder / name).open("xb") as target:  # type: ignore[union-attr]
            if _copy(source, target, member.size, member.size, f"{archive}: {_shown(name)} is longer than it says") != member.size:
                raise IntegrityError(f"{archive}: {_shown(name)} is cut off", "get the bundle again")
        (folder / name).chmod(0o755 if member.mode & 0o100 else 0o644)


def _copy(source: Any, target: BinaryIO, size: int | None, limit: int, message: str) -> int:
    """Copy up to `size` bytes (None: to the end), refusing to write more than `limit`. Returns the bytes copied."""
    copied = 0
    while size is None or copied < size:
        chunk = source.read(_MAX_READ_BYTES if size is None else min(_MAX_READ_BYTES, size - copied))
        if not chunk:
            break
        copied += len(chunk)
        if copied > limit:
            raise IntegrityError(message, "raise `max_bytes` if you trust where it comes from")
        target.write(chunk)
    return copied


# Names that Windows gives to devices; a bundle is opened on engineers' laptops too.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def _name_fault(name: str) -> str | None:
    """Why `name` is not a plain relative path, or None."""
    if not name or name.startswith(("/", "\\")) or (len(name) > 1 and name[1] == ":"):
        return "is not a relative path"
    if "\\" in name or ":" in name or any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in name):
        return "has a character that no bundle uses"
    if len(name) > 1024:
        return "is too long"
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "has an empty, `.` or `..` part"
    if any(part.endswith((".", " ")) or part.split(".")[0].casefold() in _DEVICES for part in parts):
        return "is not a portable file name"
    return None


def _folded(name: str) -> str:
    """One spelling for all that a file system which ignores case or Unicode form takes for the same."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _shown(name: str) -> str:
    """`name` for a message: control characters of a hostile archive do not reach the terminal."""
    text = name if len(name) <= 120 else f"{name[:117]}..."
    return f"`{text.encode('unicode_escape').decode('ascii')}`"


def _kind_of(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return "a link"
    return "a sparse file" if member.issparse() else "a device or something else"


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError as e:
        raise ToolMissing("zstandard is not installed", "pip install zstandard, or give the bundle's folder") from e
    return zstandard
