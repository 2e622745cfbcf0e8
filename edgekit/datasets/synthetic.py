"""The audio-visual emotion set that ships: faces in step with emotional speech, in car noise.

Every clip is 3 s: 32 frames of 64×64 and 48 000 samples at 16 kHz. Its labels are valences in
[−1, 1]: `v` as shown by the face, `a` as heard in the voice, and `o`, the joint one, in which the
more intense of the two counts for more. Face and voice often disagree, as people's do, so `o`
needs both.

People (a face and a voice each) and sentences belong to one split only. Clip `k` of a split
depends on the seed, the split and `k` alone, so the first 128 of a split are the same clips
whatever its size. Clips are made once, by all cores, and kept as npz under the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..artifact import file_digest
from ..errors import DataError, ResourceError
from ..progress import track
from . import Clip, face, noise, speech

KEYS = ("seed",)
# Bump when any byte of any clip changes: it enters cache keys.
VERSION = 1

SAMPLES, SAMPLE_RATE_HZ = 48_000, speech.SAMPLE_RATE_HZ
FRAMES, SIZE = 32, 64
FPS = FRAMES * SAMPLE_RATE_HZ / SAMPLES
SNR_DB = (-5.0, 20.0)
LABELS = ("o", "a", "v")

# (number in the random stream, people, share of sentences as [low, high) of a hash in 0..9)
_SPLITS = {"train": (1, 400, (0, 7)), "calibration": (2, 48, (7, 8)), "test": (3, 100, (8, 10))}


def open_split(description: dict, split: str, limit: int | None, cache_root: Path) -> SyntheticAV:
    seed = description.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise DataError(f"{description.path}: `seed` must be a whole number from 0 up, got {seed!r}")
    count = description["splits"][split]
    if not isinstance(count, int):
        raise DataError(f"{description.path}: synthetic split `{split}` must be a number of clips, got {count!r}")
    return SyntheticAV(seed, split, count if limit is None else limit, cache_root / "data", description.path)


class SyntheticAV:
    """One split. Opening it makes nothing; the first clip asked for makes all that are missing."""

    name = "synthetic_av"
    metrics = ("mae", "f1", "corr")

    def __init__(self, seed: int, split: str, count: int, data_root: Path, source: Path):
        self.seed, self.split, self.count, self.source = seed, split, count, source
        self.ids = [f"{split}-{k:05d}" for k in range(count)]
        self.folder = data_root / f"synthetic_av-{VERSION}-{seed}" / split
        self._ready = False

    def digest(self) -> str:
        parts = {"dataset": self.name, "version": VERSION, "seed": self.seed, "split": self.split, "count": self.count}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def clip(self, id: str) -> Clip:
        """Clip `id`, read from the cache and checked against the sha256 it was written with."""
        if not self._ready:
            self._make_missing()
            self._ready = True
        path = self.folder / f"{id}.npz"
        if file_digest(path) != path.with_suffix(".sha256").read_text():
            raise DataError(f"{path}: not the file that was generated", "remove it, and it is made again")
        with np.load(path, allow_pickle=False) as stored:
            meta = json.loads(str(stored["meta"]))
            return Clip(id, stored["frames"], FPS, stored["audio"], SAMPLE_RATE_HZ, meta["labels"], meta["tags"])

    def _missing(self) -> list[int]:
        return [k for k, id in enumerate(self.ids) if not (self.folder / f"{id}.sha256").is_file()]

    def _make_missing(self) -> None:
        missing = self._missing()
        if not missing:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(f"{self.folder}: cannot be made ({error.strerror})") from error
        for _ in track(_generate(self.seed, self.split, missing, self.folder), f"render {self.split} clips", len(missing)):
            pass


def _generate(seed: int, split: str, indices: list[int], folder: Path) -> Iterator[int]:
    """Make clips in one process per core; yields once per clip. Processes, since rendering holds the GIL."""
    workers = min(os.cpu_count() or 1, max(1, len(indices) // 4))
    if workers == 1:
        for k in indices:
            _write(seed, split, k, folder)
            yield k
        return
    package_root = str(Path(__file__).resolve().parents[2])
    # One thread of BLAS each: the work is already split by process.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([package_root, *filter(None, [os.environ.get("PYTHONPATH")])]), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "edgekit.datasets.synthetic", str(seed), split, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True,
        )
        for _ in range(workers)
    ]  # fmt: skip
    try:
        for n, process in enumerate(processes):
            process.stdin.write(json.dumps(indices[n::workers]))
            process.stdin.close()
        waiting = set(indices)
        while waiting:
            running = any(process.poll() is None for process in processes)
            done = {k for k in waiting if (folder / f"{split}-{k:05d}.sha256").is_file()}
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


def _write(seed: int, split: str, k: int, folder: Path) -> None:
    clip = make_clip(seed, split, k)
    path = folder / f"{clip.id}.npz"
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.savez(file, frames=clip.frames, audio=clip.audio, meta=json.dumps({"labels": clip.labels, "tags": clip.tags}))
        digest = hashlib.sha256(part.read_bytes()).hexdigest()
        part.replace(path)
        stamp = path.with_suffix(f".{os.getpid()}.part")
        stamp.write_text(digest)
        stamp.replace(path.with_suffix(".sha256"))  # last: a clip counts once its digest stands
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ResourceError(f"{path}: cannot be written ({error.strerror})", "free some disk space") from error


def make_clip(seed: int, split: str, k: int, size: int = SIZE, frames: int = FRAMES) -> Clip:
    """Clip `k` of a split, by arithmetic alone. `size` and `frames` change the camera, not the scene."""
    number, people, _ = _SPLITS[split]
    rng = np.random.default_rng([seed, number, 1, k])
    person = int(rng.integers(people))
    identity, voice = draw_person(seed, split, person)
    sentence, phonemes = _sentence(rng, split)
    labels = draw_labels(rng)
    snr_db = float(rng.uniform(*SNR_DB))

    wave, opening = speech.speak(phonemes, voice, labels["a"], SAMPLES, rng)
    mixed = noise.mix_at_snr(wave, noise.car_noise(SAMPLES, rng), snr_db)
    # The recorder's gain varies; it never clips.
    audio = np.rint(mixed / np.abs(mixed).max() * rng.uniform(0.3, 0.95) * 32767).astype(np.int16)
    motion = _motion(rng, labels["v"], opening, frames)
    pixels = face.render(identity, motion, size, rng)
    tags = {"snr_db": round(snr_db, 3), "identity": f"{split}-{person:03d}", "voice": f"{split}-{person:03d}", "sentence": sentence}
    return Clip(f"{split}-{k:05d}", pixels, FPS * frames / FRAMES, audio, SAMPLE_RATE_HZ, labels, tags)


def draw_person(seed: int, split: str, person: int) -> tuple[face.Identity, speech.Voice]:
    """A face and a voice that no other person of any split has."""
    rng = np.random.default_rng([seed, _SPLITS[split][0], 2, person])
    return face.draw_identity(rng), speech.draw_voice(rng)


def draw_labels(rng: np.random.Generator) -> dict[str, float]:
    """What face and voice say: the same in three clips of ten, unrelated in the others."""
    v = rng.uniform(-1, 1)
    a = np.clip(v + rng.normal(0, 0.15), -1, 1) if rng.random() < 0.3 else rng.uniform(-1, 1)
    weight_v, weight_a = 0.6 + abs(v), 0.5 + abs(a)
    o = (weight_v * v + weight_a * a) / (weight_v + weight_a)
    return {"o": round(float(o), 4), "a": round(float(a), 4), "v": round(float(v), 4)}


def _sentence(rng: np.random.Generator, split: str) -> tuple[str, list[str]]:
    low, high = _SPLITS[split][2]
    while True:
        text, phonemes = speech.draw_sentence(rng)
        # Not hash(): that one is salted per process.
        if low <= hashlib.sha256(text.encode()).digest()[0] % 10 < high:
            return text, phonemes


def _motion(rng: np.random.Generator, valence: float, opening: np.ndarray, frames: int) -> face.Motion:
    t = (np.arange(frames) + 0.5) / frames

    def drift(amount: float) -> np.ndarray:
        rates, phases = rng.uniform(0.3, 2.0, 3), rng.uniform(0, 6.28, 3)
        return amount * sum(np.sin(6.28 * r * t + p) for r, p in zip(rates, phases, strict=True)) / 3

    # The expression comes up from half its strength, holds, and wavers.
    onset = rng.uniform(-0.2, 0.25)
    shown = valence * (0.6 + 0.4 * np.clip((t - onset) / 0.25, 0, 1)) * (1 + drift(0.1))
    blink = np.zeros(frames)
    for start in rng.uniform(0, 1, rng.integers(0, 3)):
        blink = np.maximum(blink, np.clip(1 - np.abs(t - start) / 0.04, 0, 1))
    occluder = np.zeros((frames, 4))
    if rng.random() < 0.3:  # a hand or the wheel's rim, for part of the clip
        start, length = rng.uniform(0, 0.8), rng.uniform(0.15, 0.5)
        passing = (t >= start) & (t < start + length)
        path = np.stack([rng.uniform(-0.6, 0.6) + drift(0.2), rng.uniform(-0.3, 0.8) + drift(0.2)], 1)
        size = rng.uniform(0.15, 0.4, 2)
        occluder = np.concatenate([path, np.broadcast_to(size, (frames, 2))], 1) * passing[:, None]
    cabin = rng.uniform(0.08, 0.55)
    centres = ((np.arange(frames) + 0.5) / frames * len(opening)).astype(int)
    return face.Motion(
        valence=shown,
        mouth_open=opening[centres],
        blink=blink,
        x=rng.uniform(-0.1, 0.1) + drift(0.06),
        y=rng.uniform(-0.1, 0.06) + drift(0.04),
        roll=rng.uniform(-0.1, 0.1) + drift(0.05),
        yaw=np.clip(rng.uniform(-0.5, 0.5) + drift(0.3), -1, 1),
        scale=rng.uniform(0.72, 0.86) + drift(0.02),
        light=np.clip(rng.uniform(0.6, 1.15) * (1 + drift(0.25)), 0.3, 1.4),
        light_x=rng.uniform(-1, 1),
        light_y=rng.uniform(-0.5, 0.5),
        warmth=rng.uniform(-1, 1),
        blur_px=rng.uniform(0.4, 1.3) if rng.random() < 0.35 else 0.0,
        noise=rng.uniform(0.0, 0.03),
        occluder=occluder,
        occluder_colour=tuple(rng.uniform(0.05, 0.7, 3)),
        background=cabin * rng.uniform(0.5, 1.5, (4, 1)) * rng.uniform(0.8, 1.2, (4, 3)),
    )


def _worker(arguments: list[str]) -> None:
    seed, split, folder = arguments
    for k in json.load(sys.stdin):
        _write(int(seed), split, k, Path(folder))


if __name__ == "__main__":
    _worker(sys.argv[1:])
