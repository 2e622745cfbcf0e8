"""Tools that live beside edgekit's environment, because their pins would break it.

Each is a folder in $EDGEKIT_TOOLS (default: $XDG_DATA_HOME or ~/.local/share, /edgekit/tools), made
by `edgekit doctor --install NAME`. It is staged aside, checked by doing real work, and published by
one rename, so a folder that is there is a tool that worked. Its version is read from its files,
without starting Python.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgekit import progress
from edgekit.errors import ResourceError, ToolMissing, UsageError

_QEMU = "qemu-aarch64"
_LAST_LINES = 12


@dataclass(frozen=True)
class Tool:
    """One thing that can be installed.

    Attributes:
        distribution: the one whose version counts.
        requirements: what pip is asked for.
        pythons: minor versions of CPython 3 that `distribution` has wheels for; empty means any.
        machine: None for a virtual environment; `aarch64` for a root of another machine, run by qemu.
    """

    name: str
    distribution: str
    requirements: tuple[str, ...]
    purpose: str
    pythons: tuple[int, ...] = ()
    machine: str | None = None

    @property
    def wanted(self) -> str:
        """Version of `distribution` that `requirements` pins."""
        return self.requirements[0].partition("==")[2]


_TFLITE214 = ("tflite-runtime==2.14.0", "numpy==1.26.4")  # its C module was built against numpy 1
TOOLS = {
    tool.name: tool
    for tool in (
        Tool("tflite214", "tflite-runtime", _TFLITE214, "the last tflite-runtime, of 2023", pythons=(11, 10, 9)),
        Tool("tflite214-arm64", "tflite-runtime", _TFLITE214, "the same for arm64, under qemu", pythons=(11,), machine="aarch64"),
        Tool("vela", "ethos-u-vela", ("ethos-u-vela==5.2.0",), "compiler for Arm Ethos-U"),
    )
}


def tool(name: str) -> Tool:
    """The tool called `name`.

    Raises:
        UsageError: there is none.
    """
    from edgekit.document import suggestion

    if name not in TOOLS:
        raise UsageError(f"{name}: no such tool", suggestion(name, list(TOOLS)))
    return TOOLS[name]


def root() -> Path:
    """Where tools are kept."""
    chosen = os.environ.get("EDGEKIT_TOOLS")
    if chosen:
        return Path(chosen)
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser() / "edgekit" / "tools"


def folder(name: str) -> Path:
    return root() / name


def install_hint(name: str) -> str:
    """The command that installs a tool."""
    return f"edgekit doctor --install {name}"


def version(name: str, where: Path | None = None) -> str | None:
    """Installed version of the tool's distribution; None if the tool is not here or cannot start."""
    known, where = TOOLS[name], where or folder(name)
    # exists() follows the link of a virtual environment: its Python may have gone.
    if not _python(known, where).exists() or (known.machine and shutil.which(_QEMU) is None):
        return None
    module = known.distribution.replace("-", "_")
    for packages in _package_folders(known, where):
        for info in sorted(packages.glob(f"{module}-*.dist-info")):
            return info.name.removeprefix(f"{module}-").removesuffix(".dist-info")
    return None


def command(name: str, where: Path | None = None) -> list[str]:
    """What starts the tool's Python, isolated from the user's environment.

    Raises:
        ToolMissing: it is not installed.
    """
    known = TOOLS[name]
    if version(name, where) is None:
        raise missing(name)
    where = where or folder(name)
    emulator = [_QEMU, "-L", str(where)] if known.machine else []
    return [*emulator, str(_python(known, where)), "-I"]


def missing(name: str) -> ToolMissing:
    known = TOOLS[name]
    if known.machine and shutil.which(_QEMU) is None:
        return ToolMissing(f"{name}: `{_QEMU}` is not on the PATH", "apt-get install qemu-user")
    return ToolMissing(f"{known.distribution} {known.wanted} ({known.purpose}) is not installed here", install_hint(name))


def install(name: str, check: Callable[[Path], None]) -> Path:
    """Make the tool's folder anew.

    Args:
        check: does real work with the tool staged in a folder, and raises if that fails.

    Raises:
        UsageError: there is no such tool.
        ToolMissing: no fitting Python, pip or apt is here, or the download failed.
        ResourceError: the folder cannot be written.
    """
    wanted, final = tool(name), folder(name)
    make = _make_arm64_root if wanted.machine else _make_environment
    with _alone(final.parent):
        staging = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=final.parent))
        try:
            make(wanted, staging)
            progress.note(f"checking {wanted.distribution}")
            check(staging)
            staging.chmod(0o755)
            _publish(staging, final)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return final


# --------------------------------------------------------------------------- folders

_PARTIAL = ".partial-"


@contextmanager
def _alone(parent: Path) -> Iterator[None]:
    """One installation at a time; what a killed one left behind is removed."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        lock = open(parent / ".lock", "w")  # noqa: SIM115  closed by `with` below
    except OSError as error:
        raise ResourceError(f"{parent}: cannot be written ({str(error.strerror).lower()})", "choose another folder with $EDGEKIT_TOOLS") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in parent.glob(f"{_PARTIAL}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def _publish(staging: Path, final: Path) -> None:
    """Put `staging` in the place of `final`. A folder cannot be replaced in one step: the old one goes aside first."""
    if final.exists():
        final.rename(final.parent / f"{_PARTIAL}old-{staging.name.removeprefix(_PARTIAL)}")
    staging.rename(final)
    for old in final.parent.glob(f"{_PARTIAL}old-*"):
        shutil.rmtree(old, ignore_errors=True)


def _python(tool: Tool, where: Path) -> Path:
    return where / "usr/bin/python3.11" if tool.machine else where / "bin/python"


def _package_folders(tool: Tool, where: Path) -> list[Path]:
    # Debian's python3 looks into dist-packages by itself
    return [where / "usr/lib/python3/dist-packages"] if tool.machine else sorted(where.glob("lib/python3.*/site-packages"))


# --------------------------------------------------------------------------- virtual environments


def _make_environment(tool: Tool, staging: Path) -> None:
    python = _interpreter(tool)
    _run([python, "-m", "venv", "--without-pip", str(staging)], f"{tool.name}: the virtual environment could not be made")
    _pip(tool, ["--python", str(staging / "bin/python"), "install", *tool.requirements])


def _interpreter(tool: Tool) -> str:
    """This Python if the tool has wheels for it, else one on the PATH that it has wheels for.

    Raises:
        ToolMissing: there is none.
    """
    if not tool.pythons or (sys.implementation.name == "cpython" and sys.version_info[1] in tool.pythons):
        return sys.executable
    for minor in tool.pythons:
        found = shutil.which(f"python3.{minor}")
        if found:
            return found
    versions = ", ".join(f"3.{minor}" for minor in sorted(tool.pythons))
    here = f"{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]}"
    raise ToolMissing(f"{tool.requirements[0]} has wheels for CPython {versions} only, this is {here}", f"put a python3.{tool.pythons[0]} on the PATH")


def _pip(tool: Tool, arguments: Sequence[str]) -> None:
    """This Python's own pip, with the user's configuration of it (indexes, proxies, certificates)."""
    if importlib.util.find_spec("pip") is None:
        raise ToolMissing(f"{sys.executable} has no pip", f"{sys.executable} -m ensurepip --upgrade")
    _run([sys.executable, "-m", "pip", *arguments], f"{tool.name}: pip could not install {' '.join(tool.requirements)}")


def _run(arguments: Sequence[str], fault: str) -> str:
    """Run a command, show its lines as they come, and return them.

    Raises:
        ToolMissing: it failed; the last lines say how.
    """
    lines: list[str] = []
    with subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line.rstrip())
                progress.note(line.rstrip())
        except BaseException:  # interrupted: do not wait for a download
            process.kill()
            raise
    if process.returncode != 0:
        said = "\n".join(f"    {line}" for line in lines[-_LAST_LINES:])
        raise ToolMissing(f"{fault} (exit code {process.returncode}):\n{said}", "see what the command says above; pip reads its index from `pip config`")
    return "\n".join(lines)


# --------------------------------------------------------------------------- arm64 under qemu

_PACKAGES = ("python3.11-minimal", "libpython3.11-stdlib", "libstdc++6")
# 2_34: what tflite-runtime 2.14 says of itself; 2_17: numpy
_PLATFORMS = ("manylinux_2_34_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")


def _make_arm64_root(tool: Tool, staging: Path) -> None:
    """A root of genuine arm64 files: Debian's Python 3.11 and the wheels. Nothing in it needs root rights.

    Needs qemu-user, and apt with the sources of a Debian 12: packages are fetched for arm64 into the
    staging folder and unpacked; the host's own package lists are not touched.
    """
    for program, package in ((_QEMU, "qemu-user"), ("apt-get", "apt"), ("dpkg-deb", "dpkg")):
        if shutil.which(program) is None:
            raise ToolMissing(f"{tool.name}: `{program}` is not on the PATH", f"apt-get install {package} (Debian 12)")
    with tempfile.TemporaryDirectory(prefix="apt-", dir=staging) as work:
        for deb in _fetch_debs(tool, Path(work)):
            _run(["dpkg-deb", "-x", str(deb), str(staging)], f"{tool.name}: {deb.name} could not be unpacked")
    target = _package_folders(tool, staging)[0]
    platforms = [f"--platform={name}" for name in _PLATFORMS]
    _pip(tool, ["install", "--target", str(target), *platforms, "--python-version=3.11", "--implementation=cp", "--only-binary=:all:", *tool.requirements])


def _fetch_debs(tool: Tool, work: Path) -> list[Path]:
    """Download `_PACKAGES` and all that they depend on; an empty status file makes apt believe that nothing is installed."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (work / name).mkdir(parents=True)
    (work / "status").touch()
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",  # the sandbox's user cannot write here
        "Debug::NoLocking": "1",
        "Dir::State": f"{work}/state",
        "Dir::State::status": f"{work}/status",
        "Dir::Cache": f"{work}/cache",
    }
    apt = ["apt-get", "-q", *(f"-o{key}={value}" for key, value in options.items())]
    _run([*apt, "update"], f"{tool.name}: apt could not fetch the arm64 package lists")
    _run([*apt, "-y", "--no-install-recommends", "--download-only", "install", *_PACKAGES], f"{tool.name}: apt could not fetch {', '.join(_PACKAGES)} for arm64")
    return sorted((work / "cache/archives").glob("*.deb"))


def tail(text: str, lines: int = _LAST_LINES) -> str:
    """The last lines of a tool's output, indented for a message; repeated ones once."""
    kept: list[str] = []
    for line in text.splitlines():
        if line.strip() and line not in kept[-1:]:
            kept.append(line)
    return "\n".join(f"    {re.sub(r'[^ -~]', '?', line)[:200]}" for line in kept[-lines:])
