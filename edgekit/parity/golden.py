"""`edgekit verify BUNDLE`: whole and unchanged, and its golden clips still give the answers that it was delivered with.

Three questions, in this order: does every file match its sha256; does preprocessing turn the raw
clips into the recorded inputs; do the engines turn these into the recorded answers. Where the
artifact does not run here, its simulation answers, and the result says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle import Bundle
from edgekit.errors import IntegrityError
from edgekit.formats import read_json
from edgekit.parity.flows import BundleSide
from edgekit.parity.recorded import Tensors
from edgekit.parity.runners import DEFAULTS, Options, open_side

# Of the largest answer: the same engines on another CPU sum in another order.
FLOOR_OF_PEAK = 1e-4
# Of a long output only the float model's answer is recorded. The artifact was off from it by what `parity` says, on this clip or another.
LONG_FACTOR = 1.5


@dataclass(frozen=True)
class Check:
    """One output of one golden clip, or one input that preprocessing makes."""

    clip: str
    tensor: str
    kind: str
    """`preprocess` or `answer`."""
    max_abs: float
    limit: float
    is_ok: bool


@dataclass(frozen=True)
class Verified:
    """What `verify` found."""

    bundle: str
    files: int
    measured_on: str
    """`host`: the artifact ran here; `host-simulated`: ONNX Runtime computed its numbers."""
    checks: tuple[Check, ...]

    @property
    def is_ok(self) -> bool:
        return all(check.is_ok for check in self.checks)

    @property
    def exit_code(self) -> int:
        """0, or 3 when an answer is off."""
        return 0 if self.is_ok else 3

    def failures(self) -> list[str]:
        return [f"clip {c.clip}: {'input' if c.kind == 'preprocess' else 'answer'} `{c.tensor}` is off by {c.max_abs:.4g} (max_abs), allowed {c.limit:.3g}" for c in self.checks if not c.is_ok]

    def to_json(self) -> dict[str, Any]:
        checks = [{key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in asdict(check).items()} for check in self.checks]
        return {"bundle": self.bundle, "verdict": "same" if self.is_ok else "differs", "files": self.files, "measured_on": self.measured_on, "checks": checks, "failures": self.failures()}


def verify(bundle: str | Path, options: Options = DEFAULTS) -> Verified:
    """Check a bundle.

    Raises:
        IntegrityError: a file does not match the manifest, or a golden tensor is not there.
        ToolMissing: the backend's runtime is not installed.
    """
    with open_side(bundle, options) as side:
        if not isinstance(side, BundleSide):
            raise IntegrityError(f"{bundle}: no bundle", "give a bundle's folder or .tar.zst; other models are compared with `edgekit compare`")
        golden = _json(side.bundle, "golden.json")
        tensors = Tensors(side.bundle.path / "golden.safetensors")
        checks = [check for clip in golden["clips"] for check in _clip(side, golden, tensors, clip)]
        if not checks:
            raise IntegrityError(f"{bundle}: golden.json describes no clip")
        return Verified(str(bundle), len(side.bundle.manifest["files"]), "host-simulated" if side.is_simulated else "host", tuple(checks))


def _clip(side: BundleSide, golden: Mapping[str, Any], tensors: Tensors, clip: Mapping[str, Any]) -> list[Check]:
    inputs = {name: tensors[f"{clip['id']}/input/{name}"] for name in side.inputs}
    return [*_preprocessed(side, golden, tensors, clip, inputs), *_answers(side, golden, tensors, clip, inputs)]


def _preprocessed(side: BundleSide, golden: Mapping[str, Any], tensors: Tensors, clip: Mapping[str, Any], inputs: Mapping[str, np.ndarray]) -> list[Check]:
    from edgekit.datasets import Clip
    from edgekit.preprocess import preprocess

    if side.preprocess is None:
        return []
    id, none = clip["id"], np.zeros(0, np.int16)
    # A model without sound has clips without: the part that its preprocessing does not read is not there.
    frames, audio = (tensors[f"{id}/raw/{part}"] if f"{id}/raw/{part}" in tensors.names else none for part in ("frames", "audio"))
    stamps = tensors[f"{id}/raw/frame_ms"] if f"{id}/raw/frame_ms" in tensors.names else None
    features = {name.rpartition("/")[2]: tensors[name] for name in tensors.names if name.startswith(f"{id}/raw/features/")}
    raw = Clip(id, frames, clip.get("fps", 0.0), audio, clip.get("sample_rate_hz", 0), {}, frame_ms=stamps, features=features)
    made = preprocess(dict(side.preprocess), raw)
    limits = golden.get("preprocess_max_abs", {})
    return [_check(id, name, "preprocess", made[name], inputs[name], float(limits.get(name, 0.0))) for name in made if name in inputs]


def _answers(side: BundleSide, golden: Mapping[str, Any], tensors: Tensors, clip: Mapping[str, Any], inputs: Mapping[str, np.ndarray]) -> list[Check]:
    """Off by at most what the artifact was off from the float model when it was built.

    Long outputs, such as waves, are compared with the float model's: of clips as they were recorded, since cut and stretched ones are
    unlike those that the limit was measured on.
    """
    wanted = golden["answers"].get(clip["id"], {})
    is_recorded = clip.get("derived_from") is None
    long = [name for name in side.outputs if is_recorded and name not in wanted and name in golden["parity"] and f"{clip['id']}/output/{name}" in tensors.names]
    got = side.run(inputs, sample=clip["id"]) if wanted or long else {}
    found = []
    for name in long:
        limit = golden["parity"][name].get("max_abs")
        found.append(_check(clip["id"], name, "answer", got[name], tensors[f"{clip['id']}/output/{name}"], -1.0 if limit is None else max(LONG_FACTOR * float(limit), FLOOR_OF_PEAK)))
    for name, answer in wanted.items():
        want = np.asarray(answer["artifact"], np.float64)
        limit = golden["parity"].get(name, {}).get("max_abs")
        peak = float(np.abs(want).max(initial=1.0))
        # No max_abs: it was NaN when the bundle was built, which nothing can be within.
        found.append(_check(clip["id"], name, "answer", got[name], want, -1.0 if limit is None else max(float(limit), FLOOR_OF_PEAK * peak)))
    return found


def _check(clip: str, tensor: str, kind: str, got: np.ndarray, want: np.ndarray, limit: float) -> Check:
    if got.shape != want.shape:
        raise IntegrityError(f"clip {clip}: `{tensor}` has shape {list(got.shape)}, {list(want.shape)} was recorded")
    max_abs = float(np.abs(np.asarray(got, np.float64) - np.asarray(want, np.float64)).max(initial=0.0))
    return Check(clip, tensor, kind, max_abs, limit, max_abs <= limit)


def _json(bundle: Bundle, name: str) -> dict[str, Any]:
    document = read_json(bundle.path / name)
    if not isinstance(document, dict) or not {"clips", "answers", "parity"} <= set(document):
        raise IntegrityError(f"{bundle.source}/{name}: not a description of golden clips")
    return document
