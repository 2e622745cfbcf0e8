"""A chain on streams: sound goes through the denoiser as it comes, and every new clip of video gets an answer.

What a window of `run_flow` computes from nothing is carried here: the denoiser's states and the overlaps of its spectra from hop to hop,
the features of the clips that are still in the window, and the moving average of the SNR.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .errors import EdgekitError
from .flow import Live, Session, stateful
from .spectrum import Stft, masked


class SpeechStream:
    """The denoiser of a flow on a wave without end: the samples that `run_flow` gives for the whole wave at once, as soon as they are known."""

    def __init__(self, flow: Mapping[str, Any], session: Session):
        """
        Args:
            flow: flow.json with the host steps `stft` and `masked_istft` and an engine between them.
            session: of that engine.
        """
        host = {step["step"]: step for step in flow["host_steps"]}
        self.before, self.after = host["stft"], host["masked_istft"]
        [self.step] = [step for step in flow["steps"] if self.before["give"] in step.get("each", {}).values()]
        self._sizes = Stft(*(self.before[key] for key in ("win_length", "hop_length", "n_fft")))
        self._late, self._chunk = self.before.get("delay", 0), self.before.get("chunk", 1)
        self._flow, self._session = dict(flow), session
        square, hop = self._sizes.window() ** 2, self._sizes.hop_length
        self._weight = np.pad(square, (0, -len(square) % hop)).reshape(-1, hop).sum(axis=0) + 1e-8  # the same for every hop
        self.reset()

    def reset(self) -> None:
        """Start a new stream."""
        self._run = stateful(self._flow, self.step["engine"], self._session, None)
        self._heard = np.zeros(self._sizes.pad)  # samples that a coming frame still needs
        self._spectra = np.zeros((0, 2, self._sizes.bins), np.float32)  # frames that wait for their masks; the first `_unmasked` masks are of none
        self._fresh = self._spectra  # frames that wait for the engine
        self._unmasked = self._late
        self._added = np.zeros(self._sizes.win_length - self._sizes.hop_length)  # of frames that overlap coming ones
        self._skip = self._sizes.pad  # zeros that were put before the wave

    def push(self, samples: np.ndarray) -> np.ndarray:
        """The next samples of the noisy wave, any number → those of the speech that are known now, float32."""
        sizes, chunk = self._sizes, self._chunk
        self._heard = np.concatenate([self._heard, np.asarray(samples, np.float64)])
        count = max(0, (len(self._heard) - sizes.win_length) // sizes.hop_length + 1)
        if count:
            starts = np.arange(count) * sizes.hop_length
            cut = self._heard[starts[:, None] + np.arange(sizes.win_length)] * sizes.window()
            spectra = np.fft.rfft(cut, sizes.n_fft)[:, 1:]
            self._fresh = np.concatenate([self._fresh, np.stack([spectra.real, spectra.imag], axis=1).astype(np.float32)])
            self._heard = self._heard[count * sizes.hop_length :]
        [frame_port] = self.step["each"]
        [mask_port] = self.step["stack"]
        masks = []
        while len(self._fresh) >= chunk:
            taken, self._fresh = self._fresh[:chunk], self._fresh[chunk:]
            self._spectra = np.concatenate([self._spectra, taken])
            fed = taken.transpose(1, 2, 0) if "chunk" in self.before else taken[0]
            mask = self._run({frame_port: fed[None]})[mask_port][0]
            masks.append(mask.transpose(2, 0, 1) if "chunk" in self.before else mask[None])
        if not masks:
            return np.zeros(0, np.float32)
        ready = np.concatenate(masks)
        gone = min(self._unmasked, len(ready))
        self._unmasked, ready = self._unmasked - gone, ready[gone:]
        spectra, self._spectra = self._spectra[: len(ready)], self._spectra[len(ready) :]
        return self._overlapped(sizes.pieces(masked(spectra, ready, self.after["mask"]))) if len(ready) else np.zeros(0, np.float32)

    def _overlapped(self, pieces: np.ndarray) -> np.ndarray:
        """Frames added to what of the wave is open; what no coming frame reaches is given out."""
        hop, window = self._sizes.hop_length, self._sizes.win_length
        wave = np.concatenate([self._added, np.zeros(len(pieces) * hop)])
        for t, piece in enumerate(pieces):
            wave[t * hop : t * hop + window] += piece
        done, self._added = wave[: len(pieces) * hop], wave[len(pieces) * hop :]
        done = (done.reshape(-1, hop) / self._weight).reshape(-1)
        gone = min(self._skip, len(done))
        self._skip -= gone
        return np.clip(done[gone:], -1, 1).astype(np.float32)


class LiveChain:
    """A flow with a denoiser in front, clip by clip: one new clip of video and the sound since the last one give one answer.

    The sound of a window ends where the denoiser has got to, at most `latency_samples` before the video's end.
    """

    def __init__(self, flow: dict[str, Any], sessions: Mapping[str, Session]):
        self._speech = SpeechStream(flow, sessions[self._denoiser(flow)])
        before, after, step = self._speech.before, self._speech.after, self._speech.step
        self._noisy_name, self._speech_name, self._samples = before["from"], after["give"], after["samples"]
        rest = {
            **flow,
            "inputs": {**flow["inputs"], self._speech_name: {"shape": [self._samples], "dtype": "float32"}},
            "steps": [one for one in flow["steps"] if one is not step],
            "host_steps": [one for one in flow["host_steps"] if one["step"] not in ("stft", "masked_istft")],
        }
        self._live = Live(rest, sessions)
        self.reset()

    @staticmethod
    def _denoiser(flow: Mapping[str, Any]) -> str:
        """The engine that makes masks.

        Raises:
            EdgekitError: this flow has none.
        """
        for step in flow["steps"]:
            if any(host["step"] == "stft" and host["give"] in step.get("each", {}).values() for host in flow.get("host_steps", [])):
                return step["engine"]
        raise EdgekitError("flow.json: no engine reads what the host step `stft` gives", "this flow has no denoiser; use `flow.Live`")

    def reset(self) -> None:
        """Start a new stream."""
        self._speech.reset()
        self._live.reset()
        self._memory: dict[str, Any] = {}
        self._noisy, self._clean = np.zeros(0, np.float32), np.zeros(0, np.float32)

    def push(self, clip: np.ndarray, samples: np.ndarray) -> dict[str, np.ndarray] | None:
        """The newest clip of video, and the samples (-1..1) since the one before → the answer for the window that ends here; None until it is full."""
        self._noisy = np.concatenate([self._noisy, np.asarray(samples, np.float32)])
        self._clean = np.concatenate([self._clean, self._speech.push(samples)])
        # Noisy and clean begin at the same sample: what is older than a window before the clean one's end goes from both.
        old = max(0, len(self._clean) - self._samples)
        self._noisy, self._clean = self._noisy[old:], self._clean[old:]
        silence = np.zeros(self._samples - len(self._clean), np.float32)  # before the stream's first sample
        noisy, clean = (np.concatenate([silence, wave[: len(self._clean)]]) for wave in (self._noisy, self._clean))
        [video] = self._live.inputs
        return self._live.push({video: clip}, {self._noisy_name: noisy, self._speech_name: clean}, self._memory)
