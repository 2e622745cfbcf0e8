"""The arm64 kernels of tflite-runtime 2.14, under qemu, against the x86-64 ones: bit by bit.

$EDGEKIT_TFLITE names further models to compare, separated by `:`.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from edgekit import tools
from edgekit.backends.tflite import side
from edgekit.errors import EdgekitError
from tests.backends.tflite import tiny_tflite

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(tools.version(side.NATIVE) is None, reason=f"needs `{side.install_hint()}`"),
    pytest.mark.skipif(tools.version(side.ARM64) is None, reason=f"needs qemu-user and `{tools.install_hint(side.ARM64)}`"),
]
GIVEN = [path for path in os.environ.get("EDGEKIT_TFLITE", "").split(":") if path]


def feeds(session, seed):
    """Numbers for every input: about a standard normal for floats, the whole range for integers."""
    rng = np.random.default_rng(seed)
    made = {}
    for name in session.inputs:
        port = session.ports[name]
        dtype = np.dtype(port.dtype)
        made[name] = rng.normal(size=port.shape).astype(dtype) if dtype.kind == "f" else rng.integers(-128, 128, port.shape).astype(dtype)
    return made


def run_both(model, times):
    """Yield ({output: array} of x86-64, the same of arm64) for the same numbers."""
    with side.open(model, threads=1) as x86, side.open(model, threads=1, tool=side.ARM64, timeout_s=1800) as arm64:
        assert (x86.inputs, x86.outputs, x86.ports) == (arm64.inputs, arm64.outputs, arm64.ports)
        for seed in range(times):
            given = feeds(x86, seed)
            yield x86(given), arm64(given)


def difference(pairs):
    """(share of all values that differ, signal to difference in dB), over all runs and outputs together."""
    want, got = (np.concatenate([run[side][name].astype(np.float64).ravel() for run in pairs for name in run[0]]) for side in (0, 1))
    noise = ((want - got) ** 2).sum()
    return float(np.mean(want != got)), float("inf") if noise == 0 else float(10 * np.log10((want**2).sum() / noise))


@pytest.mark.parametrize("float_io", [True, False])
def test_an_int8_layer_is_bit_identical(tmp_path, float_io):
    (tmp_path / "linear.tflite").write_bytes(tiny_tflite.linear(float_io))
    assert difference(list(run_both(tmp_path / "linear.tflite", times=10))) == (0, float("inf"))


@pytest.mark.parametrize("kind", sorted(tiny_tflite.SINGLE_OPS))
def test_an_int8_op_differs_by_one_step_at_most_between_all_runtimes(tmp_path, kind):
    """Kernels round their fixed-point products in different ways, so a value half-way between two steps goes either way."""
    from ai_edge_litert.interpreter import Interpreter

    model = tmp_path / "op.tflite"
    model.write_bytes(tiny_tflite.single_op(kind))
    newest = Interpreter(str(model))
    newest.allocate_tensors()
    with side.open(model, threads=1) as x86, side.open(model, threads=1, tool=side.ARM64) as arm64:
        for seed in range(3):
            given = feeds(x86, seed)
            want = x86(given)["y"].astype(int)
            for got in (arm64(given)["y"], newest.get_signature_runner()(**given)["y"]):
                assert got.shape == want.shape and np.abs(got.astype(int) - want).max() <= 1


@pytest.mark.parametrize(("value", "agree"), [(-127, True), (-128, False)])
def test_a_product_of_two_activations_wraps_at_twice_minus_128(tmp_path, value, agree):
    """Why the Cortex-A53's table says `MatMul.activations: int8: false`. ruy's Kernel8bitNeon adds two products in 16 bits."""
    (tmp_path / "product.tflite").write_bytes(tiny_tflite.product())
    given = {name: np.full((1, 8, 16), value, np.int8) for name in ("a", "b")}
    with side.open(tmp_path / "product.tflite", threads=1) as x86, side.open(tmp_path / "product.tflite", threads=1, tool=side.ARM64) as arm64:
        want, got = x86(given)["y"], arm64(given)["y"]
    assert (want == 127).all(), "16 * value ** 2, scaled, is beyond int8"
    assert (got == (127 if agree else -128)).all()


@pytest.mark.parametrize("path", GIVEN, ids=lambda path: "/".join(Path(path).parts[-3:]))
def test_a_given_model_is_the_same(path, capsys):
    """Bit-identical, or, where a rounding went the other way, close; how close is printed."""
    share, db = difference(list(run_both(Path(path), times=3)))
    with capsys.disabled():
        print(f"\n{path}: " + ("bit-identical" if share == 0 else f"{share:.2%} of all values differ, {db:.1f} dB"))
    # Roundings that go the other way add up to about the quantization's own noise; an overflow leaves nothing.
    assert db > 12


def test_a_crash_under_qemu_is_one_error_too(tmp_path):
    (tmp_path / "no.tflite").write_bytes(b"not a flatbuffer")
    with pytest.raises(EdgekitError, match=r"no\.tflite: tflite-runtime failed while loading"):
        side.open(tmp_path / "no.tflite", tool=side.ARM64)
