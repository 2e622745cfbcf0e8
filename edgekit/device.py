"""`edgekit build RECIPE --device ssh://user@host`: finish.sh on a device over plain OpenSSH, and its result back here.

The user's own ssh does all of it: configuration, agent and known_hosts count, the host's key is
always checked, and nothing ever asks for a password (`BatchMode`). On the device each kit has a
folder of its own, `~/.edgekit/kits/<digest>/`, so that a second build finds what the first one made.
If the connection goes, finish.sh is interrupted there, which it survives; build again to go on.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from edgekit.artifact import hash_file
from edgekit.bundle import HELDOUT, MANIFEST, MAX_TOTAL_BYTES, RESULT, extract_tar, files_of
from edgekit.errors import EdgekitError, GateFailed, IntegrityError, ResourceError, TargetError, ToolMissing, UsageError
from edgekit.progress import bar, note

SSH_VARIABLE = "EDGEKIT_SSH"  # the command in place of `ssh`, such as `ssh -F config`
_LOST = 255  # ssh's own exit code
_BUSY, _DAMAGED = 75, 76
_ERRORS: dict[int, type[EdgekitError]] = {2: UsageError, 3: GateFailed, 4: TargetError, 5: ToolMissing, 6: IntegrityError}

# What runs on the device, by sh: no single quotes in here, whatever the login shell is. $1 is the kit's folder.
_HELLO = "command -v flock >/dev/null && command -v sha256sum >/dev/null && command -v tar >/dev/null || exit 5; mkdir -p \"$1\""
_HAS_KIT = "cd \"$1/kit\" 2>/dev/null && sha256sum -c --status SHA256SUMS && sha256sum <SHA256SUMS"
_HAS_HELDOUT = "sha256sum <\"$1/heldout.tar\" 2>/dev/null"
# finish.sh takes the same lock: nothing is replaced under one that is at work.
_LOCKED = f"cd \"$1\" || exit 1; exec 9>>{RESULT}.lock; flock -n 9 || exit {_BUSY}; "
_PUT_KIT = (
    f"{_LOCKED}rm -rf kit.part && mkdir kit.part && tar -xf - -C kit.part || exit 5; "
    f"(cd kit.part && sha256sum -c --status SHA256SUMS) || exit {_DAMAGED}; rm -rf kit && mv kit.part kit"
)
_PUT_HELDOUT = f"{_LOCKED}cat >heldout.part || exit 5; sum=$(sha256sum <heldout.part); [ \"${{sum%% *}}\" = \"$2\" ] || exit {_DAMAGED}; mv heldout.part heldout.tar"
# Standard input ends when the connection does: then finish.sh is asked to stop, instead of writing to nobody.
_FINISH = (
    "cd \"$1/kit\" || exit 6; exec 3<&0; sh finish.sh --heldout ../heldout.tar ../result </dev/null & pid=$!; "
    "(cat <&3; kill -TERM $pid) >/dev/null 2>&1 & watch=$!; exec 3<&-; wait $pid; code=$?; kill $watch 2>/dev/null; exit $code"
)
_FETCH = f"cd \"$1\" && tar -cf - {RESULT}"


@dataclass(frozen=True)
class Address:
    """Where a device is: ssh://[user@]host[:port]."""

    host: str
    user: str | None = None
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """
        Raises:
            UsageError: not such an address, or one that ssh would take for an option.
        """
        hint = "such as --device ssh://nvidia@xavier, or ssh://nvidia@192.168.55.1:22"
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise UsageError(f"--device {text}: {error}", hint) from None
        if parts.scheme != "ssh" or parts.path not in ("", "/") or parts.query or parts.fragment or parts.password is not None:
            raise UsageError(f"--device {text}: not ssh://[user@]host[:port]", "a password has no place there: use a key, and ssh-agent" if parts.password is not None else hint)
        for part in (parts.hostname or "", parts.username or "x"):
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.:%-]*", part):
                raise UsageError(f"--device {text}: `{part}` is no name of a host or user", hint)
        return cls(str(parts.hostname), parts.username, port)

    def __str__(self) -> str:
        return f"ssh://{f'{self.user}@' if self.user else ''}{self.host}{f':{self.port}' if self.port else ''}"


def require(address: Address) -> None:
    """Refuse a device that cannot be reached, before anything slow.

    Raises:
        ToolMissing: no ssh here, no connection, or the device lacks a tool.
    """
    _run(address, _HELLO, ".edgekit/kits")


def finish(bundle: Path, heldout: Path, address: Address, into: Path) -> Path:
    """Run a bundle's finish.sh on a device and bring its result back to `into`/result.

    Raises:
        EdgekitError: with finish.sh's own exit code: another device (5), the builder refused (4), answers are off (3), damage (6).
        ToolMissing: the connection broke, or another build is at work there.
    """
    kit = hash_file(bundle / "SHA256SUMS")
    folder = f".edgekit/kits/{kit[:32]}"
    _run(address, _HELLO, folder)
    if _ask(address, _HAS_KIT, folder) != kit:
        names = [name for name in files_of(bundle) if not name.startswith((f"{RESULT}/", f"{RESULT}.part/")) and name not in (MANIFEST, f"{RESULT}.lock")]
        size = sum((bundle / name).stat().st_size for name in names)
        with bar(f"kit to {address.host}", size) as move:
            _run(address, _PUT_KIT, folder, feed=lambda pipe: _send_kit(bundle, names, pipe, move))
    wanted = hash_file(heldout)
    if _ask(address, _HAS_HELDOUT, folder) != wanted:
        with bar(f"held-out clips to {address.host}", heldout.stat().st_size) as move:
            _run(address, _PUT_HELDOUT, folder, wanted, feed=lambda pipe: _send_file(heldout, pipe, move))
    _finish(address, folder)
    return _fetch(address, folder, into)


def heldout_of(bundle: Path) -> Path:
    """The held-out clips that a build laid beside its bundle.

    Raises:
        UsageError: they are not there.
    """
    path = bundle.with_name(f"{bundle.name}.{HELDOUT}")
    if not path.is_file():
        raise UsageError(f"{path}: no held-out clips beside the bundle", "build it again: they are written with it")
    return path


# --------------------------------------------------------------------------- on the device


def _finish(address: Address, folder: str) -> None:
    with bar(f"finish.sh on {address.host}") as move, _ssh(address, _FINISH, folder) as process:
        errors: list[str] = []
        listener = threading.Thread(target=lambda: errors.extend(process.stderr), daemon=True)
        listener.start()
        for line in process.stdout:
            step = re.match(r"\[(\d+)/(\d+)\] (.*)", line)
            if step:
                move(100 * (int(step[1]) - 1) / int(step[2]), f"{address.host}: {step[3]}")
            note(f"{address.host}: {line.rstrip()}")
        code = process.wait()
        listener.join()
    if code:
        raise _error(address, code, "".join(errors))


def _fetch(address: Address, folder: str, into: Path) -> Path:
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=into) as plain:
        size = 0

        def receive(pipe: IO[bytes]) -> None:
            nonlocal size
            while chunk := pipe.read(1 << 20):
                size += len(chunk)
                if size > MAX_TOTAL_BYTES:
                    raise IntegrityError(f"{address}: the result is larger than {MAX_TOTAL_BYTES >> 30} GiB")
                plain.write(chunk)

        with bar(f"result from {address.host}"):
            _run(address, _FETCH, folder, receive=receive)
        plain.seek(0)
        target = into / "fetched"
        target.mkdir()
        extract_tar(plain, f"{address}: result", target)
    return target / RESULT


def _send_kit(bundle: Path, names: list[str], pipe: IO[bytes], move: Callable[..., None]) -> None:
    done = 0
    with tarfile.open(fileobj=pipe, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = (bundle / name).stat().st_size
            member.mode = 0o755 if name.endswith(".sh") else 0o644
            with (bundle / name).open("rb") as file:
                tar.addfile(member, file)
            done += member.size
            move(done)


def _send_file(path: Path, pipe: IO[bytes], move: Callable[..., None]) -> None:
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            pipe.write(chunk)
            done += len(chunk)
            move(done)


# --------------------------------------------------------------------------- ssh


def _argv(address: Address, script: str, *arguments: str) -> list[str]:
    ssh = shlex.split(os.environ.get(SSH_VARIABLE, "ssh"))
    if not ssh or shutil.which(ssh[0]) is None:
        raise ToolMissing(f"{ssh[0] if ssh else SSH_VARIABLE}: not found here", "apt-get install openssh-client")
    # BatchMode: fail instead of asking. A dead line is noticed within a minute. Host keys are checked as ssh does.
    options = ["-T", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4", "-o", "ConnectTimeout=20"]
    options += ["-p", str(address.port)] if address.port else []
    options += ["-l", address.user] if address.user else []
    return [*ssh, *options, "--", address.host, f"sh -c '{script}' edgekit {' '.join(map(shlex.quote, arguments))}"]


@contextlib.contextmanager
def _ssh(address: Address, script: str, *arguments: str) -> Iterator[subprocess.Popen]:
    """A script on the device, its text streams open; whatever happens here, it is not left alone there."""
    process = subprocess.Popen(_argv(address, script, *arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError):  # what was not sent any more
                stream.close()


def _run(address: Address, script: str, *arguments: str, feed: Callable[[IO[bytes]], None] | None = None, receive: Callable[[IO[bytes]], None] | None = None) -> bytes:
    """Run a script on the device to its end; its output, unless `receive` takes that.

    Raises:
        EdgekitError: it failed, see `_error`.
    """
    process = subprocess.Popen(_argv(address, script, *arguments), stdin=subprocess.DEVNULL if feed is None else subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    errors: list[bytes] = []
    listener = threading.Thread(target=lambda: errors.append(process.stderr.read()), daemon=True)
    listener.start()
    output = b""
    try:
        if feed is not None:
            with contextlib.suppress(BrokenPipeError):  # its exit code says why
                feed(process.stdin)
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        if receive is None:
            output = process.stdout.read()
        else:
            receive(process.stdout)
        code = process.wait()
    finally:
        process.kill()
        process.wait()
        listener.join()
        process.stdout.close()
        process.stderr.close()
    if code:
        raise _error(address, code, b"".join(errors).decode(errors="replace"))
    return output


def _ask(address: Address, script: str, *arguments: str) -> str:
    """The sha256 that a script prints, or "" where there is nothing to sum; a broken connection is still an error."""
    try:
        return _run(address, script, *arguments).decode(errors="replace").split(" ")[0]
    except _Failed:
        return ""


class _Failed(ToolMissing):
    """A command on the device failed, for reasons of its own."""


def _error(address: Address, code: int, text: str) -> EdgekitError:
    """What went wrong over there, with the exit code that it has here."""
    lines = [line.rstrip() for line in text.strip().splitlines()]
    told = "\n".join(lines[-12:])
    if code == _LOST:
        return ToolMissing(f"{address}: no connection, or it broke: {told or 'ssh says no more'}", f"`ssh {address.user + '@' if address.user else ''}{address.host}` must work without a password; if it broke on the way, build again to go on")
    if code == _BUSY:
        return ToolMissing(f"{address}: another build is at work there on the same kit", "wait for it; it lets go when it ends, however it ends")
    if code == _DAMAGED:
        return IntegrityError(f"{address}: what arrived there is not what was sent", "build again")
    if told and code in _ERRORS and "finish.sh" in told:
        return _ERRORS[code](f"{address}: {told}", "it goes on where it stopped when you build again")
    if code == 130 and "finish.sh" in told:
        error = EdgekitError(f"{address}: {told}", "build again to go on")
        error.exit_code = 130
        return error
    if "space" in told.lower():
        return ResourceError(f"{address}: {told}", "free some space on the device")
    return _Failed(f"{address}: exit code {code}: {told or 'nothing was said'}", "it needs sh, tar, flock, sha256sum and a home that can be written to")
