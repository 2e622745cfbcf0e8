"""calibrate: one pass over the calibration clips through the float graphs; no target is known yet.

Leaves engines/<name>/float.onnx and, in stats.json and stats.npz, a histogram of every tensor that
`graph.worth_observing` names. Memory does not grow with the number of clips: one clip and the
histograms are held at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.artifact import Source
from edgekit.datasets import open_dataset
from edgekit.progress import note, track
from edgekit.stages import Job

if TYPE_CHECKING:
    from edgekit.recipe import Recipe
    from edgekit.target import Target

NEEDS = ("prune",)
SEMANTICS = 1
TOOLS = ("torch", "onnx", "onnx_ir", "onnxruntime", "numpy")


def plan(recipe: Recipe, target: Target) -> tuple[dict[str, Any], dict[str, Source]]:
    return {"clips": recipe.calibrate.clips}, {"data": _data(recipe)}


def _data(recipe: Recipe) -> Source:
    return open_dataset(recipe.calibrate.data, "calibration", recipe.calibrate.clips, recipe.dir, recipe.cache_root)


def run(job: Job) -> None:
    from edgekit import graph
    from edgekit.backends import onnxruntime
    from edgekit.calibration import batches, observe
    from edgekit.float_model import FloatModel

    model = FloatModel.open(job.inputs["prune"])
    sessions, wanted, aliases = {}, {}, {}
    for engine in model.engines():
        note(f"exporting {engine.name}")
        path = job.out / "engines" / engine.name / "float.onnx"
        graph.export_onnx(engine, path)
        exported = graph.load(path)
        wanted[engine.name] = graph.worth_observing(exported)
        aliases[engine.name] = graph.aliases(exported)
        ports = [*engine.inputs, *engine.outputs]
        sessions[engine.name] = onnxruntime.simulate(path, also=[name for name in wanted[engine.name] if name not in ports])

    data = job.files["data"]
    clips = track(batches(data, model.preprocess), "calibrating", total=len(data.ids))
    statistics = observe(model.flow, sessions, wanted, clips)
    statistics.aliases = aliases
    statistics.save(job.out)
