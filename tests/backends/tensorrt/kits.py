"""A whole bundle with its held-out clips, by the real stages from hand-made directories on."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from edgekit.backends import tensorrt
from edgekit.stages import package, verify
from tests.stages.made_up import TARGET, MadeUp, job, stage_dirs

ENGINES = ("eye", "head")
CLIPS = 12


class OwnSize(MadeUp):
    """Frames of the model's own size: they stay integers."""

    def clip(self, id):
        clip = super().clip(id)
        return type(clip)(clip.id, np.ascontiguousarray(clip.frames[:, :8, :8]), clip.fps, clip.audio, clip.sample_rate_hz, clip.labels, clip.tags)


def spec(gates: dict | None = None) -> dict:
    return {
        "name": "toy_x",
        "gates": {"mae": {"max_increase": 0.5}} if gates is None else gates,
        "recipe": {"name": "toy_x", "calibrate": {"data": "made_up", "clips": 8}},
        "target": {"name": "toy", "description": "a device for tests", "build_on": "device", "runtime": {"name": "TensorRT", "version": "8.5.2"}, "spec": TARGET},
        "versions": {"edgekit": "0.1.0"},
        "finisher": tensorrt.finisher(TARGET),
    }


def make_bundle(folder: Path, data: MadeUp | None = None) -> tuple[Path, Path]:
    """(bundle, heldout.tar)."""
    data = data or OwnSize(CLIPS)
    dirs = stage_dirs(folder, data)
    measured = job(folder, "verify", {"metrics": ["mae"], "resamples": 50, "seed": 0, "target": TARGET, "heldout": 1}, dirs, {"data": data})
    verify.run(measured)
    inputs = {**{name: dirs[name] for name in ("export", "reference", "prune")}, "verify": measured.out}
    done = job(folder, "package", spec(), inputs, {"calibration": MadeUp(8)})
    package.run(done)
    bundle = done.out / "bundle"
    (bundle / "finish.sh").chmod(0o755)
    return bundle, measured.out / "heldout.tar"


def place(bundle: Path, heldout: Path, folder: Path) -> Path:
    """As it lies on a device: the kit in `folder`/kit, the clips beside it."""
    shutil.copytree(bundle, folder / "kit")
    shutil.copyfile(heldout, folder / "toy_x.heldout.tar")
    return folder / "kit"


