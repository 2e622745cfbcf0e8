"""calibrate: one pass over the calibration clips through the float graphs; no target is known yet.

Leaves engines/<name>/float.onnx, in export.json how it came about and how close to the float model it
computes on real clips, and, in stats.json and stats.npz, a histogram of every tensor that
`graph.worth_observing` names. Memory does not grow with the number of clips: one clip and the
histograms are held at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

from edgekit.artifact import Source
from edgekit.datasets import open_dataset
from edgekit.errors import EdgekitError
from edgekit.formats import write_json
from edgekit.progress import note, track
from edgekit.stages import Job

if TYPE_CHECKING:
    from edgekit.float_model import FloatModel
    from edgekit.flow import Session
    from edgekit.recipe import Recipe
    from edgekit.target import Target

NEEDS = ("prune",)
SEMANTICS = 3  # 3: batch norms in the layers beside them. 2: onnxsim before tidy; export.json
TOOLS = ("torch", "onnx", "onnx_ir", "onnxsim", "onnxruntime", "numpy")

PROOF_CLIPS = 2


def plan(recipe: Recipe, target: Target) -> tuple[dict[str, Any], dict[str, Source]]:
    return {"clips": recipe.calibrate.clips}, {"data": _data(recipe)}


def _data(recipe: Recipe) -> Source:
    return open_dataset(recipe.calibrate.data, "calibration", recipe.calibrate.clips, recipe.dir, recipe.cache_root)


def run(job: Job) -> None:
    from edgekit import graph
    from edgekit.backends import onnxruntime
    from edgekit.calibration import batches, inference_threads, observe
    from edgekit.float_model import FloatModel

    model = FloatModel.open(job.inputs["prune"])
    sessions, wanted, aliases, log = {}, {}, {}, {}
    for engine, ports in model.ports().items():
        note(f"exporting {engine}")
        path = job.out / "engines" / engine / "float.onnx"
        log[engine] = model.export(engine, path)
        exported = graph.load(path)
        wanted[engine] = graph.worth_observing(exported)
        aliases[engine] = graph.aliases(exported)
        sessions[engine] = onnxruntime.simulate(path, threads=inference_threads(), also=[name for name in wanted[engine] if name not in ports])

    data = job.files["data"]
    _prove(model, sessions, islice(batches(data, model.preprocess), PROOF_CLIPS), log)
    write_json(job.out / "export.json", log)
    clips = track(batches(data, model.preprocess), "calibrating", total=len(data.ids))
    statistics = observe(model.flow, sessions, wanted, clips)
    statistics.aliases = aliases
    statistics.save(job.out)


def _prove(model: FloatModel, exported: dict[str, Session], clips: Iterable[tuple[str, dict]], log: dict[str, dict]) -> None:
    """Run the exported graphs beside the float model on real clips, and add to the log how far they are apart.

    Raises:
        EdgekitError: further than float32 sums in another order.
    """
    import numpy as np

    from edgekit.flow import run_flow
    from edgekit.graph import PROOF_TOLERANCE

    worst: dict[str, dict[str, float]] = {engine: {"runs": 0, "max_abs": 0.0, "largest_output": 0.0} for engine in log}

    def compare(engine: str, feeds: dict, outputs: dict) -> None:
        got, row = exported[engine](feeds), worst[engine]
        row["runs"] += 1
        for name, want in outputs.items():
            # np.maximum hands NaN on, which then fails.
            row["max_abs"] = float(np.maximum(row["max_abs"], np.abs(got[name] - want).max()))
            row["largest_output"] = float(np.maximum(row["largest_output"], np.abs(want).max()))

    float_sessions = model.sessions()
    for _, inputs in clips:
        run_flow(model.flow, float_sessions, inputs, compare)
    for engine, row in worst.items():
        if not row["max_abs"] <= PROOF_TOLERANCE * max(row["largest_output"], 1e-3):
            raise EdgekitError(
                f"engine `{engine}`: the exported graph is {row['max_abs']:.3g} off the float model on real clips (max_abs), the largest output is {row['largest_output']:.3g}",
                "this is a bug of the export; please report it",
            )
        log[engine]["on_real_clips"] = row
