"""ek_trt compiled against TensorRT's real headers, and linked to native/tests/trt/standin.cpp instead of its libraries.

EDGEKIT_TENSORRT_INCLUDE holds one or more folders with NvInfer.h and NvOnnxParser.h, EDGEKIT_CUDA_INCLUDE one with cuda_runtime_api.h, or as many; parted by `:`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from trt_toy import AROUND, FLAGS, NATIVE, SANITIZERS, TOOL, TOYS, compile_programs

TENSORRT_VARIABLE, CUDA_VARIABLE = "EDGEKIT_TENSORRT_INCLUDE", "EDGEKIT_CUDA_INCLUDE"
SOURCES = [TOOL / f"{name}.cpp" for name in ("main", "device", "engine", "build")]
CLASSES = ("VHostMemory", "VRuntime", "VCudaEngine", "VExecutionContext", "VEngineInspector", "VTensor", "VLayer", "VNetworkDefinition", "VTimingCache", "VBuilderConfig", "VBuilder")


def header_folders() -> list[tuple[Path, Path]]:
    """[(TensorRT's headers, CUDA's headers)], the versions that are here."""
    tensorrt = [Path(p) for p in os.environ.get(TENSORRT_VARIABLE, "").split(":") if p]
    cuda = [Path(p) for p in os.environ.get(CUDA_VARIABLE, "").split(":") if p]
    if not tensorrt or not cuda:
        return []
    return [(folder, cuda[min(i, len(cuda) - 1)]) for i, folder in enumerate(tensorrt)]


def version_of(folder: Path) -> tuple[int, int]:
    text = (folder / "NvInferVersion.h").read_text()
    numbers = [re.search(rf"define (?:NV_TENSORRT|TRT)_{part}(?:_ENTERPRISE)? (\d+)", text) for part in ("MAJOR", "MINOR")]
    return tuple(int(n[1]) for n in numbers)


def unused_interfaces(folder: Path) -> str:
    """A header that overrides every pure virtual function of TensorRT's interfaces with one that ends the program and says its name.

    It is made from the headers that are here: none of their text is in this repository.
    """
    made = ['#pragma GCC system_header\n#include <cstdio>\n#include <cstdlib>\n[[noreturn]] inline void unused(const char* name) { fprintf(stderr, "stand-in: %s is not there\\n", name); abort(); }']
    for header, space, names in (("NvInferImpl.h", "nvinfer1::apiv", CLASSES), ("NvOnnxParser.h", "nvonnxparser", ("IParserError", "IParser"))):
        text = re.sub(r"//[^\n]*|/\*.*?\*/", "", (folder / header).read_text(), flags=re.DOTALL)
        for name in names:
            body = re.search(rf"class {name}\b[^;{{]*\{{(.*?)\n\}};", text, flags=re.DOTALL)[1]
            functions = re.findall(r"virtual\s+([^;{}=~]*?\([^;{}]*?\)[^;{}=]*?)=\s*0\s*;", body)
            assert functions, f"{folder}: {name} has no pure virtual function"
            lines = [f'  {" ".join(f.split())} override {{ unused("{name}::{_name(f)}"); }}' for f in functions]
            made.append(f"namespace {space} {{\nclass Unused{name} : public {name} {{\n public:\n" + "\n".join(lines) + "\n};\n}")
    return "\n".join(made) + "\n"


def _name(function: str) -> str:
    return re.search(r"(\w+)\s*\(", function)[1]


def standin(tensorrt: Path, cuda: Path) -> Path:
    """The folder with ek_trt and run_bundle for these headers, on the stand-in."""
    name = "_".join(map(str, version_of(tensorrt)))
    folder = NATIVE / "build" / f"trt_standin_{name}"
    folder.mkdir(parents=True, exist_ok=True)
    text = unused_interfaces(tensorrt)
    if not (folder / "unused.h").exists() or (folder / "unused.h").read_text() != text:
        (folder / "unused.h").write_text(text)
        (folder / "standin.o").unlink(missing_ok=True)
    flags = (*FLAGS, *SANITIZERS, "-Wno-overloaded-virtual", f"-I{folder}", "-isystem", str(tensorrt), "-isystem", str(cuda))
    around = [*AROUND, TOOL / "device.cpp", TOOL / "engine.cpp", TOYS / "standin.cpp"]
    programs = {"ek_trt": [TOOL / "main.cpp", TOOL / "build.cpp", *around], "run_bundle": [NATIVE / "examples" / "run_bundle.cpp", *around]}
    return compile_programs(folder, programs, flags)


def each_version() -> list:
    folders = header_folders()
    if not folders:
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"needs TensorRT's and CUDA's headers: {TENSORRT_VARIABLE}, {CUDA_VARIABLE}"))]
    return [pytest.param(pair, id="tensorrt-{}.{}".format(*version_of(pair[0]))) for pair in folders]
