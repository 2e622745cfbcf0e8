"""What both sides are fed: one sample in memory at a time, wherever it comes from.

    random:16                   random numbers, the same for the same seed
    clips.npz, clips/           inputs that somebody saved (see recorded.py for the keys)
    recipe.yaml                 the recipe's own test split, preprocessed as the model asks
    cabin, cabin:calibration    a data set of calibration/, its test split or another
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import DataError, UsageError
from edgekit.formats import read_json
from edgekit.parity.conditions import changed, masked, title
from edgekit.parity.flows import BundleSide, EngineSide, FlowSide
from edgekit.parity.recorded import SUFFIXES, RecordedSide, Recording
from edgekit.parity.result import DataInfo
from edgekit.parity.runners import Options, Port, Side

DEFAULT_RANDOM = "random:8"
DEFAULT_RANGE = (-1.0, 1.0)
MAX_RANDOM = 1 << 20


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample, named by A's inputs."""

    id: str
    feeds: Mapping[str, np.ndarray]
    labels: Mapping[str, float | np.ndarray] = field(default_factory=dict)
    tags: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Samples:
    """A source that can be read again and again.

    Attributes:
        metrics: metrics that the data set suggests, from edgekit.metrics or its own, by name.
    """

    text: str
    ids: tuple[str, ...] | None
    """None where they are only known on the way."""
    read: Callable[[], Iterator[Sample]]
    digest: Callable[[], str | None] = lambda: None
    seed: int | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    is_changed: bool = False
    """Whether the wish's condition was done to it."""

    def __iter__(self) -> Iterator[Sample]:
        return self.read()

    def info(self, count: int, labels: Iterable[str]) -> DataInfo:
        return DataInfo(self.text, count, self.digest(), self.seed, tuple(labels))


@dataclass(frozen=True)
class Wish:
    """How data is to be made and cut.

    Attributes:
        val_range: {input: (low, high)} of random values, "" for all others; integers include `high`.
        shapes: {input: shape} of random data where the model leaves an axis free.
        steps: length along the stream axis of random streams; None: single calls.
        stream_axis: that axis of the inputs; None where a call takes one step and has no such axis.
        limit: the first so many samples only.
        condition: clips are changed so before they are preprocessed (conditions.py).
    """

    seed: int = 0
    val_range: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    steps: int | None = None
    stream_axis: int | None = None
    limit: int | None = None
    condition: str | None = None


def open_samples(text: str | None, a: Side, b: Side, mapping: Mapping[str, str], wish: Wish, options: Options) -> Samples:
    """The samples that `text` names; without it what a recording or a bundle brings along, else random ones.

    Raises:
        DataError: there is nothing, or it is empty.
        UsageError: `text` is none of the forms above.
    """
    found = _open(text, a, b, mapping, wish, options)
    if wish.condition is not None and not found.is_changed:
        raise UsageError(f"condition `{wish.condition}`: {found.text} is no data set of clips", "conditions change clips before they are preprocessed; give a recipe or a data set with `--data`")
    if found.ids is not None and not found.ids:
        raise DataError(f"{found.text}: no samples", "give data with at least one")
    return found if wish.limit is None else _first(found, wish.limit)


def of_arrays(arrays: Iterable[Mapping[str, np.ndarray]], text: str = "given in Python") -> Samples:
    """Samples of a list of feeds, as the Python API takes them.

    Raises:
        DataError: the list is empty.
    """
    kept = list(arrays)
    if not kept:
        raise DataError(f"data {text}: no samples", "give at least one dict of arrays")
    return Samples(text, tuple(str(i) for i in range(len(kept))), lambda: (Sample(str(i), {k: np.asarray(v) for k, v in feeds.items()}) for i, feeds in enumerate(kept)))


def _open(text: str | None, a: Side, b: Side, mapping: Mapping[str, str], wish: Wish, options: Options) -> Samples:
    if text is None:
        return _brought_along(a, b, wish, mapping)
    word, _, rest = text.partition(":")
    if word == "random":
        return _random(text, rest, a, b, mapping, wish)
    path = Path(text)
    if path.suffix in (".yaml", ".yml"):
        return _of_recipe(path, a, b, wish, options)
    if _is_dataset(word):
        return _of_dataset(word, rest or "test", None, Path(), text, a, b, wish, options)
    if path.is_dir() or path.suffix in SUFFIXES:
        return _of_files(path, a, b, mapping)
    if path.exists() or "/" in text:
        raise UsageError(f"--data {text}: {'not a kind of data that is known' if path.exists() else 'there is no such file or folder'}", "give a folder, .npz, .safetensors, a recipe, a data set of calibration/, or random:8")
    return _of_dataset(word, rest or "test", None, Path(), text, a, b, wish, options)


def _brought_along(a: Side, b: Side, wish: Wish, mapping: Mapping[str, str]) -> Samples:
    recorded = [side for side in (a, b) if isinstance(side, RecordedSide)]
    if len(recorded) == 2:
        recording, others = recorded[0].recording, set(recorded[1].recording.ids)
        ids = [name for name in recording.ids if name in others] or recording.ids
        return Samples("as recorded", tuple(ids), lambda: (Sample(i, {}, recording.labels(i)) for i in ids))
    if recorded:
        try:
            return _of_files(recorded[0].path, a, b, mapping)
        except DataError:
            raise DataError(f"{recorded[0].text} holds outputs only, and the other side must be run on something", "give the data that was recorded with `--data`") from None
    for side in (a, b):
        if isinstance(side, BundleSide) and (side.bundle.path / "golden.safetensors").is_file():
            return _as_recorded(_of_files(side.bundle.path / "golden.safetensors", a, b, mapping), side)
    return _random(DEFAULT_RANDOM, DEFAULT_RANDOM.partition(":")[2], a, b, mapping, wish)


def _as_recorded(samples: Samples, side: BundleSide) -> Samples:
    """The golden clips that are real ones: those cut or stretched are unlike anything that ranges were calibrated on."""
    path = side.bundle.path / "golden.json"
    clips = read_json(path).get("clips", []) if path.is_file() else []
    derived = {clip["id"] for clip in clips if clip.get("derived_from") is not None}
    ids = tuple(id for id in samples.ids or () if id not in derived)
    return replace(samples, ids=ids, read=lambda: (sample for sample in samples.read() if sample.id not in derived)) if ids else samples


def _first(samples: Samples, limit: int) -> Samples:
    import itertools

    ids = None if samples.ids is None else samples.ids[:limit]
    return replace(samples, ids=ids, read=lambda: itertools.islice(samples.read(), limit))


# --------------------------------------------------------------------------- files


def _of_files(path: Path, a: Side, b: Side, mapping: Mapping[str, str]) -> Samples:
    known = [*a.outputs, *b.outputs, *(mapping.get(name, name) for name in b.outputs)]
    recording = Recording(path, "input", ignore=set(known) - set(a.inputs) - set(b.inputs))
    ours = {theirs: mine for theirs, mine in mapping.items() if theirs in b.inputs}
    wanted = set(a.inputs) | {ours.get(name, name) for name in b.inputs}
    strange = [name for name in recording.names if ours.get(name, name) not in wanted]
    if wanted and strange:
        raise DataError(f"{path}: `{strange[0]}` is no input of either model", f"inputs: {', '.join(sorted(wanted))}")

    def read() -> Iterator[Sample]:
        for name in recording.ids:
            yield Sample(name, {ours.get(key, key): value for key, value in recording[name].items()}, recording.labels(name))

    return Samples(str(path), tuple(recording.ids), read, recording.digest)


# --------------------------------------------------------------------------- data sets


def _is_dataset(name: str) -> bool:
    """Whether calibration/ describes a set of this name; its clips often lie in a folder of the same name (`./cabin` is that folder)."""
    from edgekit.datasets import find_description

    try:
        find_description(name, Path())
    except DataError:
        return False
    return True


def _of_recipe(path: Path, a: Side, b: Side, wish: Wish, options: Options) -> Samples:
    from edgekit.recipe import load_recipe

    recipe = load_recipe(path, (), options.cache)
    return _of_dataset(recipe.verify.data, "test", recipe.verify.clips, recipe.dir, str(path), a, b, wish, options)


def _of_dataset(name: str, split: str, limit: int | None, beside: Path, text: str, a: Side, b: Side, wish: Wish, options: Options) -> Samples:
    from edgekit.datasets import metrics_of, open_dataset
    from edgekit.preprocess import labels_of, preprocess

    whole = next((flow for side in (a, b) if (flow := _flow_of(side)) is not None and flow.preprocess is not None), None)
    if whole is None:
        raise UsageError(f"--data {text}: neither side says how clips become inputs", "compare with a recipe or a bundle, or save the inputs as .npz")
    asked = min(filter(None, (limit, wish.limit)), default=None)
    dataset = open_dataset(name, split, asked, beside, options.cache)

    def read() -> Iterator[Sample]:
        for id in dataset.ids:
            clip = dataset.clip(id) if wish.condition is None else changed(wish.condition, dataset.clip(id))
            inputs = preprocess(dict(whole.preprocess or {}), clip)
            if wish.condition is not None:
                inputs = masked(wish.condition, inputs, whole.preprocess or {}, id)
            if isinstance(a, EngineSide) or isinstance(b, EngineSide):
                yield from _engine_samples(id, inputs, whole, a if isinstance(a, EngineSide) else b, wish)  # type: ignore[arg-type]
            else:
                yield Sample(id, inputs, labels_of(dict(whole.preprocess or {}), clip), clip.tags)

    is_whole = not (isinstance(a, EngineSide) or isinstance(b, EngineSide)) or wish.steps is not None
    said = f"{name}, split {split}" + (f", {title(wish.condition)}" if wish.condition is not None else "")
    return Samples(said, tuple(dataset.ids) if is_whole else None, read, dataset.digest, None, metrics_of(dataset), wish.condition is not None)


def _flow_of(side: Side) -> FlowSide | None:
    return side.whole if isinstance(side, EngineSide) else side if isinstance(side, FlowSide) else None


def _engine_samples(id: str, inputs: Mapping[str, np.ndarray], whole: FlowSide, engine: EngineSide, wish: Wish) -> Iterator[Sample]:
    """What the flow feeds to one engine: a sample per run, or in a stream one sample with all runs along the stream axis."""
    from edgekit.flow import run_flow

    fed: list[dict[str, np.ndarray]] = []

    def tap(name: str, feeds: Mapping[str, np.ndarray], _: Mapping) -> None:
        if name == engine.name:
            fed.append({key: np.array(value) for key, value in feeds.items()})

    run_flow(whole.flow, whole.sessions, inputs, tap)
    if wish.steps is None:
        yield from (Sample(f"{id}#{i}", feeds) for i, feeds in enumerate(fed))
    else:
        yield Sample(id, {name: np.stack([feeds[name] for feeds in fed], axis=1 if wish.stream_axis is None else wish.stream_axis) for name in engine.data_inputs})


# --------------------------------------------------------------------------- random


def _random(text: str, rest: str, a: Side, b: Side, mapping: Mapping[str, str], wish: Wish) -> Samples:
    """Each sample has a generator of its own, so that the first are the same however many there are."""
    try:
        count = int(rest or DEFAULT_RANDOM.partition(":")[2])
    except ValueError:
        raise UsageError(f"--data {text}: `{rest}` is not a number of samples", "such as random:8") from None
    if not 1 <= count <= MAX_RANDOM:
        raise DataError(f"--data {text}: {count} samples", f"ask for 1 to {MAX_RANDOM}")
    if isinstance(a, RecordedSide) or isinstance(b, RecordedSide):
        raise UsageError(f"--data {text}: a recording cannot answer to random numbers", "give the data that was recorded")
    ports = _random_ports(a, b, mapping, wish)

    def read() -> Iterator[Sample]:
        for i in range(count):
            rng = np.random.default_rng((wish.seed, i))
            yield Sample(str(i), {name: _draw(rng, port, wish.val_range.get(name, wish.val_range.get("", DEFAULT_RANGE))) for name, port in ports.items()})

    return Samples(f"random:{count}", tuple(str(i) for i in range(count)), read, lambda: None, wish.seed)


def _random_ports(a: Side, b: Side, mapping: Mapping[str, str], wish: Wish) -> dict[str, Port]:
    """{A's name: dtype and shape} of every input that is no state; a free axis takes B's length, `shapes`, or 1."""
    partners = {mapping.get(name, name): port for name, port in b.data_inputs.items()}
    for name in wish.shapes:
        if name not in a.inputs and name not in partners:
            raise UsageError(f"--input-shape {name}: there is no such input", f"inputs: {', '.join(a.data_inputs)}")
    found = {}
    for name, port in {**partners, **a.data_inputs}.items():
        other = partners.get(name, port)
        longer = other if len(other.shape) > len(port.shape) else port
        shape = list(longer.shape)
        if len(other.shape) == len(port.shape):
            shape = [x if x is not None else y for x, y in zip(port.shape, other.shape, strict=True)]
        if wish.steps is not None:
            # Where both take single steps, time is an axis of its own.
            axis = 1 if wish.stream_axis is None else wish.stream_axis
            has_axis = wish.stream_axis is not None or len(other.shape) != len(port.shape)
            shape = [*shape[:axis], wish.steps, *shape[axis + has_axis :]]
        found[name] = Port(port.dtype, wish.shapes.get(name) or tuple(1 if n is None else n for n in shape))
    return found


def _draw(rng: np.random.Generator, port: Port, between: tuple[float, float]) -> np.ndarray:
    low, high = between
    shape = tuple(int(n or 1) for n in port.shape)
    dtype = np.dtype(port.dtype)
    if dtype.kind == "f":
        return rng.uniform(low, high, shape).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    least = max(int(np.ceil(low)), int(np.iinfo(dtype).min))
    return rng.integers(least, max(least, int(np.floor(high))), shape, endpoint=True).astype(dtype)
