"""Data sets: what a clip is, and how a name in a recipe becomes clips.

`calibrate: {data: cabin}` in a recipe names `calibration/cabin.yaml`, which is found beside the
recipe, then upward, then in the wheel's own copy. The YAML says which loader reads the set
(`dataset: folder`), how it is split, and what that loader needs. `open_dataset` turns it into a
`Dataset`: a list of ids, one clip at a time, and a digest of the content that enters cache keys.

To add a loader: a module with `open_split(description, split, limit, cache_root) -> Dataset` and
`KEYS` (the YAML keys it takes beside `dataset` and `splits`), one line in DATASETS, a test.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from edgekit import document
from edgekit.errors import DataError, RecipeError

if TYPE_CHECKING:  # `edgekit plan` opens data sets and must start fast: no numpy here
    import numpy as np

    from edgekit.metrics import Metric

SPLITS = ("train", "calibration", "test")

# Imported when first opened: a loader may need numpy, PyAV or a synthesizer.
DATASETS = {
    "folder": "edgekit.datasets.folder",
    "affwild2": "edgekit.datasets.affwild2",
    "chsims": "edgekit.datasets.chsims",
    "synthetic_av": "edgekit.datasets.synthetic",
    "synthetic_emotion": "edgekit.datasets.synthetic",
    "synthetic_va": "edgekit.datasets.synthetic",
    "synthetic_speech": "edgekit.datasets.synthetic",
    "ravdess": "edgekit.datasets.ravdess",
    "cremad": "edgekit.datasets.cremad",
    "iemocap": "edgekit.datasets.iemocap",
    "cmu_mosi": "edgekit.datasets.cmu_mosi",
    "cmu_mosei": "edgekit.datasets.cmu_mosei",
    "meld": "edgekit.datasets.meld",
    "clean_noisy": "edgekit.datasets.clean_noisy",
    "noisy_speech": "edgekit.datasets.noisy_speech",
    "synthetic_av_noisy": "edgekit.datasets.noisy_scenes",
}


@dataclass(frozen=True, eq=False)  # eq=False: arrays have no single truth value
class Clip:
    """One labelled utterance, decoded and not yet preprocessed.

    Attributes:
        id: unique in its data set.
        frames: uint8 [n, h, w, 3], RGB.
        fps: frames per second.
        audio: int16 [samples], mono.
        sample_rate_hz: of `audio`.
        labels: e.g. {"o": 0.4, "a": 0.1, "v": 0.6}, {"emotion": 3.0} (the index of a class), or one value
            for every frame: {"valence": float32 [n], "arousal": float32 [n]}; finite. Or sound without its
            noise, sample by sample as `audio`: {"speech": float32 [samples], -1..1}.
        tags: what to slice results by, e.g. {"snr_db": 5.0, "voice": "f2"}.
        frame_ms: float64 [n], when each frame was taken, in ms from the start of `audio`; never falls.
            None: frame i is at 1000*i/fps.
        features: float32 [n, dim] each, one row per frame, made by somebody else's network, e.g. {"vggish": ...};
            or [rows, dim] of something else that is in order, such as words.
    """

    id: str
    frames: np.ndarray
    fps: float
    audio: np.ndarray
    sample_rate_hz: int
    labels: dict[str, float | np.ndarray]
    tags: dict[str, float | str] = field(default_factory=dict)
    frame_ms: np.ndarray | None = None
    features: dict[str, np.ndarray] = field(default_factory=dict)


@runtime_checkable
class Dataset(Protocol):
    """One split of a data set. It is a Source too: `digest` is what enters a cache key.

    Attributes:
        name: as the recipe calls it.
        ids: every clip, in a fixed order, each once.
        source: the YAML that describes it.
        metrics: names from edgekit.metrics.METRICS or `package.module:function` that the set
            suggests; empty when it leaves the choice to the model.

    A set may also have `classes` (names, in the order of their indices), `counts` (what was found and left out or repaired, known once
    the clips were read) and `series(id) -> (recording, place of the clip's first frame in it)` where clips are windows of recordings.
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

    def __init__(self, read: document.Document):
        super().__init__(read.data)
        self.document = read
        self.path = Path(read.path)

    def error(self, keys: tuple, message: str, hint: str | None = None) -> DataError:
        """A DataError at the line of `keys`, e.g. ("splits", "test"), or of its nearest parent."""
        file, line = self.document.place(keys)
        return DataError(f"{file}:{line or 1}: {message}", hint)


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
    try:
        return document.find("calibration", name, Path(recipe_dir))
    except RecipeError as e:
        raise DataError(f"data set `{name}`: {e.message}", e.hint) from None


def read_description(path: Path) -> Description:
    """Read a data set's YAML and check what all loaders share: `dataset` and `splits`.

    Raises:
        DataError: with file and line.
    """
    try:
        description = Description(document.read(path))
    except RecipeError as e:
        raise DataError(e.message, e.hint) from None
    if "dataset" not in description:
        raise description.error((), "`dataset` is missing", f"known: {', '.join(DATASETS)}")
    kind = description["dataset"]
    if not isinstance(kind, str) or kind not in DATASETS:
        raise description.error(("dataset",), f"unknown dataset `{kind}`", document.suggestion(str(kind), list(DATASETS)))
    splits = description.get("splits")
    if not isinstance(splits, dict) or not splits:
        raise description.error(("splits",), "`splits` must say what train, calibration and test are made of")
    for split, content in splits.items():
        if split not in SPLITS:
            raise description.error(("splits", split), f"unknown split `{split}`", document.suggestion(split, SPLITS))
        if content is None or (isinstance(content, (int, float)) and not (type(content) is int and content >= 1)):
            raise description.error(("splits", split), f"split `{split}` needs at least one clip, got {content!r}")
    return description


def keys(schema: type[document.Schema]) -> tuple[str, ...]:
    """A loader's KEYS, from the schema of its YAML."""
    return tuple(key for key in schema.model_fields if key not in ("dataset", "splits"))


def metrics_of(dataset: Dataset) -> dict[str, Metric]:
    """The metrics that a data set suggests, as {name: Metric}.

    `package.module:function` runs the user's code, so call this only while building a recipe
    that was named on the command line, never for something found in a bundle.

    Raises:
        DataError: no such metric, module or function.
    """
    # metrics.py needs numpy; `edgekit plan` imports this module and must start fast.
    from edgekit.metrics import METRICS

    found = {}
    for name in dataset.metrics:
        if ":" in name:
            found[name] = _own_metric(name, dataset)
        elif name in METRICS:
            found[name] = METRICS[name]
        else:
            raise DataError(f"{dataset.source}: unknown metric `{name}`", document.suggestion(name, list(METRICS)))
    return found


def _own_metric(name: str, dataset: Dataset) -> Metric:
    import numpy as np

    from edgekit.metrics import Metric

    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name, None)
    except ImportError as e:
        raise DataError(
            f"{dataset.source}: metric `{name}` cannot be imported: {e}",
            "install its package, or set PYTHONPATH to the folder that holds it",
        ) from e
    if not callable(function):
        raise DataError(f"{dataset.source}: metric `{name}`: {module_name} has no function `{function_name}`")

    def score(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
        """The user's function takes [n], a Metric takes [..., n]: one call for every bootstrap resample."""
        shape = labels.shape[:-1]
        pairs = zip(labels.reshape(-1, labels.shape[-1]), predictions.reshape(-1, labels.shape[-1]), strict=True)
        return np.array([float(function(y, p)) for y, p in pairs]).reshape(shape)

    return Metric(name, score, "", getattr(dataset, "metric_direction", "lower"), function_name.replace("_", " "))


def _refuse_unknown_keys(description: Description, known: tuple[str, ...]) -> None:
    for key in description:
        if key not in known:
            raise description.error((key,), f"unknown key `{key}`", document.suggestion(key, known))


def _too_few(description: Description, name: str, split: str, limit: int, size: int) -> DataError:
    return description.error(
        ("splits", split),
        f"{limit} clips asked for, split `{split}` of data set `{name}` has {size}",
        f"ask for at most {size} in the recipe",
    )
