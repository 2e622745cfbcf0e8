"""Where the faces of a video are, and frames cut down to them. For loaders of raw recordings.

Boxes come from a file beside the video, `x.faces.csv` for `x.mp4`, made by any detector:

    frame,x,y,width,height        frames count from 0, pixels from the upper left corner,
    0,211,64.5,140,140            several rows of a frame are several faces,
    1,212,64,139,141              a frame without a row has none

or, where there is no such file, from OpenCV's Haar cascade for frontal faces (extra `faces`). Two
ways to go from boxes to crops, as the trained models do it:

    one_box(…)    one square for the whole clip, of the face that is there most often
    box_per_frame(…)  a box for every frame; the last one stays where the face is lost

Boxes here are float64 [k, 4] (x, y, width, height), one array a frame; boxes to cut along are int64.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.artifact import file_digest
from edgekit.datasets.folder import text_of
from edgekit.errors import DataError, ResourceError, ToolMissing
from edgekit.resize import resize_bilinear

if TYPE_CHECKING:  # opening a set for `edgekit plan` must not wait for numpy
    import numpy as np

COLUMNS = ("frame", "x", "y", "width", "height")
INSTALL = "pip install 'edgekit[faces]', or put `<video>.faces.csv` (frame,x,y,width,height) beside every video"
_CASCADE = "haarcascade_frontalface_default.xml"
_SETTINGS = {"scaleFactor": 1.1, "minNeighbors": 5}
_SMALLEST = 10  # a face is at least the shorter side of the picture / 10
_STORE_VERSION = 1  # 1: Haar on luma with its histogram equalized
_SAME_FACE_IOU = 0.5
_MARGIN = 0.1  # of the longer side of the box, on every side


def boxes_beside(video: Path) -> Path:
    """The file that may hold the boxes of `video`; it need not exist."""
    return video.with_name(f"{video.stem}.faces.csv")


def origin(video: Path) -> Any:
    """What the boxes of `video` depend on beside the video itself, as JSON for a data set's digest.

    Raises:
        DataError: a box file that cannot be read.
        ToolMissing: no box file, and no detector.
    """
    path = boxes_beside(video)
    if path.is_file():
        try:
            return {"boxes": file_digest(path)}
        except OSError as e:
            raise DataError(f"{path}: cannot be read ({e.strerror})") from e
    return {"detector": detector(), "settings": [_SETTINGS, _SMALLEST, _STORE_VERSION]}


def boxes_of(video: Path, frames: np.ndarray, store: Path | None = None) -> list[np.ndarray]:
    """Every face of every frame: float64 [k, 4], one array a frame.

    Args:
        frames: uint8 [n, h, w, 3], the decoded `video`.
        store: detected boxes are kept in this folder, since detection takes longer than decoding.

    Raises:
        DataError: a box file with a broken row, by file and line.
        ToolMissing: no box file, and no detector.
        ResourceError: boxes cannot be kept in `store`.
    """
    n, height, width = frames.shape[:3]
    if (path := boxes_beside(video)).is_file():
        return read_boxes(path, n, height, width)
    if store is None:
        return detect(frames)
    key = hashlib.sha256(f"{file_digest(video)} {detector()} {_SETTINGS} {_SMALLEST} {_STORE_VERSION}".encode()).hexdigest()
    kept = store / f"{key}.faces.csv"
    if not kept.is_file():
        write_boxes(kept, detect(frames))
    return read_boxes(kept, n, height, width)


def read_boxes(path: Path, n_frames: int, height: int, width: int) -> list[np.ndarray]:
    """Boxes from a file: float64 [k, 4] for each of `n_frames`.

    Raises:
        DataError: by line: a row that is not five numbers, a frame that the video lacks, an empty box,
            or one outside of the picture of `height` x `width`.
    """
    import numpy as np

    found: list[list[tuple[float, ...]]] = [[] for _ in range(n_frames)]
    reader = csv.reader(io.StringIO(text_of(path), newline=""), strict=True)
    try:
        header = tuple(cell.strip() for cell in next(reader, []))
        if header != COLUMNS:
            raise DataError(f"{path}:1: the header is `{','.join(header)}`, expected `{','.join(COLUMNS)}`")
        for cells in reader:
            if any(cell.strip() for cell in cells):
                frame, box = _row(cells, f"{path}:{reader.line_num}", n_frames, height, width)
                found[frame].append(box)
    except csv.Error as e:
        raise DataError(f"{path}:{reader.line_num}: not valid CSV ({e})") from None
    return [np.array(boxes, np.float64).reshape(-1, 4) for boxes in found]


def write_boxes(path: Path, boxes: list[np.ndarray]) -> None:
    """Write boxes as `read_boxes` reads them; the file is there whole or not at all.

    Raises:
        ResourceError: it cannot be written.
    """
    rows = [",".join(COLUMNS)] + [f"{i}," + ",".join(f"{float(v):.10g}" for v in box) for i, of_frame in enumerate(boxes) for box in of_frame]
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text("\n".join(rows) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as e:
        part.unlink(missing_ok=True)
        raise ResourceError(f"{path}: cannot be written ({e.strerror})", "free some disk space") from e


def detector() -> str:
    """Which detector is here, to the byte: its version and the digest of its cascade.

    Raises:
        ToolMissing: OpenCV is not installed, or is one without Haar cascades (5.0 dropped them).
    """
    cv2, cascade = _cascade()
    return f"opencv {cv2.__version__} haar {file_digest(cascade)}"


def detect(frames: np.ndarray) -> list[np.ndarray]:
    """Faces of every frame by OpenCV's Haar cascade, float64 [k, 4] each, largest first.

    Args:
        frames: uint8 [n, h, w, 3] RGB.

    Raises:
        ToolMissing: see `detector`.
    """
    import numpy as np

    cv2, cascade = _cascade()
    classifier = cv2.CascadeClassifier(str(cascade))
    smallest = max(20, min(frames.shape[1:3]) // _SMALLEST)
    found, before, boxes = [], None, None
    for frame in frames:
        if before is None or not np.array_equal(frame, before):  # a still picture is searched once
            gray = cv2.equalizeHist(cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY))
            boxes = np.array(classifier.detectMultiScale(gray, minSize=(smallest, smallest), **_SETTINGS), np.float64).reshape(-1, 4)
            # Threads of OpenCV report in any order.
            boxes = boxes[np.lexsort((boxes[:, 1], boxes[:, 0], -boxes[:, 2] * boxes[:, 3]))]
            before = frame
        found.append(boxes)
    return found


def without_face(boxes: list[np.ndarray]) -> int:
    """How many frames have no face."""
    return sum(not len(of_frame) for of_frame in boxes)


def one_box(boxes: list[np.ndarray], height: int, width: int) -> tuple[np.ndarray, bool]:
    """(int64 [4] square inside the picture, whether there is a face) for a whole clip.

    Boxes are gathered in order of time: each joins the cluster whose mean box it overlaps most, if
    by IoU >= 0.5, else it founds one. The cluster with most boxes wins (the larger box if two have as
    many). Its median left, top, right and bottom, 10 % of the longer side added on every side, made
    square about the centre, moved into the picture, and made smaller only if the picture is.
    Without any face: the largest square in the middle.
    """
    import numpy as np

    clusters: list[list[np.ndarray]] = []
    sums: list[np.ndarray] = []
    for x, y, w, h in (box for of_frame in boxes for box in of_frame):
        corners = np.array([x, y, x + w, y + h])
        overlaps = [_iou(corners, total / len(members)) for total, members in zip(sums, clusters, strict=True)]
        if overlaps and max(overlaps) >= _SAME_FACE_IOU:
            at = int(np.argmax(overlaps))
            clusters[at].append(corners)
            sums[at] = sums[at] + corners
        else:
            clusters.append([corners])
            sums.append(corners)
    if not clusters:
        side = min(height, width)
        return np.array([(width - side) // 2, (height - side) // 2, side, side], np.int64), False
    medians = [np.median(members, axis=0) for members in clusters]
    best = max(range(len(clusters)), key=lambda i: (len(clusters[i]), _area(medians[i])))
    left, top, right, bottom = medians[best]
    side = max(1, min(round((1 + 2 * _MARGIN) * max(right - left, bottom - top)), height, width))
    x = min(max(0, round((left + right - side) / 2)), width - side)
    y = min(max(0, round((top + bottom - side) / 2)), height - side)
    return np.array([x, y, side, side], np.int64), True


def box_per_frame(boxes: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """int64 [n, 4]: the largest face of every frame, cut to the picture, as it is: no margin, not square.

    A frame without one takes the box of the frame before it; before the first face there is none,
    and the box is all zeros, which `crop` makes black.
    """
    import numpy as np

    out = np.zeros((len(boxes), 4), np.int64)
    last = np.zeros(4, np.int64)
    for i, of_frame in enumerate(boxes):
        if len(of_frame):
            x, y, w, h = of_frame[int(np.argmax(of_frame[:, 2] * of_frame[:, 3]))]
            left, top = max(0, math.floor(x + 0.5)), max(0, math.floor(y + 0.5))
            right, bottom = min(width, math.floor(x + w + 0.5)), min(height, math.floor(y + h + 0.5))
            if right > left and bottom > top:
                last = np.array([left, top, right - left, bottom - top], np.int64)
        out[i] = last
    return out


def crop(frames: np.ndarray, boxes: np.ndarray, size: int) -> np.ndarray:
    """Cut frames to faces: uint8 [n, size, size, 3].

    Resized as edgekit.resize has it (bilinear, half-pixel centres, no antialias), rounded half to even.

    Args:
        frames: uint8 [n, h, w, 3].
        boxes: int64 [4] for all frames, or [n, 4]; inside the picture. A box of zero width gives a black frame.
        size: of the result, in pixels.
    """
    import numpy as np

    out = np.zeros((len(frames), size, size, 3), np.uint8)
    for i, (x, y, w, h) in enumerate(np.broadcast_to(boxes, (len(frames), 4))):
        if w:
            out[i] = np.rint(resize_bilinear(frames[i, y : y + h, x : x + w], size, size))
    return out


def fill_black(frames: np.ndarray, n_frames: int) -> np.ndarray:
    """`frames` [n, h, w, 3] with black ones after the last, up to `n_frames`; a longer clip stays as it is."""
    import numpy as np

    missing = max(0, n_frames - len(frames))
    return np.concatenate([frames, np.zeros((missing, *frames.shape[1:]), frames.dtype)]) if missing else frames


def _row(cells: list[str], where: str, n_frames: int, height: int, width: int) -> tuple[int, tuple[float, ...]]:
    if len(cells) != len(COLUMNS):
        raise DataError(f"{where}: {len(cells)} cells, expected {len(COLUMNS)} (`{','.join(COLUMNS)}`)")
    try:
        frame = int(cells[0])
        x, y, w, h = (float(cell) for cell in cells[1:])
    except ValueError as e:
        raise DataError(f"{where}: not numbers ({e})") from None
    if not 0 <= frame < n_frames:
        raise DataError(f"{where}: frame {frame}, the video has {n_frames}", "frames count from 0")
    if not all(map(math.isfinite, (x, y, w, h))) or not (w > 0 and h > 0):
        raise DataError(f"{where}: box of {cells[3].strip()} x {cells[4].strip()} at {cells[1].strip()}, {cells[2].strip()}", "leave the row out if there is no face")
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        raise DataError(f"{where}: box at {x:g}, {y:g} of {w:g} x {h:g} lies outside of the picture of {width} x {height}", "boxes are in pixels of the video")
    return frame, (x, y, w, h)


def _cascade() -> tuple[Any, Path]:
    try:
        import cv2
    except ImportError as e:
        raise ToolMissing("faces have to be found, and no detector is installed here (OpenCV)", INSTALL) from e
    folder = getattr(getattr(cv2, "data", None), "haarcascades", "")
    path = Path(folder) / _CASCADE
    if not hasattr(cv2, "CascadeClassifier") or not path.is_file():
        raise ToolMissing(f"OpenCV {cv2.__version__} is installed, which has no Haar cascades; 4.10 to 4.x has", INSTALL)
    return cv2, path


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return shared / (_area(a) + _area(b) - shared)


def _area(box: np.ndarray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))
