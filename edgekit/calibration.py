"""Calibration data and the statistics taken of it, once, for all targets."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .datasets import Dataset
from .errors import DataError, IntegrityError
from .flow import Session, run_flow
from .formats import read_json, write_json
from .preprocess import preprocess
from .quant import BINS_PER_SIDE, Histogram

Inputs = dict[str, np.ndarray]

LOT_BYTES = 8 << 20  # tensors that wait to be counted together


def batches(dataset: Dataset, spec: Mapping[str, Any]) -> Iterator[tuple[str, Inputs]]:
    """Preprocessed clips, one at a time: (id, {flow input: array without batch axis}).

    Raises:
        DataError: a clip cannot be decoded or preprocessed; the message names it.
    """
    for clip_id in dataset.ids:
        yield clip_id, preprocess(dict(spec), dataset.clip(clip_id))


@dataclass
class Statistics:
    """A histogram of every observed tensor of every engine.

    Attributes:
        histograms: {engine: {tensor: Histogram}}.
        aliases: {engine: {tensor: the observed tensor that it rearranges}}.
        clips: how many clips were read.
    """

    histograms: dict[str, dict[str, Histogram]]
    aliases: dict[str, dict[str, str]] = field(default_factory=dict)
    clips: int = 0

    def find(self, engine: str, tensor: str) -> Histogram | None:
        """The histogram of a tensor, or of the tensor that it rearranges; None if neither was observed."""
        observed = self.histograms.get(engine, {})
        return observed.get(tensor) or observed.get(self.aliases.get(engine, {}).get(tensor, ""))

    def save(self, directory: Path) -> None:
        """Write stats.json (what was seen) and stats.npz (`counts` int64 [tensor, bin])."""
        rows: list[np.ndarray] = []
        engines: dict[str, Any] = {}
        for engine, observed in self.histograms.items():
            tensors = {}
            for name, h in observed.items():
                tensors[name] = {"row": len(rows), "exponent": h.exponent, "low": h.low, "high": h.high, "values": h.n}
                rows.append(h.counts)
            engines[engine] = {"tensors": tensors, "aliases": self.aliases.get(engine, {})}
        doc = {
            "bins_per_side": BINS_PER_SIDE,
            "bin": "row r, column i of `counts` in stats.npz counts (i - bins_per_side) * 2^exponent <= x < (i + 1 - bins_per_side) * 2^exponent",
            "clips": self.clips,
            "engines": engines,
        }
        write_json(directory / "stats.json", doc)
        np.savez_compressed(directory / "stats.npz", counts=np.array(rows, np.int64).reshape(-1, 2 * BINS_PER_SIDE))

    @classmethod
    def open(cls, directory: Path) -> Statistics:
        doc = read_json(directory / "stats.json")
        with np.load(directory / "stats.npz", allow_pickle=False) as file:
            counts = file["counts"]
        if counts.shape[1:] != (2 * BINS_PER_SIDE,) or doc["bins_per_side"] != BINS_PER_SIDE:
            raise IntegrityError(f"{directory}: histograms of {counts.shape[1:]} bins, expected {2 * BINS_PER_SIDE}")
        histograms: dict[str, dict[str, Histogram]] = {}
        for engine, part in doc["engines"].items():
            histograms[engine] = {}
            for name, entry in part["tensors"].items():
                h = Histogram()
                h.counts, h.exponent = counts[entry["row"]], entry["exponent"]
                h.low, h.high = entry["low"], entry["high"]
                histograms[engine][name] = h
        return cls(histograms, {engine: part["aliases"] for engine, part in doc["engines"].items()}, doc["clips"])


def inference_threads() -> int:
    """For sessions that `observe` runs: one core counts."""
    return max(1, (os.cpu_count() or 2) - 1)


def observe(
    flow: Mapping[str, Any],
    sessions: Mapping[str, Session],
    wanted: Mapping[str, Iterable[str]],
    clips: Iterable[tuple[str, Inputs]],
) -> Statistics:
    """Run every clip through the flow and count every wanted tensor, one clip in memory at a time.

    Stateful engines run over the whole clip, so that their states are counted at every step.

    Args:
        sessions: {engine: session that gives out the wanted tensors beside its outputs}.
        wanted: {engine: tensors, each an input or an output of its session}.

    Raises:
        DataError: no clips, or a tensor holds NaN or infinity; the message names clip, engine and tensor.
    """
    histograms = {engine: {name: Histogram() for name in names} for engine, names in wanted.items()}
    clip_id = ""
    waiting: dict[str, list[dict[str, np.ndarray]]] = {}  # runs of this clip that are not counted yet
    pending: deque[Future] = deque()

    def count_runs(where: str, engine: str, runs: list[dict[str, np.ndarray]]) -> None:
        for name, histogram in histograms[engine].items():
            what = f"{where}: engine `{engine}`, tensor `{name}`"
            parts = [run[name] for run in runs]
            # Together: counting a small tensor costs a call more than its values do.
            together = parts[0] if len(parts) == 1 else np.concatenate([part.reshape(-1) for part in parts])
            try:
                histogram.update(together, what)
            except DataError:
                for part in parts:  # says where in its own tensor a value is not finite
                    histogram.update(part, what)
                raise

    def flush(engine: str) -> None:
        pending.append(counter.submit(count_runs, f"clip {clip_id}", engine, waiting.pop(engine)))
        while len(pending) > 1:  # one lot is counted while the next is computed; no more are kept
            pending.popleft().result()

    def tap(engine: str, feeds: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        if engine not in histograms:
            return
        runs = waiting.setdefault(engine, [])
        runs.append({name: feeds[name] if name in feeds else outputs[name] for name in histograms[engine]})
        if sum(values.nbytes for run in runs for values in run.values()) > LOT_BYTES:
            flush(engine)

    count = 0
    with ThreadPoolExecutor(1) as counter:
        for clip_id, inputs in clips:  # noqa: B007 - tap names it
            run_flow(dict(flow), sessions, inputs, tap)
            for engine in list(waiting):
                flush(engine)
            count += 1
        while pending:
            pending.popleft().result()
    if not count:
        raise DataError("calibration: no clips", "give `calibrate.data` a split `calibration` with at least one clip")
    return Statistics(histograms, clips=count)
