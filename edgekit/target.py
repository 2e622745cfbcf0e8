"""A device, as data: what its compiler takes, and in which numbers.

`targets/*.yaml` states facts with their sources; nothing here knows a device by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, model_validator

from edgekit import document
from edgekit.document import Schema, Text
from edgekit.errors import RecipeError, TargetError

Fact = str | int | float | bool | list[str] | list[int] | list[float] | None
Value = str | int | float | list[int] | list[float]


class Runtime(Schema):
    """The compiler and runtime on the device."""

    name: Text = Field(description="such as TensorRT")
    version: Text = Field(description="the exact version, in quotes, such as '8.5.2'")


class Activation(Schema):
    """How an activation becomes an integer: q = round(x / scale) + zero point.

    Symmetric: zero point 0 and scale = max|x| / divisor. Asymmetric: the whole range over all 256 values.
    """

    dtype: Literal["int8", "uint8"]
    symmetric: bool
    zero_point: Literal[0] | None = Field(None, description="0 if symmetric; otherwise left out, since each range has its own")
    divisor: Annotated[int, Field(ge=1, le=127)] | None = Field(None, description="symmetric only: the integer that max|x| becomes")
    nonnegative: Literal["uint8"] | None = Field(None, description="symmetric only: tensors without negative values become uint8, zero point 0, scale = high / 255")

    @model_validator(mode="after")
    def _fits_its_symmetry(self) -> Activation:
        if self.symmetric and (self.dtype != "int8" or self.zero_point is None or self.divisor is None):
            raise document.mistake("symmetric activations are int8 with zero point 0", "give `dtype: int8`, `zero_point: 0` and `divisor: 127`", at=("symmetric",))
        for key in ("zero_point", "divisor", "nonnegative"):
            if not self.symmetric and getattr(self, key) is not None:
                raise document.mistake(f"`{key}` is for symmetric activations", "leave it out", at=(key,))
        return self


class Weight(Schema):
    """How a weight becomes an integer: symmetric, scale = max|w| / divisor."""

    dtype: Literal["int8"]
    granularity: Literal["per_channel", "per_tensor"]
    range: Literal["max_abs"]
    divisor: Annotated[int, Field(ge=1, le=127)] = Field(127, description="the integer that max|w| becomes; 63 leaves room for sums of two products in 16 bits")


class Numbers(Schema):
    """The device's number rules."""

    activation: Activation
    weight: Weight
    rounding: Literal["half_even"]
    outputs: bool = Field(False, description="an INT8 layer writes INT8 too; if not, it may write floats and only its readers quantize")


class Output(Schema):
    """Scale and zero point that an integer kernel always writes in."""

    scale: Annotated[float, Field(gt=0)]
    zero_point: Annotated[int, Field(ge=-128, le=255)]
    dtype: Literal["int8", "uint8"] = "int8"


class Rewrite(Schema):
    """A form of an op that the table does not take as it is, and an exact rewrite makes fit."""

    by: Text = Field(description="name in `rewrites`")
    ranks: tuple[int, ...] = Field((), description="ranks of the data input that are rewritten; empty means all")


class OpRule(Schema):
    """What the target takes of one ONNX op."""

    dtypes: tuple[Text, ...] = Field((), description="ONNX names of the data type, such as float32; empty means any")
    ranks: tuple[int, ...] = Field((), description="ranks of the data input; empty means any")
    int8: bool = Field(False, description="whether the compiler may run it in INT8")
    int8_ranks: tuple[int, ...] = Field((), description="ranks that may run in INT8; empty means all of `ranks`")
    int8_output: Output | None = Field(None, description="what its INT8 kernel writes in, whatever the data")
    symmetric: bool = Field(False, description="of MatMul.activations: its inputs have zero point 0, int8 or (without negatives) uint8, whatever `numbers` say")
    cell: Literal["int8", "float"] | None = Field(None, description="of Scan: gates and cell state of a recurrent step in INT8 too, or (the default) only its products and h")
    rewrite: Rewrite | None = Field(None, description="taken only after this rewrite")
    max_opset: int | None = None
    constant_inputs: tuple[int, ...] | None = Field(None, description="inputs, from 0, that must be constants where they are given")
    outputs: int | None = Field(None, description="at most so many outputs that somebody reads")
    attributes: dict[str, list[Value]] | None = Field(None, description="what an attribute may be where it is given, such as {layout: [0]}")
    note: str | None = None
    source: str | None = None

    def takes_int8(self, rank: int | None = None) -> bool:
        """Whether this op may run in INT8 at this rank of its data input."""
        return self.int8 and (rank is None or not self.int8_ranks or rank in self.int8_ranks)


class UnitRule(Schema):
    """What an accelerator takes of one ONNX op. Pairs are [smallest, largest], of height and width alike."""

    ranks: tuple[int, ...] = Field((4,), description="of the data input")
    kernel: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    padding: tuple[int, int] | None = None
    dilation: tuple[int, int] | None = None
    padding_below_kernel: bool = Field(False, description="padding must be smaller than the kernel")
    channels: tuple[int, int] | None = Field(None, description="of the output")
    groups: tuple[int, int] | None = None
    steps: tuple[int, int] | None = Field(None, description="of a Slice")
    not_axes: tuple[int, ...] = Field((), description="of a Slice: axes, from 0, that it must not cut")
    axis: int | None = Field(None, description="the only axis, counted from the end: -3 is the channels of N, C, H, W")
    constant_inputs: tuple[int, ...] = Field((), description="inputs, from 0, that must be constants")
    computed_inputs: tuple[int, ...] = Field((), description="inputs, from 0, that must not be constants")
    dtypes: tuple[Literal["int8", "fp16"], ...] = Field(("int8", "fp16"), description="what it computes this op in")
    note: str | None = None
    source: str | None = None


class Unit(Schema):
    """An accelerator beside the device's main processor that runs some layers, such as a DLA."""

    name: Text
    batch_max: Annotated[int, Field(ge=1)]
    dim_max: Annotated[int, Field(ge=1, description="of every dimension but the batch")]
    explicit: bool = Field(description="whether its compiler takes Q/DQ graphs; if not, scales come from a calibration cache")
    ops: dict[str, UnitRule]
    sources: tuple[Text, ...] = ()


class Target(Schema):
    """One device."""

    name: Text
    description: Text
    backend: Text = Field(description="who compiles for it: a module in edgekit/backends, or of an installed package")
    runtime: Runtime
    build_on: Literal["device", "host"]
    device: dict[str, Fact] = Field({}, description="facts such as sm, memory_gb, jetpack")
    opset_max: Annotated[int, Field(ge=1)]
    domains: tuple[Text, ...] = Field((), description="operator sets taken beside ONNX's own, such as com.microsoft")
    numbers: Numbers
    floats: Literal["fp32", "fp16", "bf16"] = Field("fp32", description="what the layers run in that are not INT8")
    ops: dict[str, OpRule]
    rewrites: tuple[Text, ...] = ()
    unit: Unit | None = Field(None, description="an accelerator that may take layers; reports say which")
    sources: tuple[Text, ...] = ()

    _path: Path = PrivateAttr(Path())

    @model_validator(mode="after")
    def _rewrites_are_listed(self) -> Target:
        for op, rule in self.ops.items():
            if rule.rewrite is not None and rule.rewrite.by not in self.rewrites:
                raise document.mistake(f"unknown rewrite `{rule.rewrite.by}`", "list it under `rewrites`", at=("ops", op, "rewrite", "by"))
        return self

    @property
    def path(self) -> Path:
        """The target's own file, for messages."""
        return self._path

    def spec(self) -> dict[str, Any]:
        """What of a target enters a cache key: rules, without prose and sources."""
        data = self.model_dump(mode="json", exclude_none=True, exclude={"description", "sources"})
        if "unit" in data:
            data["unit"].pop("sources")
        for rule in (*data["ops"].values(), *data.get("unit", {}).get("ops", {}).values()):
            rule.pop("note", None)
            rule.pop("source", None)
        return data


def load_target(name: str, recipe_dir: str | Path = ".") -> Target:
    """The target `name`, found beside the recipe, then upward, then in edgekit's own copy.

    Raises:
        RecipeError: there is no such target, or its file is wrong.
    """
    path = document.find("targets", name, Path(recipe_dir))
    target = document.load(path, Target)
    if target.name != name:
        raise RecipeError(f"{path}: `name` is `{target.name}`, the file is `{name}.yaml`", "give both the same name")
    target._path = path
    return target


def problems(target: Target, ops: dict[str, Any], rewritten: bool = False) -> list[str]:
    """Everything in a model that the target cannot run, one line each; empty if all is well.

    Args:
        ops: the content of ops.json: opset, and per (engine, op, rank, dtype) a count.
        rewritten: the target's rewrites have been applied, so what they remove may be there no longer.
    """
    found = []
    if ops["opset"] > target.opset_max:
        found.append(f"opset {ops['opset']} is used, at most {target.opset_max} is taken")
    for use in ops["ops"]:
        fault = _fault(target, use, ops["opset"], rewritten)
        if fault is not None:
            count = f"{use['count']} times " if use.get("count", 1) > 1 else ""
            found.append(f"`{use['op']}` in engine `{use['engine']}` {count}{fault}")
    return sorted(set(found))


def check(target: Target, ops: dict[str, Any], places: Mapping[tuple[str, str], list[str]] | None = None) -> None:
    """Refuse a model that the target cannot run.

    Args:
        places: {(engine, op): nodes}, to name the first of each.

    Raises:
        TargetError: names every op, up to eight.
    """
    found = problems(target, ops)
    if not found:
        return
    homes = {f"`{op}` in engine `{engine}` ": nodes for (engine, op), nodes in (places or {}).items()}
    for i, problem in enumerate(found):
        nodes = next((nodes for start, nodes in homes.items() if problem.startswith(start)), [])
        more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
        found[i] += f" (`{nodes[0]}`{more})" if nodes else ""
    shown = "; ".join(found[:8]) + (f"; and {len(found) - 8} more" if len(found) > 8 else "")
    raise TargetError(
        f"{target.path}: {target.runtime.name} {target.runtime.version} cannot run this model: {shown}",
        "change these modules or pick another target; what this one takes stands under `ops`",
    )


def _fault(target: Target, use: dict[str, Any], opset: int, rewritten: bool) -> str | None:
    rule = target.ops.get(use["op"])
    if rule is None:
        return "is not in the table"
    rewrite = None if rewritten else rule.rewrite
    if rewrite is not None and (not rewrite.ranks or use["rank"] in rewrite.ranks):
        return None
    if rewritten and rule.rewrite is not None and not rule.ranks and not rule.rewrite.ranks:
        return f"should have been rewritten by `{rule.rewrite.by}`"
    if rule.dtypes and use["dtype"] not in rule.dtypes:
        return f"has dtype {use['dtype']}, taken: {_listed(rule.dtypes)}"
    if rule.ranks and use["rank"] not in rule.ranks:
        return f"has rank {use['rank']}, taken: {_listed(rule.ranks)}"
    if rule.max_opset is not None and opset > rule.max_opset:
        return f"is of opset {opset}, taken up to {rule.max_opset}"
    given = list(zip(use.get("inputs", ()), use.get("const_inputs", ()), strict=True))
    for i in rule.constant_inputs or ():
        if i < len(given) and given[i][0] != -1 and not given[i][1]:
            return f"computes its input {i}, which must be a constant"
    return None


def attribute_faults(target: Target, op: str, attributes: Mapping[str, Any], outputs: int) -> list[str]:
    """What of one node's attributes the table does not take.

    Args:
        attributes: as they are written; one that is left out has its default, which is taken.
        outputs: how many of the node's outputs somebody reads.
    """
    rule = target.ops.get(op)
    if rule is None:
        return []
    found = []
    for name, taken in (rule.attributes or {}).items():
        value = attributes.get(name, taken[0])
        value = list(value) if isinstance(value, (tuple, list)) else value
        if value not in taken:
            found.append(f"has {name} {value}, taken: {_listed(taken)}")
    if rule.outputs is not None and outputs > rule.outputs:
        found.append(f"has {outputs} outputs that are used, taken: {rule.outputs}")
    return found


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in values)
