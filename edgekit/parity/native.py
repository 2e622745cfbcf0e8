"""Sides of edgekit's own engine: a weight file `model.ekd`, whole from wave to wave, or the network alone frame by frame.

    model.ekd         {"wave": [samples]} -> {"speech": [samples]}, each wave a stream of its own, the engine's latency taken off
    model.ekd@step    {"frame": [1, 2, bins], "state_in"} -> {"mask": [1, 2, bins], "state_out"}, as the ONNX graph of one frame

The engine keeps its states inside and gives them out as bytes that only it can read, so `state_in` is uint8. All zeros are the start of
a stream; what is saved begins with a mark and never is. So reset, restore and what a state is worth can be measured as of any other side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import native
from edgekit.artifact import file_digest
from edgekit.errors import UsageError
from edgekit.formats import State
from edgekit.parity.runners import DEFAULTS, Arrays, Options, Port, Side, refuse_words, require_feeds

if TYPE_CHECKING:
    import numpy as np

FRAME, MASK, STATE_IN, STATE_OUT = "frame", "mask", "state_in", "state_out"
WAVE, SPEECH = "wave", "speech"
STEP = "step"
ROWS = ("scalar", "avx2", "avx512", "neon", "neon_dotprod")
PRECISIONS = ("fp32", "bf16", "int8")
ALGORITHMS = ("four_mult", "gauss")


def open_native(text: str, path: Path, words: tuple[str, ...] = (), options: Options = DEFAULTS) -> Side:
    """A weight file; words choose `step`, an instruction set, a precision and an algorithm.

    Raises:
        ToolMissing: the library is not installed.
        IntegrityError: the file is damaged.
        TargetError: this CPU has no such instruction set, or the file no such precision.
        UsageError: a word is unknown.
    """
    refuse_words(text, words, (STEP, *ROWS, *PRECISIONS, *ALGORITHMS))
    chosen = {what: next((word for word in words if word in known), None) for what, known in (("isa", ROWS), ("precision", PRECISIONS), ("algorithm", ALGORITHMS))}
    side = NativeSide(text, path, native.Denoiser(path, threads=options.threads or 1, **chosen))
    return side.step() if STEP in words else side


class NativeSide(Side):
    """The whole flow, spectra included."""

    kind, has_batch = "native", False

    def __init__(self, text: str, path: Path, denoiser: native.Denoiser):
        super().__init__(text, path)
        self.denoiser = denoiser
        self.numbers = "int8" if denoiser.info["precision"] == "int8" else "float"
        self.inputs, self.outputs = {WAVE: Port("float32", (None,))}, {SPEECH: Port("float32", (None,))}

    def run(self, feeds: Arrays, taps: Iterable[str] = (), sample: str | None = None) -> dict[str, np.ndarray]:
        import numpy as np

        require_feeds(self, feeds)
        _refuse_taps(self, taps)
        self.denoiser.reset()
        late = self.denoiser.latency_samples
        return {SPEECH: self.denoiser.process(np.concatenate([feeds[WAVE], np.zeros(late, np.float32)]))[late:]}

    def step(self) -> NativeStep:
        """The network alone; it takes the engine over."""
        return NativeStep(self.text, self.path, self.denoiser)

    def facts(self) -> dict[str, Any]:
        return _facts(self)

    def close(self) -> None:
        self.denoiser.close()


class NativeStep(Side):
    """One frame of the network."""

    kind = "native"
    is_opaque = True

    def __init__(self, text: str, path: Path, denoiser: native.Denoiser):
        super().__init__(text, path)
        self.denoiser = denoiser
        self.numbers = "int8" if denoiser.info["precision"] == "int8" else "float"
        shape, blob = (1, 2, denoiser.info["bins"]), (len(denoiser.save()),)
        self.inputs = {FRAME: Port("float32", shape), STATE_IN: Port("uint8", blob)}
        self.outputs = {MASK: Port("float32", shape), STATE_OUT: Port("uint8", blob)}
        self.states = (State(STATE_IN, STATE_OUT, blob),)

    def run(self, feeds: Arrays, taps: Iterable[str] = (), sample: str | None = None) -> dict[str, np.ndarray]:
        require_feeds(self, feeds)
        _refuse_taps(self, taps)
        return self(feeds)

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As a session of a flow, whose states start as float zeros."""
        import numpy as np

        if feeds[STATE_IN].any():
            self.denoiser.restore(np.asarray(feeds[STATE_IN], np.uint8).tobytes())
        else:
            self.denoiser.reset()
        mask = self.denoiser.step(feeds[FRAME][0])
        return {MASK: mask[None], STATE_OUT: np.frombuffer(self.denoiser.save(), np.uint8)}

    def facts(self) -> dict[str, Any]:
        return {**_facts(self), "part": "the network alone, frame by frame"}

    def close(self) -> None:
        self.denoiser.close()


def _refuse_taps(side: Side, taps: Iterable[str]) -> None:
    for name in taps:
        raise UsageError(f"{side.text}: `{name}` is not given out by a native engine", "compare the ONNX files to look inside")


def _facts(side: NativeSide | NativeStep) -> dict[str, Any]:
    info = side.denoiser.info
    kept = ("sample_rate_hz", "weight_format", "precision", "algorithm", "isa", "row", "latency_samples", "parameters")
    return {"sha256": file_digest(side.path), "runtime": "edgekit native", **{key: info[key] for key in kept if info.get(key) is not None}}
