from __future__ import annotations

import os
import subprocess
import sys
import zipfile

import pytest

from edgekit import tools
from edgekit.errors import EdgekitError, ResourceError, ToolMissing, UsageError
from edgekit.tools import Tool

TOY = Tool("toy", "edgekit-toy", ("edgekit-toy==1.2",), "a tool for tests")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_TOOLS", str(tmp_path / "tools"))
    monkeypatch.setitem(tools.TOOLS, "toy", TOY)
    return tmp_path / "tools"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel of edgekit-toy 1.2 in the only place where pip may look."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    info = "edgekit_toy-1.2.dist-info"
    files = {
        "edgekit_toy.py": "ANSWER = 42\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: edgekit-toy\nVersion: 1.2\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / "edgekit_toy-1.2-py3-none-any.whl", "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def works(where):
    """The tool's check: import the package with the tool's own Python."""
    said = subprocess.run([*tools.command("toy", where), "-c", "import edgekit_toy; print(edgekit_toy.ANSWER)"], capture_output=True, text=True)
    if said.stdout != "42\n":
        raise EdgekitError(said.stderr)


def fails(where):
    raise EdgekitError("it computes wrongly")


def fake(home, name, package="edgekit_toy-1.2.dist-info"):
    """A folder that looks like an installed tool."""
    (home / name / "lib/python3.11/site-packages" / package).mkdir(parents=True)
    (home / name / "bin").mkdir()
    (home / name / "bin/python").symlink_to(sys.executable)


def test_tools_live_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEKIT_TOOLS", "/a/b")
    assert str(tools.root()) == "/a/b"
    monkeypatch.delenv("EDGEKIT_TOOLS")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert str(tools.root()) == "/data/edgekit/tools"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tools.root() == tmp_path / ".local/share/edgekit/tools"


def test_an_install_is_checked_with_its_own_python_and_published(home, wheel):
    assert tools.version("toy") is None
    assert tools.install("toy", works) == home / "toy"
    assert tools.version("toy") == "1.2"
    assert sorted(path.name for path in home.iterdir()) == [".lock", "toy"]
    works(None)  # also after the move: nothing in it knows where it was staged


def test_a_failed_check_publishes_nothing_and_keeps_the_old_one(home, wheel):
    with pytest.raises(EdgekitError, match="computes wrongly"):
        tools.install("toy", fails)
    assert tools.version("toy") is None and [path.name for path in home.iterdir()] == [".lock"]
    tools.install("toy", works)
    (home / "toy/mine").touch()
    with pytest.raises(EdgekitError, match="computes wrongly"):
        tools.install("toy", fails)
    assert (home / "toy/mine").exists() and tools.version("toy") == "1.2"
    tools.install("toy", works)
    assert not (home / "toy/mine").exists() and sorted(path.name for path in home.iterdir()) == [".lock", "toy"]


def test_what_a_killed_install_left_does_not_count_and_is_removed(home, wheel):
    fake(home, ".partial-abc")
    assert tools.version("toy") is None
    tools.install("toy", works)
    assert not (home / ".partial-abc").exists()


def test_a_version_is_read_from_files_and_needs_a_python(home):
    fake(home, "toy")
    assert tools.version("toy") == "1.2"
    (home / "toy/bin/python").unlink()
    (home / "toy/bin/python").symlink_to("/no/such/python")
    assert tools.version("toy") is None
    with pytest.raises(ToolMissing, match=r"edgekit-toy 1\.2 .* is not installed here") as caught:
        tools.command("toy")
    assert caught.value.hint == "edgekit doctor --install toy" and caught.value.exit_code == 5


def test_a_download_that_fails_is_5_and_shows_what_pip_said(home, wheel):
    (wheel / "edgekit_toy-1.2-py3-none-any.whl").unlink()
    with pytest.raises(ToolMissing, match=r"pip could not install edgekit-toy==1\.2 .*\n(.*\n)*.*No matching distribution"):
        tools.install("toy", works)
    assert [path.name for path in home.iterdir()] == [".lock"]


def test_a_python_without_wheels_is_named_before_anything_is_made(home, monkeypatch):
    monkeypatch.setitem(tools.TOOLS, "toy", Tool("toy", "edgekit-toy", ("edgekit-toy==1.2",), "", pythons=(3, 2)))
    with pytest.raises(ToolMissing, match=r"edgekit-toy==1\.2 has wheels for CPython 3\.2, 3\.3 only, this is cpython 3\.\d+"):
        tools.install("toy", works)


def test_another_python_on_the_path_serves(home, monkeypatch, tmp_path):
    """A tool that this Python has no wheels for is made with one that it has."""
    (tmp_path / "python3.3").write_text("#!/bin/sh\n")
    (tmp_path / "python3.3").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert tools._interpreter(Tool("toy", "x", ("x==1",), "", pythons=(3, 2))) == str(tmp_path / "python3.3")


def test_an_unknown_tool_is_a_usage_error(home):
    with pytest.raises(UsageError) as caught:
        tools.install("tflite215", works)
    assert "tflite214" in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_ours_is_a_resource_error(home, wheel):
    home.mkdir()
    home.chmod(0o500)
    with pytest.raises(ResourceError, match="cannot be written"):
        tools.install("toy", works)


def test_a_file_in_the_way_is_a_resource_error(home):
    home.write_text("")
    with pytest.raises(ResourceError, match="EDGEKIT_TOOLS"):
        tools.install("toy", works)


def test_without_qemu_the_arm64_tool_is_absent_and_says_so(home, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tools.version("tflite214-arm64") is None
    assert str(tools.missing("tflite214-arm64")) == "tflite214-arm64: `qemu-aarch64` is not on the PATH\n  hint: apt-get install qemu-user"
    with pytest.raises(ToolMissing, match="qemu-aarch64"):
        tools.install("tflite214-arm64", works)


def test_the_end_of_a_log_is_short_and_printable():
    assert tools.tail("") == ""
    assert tools.tail("a\n\nb\nb\nb\n\x1b[1mc\n", 2) == "    b\n    ?[1mc"
