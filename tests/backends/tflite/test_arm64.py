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


def compare(model, times=3):
    with side.open(model, threads=1) as x86, side.open(model, threads=1, tool=side.ARM64, timeout_s=1800) as arm64:
        assert (x86.inputs, x86.outputs, x86.ports) == (arm64.inputs, arm64.outputs, arm64.ports)
        for seed in range(times):
            given = feeds(x86, seed)
            want, got = x86(given), arm64(given)
            for name in x86.outputs:
                differing = np.count_nonzero(want[name].view(np.uint8) != got[name].view(np.uint8))
                worst = np.abs(want[name].astype(np.float64) - got[name].astype(np.float64)).max()
                assert differing == 0, f"`{name}`: {differing} bytes differ between x86-64 and arm64, at most by {worst}"


@pytest.mark.parametrize("float_io", [True, False])
def test_an_int8_layer_is_bit_identical(tmp_path, float_io):
    (tmp_path / "linear.tflite").write_bytes(tiny_tflite.linear(float_io))
    compare(tmp_path / "linear.tflite", times=10)


@pytest.mark.parametrize("path", GIVEN, ids=lambda path: "/".join(Path(path).parts[-3:]))
def test_a_given_model_is_bit_identical(path):
    compare(Path(path))


def test_a_crash_under_qemu_is_one_error_too(tmp_path):
    (tmp_path / "no.tflite").write_bytes(b"not a flatbuffer")
    with pytest.raises(EdgekitError, match=r"no\.tflite: tflite-runtime failed while loading"):
        side.open(tmp_path / "no.tflite", tool=side.ARM64)
