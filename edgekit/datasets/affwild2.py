"""Aff-Wild2: valence and arousal of every frame of videos from the web, in windows of sub-sequences.

    calibration/affwild2.yaml
      dataset: affwild2
      root: /data/Aff-Wild2
      splits: {train: Train_Set, calibration: Validation_Set, test: Test_Set}

Its layout (x is a video; two people in one are x_left and x_right, and share the sound of x):

    annotations/VA_Estimation_Challenge/{Train_Set,Validation_Set}/x.txt
                                      `valence,arousal`, then a line a frame; -5 is no label. Or x.csv with
                                      the columns V, A and frame_id (from 1), of the frames that have labels
    cropped_aligned/x/00001.jpg       the face in each frame, from 1; no face, no file: a black frame
    realtimestamps/x_video_ts.txt     one header line, then when each frame was taken, in ms (mkvextract timestamps_v2)
    audio/x.wav                       from time 0 of the time stamps; shifted by `audio_offsets` if it is not
    vggish/x.npy                      optional features, a row a frame (`features: {vggish: vggish}`)

A clip is a window of L sub-sequences of W frames, 16 of 32 as published, that a model labels at the end
of each. Only frames with a label count: those without are left out as if they had not been filmed (their
time stamps stay true). Windows slide by `stride` for W frames and then jump on by the rest of the L*W, so
that every stride-th frame is the end of a sub-sequence once. The first window ends after (L-1)*W + 1
frames or, with a stride of W, after L*W; the last ones end with the video, which predicts some frames
twice. In a video shorter than a window the early sub-sequences stand at its first frame.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import io
import itertools
import json
import math
import os
import statistics
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from edgekit import document
from edgekit.artifact import hash_file, sha256_of
from edgekit.datasets import Clip, Description, keys
from edgekit.datasets.folder import draw, resolved, text_of
from edgekit.document import Schema, Text
from edgekit.errors import DataError, RecipeError
from edgekit.progress import track

if TYPE_CHECKING:  # opening a set for `edgekit plan` must not wait for numpy
    import numpy as np

_SEMANTICS = 1  # 1: frames without a label left out; sound from one sub-sequence before the window
PARTITIONS = ("Train_Set", "Validation_Set", "Test_Set")
INVALID = -5.0
SHORTEST = 8  # frames with a label; what one sub-sequence shows to a model
_MAX_CACHED_BYTES = 128 << 20  # of decoded faces; a window of 512 takes 19 MB
_SEGMENT = 31  # intervals between frames in one file of `segments`
_HEADER = "valence,arousal"

class AffWild2(Schema):
    """The YAML of a data set read by this loader. Folders are relative to `root`."""

    dataset: Literal["affwild2"]
    splits: dict[str, Any] = Field(description="split -> Train_Set, Validation_Set or Test_Set of the partition, or a list of them")
    root: Text = Field(description="the folder of the data set, relative to the YAML")
    annotations: Text = Field("annotations/VA_Estimation_Challenge", description="holds Train_Set and Validation_Set")
    frames: Text = Field("cropped_aligned", description="holds a folder of faces for every video")
    timestamps: Text = Field("realtimestamps", description="holds the time stamps of the frames")
    audio: Text = Field("audio", description="holds the sound of every video, .wav or .flac")
    segments: Text | None = Field(None, description="sound cut into x/<n>.wav, from frame n-31 to frame n; used where `audio` lacks a video")
    audio_offsets: Text | None = Field(None, description="CSV `video,offset_ms`: when the sound begins, on the clock of the frames; 0 if not in it")
    features: dict[str, Text] = Field({}, description="name -> folder with x.npy, [frames, dim], made by another network")
    partition: Text | None = Field(None, description="`official` (the folders), or a JSON {fold: {Train_Set: [videos], ...}}; by default drawn, 60/20/20 by video")
    fold: Text = Field("seed_0", description="which fold of the JSON")
    seed: int = Field(0, description="of the drawn partition, and of which windows a limit keeps")
    fps: Annotated[float, Field(gt=0, le=1000)] | None = Field(None, description="of videos without time stamps; by default they are refused")
    size: Annotated[int, Field(ge=8, le=4096)] = Field(112, description="width and height of the faces")
    subsequences: Annotated[int, Field(ge=1, le=1024)] = Field(16, description="L, in a window")
    frames_per_subsequence: Annotated[int, Field(ge=1, le=1024)] = Field(32, description="W")
    stride: dict[str, int] = Field({}, description="split -> every how many frames are predicted, a divisor of W; by default 1 in test and W elsewhere")
    sample_rate_hz: Annotated[int, Field(ge=1000, le=768_000)] = Field(44_100, description="sound is resampled to this")


KEYS = keys(AffWild2)


@dataclass(frozen=True)
class Video:
    """One person in one video: the frames that have a label, in order of time.

    Attributes:
        numbers: of the frames, from 1.
        times_ms: on the clock of the sound.
        fps: of the whole video.
        faces: numbers of the frames that have a picture.
        sound: its file, or a folder of segments (`is_cut`), or None.
        stamps_ms: time stamp of every frame of the video, with or without a label, as its file has it.
        features: {name: file}.
    """

    name: str
    numbers: array
    valence: array
    arousal: array
    times_ms: array
    fps: float
    faces: frozenset[int]
    sound: Path | None
    is_cut: bool
    stamps_ms: array
    features: dict[str, Path]


@dataclass(frozen=True)
class Window:
    """A clip: positions first to last (both included) of the labelled frames of a video."""

    id: str
    video: Video
    first: int
    last: int


def open_split(description: Description, split: str, limit: int | None, cache_root: Path) -> AffWild2Split:
    """Read the annotations and time stamps of one split, and lay its windows.

    Raises:
        DataError: with the line of the YAML, an annotation or a file of time stamps.
    """
    try:
        spec = document.validate(description.document, AffWild2)
    except RecipeError as e:
        raise DataError(e.message, e.hint) from None
    _check(spec, description)
    root = (description.path.parent / Path(spec.root).expanduser()).absolute()
    if not root.is_dir():
        raise description.error(("root",), f"`root` is not a folder: {root}", "it is relative to this YAML")
    place = _Place(root, spec)
    annotated = place.annotated()
    partition = _partition(place, annotated, description)
    names = sorted(name for name, part in partition.items() if part in _parts(spec.splits[split]))
    counts: dict[str, int] = {}
    stride = spec.stride.get(split, 1 if split == "test" else spec.frames_per_subsequence)
    windows: list[Window] = []
    for name in names:
        video = _video(place, name, annotated[name][1], counts)
        if len(video.numbers) < SHORTEST:
            _count(counts, f"videos with fewer than {SHORTEST} labelled frames, left out")
            continue
        spans = lay_windows(len(video.numbers), spec.subsequences, spec.frames_per_subsequence, stride)
        windows += [Window(f"{name}/{video.numbers[last]:05d}", video, first, last) for first, last in spans]
    if windows and not any(window.video.faces for window in windows):
        raise description.error(("frames",), f"no video of split `{split}` has a face in {place.root / spec.frames}/<video>/00001.jpg")
    if windows and all(window.video.sound is None for window in windows):
        raise description.error(("audio",), f"no video of split `{split}` has sound in {place.root / spec.audio}/<video>.wav")
    if limit is not None:
        kept = {window.id for window in sorted(windows, key=lambda window: draw(spec.seed, window.id))[:limit]}
        windows = [window for window in windows if window.id in kept]
    return AffWild2Split(description.path, place, windows, counts)


def lay_windows(n_frames: int, n_subsequences: int, frames_per_subsequence: int, stride: int) -> list[tuple[int, int]]:
    """(first, last) position, both included, of every window over a video of `n_frames` labelled frames.

    >>> lay_windows(1300, 16, 32, 32)
    [(0, 511), (512, 1023), (788, 1299)]
    """
    span = n_subsequences * frames_per_subsequence
    back = range(((frames_per_subsequence - 1) // stride) * stride, -1, -stride)  # from a block's last frame to where its windows end
    ends = [block + span - 1 - b for block in range(0, n_frames - span + 1, span) for b in back]
    if not ends or ends[-1] < n_frames - 1:
        ends += [n_frames - 1 - b for b in back if b < n_frames]
    return [(max(0, end - span + 1), end) for end in sorted(set(ends))]


class AffWild2Split:
    """One split: windows in the order of the videos and of time, decoded one by one."""

    metrics = ()

    def __init__(self, source: Path, place: _Place, windows: list[Window], counts: dict[str, int]):
        self.name, self.source, self.counts = source.stem, source, counts
        self.ids = [window.id for window in windows]
        self._place, self._spec = place, place.spec
        self._windows = {window.id: window for window in windows}
        self._sha256: dict[Path, str] = {}
        self._faces: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()
        self._sound: tuple[Path, np.ndarray] | None = None

    def clip(self, id: str) -> Clip:
        """Decode one window: its own faces, and its sound from one sub-sequence before it.

        Raises:
            DataError: a face of another size, damaged media, features of too few rows, or a file that changed since `digest`.
        """
        import numpy as np

        window = self._windows[id]
        video, part = window.video, slice(window.first, window.last + 1)
        size = self._spec.size
        frames = np.zeros((window.last + 1 - window.first, size, size, 3), np.uint8)
        numbers = video.numbers[part]
        for i, number in enumerate(numbers):
            if number in video.faces:
                frames[i] = self._face(video.name, number)
        audio, begin_ms = self._audio(window)
        labels = {"valence": np.array(video.valence[part], np.float32), "arousal": np.array(video.arousal[part], np.float32)}
        features = {name: self._features(path, numbers) for name, path in video.features.items()}
        times = np.array(video.times_ms[part], np.float64) - begin_ms
        tags = {} if video.sound else {"sound": "none"}
        return Clip(id, frames, video.fps, audio, self._spec.sample_rate_hz, labels, tags, times, features)

    def series(self, id: str) -> tuple[str, int]:
        """(video, place of the clip's first frame in it), so that what was said of a video's windows can be put together again."""
        return self._windows[id].video.name, self._windows[id].first

    def digest(self) -> str:
        """sha256 over windows, labels, time stamps and the content of every file that they read."""
        of_video: dict[str, list[Window]] = {}
        for window in self._windows.values():
            of_video.setdefault(window.video.name, []).append(window)
        videos = []
        for name, windows in track(of_video.items(), f"hash {self.name}", len(of_video)):
            video, positions = windows[0].video, _union(windows)
            for path in (files := sorted(self._files(video, windows, positions))):
                if path not in self._sha256:
                    self._sha256[path] = _hash(path)
            videos.append([name, _said(video, positions), [self._sha256[path] for path in files]])
        parts = {
            "dataset": "affwild2",
            "semantics": _SEMANTICS,
            "clips": [[window.id, window.first, window.last] for window in self._windows.values()],
            "videos": videos,
            # What turns the same files into other clips.
            "spec": self._spec.model_dump(include={"size", "sample_rate_hz", "frames_per_subsequence"}),
            "av": importlib.metadata.version("av"),  # another FFmpeg may decode other pixels
        }
        return sha256_of(parts)

    def _files(self, video: Video, windows: list[Window], positions: list[int]) -> set[Path]:
        """Every file that these windows of a video read."""
        files = {self._place.face(video.name, video.numbers[i]) for i in positions if video.numbers[i] in video.faces}
        files |= set(video.features.values())
        if video.is_cut:
            files |= {path for window in windows for _, path in self._segments(window)}
        elif video.sound:
            files.add(video.sound)
        return files

    def _face(self, video: str, number: int) -> np.ndarray:
        from edgekit.datasets import media

        if (video, number) in self._faces:
            self._faces.move_to_end((video, number))
            return self._faces[video, number]
        path = self._place.face(video, number)
        self._refuse_changed(path)
        image = media.read_video(path)[0][0]
        size = self._spec.size
        if image.shape != (size, size, 3):
            raise DataError(f"{path}: face of {image.shape[1]}x{image.shape[0]}, expected {size}x{size}", "set `size` in the data set's YAML")
        self._faces[video, number] = image
        # Windows of one video follow each other and share most faces.
        while len(self._faces) * image.nbytes > _MAX_CACHED_BYTES:
            self._faces.popitem(last=False)
        return image

    def _audio(self, window: Window) -> tuple[np.ndarray, float]:
        """(int16 samples, the time of the first one in ms on the clock of the sound)."""
        import numpy as np

        from edgekit.datasets import media

        video, rate_hz = window.video, self._spec.sample_rate_hz
        first_ms, last_ms = video.times_ms[window.first], video.times_ms[window.last]
        before_ms = min(first_ms, max(0.0, first_ms - 1000.0 * self._spec.frames_per_subsequence / video.fps))
        begin, end = math.floor(before_ms * rate_hz / 1000), math.ceil((last_ms + 1000.0 / video.fps) * rate_hz / 1000)
        if end - begin > media.MAX_SAMPLES:
            raise DataError(f"clip {window.id}: {(last_ms - first_ms) / 1000:.0f} s from its first frame to its last", "are the time stamps in ms?")
        audio = np.zeros(end - begin, np.int16)
        if video.is_cut:
            for number, path in self._segments(window):
                self._refuse_changed(path)
                _put(audio, media.read_audio(path, rate_hz), round(_begin_ms(video, number) * rate_hz / 1000) - begin)
        elif video.sound is not None:
            if self._sound is None or self._sound[0] != video.sound:
                self._refuse_changed(video.sound)
                self._sound = video.sound, media.read_audio(video.sound, rate_hz)
                _refuse_short(video, len(self._sound[1]) * 1000 / rate_hz)
            _put(audio, self._sound[1], -begin)
        return audio, 1000.0 * begin / rate_hz

    def _segments(self, window: Window) -> Iterator[tuple[int, Path]]:
        """(number, file) of the segments that cover a window without a gap: the one that ends with it, and every 31st before."""
        video = window.video
        number, first = video.numbers[window.last], video.numbers[window.first]
        while number >= 1 and number > first - self._spec.frames_per_subsequence:
            yield number, self._place.inside(f"{self._spec.segments}/{base_of(video.name)}/{number}.wav")
            number -= _SEGMENT

    def _features(self, path: Path, numbers: array) -> np.ndarray:
        import numpy as np

        from edgekit.datasets import media

        self._refuse_changed(path)
        rows = media.read_npy(path)
        if rows.ndim != 2 or rows.dtype.kind != "f":
            raise DataError(f"{path}: {rows.dtype} {list(rows.shape)}, expected float [frames, dim]")
        if len(rows) < numbers[-1]:
            raise DataError(f"{path}: {len(rows)} rows, frame {numbers[-1]} has a label", "features need a row for every frame of the video")
        chosen = rows[np.array(numbers) - 1].astype(np.float32)
        if not np.isfinite(chosen).all():
            raise DataError(f"{path}: holds NaN or infinity")
        return chosen

    def _refuse_changed(self, path: Path) -> None:
        if path in self._sha256 and _hash(path) != self._sha256[path]:
            raise DataError(f"{path}: changed since this command began", "run it again")


class _Place:
    """Where the parts of the set are."""

    def __init__(self, root: Path, spec: AffWild2):
        self.root, self.real_root, self.spec = root, root.resolve(), spec
        self.offsets_ms = self._offsets()

    def annotated(self) -> dict[str, tuple[str, Path]]:
        """{video: (its folder, its annotation)}."""
        found: dict[str, tuple[str, Path]] = {}
        for part in PARTITIONS:
            folder = self.root / self.spec.annotations / part
            for path in sorted(folder.iterdir()) if folder.is_dir() else []:
                if path.suffix not in (".txt", ".csv") or path.name.startswith("."):
                    continue
                if path.stem in found:
                    raise DataError(f"{path}: `{path.stem}` is annotated in {found[path.stem][1]} too", "keep one")
                if not path.stem.isprintable() or len(path.stem) > 150:
                    raise DataError(f"{path}: the name of a video must be printable text of at most 150 characters")
                found[path.stem] = part, self.inside(f"{self.spec.annotations}/{part}/{path.name}")
        if not found:
            raise DataError(f"{self.root / self.spec.annotations}: no Train_Set/<video>.txt", "`annotations` in the data set's YAML says where they are")
        return found

    def inside(self, name: str) -> Path:
        """The real path of a file in the root. Raises DataError if there is none, or it lies outside."""
        try:
            return resolved(self.root, self.real_root, name)
        except ValueError as e:
            raise DataError(f"{self.root / name}: the data {e}") from None

    def face(self, video: str, number: int) -> Path:
        return self.inside(f"{self.spec.frames}/{video}/{number:05d}.jpg")

    def faces(self, video: str) -> frozenset[int]:
        """Numbers of the frames of a video that have a picture."""
        try:
            names = os.listdir(self.root / self.spec.frames / video)
        except (FileNotFoundError, NotADirectoryError):
            return frozenset()
        stems = (name[:-4] for name in names if name.endswith(".jpg"))
        return frozenset(int(stem) for stem in stems if stem.isascii() and stem.isdigit() and f"{int(stem):05d}" == stem)

    def sound(self, base: str) -> Path | None:
        for suffix in (".wav", ".flac"):
            if (self.root / self.spec.audio / f"{base}{suffix}").is_file():
                return self.inside(f"{self.spec.audio}/{base}{suffix}")
        folder = self.root / (self.spec.segments or "") / base
        if self.spec.segments and folder.is_dir():
            if not folder.resolve().is_relative_to(self.real_root):
                raise DataError(f"{folder}: reached by a link that leaves the folder")
            return folder
        return None

    def features(self, video: str) -> dict[str, Path]:
        found = {}
        for name, folder in self.spec.features.items():
            of_base = not (self.root / folder / f"{video}.npy").is_file()
            found[name] = self.inside(f"{folder}/{base_of(video) if of_base else video}.npy")
        return found

    def _offsets(self) -> dict[str, float]:
        """{video: when its sound begins, in ms on the clock of its frames}."""
        if self.spec.audio_offsets is None:
            return {}
        path, found = self.inside(self.spec.audio_offsets), {}
        for line, cells in _csv(path, ("video", "offset_ms")):
            if cells["video"] in found:
                raise DataError(f"{path}:{line}: `{cells['video']}` is there twice")
            found[cells["video"]] = _number(cells["offset_ms"], f"{path}:{line}: offset")
        return found


def base_of(video: str) -> str:
    """The video that two people share: x of x_left and x_right."""
    return video.removesuffix("_left").removesuffix("_right")


def _check(spec: AffWild2, description: Description) -> None:
    taken: dict[str, str] = {}
    for split, content in spec.splits.items():
        for part in _parts(content) or [str(content)]:
            if part not in PARTITIONS:
                raise description.error(("splits", split), f"split `{split}` cannot be made of `{part}`", document.suggestion(part, PARTITIONS))
            if taken.setdefault(part, split) != split:
                raise description.error(("splits", split), f"`{part}` is in `{taken[part]}` and in `{split}`; splits may not share videos")
    for split, stride in spec.stride.items():
        if split not in spec.splits:
            raise description.error(("stride", split), f"`stride` names a split that is not there: `{split}`", f"it has {', '.join(spec.splits)}")
        if stride < 1 or spec.frames_per_subsequence % stride:
            raise description.error(("stride", split), f"a stride must divide {spec.frames_per_subsequence}, the frames of a sub-sequence, got {stride}")


def _parts(content: Any) -> list[str]:
    return content if isinstance(content, list) and all(isinstance(part, str) for part in content) else [content] if isinstance(content, str) else []


def _partition(place: _Place, annotated: dict[str, tuple[str, Path]], description: Description) -> dict[str, str]:
    """{video: Train_Set, Validation_Set or Test_Set}; nobody's two halves in two of them."""
    spec = place.spec
    if spec.partition is None:
        bases = sorted({base_of(name) for name in annotated}, key=lambda base: draw(spec.seed, base))
        fifth = max(1, round(len(bases) / 5))
        held_out = dict.fromkeys(bases[:fifth], PARTITIONS[2]) | dict.fromkeys(bases[fifth : 2 * fifth], PARTITIONS[1])
        return {name: held_out.get(base_of(name), PARTITIONS[0]) for name in annotated}
    if spec.partition == "official":
        where, partition = place.root / spec.annotations, {name: part for name, (part, _) in annotated.items()}
    else:
        where = place.inside(spec.partition)
        partition = _listed(where, spec.fold)
        for name in partition:
            if name not in annotated:
                raise DataError(f"{where}: fold `{spec.fold}` names `{name}`, which has no annotation in {place.root / spec.annotations}", document.suggestion(name, sorted(annotated)[:1000]))
    of_base: dict[str, str] = {}
    for name, part in partition.items():
        if of_base.setdefault(base_of(name), part) != part:
            raise DataError(f"{where}: video `{base_of(name)}` is in {of_base[base_of(name)]} and, as `{name}`, in {part}", "leave `partition` out to have one drawn by video")
    return partition


def _listed(path: Path, fold: str) -> dict[str, str]:
    try:
        folds = json.loads(text_of(path))
    except (ValueError, RecursionError) as e:
        raise DataError(f"{path}: not JSON ({e})") from None
    if not isinstance(folds, dict) or not isinstance(folds.get(fold), dict):
        known = list(folds) if isinstance(folds, dict) else []
        raise DataError(f"{path}: no fold `{fold}`", document.suggestion(fold, known))
    partition: dict[str, str] = {}
    for part, names in folds[fold].items():
        if part not in PARTITIONS or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(f"{path}: `{fold}.{part}` must be a list of videos under one of {', '.join(PARTITIONS)}")
        for name in names:
            if partition.setdefault(name, part) != part:
                raise DataError(f"{path}: `{name}` is in {partition[name]} and in {part} of `{fold}`")
    return partition


def _video(place: _Place, name: str, annotation: Path, counts: dict[str, int]) -> Video:
    """Read one annotation with its time stamps; frames that cannot be used are counted."""
    base = base_of(name)
    numbers, valence, arousal, n_lines = _table(annotation) if annotation.suffix == ".csv" else _lines(annotation)
    _count(counts, "frames without a label, left out", n_lines - len(numbers))
    stamps, fps = _stamps(place, base, n_lines)
    usable = next((i for i, number in enumerate(numbers) if number > len(stamps)), len(numbers))
    _count(counts, "frames without a time stamp, left out", len(numbers) - usable)
    numbers, valence, arousal = numbers[:usable], valence[:usable], arousal[:usable]
    faces, sound = place.faces(name), place.sound(base)
    _count(counts, "frames without a face, black", sum(number not in faces for number in numbers))
    _count(counts, "videos without sound, silent", sound is None)
    is_cut = sound is not None and sound.is_dir()
    # Segments were cut on the clock of the frames.
    offset_ms = 0.0 if is_cut else place.offsets_ms.get(base, 0.0)
    times = array("d", (stamps[number - 1] - offset_ms for number in numbers))
    return Video(name, numbers, valence, arousal, times, fps, faces, sound, is_cut, stamps, place.features(name))


def _union(windows: list[Window]) -> list[int]:
    """Positions that any of these windows of one video shows."""
    inside = bytearray(max(window.last for window in windows) + 1)
    for window in windows:
        inside[window.first : window.last + 1] = b"\1" * (window.last + 1 - window.first)
    return [i for i, is_in in enumerate(inside) if is_in]


def _said(video: Video, positions: list[int]) -> str:
    """Digest of what annotation, time stamps and listing say about these positions of a video."""
    rows = [array(store.typecode, (store[i] for i in positions)) for store in (video.numbers, video.valence, video.arousal, video.times_ms)]
    there = bytes(video.numbers[i] in video.faces for i in positions)
    stamps = video.stamps_ms.tobytes() if video.is_cut else b""  # where segments begin
    return hashlib.sha256(b"".join([*(row.tobytes() for row in rows), there, stamps, repr((video.fps, video.sound is None)).encode()])).hexdigest()


def _count(counts: dict[str, int], what: str, n: int = 1) -> None:
    if n:
        counts[what] = counts.get(what, 0) + int(n)


def _lines(path: Path) -> tuple[array, array, array, int]:
    """(numbers, valence, arousal) of the frames with a label, and the number of all frames; one line a frame."""
    lines = text_of(path).splitlines()
    if not lines or lines[0].replace(" ", "").lower() != _HEADER:
        raise DataError(f"{path}:1: expected `{_HEADER}`, got `{lines[0][:60] if lines else ''}`")
    while lines and not lines[-1].strip():
        lines.pop()
    found = array("q"), array("d"), array("d")
    for number, line in enumerate(lines[1:], start=1):
        cells = line.split(",")
        if len(cells) != 2:
            raise DataError(f"{path}:{number + 1}: `{line[:60]}` is not valence,arousal")
        _add(found, number, cells, f"{path}:{number + 1}")
    return *found, len(lines) - 1


def _table(path: Path) -> tuple[array, array, array, int]:
    """As _lines, from a CSV that names the frame of each row."""
    found = array("q"), array("d"), array("d")
    for line, cells in _csv(path, ("V", "A", "frame_id")):
        where = f"{path}:{line}"
        number = _number(cells["frame_id"], f"{where}: frame_id")
        if number != int(number) or not 1 <= number <= 10_000_000:
            raise DataError(f"{where}: frame_id is {cells['frame_id']}", "frames count from 1")
        if found[0] and number <= found[0][-1]:
            raise DataError(f"{where}: frame {number:g} comes after frame {found[0][-1]}", "rows are in order of time")
        _add(found, int(number), [cells["V"], cells["A"]], where)
    return *found, found[0][-1] if found[0] else 0


def _add(found: tuple[array, array, array], number: int, cells: list[str], where: str) -> None:
    values = [_number(cell, f"{where}: {what}") for cell, what in zip(cells, ("valence", "arousal"), strict=True)]
    if INVALID in values:
        return
    for value, what in zip(values, ("valence", "arousal"), strict=True):
        if not -1 <= value <= 1:
            raise DataError(f"{where}: {what} is {value:g}, expected -1 to 1, or -5 where there is none")
    for store, value in zip(found, (number, *values), strict=True):
        store.append(value)


def _stamps(place: _Place, base: str, n_frames: int) -> tuple[array, float]:
    """(when each frame was taken, in ms; frames per second).

    A file may lack a few of the last frames, as those of the published set do: up to 1 % and 32.
    """
    name = f"{place.spec.timestamps}/{base}_video_ts.txt"
    if not (place.root / name).is_file() and place.spec.fps is not None:
        return array("d", (1000.0 * i / place.spec.fps for i in range(n_frames))), place.spec.fps
    if not (place.root / name).is_file():
        raise DataError(f"{place.root / name}: no time stamps of video `{base}`", "`mkvextract x.mkv timestamps_v2 0:x_video_ts.txt` writes them, or set `fps`")
    path = place.inside(name)
    lines = text_of(path).split("\n")
    if not lines[0].startswith("#"):
        raise DataError(f"{path}:1: expected a header such as `# timestamp format v2`, got `{lines[0][:60]}`")
    while lines and not lines[-1].strip():
        lines.pop()
    stamps = array("d")
    for line, text in enumerate(lines[1:], start=2):
        stamps.append(_number(text.strip(), f"{path}:{line}: time stamp"))
        if len(stamps) > 1 and stamps[-1] < stamps[-2]:
            raise DataError(f"{path}:{line}: {stamps[-1]:g} ms comes after {stamps[-2]:g} ms")
    if n_frames - len(stamps) > max(32, n_frames // 100):
        raise DataError(f"{path}: {len(stamps)} time stamps, the annotation has {n_frames} frames", "are they of another video?")
    steps = [b - a for a, b in itertools.pairwise(stamps) if b > a]
    if not steps:
        raise DataError(f"{path}: {len(stamps)} time stamps, no two of them apart")
    return stamps, 1000.0 / statistics.median(steps)


def _begin_ms(video: Video, number: int) -> float:
    """When the segment that ends with frame `number` begins: at the 31st frame before, or with the video."""
    return 0.0 if number <= _SEGMENT else video.stamps_ms[number - 1 - _SEGMENT]


def _refuse_short(video: Video, sound_ms: float) -> None:
    # As media does within one file: a tenth and 0.1 s may be missing.
    if sound_ms < 0.9 * video.times_ms[-1] - 100:
        raise DataError(f"{video.sound}: sound of {sound_ms / 1000:.2f} s, the last frame of `{video.name}` is at {video.times_ms[-1] / 1000:.2f} s", "the file is cut off, or of another video")


def _put(into: np.ndarray, samples: np.ndarray, at: int) -> None:
    """Copy the part of `samples`, which begin at position `at`, that falls within `into`."""
    begin, end = max(0, at), min(len(into), at + len(samples))
    if begin < end:
        into[begin:end] = samples[begin - at : end - at]


def _csv(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, cells) of every row; columns beside those asked for are passed over."""
    reader = csv.reader(io.StringIO(text_of(path), newline=""), strict=True)
    try:
        header = [cell.strip() for cell in next(reader, [])]
        for column in columns:
            if header.count(column) != 1:
                raise DataError(f"{path}:1: needs one column `{column}`, the header is `{','.join(header)[:100]}`")
        at = {column: header.index(column) for column in columns}
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise DataError(f"{path}:{reader.line_num}: {len(cells)} cells, the header has {len(header)}")
            yield reader.line_num, {column: cells[i].strip() for column, i in at.items()}
    except csv.Error as e:
        raise DataError(f"{path}:{reader.line_num}: not valid CSV ({e})") from None


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if "_" in text or not math.isfinite(value):  # float() reads 1_0 as 10
        raise DataError(f"{where} is not a finite number: `{text[:60]}`")
    return value


def _hash(path: Path) -> str:
    # Not remembered between commands: half a million faces would push everything else out of that memory.
    try:
        return hash_file(path)
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror})") from e
