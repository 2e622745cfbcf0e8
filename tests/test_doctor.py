from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from edgekit import cli, doctor, tools
from edgekit.errors import ToolMissing


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`edgekit ...` on a machine without side tools."""
    monkeypatch.setenv("EDGEKIT_TOOLS", str(tmp_path / "tools"))
    return lambda *arguments: CliRunner().invoke(cli.app, list(arguments))


def test_side_tools_are_listed_with_the_command_that_installs_them(run):
    rows = {row["name"]: row for row in map(json.loads, run("doctor", "--json").stdout.splitlines())}
    for name, tool in tools.TOOLS.items():
        row = rows[name]
        assert (row["found"], row["ok"], row["required"]) == ("-", False, False)
        assert row["needed"].startswith(tool.wanted) and row["hint"] == f"edgekit doctor --install {name}"


def test_an_installed_tool_of_another_version_is_not_ok(run, monkeypatch):
    monkeypatch.setattr(tools, "version", lambda name, where=None: "1.0")
    finding = doctor._tool("vela")
    assert (finding.found, finding.ok, finding.hint) == ("1.0", False, "edgekit doctor --install vela")
    monkeypatch.setattr(tools, "version", lambda name, where=None: tools.TOOLS[name].wanted)
    assert doctor._tool("vela").ok and doctor._tool("vela").hint == ""


def test_every_tool_is_checked_by_real_work_before_it_counts(run, monkeypatch):
    """A check must fail for a folder with nothing in it."""

    def fake_install(name, check):
        with pytest.raises(ToolMissing):
            check(tools.folder(name))
        return tools.folder(name)

    monkeypatch.setattr(tools, "install", fake_install)
    for name in tools.TOOLS:
        result = run("doctor", "--install", name)
        assert result.exit_code == 0, result.exception
        assert result.stdout == f"{name}: {tools.TOOLS[name].distribution} None in {tools.folder(name)}\n"


def test_an_unknown_tool_is_2_with_a_suggestion(run):
    result = run("doctor", "--install", "tflite215")
    assert result.exit_code == 2 and "tflite215: no such tool" in result.stderr and "tflite214" in result.stderr


def test_a_failed_install_is_5_and_leaves_the_tool_missing(run, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    result = run("doctor", "--install", "vela")
    assert result.exit_code == 5 and "pip could not install ethos-u-vela==5.2.0" in result.stderr
    assert tools.version("vela") is None


def test_fused_ops_count_only_where_they_load(monkeypatch, tmp_path):
    from edgekit import ops

    monkeypatch.setattr(doctor, "find_spec", lambda name: name == "torch" or None)
    monkeypatch.setattr(ops, "native_ops", lambda: (True, "somewhere/libedgekit_torch.so"))
    [row] = doctor._native_ops()
    assert (row.name, row.found, row.ok, row.required, row.hint) == ("native torch ops", "fused", True, False, "")
    monkeypatch.setattr(ops, "native_ops", lambda: (False, "no library\n  hint: pip install it"))
    [row] = doctor._native_ops()
    assert (row.found, row.ok, row.hint) == ("-", False, "pip install it")
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert doctor._native_ops() == []


def test_an_openvino_extension_that_does_not_load_says_why(monkeypatch, tmp_path):
    pytest.importorskip("openvino")
    monkeypatch.setenv("EDGEKIT_NATIVE", str(tmp_path))
    works, where = doctor._openvino_extension()
    assert not works and where.startswith(str(tmp_path)) and "hint: pip install" in where
    (tmp_path / "libedgekit_openvino.so").write_bytes(b"no library")
    works, where = doctor._openvino_extension()
    assert not works and "does not load" in where and "\n" not in where
