"""What the loaders of acted and spoken emotion share: a list of takes, and how one becomes a clip.

A loader (`ravdess`, `cremad`, `iemocap`, `cmu_mosi`, `cmu_mosei`, `meld`) knows one published layout. It
finds the takes, says which person or video each belongs to, and divides them; from there on
`TakeSplit` does the same for all of them:

    picture   decoded, cut to its span, to its half, to the first `window_s` seconds if one is given
              (black frames follow in a shorter take), then to the face, frame by frame (faces.py)
    sound     the whole take, mixed and resampled as media.py has it; `preprocess.json` says what
              part of it the model hears
    text      vectors that somebody else's network made, [tokens, dim]: one set for the whole clip
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from edgekit import document
from edgekit.artifact import sha256_of
from edgekit.datasets import SPLITS, Clip, Description
from edgekit.datasets.folder import code_sha256, draw, resolved, sha256
from edgekit.document import Schema, Text
from edgekit.errors import DataError, RecipeError
from edgekit.progress import track

_SEMANTICS = 1  # 1: face crops by the box of each frame, black frames up to the window, sound of the whole take
_MAX_TEXT_BYTES = 64 << 20
_MAX_LINES_BYTES = 64 << 20
_SAME_LENGTH_S = 1.0  # a clip cut at key frames may be this much longer or shorter than its label says

_MAX_HELD_BYTES = 1 << 29  # pictures of a take that are kept until their boxes are known; beyond it is decoded twice
_FRAMES_AT_ONCE = 64  # a detector's time to start is shared by so many

CLASS_METRICS = ("wa", "ua", "f1_macro")
SCORE_METRICS = ("mae7", "corr", "acc2_non0", "f1_non0", "acc7")

SpecT = TypeVar("SpecT", bound="Acted")


class Acted(Schema):
    """The keys that all of these loaders take in a data set's YAML."""

    dataset: str
    splits: dict[str, Any] = Field(description="split -> `all`, or how many of its clips to draw")
    root: Text = Field(description="folder of the published files, relative to the YAML")
    sample_rate_hz: Annotated[int, Field(ge=1000, le=768_000)] = Field(16000, description="sound is resampled to this")
    faces: Literal["crop", "none"] = Field("crop", description="cut every frame to its face; `none` if the videos are cropped already")
    size: Annotated[int, Field(ge=8, le=1024)] = Field(224, description="side of the face crops in pixels")
    without_face: Literal["refuse", "black"] = Field("refuse", description="what to do with a clip in which no face is found")
    window_s: Annotated[float, Field(gt=0, le=600)] | None = Field(None, description="keep the picture of the first seconds, filled with black frames; null for the whole take")
    seed: int = Field(0, description="of all drawing: of splits, and of clips for splits that are numbers")
    metrics: tuple[Text, ...] | None = Field(None, description="names of metrics to report instead of the usual ones")


@dataclass(frozen=True)
class Take:
    """One labelled utterance and where it lies.

    Attributes:
        person: who or what may be in one split only: an actor, or the video that it was cut from.
        span_s: which part of `video` it is; of `audio` too where that is the same file. None: all of it.
        lasts_s: what its label says it lasts, held against the decoded picture. None: not said.
        half: of the picture, where two people share it.
        text: .npy, float32 [tokens, dim].
    """

    id: str
    person: str
    labels: dict[str, float]
    tags: dict[str, float | str]
    video: Path
    audio: Path
    span_s: tuple[float, float] | None = None
    lasts_s: float | None = None
    half: Literal["left", "right"] | None = None
    text: Path | None = None

    @property
    def face_name(self) -> Path:
        """Its face boxes lie beside this: the video, or, for a part of one, `<id>` with / as _."""
        return self.video if self.span_s is None else self.video.with_name(self.id.replace("/", "_") + self.video.suffix)


class Root:
    """The folder of a data set. Nothing outside it is read, neither by `..` nor by a link."""

    def __init__(self, path: Path):
        self.path, self.real = path, path.resolve()

    def file(self, name: str, where: str) -> Path:
        """The file `name`, relative to the folder; `where` says in an error who asks for it."""
        try:
            path = resolved(self.path, self.real, name)
        except ValueError as e:
            raise DataError(f"{where}: `{name}` {_singular(str(e))}") from None
        if not path.stat().st_size:
            raise DataError(f"{where}: `{name}` is an empty file")
        return path

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def lines(self, name: str, where: str) -> tuple[Path, list[tuple[int, str]]]:
        """A text file and its lines that are not blank, with their numbers."""
        path = self.file(name, where)
        if path.stat().st_size > _MAX_LINES_BYTES:
            raise DataError(f"{path}: {path.stat().st_size} bytes, at most {_MAX_LINES_BYTES} are read")
        try:
            # A byte that is no UTF-8 is in a remark, or makes a name that no file has.
            text = path.read_bytes().decode("utf-8-sig", errors="replace")
        except OSError as e:
            raise DataError(f"{path}: cannot be read ({e.strerror})") from e
        return path, [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]

    def names(self, folder: str = ".") -> list[str]:
        """Names in a folder, in a fixed order, without hidden ones (macOS leaves `._x` beside every `x`)."""
        try:
            return sorted(entry.name for entry in (self.path / folder).iterdir() if not entry.name.startswith("."))
        except OSError as e:
            raise DataError(f"{self.path / folder}: cannot be read ({e.strerror})") from None


def read(description: Description, schema: type[SpecT]) -> tuple[SpecT, Root]:
    """The YAML against its schema, and the folder it names.

    Raises:
        DataError: with the line of the YAML.
    """
    try:
        spec = document.validate(description.document, schema)
    except RecipeError as e:
        raise DataError(e.message, e.hint) from None
    for split, content in spec.splits.items():
        if content != "all" and type(content) is not int:
            raise description.error(("splits", split), f"`{split}` must be `all` or a number of clips, got {content!r}", "who is in which split is the published one; see docs/data.md")
    return spec, Root(folder_of(description, "root", spec.root))


def folder_of(description: Description, key: str, name: str) -> Path:
    """The folder that `key` names, relative to the YAML."""
    path = (description.path.parent / Path(name).expanduser()).absolute()
    if not path.is_dir():
        raise description.error((key,), f"`{key}` is not a folder: {path}", "it is relative to this YAML")
    return path


def divide_people(people: list[str], shares: dict[str, float], seed: int) -> dict[str, set[str]]:
    """Draw who is in which split; the last split of SPLITS takes who is left.

    Whose turn it is depends on seed and name alone, so the files that are there do not matter.

    Args:
        people: all who are in the published set.
        shares: of `calibration` and `test`, in 0..1.
    """
    order = sorted(people, key=lambda person: draw(seed, person))
    divided, taken = {}, 0
    for split in ("test", "calibration"):
        count = round(shares[split] * len(order))
        divided[split] = set(order[taken : taken + count])
        taken += count
    divided["train"] = set(order[taken:])
    return divided


def choose(by_split: dict[str, list[Take]], split: str, limit: int | None, spec: Acted, description: Description, counts: dict[str, int]) -> list[Take]:
    """The takes of one split, in their order, cut down to the number in the YAML and to `limit`.

    Raises:
        DataError: one person in two splits, an empty split, or fewer takes than the YAML asks for.
    """
    refuse_shared(by_split, description)
    takes = by_split[split]
    if not takes:
        seen = ", ".join(f"{n} {what}" for what, n in counts.items() if n) or "no file with such a name"
        raise description.error(("root",), f"split `{split}` is empty: found {sum(map(len, by_split.values()))} takes in all splits, and {seen}", "does `root` hold the files as they are published? See docs/data.md")
    wanted = spec.splits[split]
    if isinstance(wanted, int):
        if wanted > len(takes):
            raise description.error(("splits", split), f"{wanted} clips asked for, split `{split}` has {len(takes)}")
        limit = min(wanted, limit or wanted)
    chosen = {take.id for take in sorted(takes, key=lambda take: draw(spec.seed, take.id))[:limit]}
    return [take for take in takes if take.id in chosen]


def refuse_shared(by_split: dict[str, list[Take]], description: Description) -> None:
    """Held-out clips of somebody that the model has been trained on prove little."""
    first: dict[str, tuple[str, str]] = {}
    for split in SPLITS:
        for take in by_split.get(split, []):
            other, id = first.setdefault(take.person, (split, take.id))
            if other != split:
                raise description.error(("root",), f"{take.person} is in split `{split}` ({take.id}) and in `{other}` ({id})", "a speaker or video may be in one split only")


class TakeSplit:
    """One split: takes in a fixed order, decoded clip by clip."""

    def __init__(
        self,
        description: Description,
        spec: Acted,
        split: str,
        takes: list[Take],
        cache_root: Path,
        counts: dict[str, int],
        metrics: tuple[str, ...],
        classes: tuple[str, ...] = (),
        licence: str | None = None,
        stored: str = "rgb",
    ):
        self.name = description.path.stem
        self.source = description.path
        self.split = split
        self.ids = [take.id for take in takes]
        self.metrics = metrics if spec.metrics is None else spec.metrics
        self.counts = {what: n for what, n in counts.items() if n}
        self.licence = licence
        if classes:
            self.classes = classes
        self._spec = spec
        self._takes = {take.id: take for take in takes}
        self._store = cache_root / "data" / "faces"
        self._stored = stored
        self._sha256: dict[Path, str] = {}

    def clip(self, id: str) -> Clip:
        """Decode one clip.

        Raises:
            DataError: media that is damaged, empty, without picture, sound or a face, or changed since `digest`.
            ToolMissing: there are no face boxes, and no detector to find them.
        """
        # numpy: opening a set for `edgekit plan` must not wait for it.
        import numpy as np

        from edgekit.datasets import media

        take, spec = self._takes[id], self._spec
        for path in _files(take):
            if path in self._sha256 and sha256(path) != self._sha256[path]:
                raise DataError(f"{path}: changed since this command began", "run it again")
        frames, fps, has_face = self._picture(take)
        audio = media.read_audio(take.audio, spec.sample_rate_hz, take.span_s if take.audio == take.video else None)
        features = {}
        if take.text:
            features["text"] = vectors = media.read_npy(take.text, _MAX_TEXT_BYTES)
            if vectors.dtype != np.float32 or vectors.ndim != 2 or not vectors.size or not np.isfinite(vectors).all():
                raise DataError(f"{take.text}: {vectors.dtype} {list(vectors.shape)}, expected finite float32 [tokens, dim]")
        tags = take.tags if has_face else {**take.tags, "face": "none"}
        return Clip(id, frames, fps, audio, spec.sample_rate_hz, dict(take.labels), tags, features=features)

    def digest(self) -> str:
        """sha256 over ids, labels, tags, what is cut from where, and the content of every file of this split."""
        takes = list(self._takes.values())
        if not self._sha256:
            files = sorted({path for take in takes for path in _files(take)})
            self._sha256 = {path: sha256(path) for path in track(files, f"hash {self.name}", len(files))}
        spec = self._spec
        parts: dict[str, Any] = {
            "dataset": spec.dataset,
            "semantics": _SEMANTICS,
            "sample_rate_hz": spec.sample_rate_hz,
            "picture": [spec.faces, spec.size if spec.faces == "crop" else None, spec.without_face, spec.window_s, self._stored],
            "classes": list(getattr(self, "classes", ())),
            "clips": [
                [take.id, take.labels, take.tags, take.span_s, take.lasts_s, take.half, self._faces_from(take), *(self._sha256[path] for path in _files(take))]
                for take in takes
            ],
            "av": importlib.metadata.version("av"),  # another FFmpeg may decode other pixels
        }
        if self.split == "test":  # calibration does not depend on what is reported
            parts["metrics"] = {name: code_sha256(name, self.source) for name in self.metrics}
        return sha256_of(parts)

    def _picture(self, take: Take) -> tuple[Any, float, bool]:
        """(frames uint8 [n, h, w, 3] RGB, frames per second, whether a face was found or none was looked for)."""
        from edgekit.datasets import faces, media

        if take.video.suffix == ".npy":
            return (*_array(take.video, self._stored), True)
        if self._spec.faces == "crop":
            return self._face_crops(take)
        frames, fps = media.read_video(take.video, take.span_s)
        _refuse_other_length(take, len(frames) / fps)
        window = self._window(fps)
        return faces.fill_black(_half(frames, take.half)[:window], window or 0), fps, True

    def _face_crops(self, take: Take) -> tuple[Any, float, bool]:
        """As `_picture`. A sentence may last minutes, so only the crops are held, not the pictures."""
        import numpy as np

        from edgekit.datasets import faces

        path, found, held, n_bytes = self._box_file(take), [], [], 0
        images: list[Any] | None = []  # of a short take, so that it need not be decoded twice
        count, fps, shape = 0, 0.0, (0, 0)
        for image, fps in _decoded(take):  # noqa: B007, it is the same for all
            count, shape, n_bytes = count + 1, image.shape[:2], n_bytes + image.nbytes
            if images is not None:
                images.append(image)
                images = images if n_bytes <= _MAX_HELD_BYTES else None
            if not path.is_file():
                held.append(image)
                if len(held) == _FRAMES_AT_ONCE:
                    found, held = found + faces.detect(np.stack(held)), []
        _refuse_other_length(take, count / fps)
        if not path.is_file():
            faces.write_boxes(path, found + (faces.detect(np.stack(held)) if held else []))
        window = self._window(fps)
        boxes = faces.read_boxes(path, count, *shape)[:window]
        has_face = faces.without_face(boxes) < len(boxes)
        if not has_face and self._spec.without_face == "refuse":
            raise DataError(f"{take.video}: no face in any frame of {take.id}", f"put boxes into {faces.boxes_beside(take.face_name)}, or say `without_face: black` in {self.source}")
        cut = faces.box_per_frame(boxes, *shape)
        source = (image for image, _ in _decoded(take)) if images is None else iter(images)
        crops = [faces.crop(image[None], box, self._spec.size)[0] for box, image in zip(cut, source, strict=False)]  # the window may be shorter
        return faces.fill_black(np.stack(crops), window or 0), fps, has_face

    def _window(self, fps: float) -> int | None:
        """How many frames the clip has, if it has a window."""
        return None if self._spec.window_s is None else max(1, round(self._spec.window_s * fps))

    def _box_file(self, take: Take) -> Path:
        """Where the boxes of the take are: beside its video, else where detected ones are kept, or will be."""
        from edgekit.datasets import faces

        beside = faces.boxes_beside(take.face_name)
        return beside if beside.is_file() else self._store / f"{sha256_of([sha256(take.video), take.span_s, take.half, self._faces_from(take)])}.faces.csv"

    def _faces_from(self, take: Take) -> Any:
        from edgekit.datasets import faces

        return faces.origin(take.face_name) if self._spec.faces == "crop" and take.video.suffix != ".npy" else None


def with_text(take: Take, root: Root, folder: str | None, where: str) -> Take:
    """The take with its vectors `<folder>/<id>.npy`, if there is a folder of them."""
    return replace(take, text=root.file(f"{folder}/{take.id}.npy", where)) if folder else take


def _files(take: Take) -> tuple[Path, ...]:
    return tuple(dict.fromkeys(path for path in (take.video, take.audio, take.text) if path))


def _decoded(take: Take) -> Iterator[tuple[Any, float]]:
    """(frame [h, w, 3] of the take, frames per second), one after the other."""
    from edgekit.datasets import media

    for image, fps in media.stream_video(take.video, take.span_s):
        yield _half(image, take.half), fps


def _half(frames: Any, half: str | None) -> Any:
    """Frames [..., h, w, 3] cut to one half of their width."""
    middle = frames.shape[-2] // 2
    return {None: frames, "left": frames[..., :middle, :], "right": frames[..., middle:, :]}[half]


def _refuse_other_length(take: Take, seconds: float) -> None:
    if take.lasts_s is not None and not abs(seconds - take.lasts_s) <= _SAME_LENGTH_S:
        raise DataError(f"{take.video}: {seconds:.2f} s, the label of {take.id} is of {take.lasts_s:.2f} s", "are the clips of this video numbered in another order?")


def _array(path: Path, stored: str) -> tuple[Any, float]:
    """Face crops that lie in a .npy, over the 3.6 s that they were taken from."""
    import numpy as np

    from edgekit.datasets import media

    frames = media.read_npy(path)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise DataError(f"{path}: {frames.dtype} {list(frames.shape)}, expected uint8 [n, h, w, 3]")
    return np.ascontiguousarray(frames[..., ::-1] if stored == "bgr" else frames), len(frames) / 3.6


def _singular(words: str) -> str:
    return words.replace("do not exist", "does not exist").replace("are ", "is ", 1)
