"""Vela: reading its tables without it, and compiling for real where it is installed."""

from __future__ import annotations

import pytest

from edgekit import tools
from edgekit.backends.tflite import vela
from edgekit.errors import EdgekitError, TargetError, ToolMissing
from tests.backends.tflite import tiny_tflite

has_vela = pytest.mark.skipif(tools.version(vela.TOOL) is None, reason=f"needs `{vela.install_hint()}`")
TARGET = {"name": "board", "runtime": {"name": "Vela", "version": "5.2.0"}}


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model.tflite").write_bytes(tiny_tflite.attention_like())
    return tmp_path / "model.tflite"


def acts(monkeypatch, script):
    """Put a shell script in Vela's place; it is called with `-c PROGRAM FLAGS... MODEL`, in the work folder."""
    monkeypatch.setattr(tools, "command", lambda name: ["/bin/sh", "-c", script, "vela"])


@has_vela
def test_each_op_is_placed_where_the_compiled_file_has_it(model, tmp_path):
    made = vela.compile(model, tmp_path / "out")
    assert made.model == tmp_path / "out/model_vela.tflite" and b"ethos-u" in made.model.read_bytes()
    assert made.placement == {
        "x_int8": "cpu", "conv": "npu", "tokens": "npu", "scores": "npu", "softmax": "npu", "softmax_float": "cpu", "y": "cpu",
    }  # fmt: skip
    assert made.summary["vela"] == tools.version(vela.TOOL) and (made.summary["npu_ops"], made.summary["cpu_ops"]) == (4, 3)
    assert made.summary["refused"] == {
        "DEQUANTIZE: Unsupported opType": 1,
        "QUANTIZE: Operation has tensor with unsupported DataType Float32": 1,
        "SIN: Unsupported opType": 1,
    }


@has_vela
def test_cycles_of_the_ops_add_up_to_velas_own_total(model, tmp_path):
    made = vela.compile(model, tmp_path)
    assert set(made.cycles) == {"conv", "scores", "softmax"}, "a reshape is no work"
    assert 0.9 < sum(made.cycles.values()) / made.summary["estimated"]["total_cycles"] < 1.1
    # 8*8*16 outputs of 3*3*4 products, 64*64 of 16, and Vela's softmax sums rows in two passes of 64*64
    assert made.summary["estimated"]["npu_macs"] == 8 * 8 * 16 * 36 + 64 * 64 * 16 + 2 * 64 * 64


@has_vela
def test_the_same_model_gives_the_same_file_and_summary(model, tmp_path):
    first, second = vela.compile(model, tmp_path / "a"), vela.compile(model, tmp_path / "b")
    assert first.model.read_bytes() == second.model.read_bytes() and first.summary == second.summary


@has_vela
def test_a_float_model_is_refused_since_nothing_runs_on_the_npu(tmp_path):
    net = tiny_tflite.Net()
    x = net.tensor("x", [1, 8])
    (tmp_path / "float.tflite").write_bytes(net.bytes({"x": x}, {"y": net.op("SIN", [x], net.tensor("y", [1, 8]))}))
    with pytest.raises(EdgekitError, match=r"float\.tflite: Vela placed none of its 1 ops on the NPU"):
        vela.compile(tmp_path / "float.tflite", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@has_vela
def test_velas_own_refusal_is_shown(tmp_path):
    (tmp_path / "no.tflite").write_bytes(b"not a flatbuffer, and long enough for a header")
    with pytest.raises(EdgekitError, match=r"no\.tflite: Vela failed \((exit code|signal) \d+\)"):
        vela.compile(tmp_path / "no.tflite", tmp_path / "out")


def test_a_crash_is_one_error_with_the_log_and_leaves_nothing(model, tmp_path, monkeypatch):
    acts(monkeypatch, "echo reading; echo 'assertion failed: rank'; kill -SEGV $$")
    with pytest.raises(EdgekitError, match=r"model\.tflite: Vela failed \(signal 11\):\n    reading\n    assertion failed: rank"):
        vela.compile(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_success_without_a_result_is_an_error(model, tmp_path, monkeypatch):
    acts(monkeypatch, ": > model_summary_x.csv")
    with pytest.raises(EdgekitError, match=r"Vela left model_summary_x\.csv, expected a model and its two tables"):
        vela.compile(model, tmp_path / "out")


def test_it_has_a_time_limit(model, tmp_path, monkeypatch):
    acts(monkeypatch, "exec sleep 60")
    with pytest.raises(EdgekitError, match=r"still running after 0\.5 s"):
        vela.compile(model, tmp_path / "out", timeout_s=0.5)


def test_two_tensors_of_one_name_are_refused(tmp_path):
    net = tiny_tflite.Net()
    x = net.tensor("x", [1, 8])
    y = net.op("SIN", [net.op("SIN", [x], net.tensor("same", [1, 8]))], net.tensor("same", [1, 8]))
    (tmp_path / "twice.tflite").write_bytes(net.bytes({"x": x}, {"y": y}))
    with pytest.raises(EdgekitError, match=r"twice\.tflite: cannot tell where Vela placed the op that writes `same`"):
        vela.placement(tmp_path / "twice.tflite", tmp_path / "twice.tflite")


def test_helpers_of_an_op_count_towards_it(tmp_path):
    """Vela makes several operations of one of ours, and says of each what it comes from."""
    table = ["Original Operator,Op Cycles,Name", "Conv2D,10,a", "Conv2D,1,a", "Softmax,2,p_0", "Softmax,3.7,p_1", "Softmax,4,p", "Sin,0,y", "Conv2D,5,b"]
    (tmp_path / "layers.csv").write_text("\n".join(table) + "\n")
    assert vela._cycles(tmp_path / "layers.csv", {"a": "npu", "p": "npu", "y": "cpu", "b": "npu"}) == {"a": 11, "p": 9, "b": 5}


def test_another_version_than_the_targets_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tools, "version", lambda name, where=None: "4.2.0")
    with pytest.raises(TargetError) as caught:
        vela.check_version(TARGET)
    assert str(caught.value).startswith("board: Vela 5.2.0 is required, 4.2.0 is installed\n  hint: `edgekit doctor --install vela`")
    monkeypatch.setattr(tools, "version", lambda name, where=None: None)
    with pytest.raises(ToolMissing) as caught:
        vela.check_version(TARGET)
    assert caught.value.hint == "edgekit doctor --install vela"
    monkeypatch.setattr(tools, "version", lambda name, where=None: "5.2.0")
    vela.check_version(TARGET)


def test_a_targets_own_options_reach_the_command(model, tmp_path, monkeypatch):
    chosen = vela.options({"device": {"vela_accelerator": "ethos-u65-512", "vela_memory_mode": "Shared_Sram"}})
    assert chosen == {"accelerator": "ethos-u65-512", "system_config": "Ethos_U65_High_End", "memory_mode": "Shared_Sram", "optimise": "Performance"}
    acts(monkeypatch, 'echo "$@"; exit 3')
    with pytest.raises(EdgekitError, match=r"exit code 3.*\n.*--accelerator-config=ethos-u65-512 --system-config=Ethos_U65_High_End --memory-mode=Shared_Sram"):
        vela.compile(model, tmp_path / "out", **chosen)
