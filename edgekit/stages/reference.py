"""reference: what the float model says on every held-out clip, before and after pruning.

Once for all targets: parity is measured against the pruned predictions, accuracy drops against
the original ones. It also keeps the golden clips, raw and preprocessed, which the device checks
its own preprocessing and engines with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from edgekit.artifact import Source, hash_file
from edgekit.datasets import Clip, Dataset, metrics_of, open_dataset
from edgekit.errors import CheckpointError, DataError
from edgekit.formats import write_json
from edgekit.progress import note, track
from edgekit.stages import Job

if TYPE_CHECKING:
    import numpy as np

    from edgekit.float_model import FloatModel
    from edgekit.recipe import Recipe
    from edgekit.target import Target

NEEDS = ("load", "prune")
SEMANTICS = 2  # 2: labels of classes and of moments
TOOLS = ("torch", "transformers", "numpy")

PREDICTIONS, GOLDEN, REFERENCE = "predictions.safetensors", "golden.safetensors", "reference.json"
COMPARED = "compare."  # before the names of what the float model is measured against, among the predictions

GOLDEN_RUNS = 16  # whose states are kept: a long stream's would be hundreds of MB
LISTED = 1000  # values of a label up to which it stands in the JSON; sound does not

Arrays = dict[str, "np.ndarray"]


def plan(recipe: Recipe, target: Target) -> tuple[dict[str, Any], dict[str, Source]]:
    data = open_dataset(recipe.verify.data, "test", recipe.verify.clips, recipe.dir, recipe.cache_root)
    if len(data.ids) < 2:
        raise DataError(f"{recipe.where('verify')}: {len(data.ids)} clip to verify on, an interval needs at least 2", "raise `verify.clips`")
    # The metrics are the data set's own word, but not part of its content's digest.
    # None named: those of the model's task.
    return {"data": recipe.verify.data, "metrics": list(data.metrics)}, {"data": cast(Source, data)}


def run(job: Job) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    # Imported here: it needs numpy, and a plan of a warm cache must not.
    from edgekit.float_model import FloatModel
    from edgekit.flow import run_flow, scored, task_of, title_of
    from edgekit.metrics import DEFAULTS, METRICS
    from edgekit.preprocess import labels_of, preprocess

    data = cast(Dataset, job.files["data"])
    original, pruned = FloatModel.open(job.inputs["load"]), FloatModel.open(job.inputs["prune"])
    is_pruned = hash_file(original.weights) != hash_file(pruned.weights)
    if not is_pruned:
        note("nothing was pruned: the float model runs once")
    models = {"pruned": pruned, **({"original": original} if is_pruned else {})}
    sessions = {name: model.sessions() for name, model in models.items()}
    first = next(reversed(models))  # the original, where it runs at all

    rows: dict[str, list] = {}
    labels: dict[str, list] = {output: [] for output in pruned.flow["outputs"]}
    tags: list[dict[str, Any]] = []
    series: list[str] = []
    for clip_id in track(data.ids, "float reference"):
        clip = data.clip(clip_id)
        inputs = preprocess(pruned.preprocess, clip)
        for name, model in models.items():
            tensors: Arrays = {}
            for output, value in _predict(model, sessions[name], inputs, clip_id, name, tensors).items():
                rows.setdefault(f"{name}/{output}", []).append(value)
            for other, compared in (model.comparisons() if name == first else {}).items():
                flow = {**compared, "inputs": {key: {"shape": list(np.shape(tensors[key])), "dtype": "float32"} for key in compared["inputs"]}}
                for output, value in run_flow(flow, sessions[name], tensors).items():
                    rows.setdefault(f"{COMPARED}{other}/{output}", []).append(value)
        known = labels_of(pruned.preprocess, clip)
        for output, values in labels.items():
            values.append(known.get(output))
        tags.append(dict(clip.tags))
        if hasattr(data, "series"):
            recording, first = data.series(clip_id)
            series.append(recording)
            moments = labels_of(pruned.preprocess, replace(clip, labels={"at": np.arange(len(clip.frames), dtype=np.float32)}))["at"]
            rows.setdefault("at", []).append(first + np.asarray(moments))
    predictions = {key: np.asarray(values, np.float32) for key, values in rows.items()}
    if not is_pruned:
        predictions |= {key.replace("pruned/", "original/", 1): value for key, value in predictions.items() if key.startswith("pruned/")}

    predictions |= _labels(pruned.flow, data, labels)
    flow, truth = pruned.flow, scored(pruned.flow, predictions, "label/")
    golden, described = _golden(pruned, sessions["pruned"], data, truth.reshape(len(truth), -1).mean(axis=1))
    save_file(predictions, job.out / PREDICTIONS)
    save_file(golden, job.out / GOLDEN)
    score = metrics_of(data) if data.metrics else {name: METRICS[name] for name in DEFAULTS[task_of(flow)]}
    write_json(
        job.out / REFERENCE,
        {
            "data": {"name": job.spec["data"], "split": "test", "clips": len(data.ids), "sha256": data.digest(), "licence": getattr(data, "licence", None), **({"counts": counts} if (counts := dict(getattr(data, "counts", {}))) else {})},
            "ids": list(data.ids),
            "tags": tags,
            **({"series": series} if series else {}),
            "primary": title_of(flow),
            "task": task_of(flow),
            **({"classes": list(flow["classes"])} if "classes" in flow else {}),
            "outputs": list(flow["outputs"]),
            "is_pruned": is_pruned,
            "metrics": {
                row: {name: metric(truth, scored(flow, predictions, f"{key}/")) for name, metric in score.items()}
                for row, key in (("float", "original"), ("pruned", "pruned"))
            },
            "models": {"float": _size(original), "pruned": _size(pruned)},
            "golden": described,
        },
    )


def _labels(flow: dict[str, Any], data: Dataset, labels: dict[str, list]) -> Arrays:
    """{"label/<output>": [clips, ...]} of the outputs that every clip has a label for; `labels` has None where a clip lacks one.

    Raises:
        DataError: the data set's classes are not the model's, or a clip lacks the label of an output that the model is scored by.
    """
    import numpy as np

    from edgekit.flow import primaries

    classes = getattr(data, "classes", None)
    if classes and list(classes) != list(flow.get("classes", classes)):
        raise DataError(f"{data.source}: its classes are {', '.join(classes)}; the model's are {', '.join(flow['classes'])}", "use a configuration of the model that was trained on these classes")

    def has(value: Any) -> bool:
        return value is not None and bool(np.isfinite(value).all())

    for name in primaries(flow):
        unlabelled = [i for i, value in zip(data.ids, labels[name], strict=True) if not has(value)]
        if unlabelled:
            raise DataError(
                f"{data.source}: clip {unlabelled[0]} has no label `{name}`, nor have {len(unlabelled) - 1} others",
                "the metrics are taken on the model's primary output, so every test clip needs its label",
            )
    # Other outputs are scored only where every clip has a label for them.
    return {f"label/{name}": np.asarray(values, np.float32) for name, values in labels.items() if all(map(has, values))}


def _predict(model: FloatModel, sessions: dict[str, Any], inputs: Arrays, clip_id: str, name: str, tensors: Arrays) -> Arrays:
    """The outputs; `tensors` is given every tensor of the flow."""
    import numpy as np

    from edgekit.flow import run_flow

    outputs = run_flow(model.flow, sessions, inputs, also=tensors)
    for output, value in outputs.items():
        if not np.isfinite(value).all():
            raise CheckpointError(
                f"the {name} float model gives {value.reshape(-1)[~np.isfinite(value.reshape(-1))][0]} in `{output}` on clip {clip_id}",
                "a float model that is not finite cannot be a reference; check its weights and the training",
            )
    return outputs


def _golden(model: FloatModel, sessions: dict[str, Any], data: Dataset, labels: np.ndarray) -> tuple[Arrays, list[dict[str, Any]]]:
    """The clips with the lowest and the highest label (of several, their mean), and each once more in another raw format.

    A device that got its resize, frame choice, padding or truncation wrong may still pass on clips
    that are already of the model's size, so the other two are cut to odd sizes and lengths.

    Returns:
        tensors by "<clip>/raw/frames", "<clip>/raw/audio", "<clip>/input/<name>", "<clip>/output/<name>"
        and "<clip>/state/<engine>/<name>" [steps, ...] of the first GOLDEN_RUNS runs; and what each clip is.
    """
    import numpy as np

    from edgekit.flow import run_flow
    from edgekit.preprocess import preprocess, window

    low, high = data.clip(data.ids[int(np.argmin(labels))]), data.clip(data.ids[int(np.argmax(labels))])
    tensors: Arrays = {}
    described = []
    pairs = model.flow.get("states", {})
    for clip, parent, how in (
        (low, None, "as recorded"),
        (high, None, "as recorded"),
        (_shorter(low, *window(model.preprocess)), low.id, "cropped to an odd size, fewer frames, less audio than the window: exercises resize, repeats and padding"),
        (_longer(high, *window(model.preprocess)), high.id, "stretched to another aspect, more frames, more audio than the window: exercises resize, choice and truncation"),
    ):
        if any(known["id"] == clip.id for known in described):
            continue  # one clip may be both lowest and highest
        states: dict[str, list] = {}
        runs: dict[str, int] = {}

        def keep(engine: str, feeds: Any, outputs: Any, states: dict = states, runs: dict = runs) -> None:
            runs[engine] = runs.get(engine, 0) + 1
            for pair in pairs.get(engine, []) if runs[engine] <= GOLDEN_RUNS else ():
                states.setdefault(f"{engine}/{pair['out']}", []).append(np.array(outputs[pair["out"]]))

        inputs = preprocess(model.preprocess, clip)
        outputs = run_flow(model.flow, sessions, inputs, tap=keep)
        raw = {"frames": clip.frames} if "video" in model.preprocess else {}
        raw |= {"audio": clip.audio} if "audio" in model.preprocess else {}
        raw |= {"frame_ms": clip.frame_ms} if clip.frame_ms is not None else {}
        raw |= {f"features/{name}": clip.features[name] for name in model.preprocess.get("features", {})}
        for kind, values in (("raw", raw), ("input", inputs), ("output", outputs), ("state", {k: np.stack(v) for k, v in states.items()})):
            tensors |= {f"{clip.id}/{kind}/{name}": np.array(value, order="C") for name, value in values.items()}
        described.append(
            {
                "id": clip.id,
                "derived_from": parent,
                "how": how,
                "fps": float(clip.fps),
                "sample_rate_hz": int(clip.sample_rate_hz),
                "raw": {name: list(value.shape) for name, value in raw.items()},
                "labels": {name: np.asarray(value).tolist() for name, value in clip.labels.items() if np.size(value) <= LISTED},
                "tags": dict(clip.tags),
            }
        )
    return tensors, described


def _shorter(clip: Clip, n_frames: int, n_samples: int) -> Clip:
    """Fewer frames and samples than the window takes, cropped off centre and to another aspect, so that swapped axes show."""
    n, height, width = clip.frames.shape[:3]  # all 0 in a data set of sound
    top, left = height // 5, width // 3
    kept = range(min(n, max(1, 2 * min(n, n_frames) // 3)))
    audio = clip.audio[: max(1, 61 * min(len(clip.audio), n_samples) // 100)]
    shorter = _with_frames(clip, kept)
    frames = shorter.frames[:, top : max(top + 1, height - 2), left : max(left + 1, width - 1)]
    return replace(shorter, id=f"{clip.id}~shorter", frames=frames.copy(), audio=audio.copy())


def _longer(clip: Clip, n_frames: int, n_samples: int) -> Clip:
    """More frames and samples than the window takes, played back and forth, at a size that is no multiple of the model's."""
    import numpy as np

    n, height, width = clip.frames.shape[:3]
    audio = np.resize(clip.audio, 4 * max(len(clip.audio), n_samples) // 3 + 1) if len(clip.audio) else clip.audio
    if not n:  # a data set of sound
        return replace(clip, id=f"{clip.id}~longer", audio=audio)
    rows = np.arange(3 * height // 2 + 1) * height // (3 * height // 2 + 1)
    columns = np.arange(5 * width // 4 + 1) * width // (5 * width // 4 + 1)
    there_and_back = np.r_[np.arange(n), np.arange(n)[::-1]]
    longer = _with_frames(clip, np.resize(there_and_back, 5 * max(n, n_frames) // 4 + 1))
    frames = longer.frames[:, rows][:, :, columns]
    return replace(longer, id=f"{clip.id}~longer", frames=np.ascontiguousarray(frames), audio=audio)


def _with_frames(clip: Clip, index: Sequence[int] | np.ndarray) -> Clip:
    """The clip with these of its frames, in this order, and all that belongs to them; time goes on evenly."""
    import numpy as np

    index, n = np.asarray(index, np.int64), len(clip.frames)

    def of(value: Any) -> Any:
        return value[index] if isinstance(value, np.ndarray) and value.ndim and len(value) == n else value

    # One after another at the clip's own pace: frames that go back and forth have no stamps of their own.
    stamps = None if clip.frame_ms is None else np.arange(len(index)) * (1000.0 / clip.fps) + clip.frame_ms[0]
    return replace(
        clip, frames=of(clip.frames), frame_ms=stamps, labels={k: of(v) for k, v in clip.labels.items()}, features={k: of(v) for k, v in clip.features.items()}
    )


def _size(model: FloatModel) -> dict[str, Any]:
    return {"parameters": model.meta["parameters"], "macs": model.meta["macs"], "bytes": model.weights.stat().st_size}
