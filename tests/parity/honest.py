"""The same model built again, in every way that must not raise an alarm: other exporters, optimizers, runtimes, threads, observers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx

from tests.parity.planted import ROOT, Subject, quantize_elsewhere, quantize_here, rename_inside, subject


@dataclass(frozen=True)
class Rebuild:
    """Two builds of one model; `make(folder)` gives A, B and further keywords of compare."""

    name: str
    model: str
    make: Callable[[Subject, Path], tuple]
    needs: str = ""

    @property
    def is_possible(self) -> bool:
        return not self.needs or importlib.util.find_spec(self.needs) is not None


def renamed(of: Subject, folder: Path) -> tuple:
    model = onnx.load(str(of.path("float")))
    rename_inside(model)
    del model.graph.value_info[:]
    onnx.save(model, str(folder / "renamed.onnx"))
    return of.path("float"), folder / "renamed.onnx"


def exported_raw(of: Subject, folder: Path) -> tuple:
    """torch's own export, without edgekit's simplification: other nodes, other names."""
    import warnings

    import torch

    from edgekit.models import tiny
    from tests.parity import nets

    engine = next(e for e in tiny.engines(nets.tiny_module(), tiny.Config()) if e.name == "step")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        examples = tuple(torch.zeros(shape) for shape in engine.inputs.values())
        torch.onnx.export(engine.module, examples, str(folder / "raw.onnx"), dynamo=False, opset_version=14, input_names=list(engine.inputs), output_names=list(engine.outputs))
    return of.path("float"), folder / "raw.onnx"


def newer_opset(of: Subject, folder: Path) -> tuple:
    onnx.save(onnx.version_converter.convert_version(onnx.load(str(of.path("float"))), 18), str(folder / "opset18.onnx"))
    return of.path("float"), folder / "opset18.onnx"


def simplified(of: Subject, folder: Path) -> tuple:
    import onnxsim

    model, _ = onnxsim.simplify(onnx.load(str(of.path("float"))))
    onnx.save(model, str(folder / "simplified.onnx"))
    return of.path("float"), folder / "simplified.onnx"


def optimized(level: str, kind: str = "float") -> Callable[[Subject, Path], tuple]:
    """Saved by ONNX Runtime after its own optimization."""

    def make(of: Subject, folder: Path) -> tuple:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
        options.optimized_model_filepath = str(folder / f"{level}.onnx")
        ort.InferenceSession(str(of.path(kind)), options, providers=["CPUExecutionProvider"])
        return of.path(kind), folder / f"{level}.onnx"

    return make


def fused(kind: str) -> Callable[[Subject, Path], tuple]:
    return lambda of, folder: (of.path(kind), f"{of.path(kind)}@fused")


def threads(of: Subject, folder: Path) -> tuple:
    from edgekit.parity.runners import Options, open_side

    return tuple(open_side(of.path("float"), Options(n, states=of.how.get("states"))) for n in (1, 2))


def int8(of: Subject, folder: Path) -> tuple:
    return of.path("float"), of.path("int8")


def observed(observer: str, target: str = "onnxruntime_x86") -> Callable[[Subject, Path], tuple]:
    def make(of: Subject, folder: Path) -> tuple:
        engine = quantize_here(of.folder, of.calls, observer, f"{target}-{observer}", target)
        return engine.float_onnx, engine.qdq_onnx

    return make


def elsewhere_on_half(of: Subject, folder: Path) -> tuple:
    """Calibrated on other data than it is compared on."""
    quantize_elsewhere(of.path("float"), folder / "half.onnx", of.calls[: len(of.calls) // 2])
    return of.path("float"), folder / "half.onnx"


def compiled(target: str, kind: str) -> Callable[[Subject, Path], tuple]:
    """An artifact of a backend against the graph that it was made of."""

    def make(of: Subject, folder: Path) -> tuple:
        from edgekit import backends
        from edgekit.backends import Kit
        from edgekit.target import load_target

        spec = load_target(target, ROOT).spec()
        engine = quantize_here(of.folder, of.calls, "percentile", f"{target}-{of.name}", target)
        reference = engine.float_onnx if kind == "float" else engine.qdq_onnx
        if kind == "float":
            engine = type(engine)("main", engine.float_onnx, engine.float_onnx, int8=())
        backends.get(spec["backend"]).compile(Kit((engine,), spec, folder), folder / "out")
        return reference, next(path for path in sorted((folder / "out/engines/main").iterdir()) if path.suffix in (".xml", ".tflite"))

    return make


def converted(of: Subject, folder: Path) -> tuple:
    import openvino as ov

    ov.save_model(ov.convert_model(of.path("float")), folder / "model.xml", compress_to_fp16=False)
    return of.path("float"), folder / "model.xml"


REBUILDS = (
    Rebuild("other names for all inner tensors", "foreign", renamed),
    Rebuild("other names for all inner tensors", "mhlt", renamed),
    Rebuild("torch's export as it comes", "tiny", exported_raw),
    Rebuild("a newer opset", "foreign", newer_opset),
    Rebuild("simplified by onnxsim", "foreign", simplified),
    Rebuild("simplified by onnxsim", "mhlt", simplified),
    Rebuild("ONNX Runtime's basic optimization", "tiny", optimized("BASIC")),
    Rebuild("ONNX Runtime's extended optimization", "foreign", optimized("EXTENDED")),
    Rebuild("ONNX Runtime's full optimization, while loading", "mhlt", fused("float")),
    Rebuild("two threads", "mhlt", threads),
    Rebuild("OpenVINO's own conversion", "foreign", converted, "openvino"),
    Rebuild("OpenVINO, float", "tiny", compiled("x86_openvino", "float"), "openvino"),
    Rebuild("OpenVINO, float", "mhlt", compiled("x86_openvino", "float"), "openvino"),
    Rebuild("TensorFlow Lite, float", "tiny", compiled("raspberry_pi5", "float"), "ai_edge_litert"),
    Rebuild("TensorFlow Lite, float", "mhlt", compiled("raspberry_pi5", "float"), "ai_edge_litert"),
    Rebuild("INT8 of ONNX Runtime's quantizer", "foreign", int8),
    Rebuild("the same, calibrated on other data", "foreign", elsewhere_on_half),
    Rebuild("INT8, percentile", "tiny", int8),
    Rebuild("INT8, percentile", "mhlt", int8),
    Rebuild("INT8, minmax", "mhlt", observed("minmax")),
    Rebuild("INT8, entropy", "tiny", observed("entropy")),
    Rebuild("INT8, mse", "mhlt", observed("mse")),
    Rebuild("INT8 in TensorRT's numbers", "mhlt", observed("percentile", "jetson_xavier")),
    Rebuild("INT8 in OpenVINO's numbers", "mhlt", observed("percentile", "x86_openvino")),
    Rebuild("INT8 in TensorFlow Lite's numbers", "tiny", observed("percentile", "raspberry_pi5")),
    Rebuild("INT8 in TensorFlow Lite's numbers", "mhlt", observed("percentile", "raspberry_pi5")),
    Rebuild("ONNX Runtime's integer kernels", "foreign", fused("int8")),
    Rebuild("ONNX Runtime's integer kernels", "tiny", fused("int8")),
    Rebuild("ONNX Runtime's integer kernels", "mhlt", fused("int8")),
    Rebuild("OpenVINO, INT8", "mhlt", compiled("x86_openvino", "int8"), "openvino"),
    Rebuild("TensorFlow Lite, INT8", "tiny", compiled("raspberry_pi5", "int8"), "ai_edge_litert"),
    Rebuild("TensorFlow Lite, INT8", "mhlt", compiled("raspberry_pi5", "int8"), "ai_edge_litert"),
)


def judge(rebuild: Rebuild, folder: Path):
    """The comparison, at its defaults."""
    import edgekit

    of = subject(rebuild.model)
    a, b = rebuild.make(of, folder)
    return edgekit.compare(a, b, of.data, threads=1, **of.how)


def main() -> None:
    """`python -m tests.parity.honest`: every rebuild and what compare says of it."""
    import sys
    import tempfile
    import traceback

    for rebuild in REBUILDS:
        if (sys.argv[1:] and rebuild.model not in sys.argv[1:]) or not rebuild.is_possible:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = judge(rebuild, Path(folder))
                worst = min(found.outputs, key=lambda output: output.errors.sqnr_db)
                print(found.verdict, "|", rebuild.model, "|", rebuild.name, f"| {worst.errors.sqnr_db:.1f} dB, least {worst.tolerance.min_sqnr_db} |", *found.reasons)
            except Exception as error:
                print("ERROR", rebuild.model, rebuild.name, repr(error)[:300])
                if "-v" in sys.argv:
                    traceback.print_exc()


if __name__ == "__main__":
    main()
