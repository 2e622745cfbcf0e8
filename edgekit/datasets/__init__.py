"""Data sets: what a clip is, and how a name in a recipe becomes clips.

`calibrate: {data: cabin}` in a recipe names `calibration/cabin.yaml`, which is found beside the
recipe, then upward, then in the wheel's own copy. The YAML says which loader reads the set
(`dataset: folder`), how it is split, and what that loader needs. `open_dataset` turns it into a
`Dataset`: a list of ids, one clip at a time, and a digest of the content that enters cache keys.

To add a loader: a module with `open_split(description, split, limit, cache_root) -> Dataset` and
`KEYS` (the YAML keys it takes beside `dataset` and `splits`), one line in DATASETS, a test.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from edgekit.errors import DataError

if TYPE_CHECKING:  # `edgekit plan` opens data sets and must start fast: no numpy here
    import numpy as np

SPLITS = ("train", "calibration", "test")

# Imported when first opened: a loader may need numpy, PyAV or a synthesizer.
DATASETS = {
    "folder": "edgekit.datasets.folder",
    "synthetic_av": "edgekit.datasets.synthetic",
}

_WHEEL_CALIBRATION = Path(__file__).resolve().parents[1] / "_data" / "calibration"


@dataclass(frozen=True, eq=False)  # eq=False: arrays have no single truth value
class Clip:
    """One labelled utterance, decoded and not yet preprocessed.

    Attributes:
        id: unique in its data set.
        frames: uint8 [n, h, w, 3], RGB.
        fps: frames per second.
        audio: int16 [samples], mono.
        sample_rate_hz: of `audio`.
        labels: e.g. {"o": 0.4, "a": 0.1, "v": 0.6}; finite.
        tags: what to slice results by, e.g. {"snr_db": 5.0, "voice": "f2"}.
    """

    id: str
    frames: np.ndarray
    fps: float
    audio: np.ndarray
    sample_rate_hz: int
    labels: dict[str, float]
    tags: dict[str, float | str] = field(default_factory=dict)


@runtime_checkable
class Dataset(Protocol):
    """One split of a data set. It is a Source too: `digest` is what enters a cache key.

    Attributes:
        name: as the recipe calls it.
        ids: every clip, in a fixed order, each once.
        source: the YAML that describes it.
        metrics: names from edgekit.metrics.METRICS or `package.module:function` that the set
            suggests; empty when it leaves the choice to the model.
    """

    name: str
    ids: list[str]
    source: Path
    metrics: tuple[str, ...]

    def clip(self, id: str) -> Clip:
        """Decode one clip. Raises DataError, naming the file, for media that cannot be used."""

    def digest(self) -> str:
        """sha256 (hex) of ids, labels, tags and the content of every media file; paths do not enter."""


class Description(dict):
    """The YAML of a data set as a plain dict that remembers its file and the line of each key."""

    def __init__(self, values: Mapping[str, Any], path: Path, lines: Mapping[tuple, int]):
        super().__init__(values)
        self.path = path
        self.lines = dict(lines)

    def error(self, keys: tuple, message: str, hint: str | None = None) -> DataError:
        """A DataError at the line of `keys`, e.g. ("splits", "test"), or of the nearest parent."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return DataError(f"{self.path}:{self.lines.get(keys, 1)}: {message}", hint)


def open_dataset(name: str, split: str, limit: int | None, recipe_dir: Path, cache_root: Path) -> Dataset:
    """Open one split of the data set `name`.

    Args:
        split: "train", "calibration" or "test"; the splits of a set share no clip.
        limit: use only that many clips, always the same ones; None for all.
        recipe_dir: where the search for `calibration/<name>.yaml` starts.
        cache_root: generated clips may be kept under `cache_root / "data"`.

    Raises:
        DataError: no such set or split, a description that is wrong (with its line), labels that
            are wrong (with the CSV's line), or fewer clips than `limit`.
    """
    path = find_description(name, recipe_dir)
    description = read_description(path)
    loader = importlib.import_module(DATASETS[description["dataset"]])
    keys = getattr(loader, "KEYS", None)
    if keys is not None:
        _refuse_unknown_keys(description, ("dataset", "splits", *keys))
    if split not in SPLITS:
        raise DataError(f"{path}: unknown split `{split}`", f"a split is one of {', '.join(SPLITS)}")
    if split not in description["splits"]:
        raise description.error(
            ("splits",), f"data set `{name}` has no split `{split}`", f"it has {', '.join(description['splits'])}"
        )
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise DataError(f"{path}: the number of clips must be a positive integer, got {limit!r}")

    size = description["splits"][split]
    if isinstance(size, int) and limit is not None and limit > size:
        raise _too_few(description, name, split, limit, size)
    dataset = loader.open_split(description, split, limit, cache_root)
    if not dataset.ids:
        raise description.error(("splits", split), f"split `{split}` of data set `{name}` is empty")
    if limit is not None and len(dataset.ids) != limit:
        raise _too_few(description, name, split, limit, len(dataset.ids))
    return dataset


def find_description(name: str, recipe_dir: Path) -> Path:
    """The path of `calibration/<name>.yaml`: in `recipe_dir`, then in each parent, then in the wheel."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise DataError(
            f"data set `{name}`: not a name",
            "give the name of a file in calibration/ without its folder and .yaml, such as synthetic_av",
        )
    start = Path(recipe_dir).resolve()
    folders = [folder / "calibration" for folder in (start, *start.parents)] + [_WHEEL_CALIBRATION]
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted({p.stem for folder in folders if folder.is_dir() for p in folder.glob("*.yaml")})
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean `{close[0]}`?" if close else f"known here: {', '.join(known) or 'none'}"
    raise DataError(f"data set `{name}`: no calibration/{name}.yaml in {start} or above it", hint)


def read_description(path: Path) -> Description:
    """Read a data set's YAML and check what all loaders share: `dataset` and `splits`.

    Raises:
        DataError: with file and line.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent, index):
            # An alias can blow a small file up to gigabytes; nothing here needs one.
            if self.check_event(yaml.AliasEvent):
                raise yaml.composer.ComposerError(None, None, "aliases are not allowed", self.peek_event().start_mark)
            return super().compose_node(parent, index)

    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise DataError(f"{path}: not UTF-8 text ({e.reason} at byte {e.start})") from e
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror})") from e
    loader = Loader(text)
    try:
        node = loader.get_single_node()
        lines: dict[tuple, int] = {(): 1}
        _lines_of(node, (), lines, path)
        values = loader.construct_document(node) if node is not None else None
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise DataError(f"{path}:{line}: not valid YAML: {getattr(e, 'problem', None) or e}") from e
    finally:
        loader.dispose()
    if not isinstance(values, dict):
        raise DataError(
            f"{path}:1: a data set is a mapping, this is {_kind(values)}",
            "such as {dataset: folder, root: ..., splits: {calibration: ..., test: ...}}",
        )

    description = Description(values, path, lines)
    if "dataset" not in values:
        raise description.error((), "`dataset` is missing", f"one of {', '.join(DATASETS)}")
    if values["dataset"] not in DATASETS:
        close = difflib.get_close_matches(str(values["dataset"]), DATASETS, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"known: {', '.join(DATASETS)}"
        raise description.error(("dataset",), f"unknown dataset `{values['dataset']}`", hint)
    splits = values.get("splits")
    if not isinstance(splits, dict) or not splits:
        raise description.error(("splits",), "`splits` must say what train, calibration and test are made of")
    for split, size in splits.items():
        if split not in SPLITS:
            raise description.error(("splits", split), f"unknown split `{split}`", f"known: {', '.join(SPLITS)}")
        if isinstance(size, (int, float)) and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise description.error(("splits", split), f"split `{split}` needs at least one clip, got {size!r}")
    return description


def metrics_of(dataset: Dataset) -> dict[str, Any]:
    """The metrics that a data set suggests, as {name: edgekit.metrics.Metric}.

    `package.module:function` runs the user's code, so call this only while building a recipe
    that was named on the command line, never for something found in a bundle.

    Raises:
        DataError: no such metric, module or function.
    """
    # metrics.py needs numpy; `edgekit plan` imports this module and must start fast.
    from edgekit.metrics import METRICS, Metric

    found = {}
    for name in dataset.metrics:
        if ":" in name:
            found[name] = Metric(_user_function(name, dataset.source), "", "lower")
        elif name in METRICS:
            found[name] = METRICS[name]
        else:
            close = difflib.get_close_matches(name, METRICS, n=1)
            hint = f"did you mean `{close[0]}`?" if close else f"known: {', '.join(METRICS)}"
            raise DataError(f"{dataset.source}: unknown metric `{name}`", hint)
    return found


def _user_function(name: str, source: Path):
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as e:
        raise DataError(
            f"{source}: metric `{name}` cannot be imported ({e})",
            "install its package, or set PYTHONPATH to the folder that holds it",
        ) from e
    function = getattr(module, function_name, None)
    if not callable(function):
        raise DataError(f"{source}: metric `{name}`: {module_name} has no function `{function_name}`")
    return function


def _lines_of(node, keys: tuple, lines: dict[tuple, int], path: Path) -> None:
    """Fill `lines` with the line of every key under `node`; PyYAML keeps the last of two equal keys, we refuse."""
    import yaml

    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        here = (*keys, key.value if isinstance(key.value, str) else str(key.value))
        if here in lines:
            raise DataError(f"{path}:{key.start_mark.line + 1}: `{here[-1]}` stands here twice")
        lines[here] = key.start_mark.line + 1
        _lines_of(value, here, lines, path)


def _refuse_unknown_keys(description: Description, known: tuple[str, ...]) -> None:
    for key in description:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean `{close[0]}`?" if close else f"known: {', '.join(known)}"
            raise description.error((str(key),), f"unknown key `{key}`", hint)


def _too_few(description: Description, name: str, split: str, limit: int, size: int) -> DataError:
    return description.error(
        ("splits", split),
        f"{limit} clips asked for, split `{split}` of data set `{name}` has {size}",
        f"ask for at most {size} in the recipe",
    )


def _kind(value: Any) -> str:
    return "empty" if value is None else f"a {type(value).__name__}"
