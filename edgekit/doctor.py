"""What this machine has and lacks, and the command that installs what is missing."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import sys
import tomllib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from edgekit import backends, document, plugins, tools
from edgekit.errors import ToolMissing
from edgekit.target import load_target

NEEDED_BYTES = 5 * 10**9  # environment 2 GB, cache and generated clips of the demo 1 GB, and room


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    found: str
    """Version or amount, `-` if absent."""
    needed: str
    """Requirement as declared, or which extra wants it."""
    ok: bool
    required: bool
    hint: str = ""


def examine(cache_root: Path) -> list[Finding]:
    """Python, packages, extras and disk; required things first."""
    python = platform.python_version()
    is_new = sys.version_info >= (3, 11)
    findings = [Finding("python", python, ">=3.11", is_new, True, "" if is_new else "apt-get install python3 python3-venv (Debian 12 or later)")]
    for extra, requirement in requirements():
        findings.append(_package(extra, requirement))
    findings += [_tool(name) for name in tools.TOOLS]
    findings += _native_ops()
    findings += [Finding(f"{p.kind} {p.name}", p.version, f"{p.distribution} ({p.module})", True, False) for p in plugins.third_party()]
    shipped = document.shipped("targets")
    findings += [_target(path) for path in sorted(shipped.glob("*.yaml"))] if shipped else []
    findings.append(_disk(cache_root))
    return findings


def install(name: str) -> str:
    """Install one side tool; what it is and where, in a line.

    Raises:
        EdgekitError: see `tools.install`; or the tool does not work here.
    """
    from edgekit.backends.tflite import side, vela

    checks = {
        side.NATIVE: lambda where: side.check(where, side.NATIVE),
        side.ARM64: lambda where: side.check(where, side.ARM64),
        vela.TOOL: vela.check,
    }
    where = tools.install(name, checks[tools.tool(name).name])
    return f"{name}: {tools.TOOLS[name].distribution} {tools.version(name)} in {where}"


def requirements() -> list[tuple[str | None, str]]:
    """(extra or None, requirement) of edgekit, from its installed metadata or the checkout's pyproject."""
    checkout = Path(__file__).parent.parent / "pyproject.toml"
    if checkout.is_file():
        project = tomllib.loads(checkout.read_text())["project"]
        found: list[tuple[str | None, str]] = [(None, requirement) for requirement in project["dependencies"]]
        extras = project["optional-dependencies"]
        return found + [(extra, r) for extra, group in extras.items() for r in group if not r.startswith("edgekit")]
    found = []
    for text in importlib.metadata.requires("edgekit") or []:
        requirement, _, marker = text.partition(";")
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", marker)
        if not requirement.startswith("edgekit"):
            found.append((extra[1] if extra else None, requirement.strip()))
    return found


def _package(extra: str | None, requirement: str) -> Finding:
    match = re.match(r"([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?\s*(.*)", requirement)
    assert match, requirement
    name, wanted = match[1], match[2]
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        version = None
    needed = wanted or "any"
    ok = version is not None and _satisfies(version, wanted)
    hint = "" if ok else f"pip install '{requirement}'" if extra is None else f"pip install 'edgekit[{extra}]'"
    return Finding(name, version or "-", needed if extra is None else f"{needed} (extra {extra})", ok, extra is None, hint)


def _tool(name: str) -> Finding:
    tool, version = tools.TOOLS[name], tools.version(name)
    ok = version == tool.wanted
    return Finding(name, version or "-", f"{tool.wanted} ({tool.purpose})", ok, False, "" if ok else tools.install_hint(name))


def _native_ops() -> list[Finding]:
    """Whether torch and OpenVINO, where they are installed, get the fused complex convolution of edgekit-native; both are really loaded."""
    from edgekit import ops

    checks = {"torch": ops.native_ops, "openvino": _openvino_extension}
    findings = []
    for runtime, check in checks.items():
        if find_spec(runtime) is None:
            continue
        works, where = check()
        reason, _, hint = where.partition("\n  hint: ")
        needed = f"edgekit-native, built where {runtime} is seen; without, plain convolutions"
        findings.append(Finding(f"native {runtime} ops", "fused" if works else "-", needed, works, False, "" if works else hint or reason))
    return findings


def _openvino_extension() -> tuple[bool, str]:
    """(whether OpenVINO takes the extension, where it is or why not), as `ops.native_ops` says it of torch's."""
    from edgekit import ops
    from edgekit.backends.openvino import runtime

    try:
        path = ops.openvino_extension()
        runtime().Core().add_extension(path)
    except ToolMissing as missing:
        return False, str(missing)
    except Exception as error:  # RuntimeError, or whatever else OpenVINO's version makes of a library that does not fit it
        return False, f"{path} does not load: {str(error).strip().splitlines()[-1]}"
    return True, str(path)


def _target(path: Path) -> Finding:
    """Whether a shipped target can be built here, and what is missing if not."""
    target = load_target(path.stem, path.parent)
    backend, spec = backends.get(target.backend), target.spec()
    missing = [tool for tool, version in backend.versions(spec).items() if version is None]
    hint = backend.install_hint(missing) if missing and hasattr(backend, "install_hint") else ""
    found = f"without {', '.join(missing)}" if missing else "can be built"
    return Finding(f"target {target.name}", found, f"{target.runtime.name} {target.runtime.version}", not missing, False, hint)


def _satisfies(version: str, wanted: str) -> bool:
    """Compare release numbers against `>=a,<b`; pre-releases and local versions count as their release."""
    have = _release(version)
    for clause in filter(None, (part.strip() for part in wanted.split(","))):
        operator, bound = re.match(r"(>=|<=|==|!=|<|>)\s*(.+)", clause).groups()  # type: ignore[union-attr]
        want = _release(bound)
        length = max(len(have), len(want))
        a, b = (numbers + (0,) * (length - len(numbers)) for numbers in (have, want))
        if not {">=": a >= b, "<=": a <= b, "==": a == b, "!=": a != b, "<": a < b, ">": a > b}[operator]:
            return False
    return True


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", re.match(r"[\d.]*", version)[0]))  # type: ignore[index]


def _disk(cache_root: Path) -> Finding:
    folder = cache_root.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    hint = "edgekit cache gc --keep 5GB, or another disk with --cache"
    return Finding("free disk", f"{free / 1e9:.0f} GB", f"{NEEDED_BYTES / 1e9:.0f} GB", free >= NEEDED_BYTES, False, "" if free >= NEEDED_BYTES else hint)
