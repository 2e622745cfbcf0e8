"""Small media files for the data set tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


def _write_container(
    path: Path,
    frames: int = 12,
    height: int = 48,
    width: int = 64,
    fps: int = 25,
    video: str | None = "mpeg4",
    audio: str | None = "aac",
    rate_hz: int = 44100,
    seconds: float = 0.5,
) -> Path:
    """Upper half red, lower half bluer with every frame (of 15); a 440 Hz tone of 0.4 left, silence right."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        if video:
            v = container.add_stream(video, rate=fps)
            v.width, v.height, v.pix_fmt = width, height, "yuv420p"
        if audio:
            a = container.add_stream(audio, rate=rate_hz)
            a.layout = "stereo"
        if video:
            for i in range(frames):
                image = np.zeros((height, width, 3), np.uint8)
                image[: height // 2] = [220, 30, 30]
                image[height // 2 :, :, 2] = 16 * i % 251
                container.mux(v.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(v.encode())
        if audio:
            tone = 0.4 * np.sin(2 * np.pi * 440 * np.arange(int(rate_hz * seconds)) / rate_hz)
            planes = np.stack([tone, np.zeros_like(tone)]).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = rate_hz, 0
            container.mux(a.encode(frame))
            container.mux(a.encode())
    return path


def _write_npz(path: Path, seed: int = 0, **changes) -> Path:
    """Frames [5, 6, 8, 3] at 25 fps and 1600 samples at 16 kHz; a change to None leaves an array out."""
    rng = np.random.default_rng(seed)
    arrays = {
        "frames": rng.integers(0, 256, (5, 6, 8, 3), np.uint8),
        "fps": 25.0,
        "audio": rng.integers(-9000, 9000, 1600).astype(np.int16),
        "sample_rate_hz": 16000,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{k: v for k, v in {**arrays, **changes}.items() if v is not None})
    return path


@pytest.fixture
def write_container():
    return _write_container


@pytest.fixture
def write_npz():
    return _write_npz
