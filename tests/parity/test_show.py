"""`edgekit compare` on the command line: the table, JSON, JUnit XML and exit codes."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner

import edgekit
from edgekit import cli
from edgekit.errors import ResourceError
from edgekit.parity import show
from tests.parity.nets import save_int8_step, save_net, save_step


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_net(tmp_path / "a.onnx")
    save_net(tmp_path / "b.onnx")
    save_net(tmp_path / "off.onnx", scale=1.5)
    return lambda *arguments: CliRunner().invoke(cli.app, ["compare", *arguments])


def test_the_table_says_verdict_numbers_tolerance_and_footer(run):
    ran = run("a.onnx", "off.onnx", "--data", "random:3")
    assert ran.exit_code == 3
    first, *_, last = ran.stdout.strip().splitlines()
    assert first.startswith("differs: A a.onnx (onnx, float") and last.startswith("FAILED | 2 outputs | 3 samples of random:3")
    assert "DIFFERS" in ran.stdout and "within" in ran.stdout and "asked: max_abs at most 0.0001 of the largest value of A" in ran.stdout
    assert "output `z` is off by" in ran.stdout
    ran = run("a.onnx", "b.onnx")
    assert ran.exit_code == 0 and "equal" in ran.stdout and ran.stdout.strip().splitlines()[-1].startswith("PASSED |")


def test_quiet_is_one_line_and_json_is_one_object(run):
    assert run("a.onnx", "b.onnx", "-q").stdout == "same\n"
    assert run("a.onnx", "off.onnx", "-q").stdout.startswith("differs: output `z` is off by")
    ran = run("a.onnx", "off.onnx", "--json", "--atol", "1e-5", "--rtol", "z:0.6")
    document = json.loads(ran.stdout, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert ran.exit_code == 0 and document["verdict"] == "same" and document["outputs"][1]["tolerance"]["rtol"] == 0.6


def test_junit_has_a_case_per_output_and_survives_any_name(run, tmp_path):
    ran = run("a.onnx", "off.onnx", "--junit", "found.xml", "-q")
    suite = ElementTree.parse(tmp_path / "found.xml").getroot()[0]
    assert ran.exit_code == 3 and suite.get("tests") == "2" and suite.get("failures") == "1"
    assert [case.get("name") for case in suite] == ["output y", "output z"] and "off by" in suite[1][0].get("message")
    found = edgekit.compare("a.onnx", "off.onnx", "random:1")
    object.__setattr__(found.a, "text", "a<&\x00\x1b\ud800.onnx")
    show.write_junit([found], tmp_path / "odd.xml")
    assert "a<&" in ElementTree.parse(tmp_path / "odd.xml").getroot()[0].get("name")
    with pytest.raises(ResourceError, match="cannot be written"):
        show.write_junit([found], tmp_path / "nowhere/x.xml")


def test_a_lost_state_is_told_first_on_the_terminal_and_in_junit(run, tmp_path):
    save_step(tmp_path / "step.onnx")
    save_int8_step(tmp_path / "lost.onnx", loses="c_in")
    ran = run("step.onnx", "lost.onnx", "--stream", "--steps", "30", "--junit", "found.xml")
    assert ran.exit_code == 3 and ran.stdout.splitlines()[1].strip().startswith("B loses its state")
    assert "8 streams of 30 steps; A 30 calls of 1, B 30 calls of 1" in ran.stdout and "the first step beyond the tolerance is" in ran.stdout
    cases = {case.get("name"): len(case) for case in ElementTree.parse(tmp_path / "found.xml").getroot()[0]}
    assert cases == {"output y": 1, "reset of A": 0, "restore of A": 0, "reset of B": 0, "restore of B": 0, "verdict": 1}


def test_saved_outputs_are_compared_again(run, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.ones((2, 6), np.float32))
    assert run("a.onnx", "off.onnx", "--data", "x.npz", "--save-outputs", "out").exit_code == 3
    assert sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "out").rglob("*.npz")) == ["out/a/0.npz", "out/a/1.npz", "out/b/0.npz", "out/b/1.npz"]
    assert run("out/a", "out/b").exit_code == 3 and run("a.onnx", "out/a", "--data", "x.npz").exit_code == 0


@pytest.mark.parametrize("arguments, code, said", [
    (("a.onnx", "none.onnx"), 2, "there is no such file"), (("a.onnx", "b.onnx", "--data", "random:0"), 2, "0 samples"), (("a.onnx", "b.onnx", "--atol", "x"), 2, "is not a number"),
    (("a.onnx", "b.onnx", "--check-error-stat", "maximum"), 2, "is not known"), (("a.onnx", "cut.onnx"), 6, "cannot be loaded|not an ONNX file"), (("a.onnx", "b.onnx@x"), 2, "nothing is known as"),
])  # fmt: skip
def test_what_cannot_be_compared_is_one_sentence_and_its_exit_code(run, tmp_path, arguments, code, said):
    import re

    (tmp_path / "cut.onnx").write_bytes((tmp_path / "a.onnx").read_bytes()[:90])
    ran = run(*arguments)
    assert ran.exit_code == code and re.search(said, ran.stderr) and "Traceback" not in ran.stderr and ran.stdout == ""
