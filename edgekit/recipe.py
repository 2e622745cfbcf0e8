"""The recipe: the whole schema on one page.

A key is here only when something reads it; a key of a feature that is not built is unknown.
Field descriptions become the JSON Schema that editors complete from.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, model_validator

from edgekit import document
from edgekit.document import Document, Schema, Text
from edgekit.errors import RecipeError

SCHEMA_PATH = Path(__file__).parent / "schemas" / "recipe.json"
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"

Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Input(Schema):
    """How one input of a model is made of a clip; sizes are read from its shape."""

    source: Literal["video", "audio"] = Field(description="what of the clip")
    shape: tuple[Count, ...] | None = Field(None, description="with batch 1 in front, for dimensions that an ONNX file leaves open")
    layout: Literal["KCTHW", "CTHW", "TCHW", "THWC", "CHW", "HWC", "S", "CS"] = Field(description="axes after the batch: clip, colour, time, height, width; or sample")
    mean: tuple[float, float, float] | None = Field(None, description="video: of R, G, B in 0..255, subtracted")
    std: tuple[Positive, Positive, Positive] | None = Field(None, description="video: of R, G, B in 0..255, divided by; [255, 255, 255] gives 0..1")
    sample_rate_hz: Count | None = Field(None, description="audio: the rate that the model was trained on")
    normalize: Literal["zero_mean_unit_variance", "none"] | None = Field(None, description="audio: `none` leaves -1..1")

    @model_validator(mode="after")
    def _has_what_its_source_needs(self) -> Input:
        own = {"video": ("mean", "std"), "audio": ("sample_rate_hz", "normalize")}
        for source, keys in own.items():
            for key in keys:
                if source == self.source and getattr(self, key) is None:
                    raise document.mistake(f"an input from {source} needs `{key}`", "as the model was trained; there is no default that fits all")
                if source != self.source and getattr(self, key) is not None:
                    raise document.mistake(f"`{key}` is for inputs from {source}", "leave it out", at=(key,))
        if (self.source == "audio") != (self.layout in ("S", "CS")):
            known = "S or CS" if self.source == "audio" else "KCTHW, CTHW, TCHW, THWC, CHW or HWC"
            raise document.mistake(f"{self.source} cannot be laid out as {self.layout}", f"use {known}", at=("layout",))
        return self


class Load(Schema):
    """Which trained model."""

    model: Text = Field(description="registered model such as `mhlt`, `package.module:factory`, or a path to an .onnx file")
    config: Text = Field("default", description="the model's configuration, such as `small`")
    checkpoint: Text | Annotated[dict[str, Text], Field(min_length=1)] | None = Field(
        None, description="weights, relative to the recipe: .safetensors, or .pt with weights only; {part: file} of a model that is put together; an .onnx file holds its own"
    )
    inputs: dict[str, Input] | None = Field(None, description="how each input of an .onnx file is made of a clip")

    @property
    def is_onnx(self) -> bool:
        return self.model.lower().endswith(".onnx")

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> Load:
        if self.is_onnx and self.checkpoint is not None:
            raise document.mistake("`load.checkpoint` is given, but an .onnx file holds its own weights", "leave it out", at=("checkpoint",))
        if self.is_onnx and not self.inputs:
            raise document.mistake("`load.inputs` is missing", "an .onnx file does not say how its inputs are made of a clip; docs/models.md has examples")
        if not self.is_onnx and self.checkpoint is None:
            raise document.mistake("`load.checkpoint` is missing")
        if not self.is_onnx and self.inputs is not None:
            raise document.mistake("`load.inputs` is for .onnx files", "leave it out: this model says itself what it takes", at=("inputs",))
        return self


class Finetune(Schema):
    """Training after pruning, with the float model as teacher."""

    epochs: Count = Field(description="passes over the training clips")
    distill: NotNegative = Field(1.0, description="weight of the distance to the float model's outputs; 0 turns it off")
    data: Text | None = Field(None, description="data set in `calibration/`; by default that of `calibrate`")
    lr: Positive | None = Field(None, description="peak learning rate; by default the model's own")
    clips: Count | None = Field(None, description="train on the first so many clips only")


class Prune(Schema):
    """Structured pruning: channels, LSTM units, attention heads."""

    importance: Literal["magnitude", "taylor"] = Field("taylor", description="how a channel's worth is judged; taylor reads data")
    macs: Share = Field(description="share of the MACs to keep, such as 0.70; met within 2 points")
    finetune: Finetune | None = Field(None, description="without it the pruned model is used as cut")
    only: tuple[Text, ...] = Field((), description="modules to narrow, as globs such as `audio.*`; by default all that can be")
    protect: tuple[Text, ...] = Field((), description="modules to leave whole, as globs such as `video.features.0`")


class Calibrate(Schema):
    """Statistics of every tensor, taken once for all targets."""

    data: Text = Field(description="data set in `calibration/`")
    clips: Count = Field(128, description="how many clips are read")


class Quantize(Schema):
    """Ranges and scales from the statistics."""

    observer: Literal["minmax", "percentile", "entropy", "mse"] = Field("percentile", description="how a tensor's range is chosen")
    percentile: Annotated[float, Field(gt=50, le=100)] | None = Field(None, description="share of values inside the range, in percent; for observer percentile")
    skip: tuple[Text, ...] = Field((), description="layers to leave in float, as globs over node names")

    @model_validator(mode="after")
    def _percentile_needs_its_observer(self) -> Quantize:
        if self.percentile is not None and self.observer != "percentile":
            raise document.mistake(f"`percentile` is given, but the observer is `{self.observer}`", "use `observer: percentile`, or drop it", at=("percentile",))
        return self


class Verify(Schema):
    """Held-out clips that the report is measured on."""

    data: Text = Field(description="data set in `calibration/`")
    clips: Count | None = Field(None, description="measure on the first so many test clips; by default all")


class Gate(Schema):
    """Limits on one number of the report."""

    max_increase: NotNegative | None = Field(None, description="artifact minus original may be at most this")
    max_decrease: NotNegative | None = Field(None, description="original minus artifact may be at most this")
    min: float | None = Field(None, description="the artifact's own value must be at least this")
    max: float | None = Field(None, description="the artifact's own value may be at most this")
    max_over: dict[str, float] | None = Field(None, description="{comparison: artifact minus it, on the same clips, may be at most this}; of errors")

    @model_validator(mode="after")
    def _has_a_limit(self) -> Gate:
        if not self.model_fields_set:
            raise document.mistake("a gate without a limit", "give max_increase, max_decrease, min or max")
        return self


# Metrics that a gate may name (`metrics.METRICS` cannot be imported here: it needs numpy), and which way is better.
LOWER_IS_BETTER = ("mae", "mae7", "rmse")
HIGHER_IS_BETTER = (
    "f1", "corr", "acc2", "acc3", "acc5", "acc2_has0", "acc2_non0", "f1_non0", "acc7",
    "wa", "ua", "f1_macro", "f1_weighted", "ccc", "ccc_valence", "ccc_arousal",
    "si_sdr", "stoi", "pesq",
)  # fmt: skip
OWN_VALUE_ONLY = ("int8_macs", "agreement")  # agreement: share of clips where the artifact chooses the pruned model's class, in %
# Of one window, 99th percentile, and of all engines loaded; only a device's result can say, until then `pending-device`.
DEVICE_GATES = ("latency_ms", "device_memory_mib")
GATES = (*LOWER_IS_BETTER, *HIGHER_IS_BETTER, *OWN_VALUE_ONLY, *DEVICE_GATES)
OWN_METRIC = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"  # package.module:function of a data set's own metric
LARGEST = ("alpha",)  # outputs whose largest value in a slice may be gated
SLICE = r"(?P<metric>\w+) at (?P<tag>\w+)=(?P<value>\S+)"  # `mae at snr_db=-5`: a gate on one slice of the report


class Recipe(Schema):
    """From a trained checkpoint to a bundle for one target."""

    name: Annotated[str, Field(pattern=f"^{NAME}$")] = Field(description="names `build/<name>/` and `build/<name>.tar.zst`")
    target: Text = Field(description="device, a file in `targets/`")
    load: Load
    prune: Prune | None = Field(None, description="without it nothing is removed")
    calibrate: Calibrate
    quantize: Quantize = Quantize()
    verify: Verify
    gates: dict[str, Gate] = Field(
        {},
        description="limits that the report must meet; changing one never runs a model again",
        json_schema_extra={"propertyNames": {"anyOf": [{"enum": list(GATES)}, {"pattern": f"^{OWN_METRIC}$"}, {"pattern": r"^\w+ at \w+=\S+$"}]}},
    )

    @model_validator(mode="after")
    def _an_onnx_file_is_not_pruned(self) -> Recipe:
        if self.load.is_onnx and self.prune is not None:
            raise document.mistake("`prune`: an .onnx file cannot be pruned, its layers are no longer modules", "drop `prune`, or give the model as `package.module:factory`", at=("prune",))
        return self

    _document: Document = PrivateAttr()
    _cache_root: Path = PrivateAttr()
    _overrides: tuple[str, ...] = PrivateAttr(())
    _device_result: Path | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _gates_are_of_known_numbers_and_point_the_right_way(self) -> Recipe:
        for name, gate in self.gates.items():
            part = re.fullmatch(SLICE, name)
            known = (*LOWER_IS_BETTER, *HIGHER_IS_BETTER, *LARGEST) if part else GATES
            if (part["metric"] if part else name) not in known and not re.fullmatch(OWN_METRIC, name):
                raise document.mistake(f"unknown gate `{name}`", document.suggestion(part["metric"] if part else name, known), at=("gates", name))
            for limit in sorted(gate.model_fields_set - set(limits_of(name))):
                hint = f"use {' or '.join(f'`{known}`' for known in limits_of(name))}"
                raise document.mistake(f"gate `{name}` cannot have `{limit}`", hint, at=("gates", name, limit))
        return self

    @property
    def path(self) -> Path:
        """The recipe's own file."""
        return Path(self._document.path)

    @property
    def dir(self) -> Path:
        """The folder that relative paths in the recipe start from."""
        return self.path.parent

    @property
    def cache_root(self) -> Path:
        """Where generated data sets may keep their clips (`cache_root / "data"`)."""
        return self._cache_root

    @property
    def overrides(self) -> tuple[str, ...]:
        """The `key.path=value` that it was read with."""
        return self._overrides

    @property
    def device_result(self) -> Path | None:
        """What a device brought back, checked and stored by `edgekit adopt`; None in a build of the host alone."""
        return self._device_result

    @property
    def output_name(self) -> str:
        """Names `build/<name>/`: the recipe's own, or of a bundle that a device measured `<name>-measured`."""
        return self.name if self._device_result is None else f"{self.name}-measured"

    def with_result(self, result: Path) -> Recipe:
        """The same recipe, measured by this result."""
        copy = self.model_copy()
        copy._device_result = result
        return copy

    def where(self, dotted: str = "") -> str:
        """`file:line` of a key, for messages: `where("load.checkpoint")`."""
        return self._document.where(dotted)

    def locate(self, error: RecipeError) -> RecipeError:
        """Put `file:line` before an error that starts with a key, such as "`load.config`: ...", as stages raise them."""
        named = re.match(r"`([a-z0-9_]+(?:\.[a-z0-9_]+)*)`", error.message)
        if named and named[1].partition(".")[0] in Recipe.model_fields:
            error.message = f"{self.where(named[1])}: {error.message}"
            error.args = (error.message,)
        return error

    def resolve(self, path: str) -> Path:
        """A path in the recipe, seen from here."""
        return self.dir / path

    def checkpoints(self) -> dict[str, Path]:
        """{part: its existing checkpoint}; the part of a model that has one checkpoint is called "".

        Raises:
            RecipeError: there is no such file.
        """
        parts = self.load.checkpoint if isinstance(self.load.checkpoint, dict) else {"": ""}
        return {part: self.file(f"load.checkpoint.{part}" if part else "load.checkpoint") for part in parts}

    def file(self, dotted: str) -> Path:
        """The existing file that a key such as `load.checkpoint` names.

        Raises:
            RecipeError: there is no such file.
        """
        value: Any = self
        for key in dotted.split("."):
            value = value[key] if isinstance(value, dict) else getattr(value, key)
        path = self.resolve(value)
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            files = path.parent.glob(f"*{path.suffix}") if path.suffix and path.parent.is_dir() else ()
            near = sorted(os.path.relpath(file, self.dir) for file in files if file.is_file())
            raise RecipeError(f"{self.where(dotted)}: `{dotted}` {what}: {path}", document.suggestion(value, near) or "paths are relative to the recipe")
        return path

    def section(self, name: str) -> dict[str, Any] | None:
        """A part of the recipe as plain data without unset keys, or None if it is not there."""
        value = getattr(self, name)
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, dict):
            return {key: json.loads(item.model_dump_json(exclude_none=True)) for key, item in value.items()}
        return json.loads(value.model_dump_json(exclude_none=True))


def load_recipe(path: str | Path, overrides: Iterable[str] = (), cache_root: str | Path = ".edgekit") -> Recipe:
    """Read a recipe, with `key.path=value` overrides.

    Raises:
        RecipeError: file:line and what is wrong there.
    """
    overrides = tuple(overrides)
    read = document.read(Path(path), overrides)
    read.data.setdefault("name", re.sub(r"[^A-Za-z0-9_.-]", "_", Path(path).stem))
    recipe = document.validate(read, Recipe)
    recipe._document, recipe._overrides = read, overrides
    recipe._cache_root = Path(cache_root)
    return recipe


def json_schema() -> str:
    """The JSON Schema of a recipe, as shipped in edgekit/schemas/recipe.json."""
    schema = {"$schema": "http://json-schema.org/draft-07/schema#", **Recipe.model_json_schema()}
    # `name` is optional on disk: it defaults to the file's own name.
    schema["required"] = [key for key in schema["required"] if key != "name"]
    schema["title"] = "edgekit recipe"
    return json.dumps(_without_titles(schema), indent=2, sort_keys=True) + "\n"


def _without_titles(schema: Any, is_properties: bool = False) -> Any:
    """Drop pydantic's generated titles, which editors would show instead of the descriptions."""
    if isinstance(schema, list):
        return [_without_titles(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if is_properties or key != "title" or value == "edgekit recipe"}
    return {key: _without_titles(value, key in ("properties", "$defs")) for key, value in kept.items()}


def limits_of(gate: str) -> tuple[str, ...]:
    """The limits that make sense: an error may rise by so much, a score may fall by so much."""
    if part := re.fullmatch(SLICE, gate):
        gate = part["metric"]
    if gate in LARGEST:
        return ("max",)
    if gate in DEVICE_GATES:
        return ("max",)
    if gate in OWN_VALUE_ONLY:
        return ("min", "max")
    if gate in LOWER_IS_BETTER:
        return ("max_increase", "max", "max_over")
    return ("max_decrease", "min") if gate in HIGHER_IS_BETTER else tuple(Gate.model_fields)
