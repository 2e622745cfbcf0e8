"""The sets that ship: faces in step with emotional speech, in car noise.

`synthetic_av` (scene.py): clips of 3 s, 32 frames of 64×64 and 48 000 samples at 16 kHz. The labels
are valences in [−1, 1]: `v` as shown by the face, `a` as heard in the voice, and `o`, the joint one,
in which the more intense of the two counts for more. Face and voice often disagree, as people's do,
so `o` needs both.
`synthetic_emotion` (scene_emotion.py): one of eight classes, of which face and voice each leave two.
`synthetic_va` (scene_va.py): valence and arousal for every frame of a longer clip.
`synthetic_speech` (scene_speech.py): speech in car noise and the same speech without it; no pictures.

People (a face and a voice each) and sentences belong to one split only. Clip `k` of a split
depends on the seed, the split and `k` alone, so the first 128 of a split are the same clips
whatever its size. Clips are made once, by all cores, and kept as npz under the cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..artifact import file_digest
from ..errors import DataError, EdgekitError, ResourceError
from ..progress import track
from . import Clip

KEYS = ("seed",)
# Everything in the sets is edgekit's own work.
LICENCE = "CC0-1.0"
EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")


@dataclass(frozen=True)
class World:
    """What sets one of the sets apart.

    Attributes:
        version: bump when any byte of any clip changes; it enters cache keys.
        scene: module here with `make_clip(seed, split, k) -> Clip`. A name: `edgekit plan` opens
            sets for their digests, and must start without numpy.
        waves: labels that are sound, float32 of int16 / 32768: kept as int16.
    """

    version: int
    scene: str
    metrics: tuple[str, ...]
    classes: tuple[str, ...] = ()
    waves: tuple[str, ...] = ()


WORLDS = {
    "synthetic_av": World(1, "scene", ("mae", "f1", "corr")),
    "synthetic_emotion": World(2, "scene_emotion", ("wa", "ua", "f1_macro"), EMOTIONS),
    "synthetic_va": World(2, "scene_va", ("ccc", "ccc_valence", "ccc_arousal")),
    "synthetic_speech": World(1, "scene_speech", ("si_sdr", "stoi"), waves=("speech",)),
}


def open_split(description: dict, split: str, limit: int | None, cache_root: Path) -> Synthetic:
    seed = description.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise DataError(f"{description.path}: `seed` must be a whole number from 0 up, got {seed!r}")
    count = description["splits"][split]
    if not isinstance(count, int):
        raise DataError(f"{description.path}: synthetic split `{split}` must be a number of clips, got {count!r}")
    return Synthetic(description["dataset"], seed, split, count if limit is None else limit, cache_root / "data", description.path)


class Synthetic:
    """One split. Opening it makes nothing; the first clip asked for makes all that are missing."""

    licence = LICENCE

    def __init__(self, name: str, seed: int, split: str, count: int, data_root: Path, source: Path):
        self.name, self.seed, self.split, self.count, self.source = name, seed, split, count, source
        self.world = WORLDS[name]
        self.metrics, self.classes = self.world.metrics, self.world.classes
        self.ids = [f"{split}-{k:05d}" for k in range(count)]
        self.folder = data_root / f"{name}-{self.world.version}-{seed}" / split
        self._ready = False

    def digest(self) -> str:
        parts = {"dataset": self.name, "version": self.world.version, "seed": self.seed, "split": self.split, "count": self.count}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def clip(self, id: str) -> Clip:
        """Clip `id`, read from the cache and checked against the sha256 it was written with; a damaged one is made again."""
        if not self._ready:
            self._make_missing()
            self._ready = True
        path = self.folder / f"{id}.npz"
        if not _is_whole(path):
            _write(self.name, self.seed, self.split, self.ids.index(id), self.folder)
            if not _is_whole(path):
                raise DataError(f"{path}: not the file that was written", "is the disk failing, or another program writing there?")
        import numpy as np

        with np.load(path, allow_pickle=False) as stored:
            meta = json.loads(str(stored["meta"]))
            labels = {name: stored[f"label.{name}"] if value is None else value for name, value in meta["labels"].items()}
            labels |= {name: np.float32(labels[name]) / np.float32(32768) for name in self.world.waves}
            return Clip(id, stored["frames"], meta["fps"], stored["audio"], meta["sample_rate_hz"], labels, meta["tags"])

    def _missing(self) -> list[int]:
        return [k for k, id in enumerate(self.ids) if not _is_made(self.folder / f"{id}.npz")]

    def _make_missing(self) -> None:
        missing = self._missing()
        if not missing:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(f"{self.folder}: cannot be made ({error.strerror})", "give another cache folder, or free some disk space") from error
        for _ in track(_generate(self.name, self.seed, self.split, missing, self.folder), f"render {self.split} clips", len(missing)):
            pass


def _generate(name: str, seed: int, split: str, indices: list[int], folder: Path) -> Iterator[int]:
    """Make clips in one process per core; yields once per clip. Processes, since rendering holds the GIL."""
    workers = min(os.cpu_count() or 1, max(1, len(indices) // 4))
    if workers == 1:
        for k in indices:
            _write(name, seed, split, k, folder)
            yield k
        return
    package_root = str(Path(__file__).resolve().parents[2])
    # One thread of BLAS each: the work is already split by process.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([package_root, *filter(None, [os.environ.get("PYTHONPATH")])]), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "edgekit.datasets.synthetic", name, str(seed), split, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True,
        )
        for _ in range(workers)
    ]  # fmt: skip
    try:
        for n, process in enumerate(processes):
            with contextlib.suppress(BrokenPipeError):  # it ended at once: the loop below says why
                process.stdin.write(json.dumps(indices[n::workers]))
                process.stdin.close()
        waiting = set(indices)
        while waiting:
            running = any(process.poll() is None for process in processes)
            done = {k for k in waiting if _is_made(folder / f"{split}-{k:05d}.npz")}
            yield from done
            waiting -= done
            for process in processes:
                if process.poll() not in (None, 0):
                    reason = process.stderr.read().strip().splitlines()[-1:] or [f"exit {process.returncode}"]
                    raise ResourceError(f"{folder}: making clips failed: {reason[0]}", "is there disk space left?")
            if waiting and not running:
                raise ResourceError(f"{folder}: {len(waiting)} clips were not made", "is there disk space left?")
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stderr.close()


def _write(world: str, seed: int, split: str, k: int, folder: Path) -> None:
    import numpy as np

    clip = importlib.import_module(f"edgekit.datasets.{WORLDS[world].scene}").make_clip(seed, split, k)
    series = {name: value for name, value in clip.labels.items() if isinstance(value, np.ndarray)}
    path = folder / f"{clip.id}.npz"
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            meta = {"fps": clip.fps, "sample_rate_hz": clip.sample_rate_hz, "labels": clip.labels | dict.fromkeys(series), "tags": clip.tags}
            arrays = {f"label.{name}": np.int16(value * 32768) if name in WORLDS[world].waves else value for name, value in series.items()}
            np.savez(file, frames=clip.frames, audio=clip.audio, meta=json.dumps(meta), **arrays)
        digest = hashlib.sha256(part.read_bytes()).hexdigest()
        part.replace(path)
        stamp = path.with_suffix(f".{os.getpid()}.part")
        stamp.write_text(digest)
        stamp.replace(path.with_suffix(".sha256"))  # last: a clip counts once its digest stands
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ResourceError(f"{path}: cannot be written ({error.strerror})", "free some disk space") from error


def _is_made(path: Path) -> bool:
    return path.is_file() and path.with_suffix(".sha256").is_file()


def _is_whole(path: Path) -> bool:
    return _is_made(path) and path.with_suffix(".sha256").read_bytes() == file_digest(path).encode()


def _worker(arguments: list[str]) -> None:
    name, seed, split, folder = arguments
    try:
        for k in json.load(sys.stdin):
            _write(name, int(seed), split, k, Path(folder))
    except EdgekitError as error:
        sys.exit(error.message)  # its last line on stderr is what the parent reports


if __name__ == "__main__":
    _worker(sys.argv[1:])
