"""The CUDA kernels compile for every GPU that edgekit names, without spilling, within the shared memory that a block has without asking.

nvcc is taken from the PATH. Xavier (sm_72) is too old for CUDA 13, so it goes through NVRTC 11.8, which needs no GPU and no toolkit:

    pip install nvidia-cuda-nvrtc-cu11==11.8.89

into any environment; its libnvrtc.so.11.2 is found in this one, or where EDGEKIT_NVRTC points.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"
CUDA = NATIVE / "cuda"
STATIC_SHARED_BYTES = 48 * 1024  # what a block has without opting in, on every architecture
REGISTERS = 65536 // 256  # of a multiprocessor, for one block of 256 threads
XAVIER = 72


def instances() -> int:
    """How many kernels variants.h asks for, counted there and not by a compiler."""
    text = (CUDA / "variants.h").read_text()
    cuts = len(re.findall(r"X\(IN, OUT, PARTS, \d, \d\)", text))
    numbers = len(re.findall(r"EK_CONV_CUTS\(X, (?:float|Half), (?:float|Half), (?:true|false)\)", text))
    others = len(re.findall(r"X\((?:float|Half), \d\)", text))
    assert cuts and numbers and others
    return cuts * numbers + others + 1  # and intake


def check(log: str) -> None:
    """What `ptxas -v` says of every kernel."""
    kernels = re.findall(r"Compiling entry function '(\w+)'", log)
    assert len(set(kernels)) == instances()
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert len(spills) >= len(kernels)
    assert set(spills) == {("0", "0", "0")}
    used = re.findall(r"Used (\d+) registers(.*)", log)
    assert len(used) == len(kernels)
    assert max(int(registers) for registers, _ in used) <= REGISTERS
    shared = [int(size) for _, rest in used for size in re.findall(r"(\d+) bytes smem", rest)]
    assert len(shared) >= len(kernels) - 1  # intake needs none
    assert max(shared) <= STATIC_SHARED_BYTES


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("architecture", [75, 87, 90])
def test_nvcc_compiles_every_kernel_without_spilling(architecture, tmp_path):
    known = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    if f"sm_{architecture}" not in known:
        pytest.skip(f"this nvcc does not know sm_{architecture}")
    options = ["-std=c++17", "-O3", f"-arch=sm_{architecture}", "-Xptxas", "-v", "-Werror", "all-warnings", "-I", NATIVE, "-I", NATIVE / "include"]
    done = subprocess.run(["nvcc", *options, "-cubin", "-o", tmp_path / "launch.cubin", CUDA / "launch.cu"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check(done.stderr + done.stdout)


def nvrtc() -> ctypes.CDLL:
    """An NVRTC that knows sm_72; else the test is skipped, with the reason."""
    places = [Path(os.environ["EDGEKIT_NVRTC"])] if "EDGEKIT_NVRTC" in os.environ else []
    spec = find_spec("nvidia")
    places += [p for folder in (spec.submodule_search_locations or () if spec else ()) for p in sorted(Path(folder).glob("cuda_nvrtc/lib/libnvrtc.so.*"))]
    why = "needs NVRTC 11.8: pip install nvidia-cuda-nvrtc-cu11==11.8.89, or EDGEKIT_NVRTC=…/libnvrtc.so.11.2"
    for place in places:
        try:
            library = ctypes.CDLL(str(place))
        except OSError as e:
            why = f"{place}: {e}"
            continue
        count = ctypes.c_int()
        library.nvrtcGetNumSupportedArchs(ctypes.byref(count))
        known = (ctypes.c_int * count.value)()
        library.nvrtcGetSupportedArchs(known)
        if XAVIER in known:
            return library
        why = f"{place} does not know sm_{XAVIER}"
    pytest.skip(why)


def test_nvrtc_compiles_every_kernel_for_xavier_without_spilling():
    library = nvrtc()
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    assert library.nvrtcCreateProgram(ctypes.byref(program), b'#include "kernels.cuh"\n', b"xavier.cu", 0, None, None) == 0
    options = [f"--gpu-architecture=sm_{XAVIER}", "--std=c++17", f"--include-path={CUDA}", "--ptxas-options=-v"]
    status = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*(o.encode() for o in options)))
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    assert status == 0, log.value.decode()
    check(log.value.decode())
    assert library.nvrtcGetCUBINSize(program, ctypes.byref(size)) == 0
    assert size.value > 0
    library.nvrtcDestroyProgram(ctypes.byref(program))


@pytest.mark.parametrize("header", ["kernels.cuh", "threads.h", "numbers.h", "indexing.h", "variants.h"])
def test_device_code_includes_nothing_that_nvrtc_lacks(header):
    outside = re.findall(r"#include <([^>]+)>", (CUDA / header).read_text())
    assert outside == (["math.h", "string.h"] if header == "numbers.h" else [])  # numbers.h: behind `#if !defined(__CUDACC_RTC__)`
