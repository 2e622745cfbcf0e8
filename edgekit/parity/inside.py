"""A graph with its inner tensors in reach: as it runs, and with every part fed from the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import UsageError
from edgekit.parity.graphs import OnnxSide, OpenvinoSide, load_onnx
from edgekit.parity.matching import Match
from edgekit.parity.surgery import Loose, Net, Rounding, cut_loose, give_out, grid_of

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

    from edgekit.parity.runners import Side

Arrays = Mapping[str, np.ndarray]
Call = Callable[[Arrays], dict[str, np.ndarray]]


class OnnxInside:
    """An ONNX graph, computed as written."""

    def __init__(self, path: Path, threads: int | None = None):
        import onnx

        load_onnx(path)  # refuses weights outside the model's folder, before anything follows them
        self.net = Net(onnx.load(str(path)))
        self._threads = threads

    def open(self, wanted: Iterable[str]) -> Call:
        """A session that gives `wanted`, graph inputs among them as they came."""
        wanted = list(dict.fromkeys(wanted))
        session = self._session(give_out(self.net, [name for name in wanted if name in self.net.producer]))
        return lambda feeds: {**{name: feeds[name] for name in wanted if name in feeds}, **(session(feeds) if session.outputs else {})}

    def open_loose(self, matched: Mapping[str, Match], examples: Arrays, wanted: Iterable[str], model: Net | None = None) -> Call:
        """A session that computes `wanted`, every part by itself: call it with graph inputs and a clean value of every tensor of `matched`."""
        loose = cut_loose(model or self.net, {name: examples[name] for name in matched}, wanted)
        return self._fed(loose)

    def _fed(self, loose: Loose) -> Call:
        session = self._session(loose.model)
        known = set(session.inputs)
        names = {**{name: name for name in self.net.inputs}, **loose.feeds}
        return lambda clean: session({feed: clean[name] for name, feed in names.items() if feed in known})

    def _session(self, model: onnx.ModelProto):
        from edgekit.backends.onnxruntime import Session

        return Session(model.SerializeToString(), self._threads)

    def rounding(self, tensor: str, partner: str, matched: Mapping[str, Match]) -> Rounding:
        """What the part of `tensor` rounds, in A's names."""
        part = self.net.part(tensor, matched)
        found = self.net.roundings(part)
        reads = {matched[tap].a: grid_of(self.net, node) for tap, node in found.items() if tap in matched}
        return Rounding(partner, reads, grid_of(self.net, found[""]) if "" in found else None, tuple(self.net.integer_weights(part)))


def inside_of(side: Side, threads: int | None) -> Any:
    """A side's graph.

    Raises:
        UsageError: no inner tensors are to be had.
    """
    if isinstance(side, OpenvinoSide):
        from edgekit.parity.inside_openvino import OpenvinoInside

        return OpenvinoInside(side.path, threads)
    path = side.engine_graph()
    if path is None:
        raise UsageError(f"{side.text}: its inner tensors cannot be reached", "bisect two graphs, or name one engine behind an `@`")
    if isinstance(side, OnnxSide) and side.is_fused:
        raise UsageError(f"{side.text}: fused kernels give out no inner tensors", "leave out `@fused`")
    return OnnxInside(path, threads)
