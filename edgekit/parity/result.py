"""What a comparison found, as data: the JSON of `edgekit compare --json`, and what every report is made of.

A is the reference, B is judged against it. Relative errors are of |B|, SQNR and PSNR of A's power
and peak, as Polygraphy has them. In JSON, numbers that JSON lacks are the strings "nan", "inf" and
"-inf", so that what is read back is what was written.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from edgekit.errors import IntegrityError

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")

SCHEMA = 1
SAME, DIFFERS = "same", "differs"


@dataclass(frozen=True)
class SideInfo:
    """One of the two that were compared."""

    text: str
    """As it was given."""
    kind: str
    """onnx, openvino, tflite, torch, bundle or recorded."""
    inputs: dict[str, str]
    """{name: "float32 [1, 3, 16]"}; states are among them."""
    outputs: dict[str, str]
    states: dict[str, str] = field(default_factory=dict)
    """{input: output that it is fed from at the next step}."""
    numbers: str = "float"
    """What it computes in: `float`, `int8`, or `unknown` where only outputs are there."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What identifies it: sha256 of its files, runtime and version, target, recipe."""


@dataclass(frozen=True)
class DataInfo:
    """What both were run on."""

    text: str
    samples: int
    sha256: str | None = None
    """Of the data set's content where it has a digest, else of the tensors that were fed."""
    seed: int | None = None
    """Of random data."""
    labels: tuple[str, ...] = ()
    """Outputs that every sample has a label for."""


@dataclass(frozen=True)
class Tolerance:
    """When an output of B is the same as A's. A criterion that is None is not asked for; those asked for must all hold.

    `stat` is Polygraphy's --check-error-stat: that error must be within `atol` or within `rtol`, of
    each element (elemwise) or of each sample (max, mean, median, quantile).
    """

    stat: Literal["elemwise", "max", "mean", "median", "quantile"] = "elemwise"
    atol: float | None = 1e-5
    rtol: float | None = 1e-5
    quantile: float = 0.99
    min_sqnr_db: float | None = None
    """Of all samples together."""
    min_cosine: float | None = None
    of_peak: float | None = None
    """max_abs over all samples may be at most max(atol, of_peak * largest |A|); then `stat` is not looked at."""
    why: str = ""
    """Where the limits come from: the command line, or which default and why."""


@dataclass(frozen=True)
class Errors:
    """How far apart two tensors are, over every element of every sample."""

    elements: int
    mismatched: int
    """Elements beyond both atol and rtol; NaN is beyond."""
    nonfinite_a: int
    nonfinite_b: int
    max_abs: float
    """NaN when either side holds a NaN, or both hold the same infinity (unless they compare equal)."""
    mean_abs: float
    rms: float
    max_rel: float
    mean_rel: float
    quantiles_abs: dict[str, float]
    """{"0.5": median, "0.9": ..., "0.99": ..., "0.999": ...}; linear interpolation, as numpy's default."""
    quantiles_rel: dict[str, float]
    quantiles_are_exact: bool
    """False beyond 262,144 elements: then read off a histogram of 256 bins an octave, within 0.4 % of the value."""
    sqnr_db: float
    """10 log10(power of A / power of A - B); inf when equal."""
    psnr_db: float
    """20 log10(largest A, or 1 if that is not positive) - 10 log10(mean square error)."""
    cosine: float
    """1 when equal, 0 when only one side is all zero."""
    low_a: float
    high_a: float
    low_b: float
    high_b: float


@dataclass(frozen=True)
class Worst:
    """The element with the largest absolute error; the first NaN if there is one."""

    sample: str
    index: tuple[int, ...]
    a: float
    b: float
    start: int
    """Position along the last axis of the first value below."""
    around_a: tuple[float, ...] = ()
    """Values around it along the last axis, itself included."""
    around_b: tuple[float, ...] = ()


@dataclass(frozen=True)
class Point:
    """One sample of the per-sample curve, or one step of a stream's."""

    id: str
    max_abs: float
    mean_abs: float
    sqnr_db: float
    is_within: bool


@dataclass(frozen=True)
class Histogram:
    """Of |A - B| over all elements: `counts[i]` in edges[i] <= x < edges[i+1]; the edges are powers of two, subnormals count as zero."""

    zeros: int
    """Elements that are equal."""
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    nonfinite: int


@dataclass(frozen=True)
class OutputResult:
    """One output of A against its partner in B."""

    name: str
    name_b: str
    shape: tuple[int, ...]
    dtype_a: str
    dtype_b: str
    is_within: bool
    reason: str
    """One sentence on why it is not within; empty if it is."""
    tolerance: Tolerance
    errors: Errors
    worst: Worst | None
    curve: tuple[Point, ...]
    """In the order of the samples."""
    histogram: Histogram


@dataclass(frozen=True)
class TaskMetric:
    """What the two are worth against labels: edgekit.metrics, paired over the same samples."""

    output: str
    metric: str
    title: str
    unit: str
    direction: Literal["lower", "higher"]
    samples: int
    a: float
    b: float
    change: float
    """b - a."""
    low: float
    """95 % interval of the change, from a paired bootstrap over samples."""
    high: float


@dataclass(frozen=True)
class StreamCheck:
    """One check of a state: `reset` (running again after a reset gives the same) or `restore` (going on from a saved state does)."""

    side: Literal["a", "b"]
    check: Literal["reset", "restore"]
    is_ok: bool
    max_abs: float
    """Largest difference to the first run."""
    at_step: int | None = None
    """restore: after how many calls the state was saved."""
    note: str = ""


@dataclass(frozen=True)
class StreamOutput:
    """One output over time, over all streams."""

    name: str
    time_s: tuple[float, ...]
    """Of each bin's start; the step's index where the rate is not known."""
    max_abs: tuple[float, ...]
    """Error over time: the largest of each bin, over all streams."""
    mean_abs: tuple[float, ...]
    sqnr_db: tuple[float, ...]
    first_divergent: int | None
    """First step of any stream beyond the tolerance; None if there is none."""
    first_divergent_stream: str | None
    drift_per_step: float
    """Slope of mean_abs over time by least squares, per step."""
    drift_share: float
    """Growth along the fitted line from end to end, as a share of the mean error: about 0 is steady."""


@dataclass(frozen=True)
class StreamResult:
    """Both sides over chunks, with state carried."""

    streams: int
    steps: int
    """Compared along the stream axis, per stream: the common length."""
    axis: int
    chunk_a: int
    """Along the stream axis per call; 1 where a call is one step without that axis."""
    chunk_b: int
    calls_a: int
    calls_b: int
    states_a: dict[str, str]
    states_b: dict[str, str]
    outputs: tuple[StreamOutput, ...]
    checks: tuple[StreamCheck, ...]
    state_effect_a: float
    """How much the state matters: largest difference of A to itself with the state reset before every call."""
    state_effect_b: float
    state_sqnr_db: float
    """Of B's state effect against A's: near or below 0 where B loses its state; NaN where a side's state cannot be reset."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Change:
    """One thing that differs between two bundles."""

    part: str
    """recipe, target, data, model, accuracy, gates, parity, coverage, size, versions, files."""
    key: str
    a: Any
    b: Any


@dataclass(frozen=True)
class ReleaseDiff:
    """Two bundles: what changed from A to B."""

    name_a: str
    name_b: str
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class LayerRow:
    """One layer of both sides, as bisect ranks it."""

    rank: int
    """1 is where most error is introduced."""
    node: str
    op: str
    module: str
    """Source module: the node's name up to the op."""
    tensor_a: str
    tensor_b: str
    engine: str
    sqnr_db: float
    """Of the layer's output as each side computes it: inherited and introduced together."""
    introduced_db: float
    """Of the layer's output when both sides get A's inputs."""
    inherited_db: float
    """Of the layer's inputs; inf where they are equal."""
    max_abs: float
    share: float
    """Of all error power introduced, 0..1."""
    note: str = ""
    expected_db: float = math.inf
    """What rounding in the same places costs there when nothing is wrong; inf where nothing is rounded."""
    verdict: str = ""
    """`fault`: more is introduced than that; `rounding`: no more; `same`: nothing beyond float32's own."""
    matched_by: str = ""
    """How the tensor was found in B: name, structure or value."""


@dataclass(frozen=True)
class Bisect:
    """Where B becomes different from A."""

    rows: tuple[LayerRow, ...]
    """By rank."""
    modules: tuple[tuple[str, float], ...] = ()
    """(module, share of the error introduced), largest first."""
    matched: int = 0
    """Layers found on both sides."""
    unmatched_a: tuple[str, ...] = ()
    unmatched_b: tuple[str, ...] = ()
    minimal: dict[str, Any] = field(default_factory=dict)
    """The smallest graph that shows it: {"onnx": path, "inputs": path, "nodes": [...]}; empty if none was asked for."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Slice:
    """The samples that share a tag."""

    tag: str
    value: str
    samples: int
    output: str
    max_abs: float
    sqnr_db: float
    is_within: bool
    metric: str = ""
    """What both are worth on these samples, where labels exist."""
    a: float = math.nan
    b: float = math.nan
    low: float = math.nan
    """95 % interval of b - a; NaN for a single sample."""
    high: float = math.nan


@dataclass(frozen=True)
class Cell:
    """One cell of target × condition: a condition is a part of the data by a tag, or a change of it, such as one modality missing."""

    target: str
    """B, as it was given."""
    condition: str
    """`all`, `snr_db 0 to 5`, or one of conditions.CONDITIONS."""
    output: str
    samples: int
    max_abs: float
    sqnr_db: float
    is_within: bool
    metric: str = ""
    a: float = math.nan
    b: float = math.nan
    low: float = math.nan
    """95 % interval of b - a."""
    high: float = math.nan


@dataclass(frozen=True)
class Comparison:
    """The whole result. `bool(result)` is whether B is the same as A."""

    a: SideInfo
    b: SideInfo
    verdict: Literal["same", "differs"]
    reasons: tuple[str, ...] = ()
    """Why it differs, one sentence each, the first is the most important."""
    data: DataInfo | None = None
    """None where no model was run: a release diff alone."""
    outputs: tuple[OutputResult, ...] = ()
    metrics: tuple[TaskMetric, ...] = ()
    stream: StreamResult | None = None
    release: ReleaseDiff | None = None
    bisect: Bisect | None = None
    slices: tuple[Slice, ...] = ()
    conditions: tuple[Cell, ...] = ()
    only_a: tuple[str, ...] = ()
    """Outputs left out of the comparison, because a mapping or `--outputs` says so."""
    only_b: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    """edgekit, Python and library versions; open points for a reviewer under `open`."""
    seconds: dict[str, float] = field(default_factory=dict)
    """{"open", "data", "a", "b", "compare", "checks"}: what the run spent where; `checks` runs a stream's states again."""
    schema: int = SCHEMA
    kept: dict[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)
    """Tensors of the first samples for a report, not in the JSON: `<sample>/a/<output>`, `<sample>/b/<output>`, `<sample>/input/<name>`.
    Of outputs of one value those of all samples, `*/a/<output>`, `*/b/<output>` and `*/label/<output>`, [samples]."""

    def __bool__(self) -> bool:
        return self.verdict == SAME

    @property
    def exit_code(self) -> int:
        """0 same, 3 differs."""
        return 0 if self else 3

    def to_json(self) -> dict[str, Any]:
        """Plain data, without `kept`."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "kept"}

    @classmethod
    def from_json(cls, doc: Mapping[str, Any]) -> Comparison:
        """What `to_json` wrote.

        Raises:
            IntegrityError: it is no comparison, or one of another schema.
        """
        if not isinstance(doc, Mapping) or doc.get("schema") != SCHEMA:
            raise IntegrityError(f"not a comparison of schema {SCHEMA}", "make it again with `edgekit compare --json`")
        try:
            return _typed(cls, doc)
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(f"not a comparison: {error}", "make it again with `edgekit compare --json`") from error


@dataclass(frozen=True)
class Comparisons:
    """Several sides B, each against the one A. `bool(result)` is whether all are the same as A."""

    comparisons: tuple[Comparison, ...]
    schema: int = SCHEMA

    def __bool__(self) -> bool:
        return all(self.comparisons)

    @property
    def exit_code(self) -> int:
        """0 all the same, 3 one differs."""
        return 0 if self else 3

    @property
    def conditions(self) -> tuple[Cell, ...]:
        """Every cell of target × condition, row by row."""
        return tuple(cell for found in self.comparisons for cell in found.conditions)

    def to_json(self) -> dict[str, Any]:
        """{schema, verdict, comparisons}."""
        return {"schema": self.schema, "verdict": SAME if self else DIFFERS, "comparisons": [found.to_json() for found in self.comparisons]}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def _typed(kind: Any, value: Any) -> Any:
    """`value` of JSON as the annotated type `kind`."""
    if dataclasses.is_dataclass(kind):
        hints = _hints(kind)
        unknown = set(value) - set(hints)
        if unknown:
            raise ValueError(f"unknown key `{sorted(unknown)[0]}`")
        return kind(**{name: _typed(hints[name], item) for name, item in value.items()})  # type: ignore[operator]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_typed(arguments[0], item) for item in value)
        return tuple(_typed(part, item) for part, item in zip(arguments, value, strict=True))
    if origin is dict:
        return {key: _typed(arguments[1], item) for key, item in value.items()}
    if origin in (typing.Union, types.UnionType):
        rest = [part for part in arguments if part is not type(None)]
        return None if value is None else _typed(rest[0], value)
    if kind is float:
        return float(value)  # takes "nan" and "inf" too
    return value


def _hints(kind: Any) -> dict[str, Any]:
    # `np` exists for type checkers only; `kept` is never read from JSON.
    return {name: hint for name, hint in typing.get_type_hints(kind, localns={"np": types.SimpleNamespace(ndarray=object)}).items() if name != "kept"}
