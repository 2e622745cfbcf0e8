"""The native engine, compiled from this checkout: what is installed may be older."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"
# A folder that CMake has built already, taken as it is: for work on the engine itself.
BUILD_VARIABLE = "EDGEKIT_NATIVE_BUILD"
BUILD_SECONDS = 1500
TARGETS = ("edgekit", "ek_dccrn", "test_engine", "test_fuzz", "test_memory")


def build(preset: str) -> Path:
    """native/build/<preset>, up to date; skips the test where a compiler or CMake is missing."""
    if preset == "cpu" and BUILD_VARIABLE in os.environ:
        return Path(os.environ[BUILD_VARIABLE])
    folder = NATIVE / "build" / preset
    for tool in ("cmake", "ninja", "g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} to build native/")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:  # two test runs may want it at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (
            ["cmake", "-B", folder, "--preset", preset, "-DEK_WERROR=OFF", "-DEK_TORCH=OFF"],
            ["cmake", "--build", folder, "-j", "2", "--target", *TARGETS],
        ):
            done = subprocess.run(command, cwd=NATIVE, capture_output=True, text=True, timeout=BUILD_SECONDS)
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder


@pytest.fixture(scope="session")
def native_build() -> Path:
    return build("cpu")


@pytest.fixture(scope="module")
def native(native_build):
    """edgekit.native on the library built here."""
    from edgekit import native

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(native.LIBRARY_VARIABLE, str(native_build))
        patch.delenv("EDGEKIT_ISA", raising=False)
        native.library.cache_clear()
        yield native
    native.library.cache_clear()
