"""OpenVINO in a process that may use no newer CPU instructions than a given set.

oneDNN reads ONEDNN_MAX_CPU_ISA once, before its first primitive, so the limit needs a process of its
own. It stays alive for a session, since compiling takes longer than running.

AVX2 is not among the sets: the limit is oneDNN's alone, and OpenVINO 2026.4's own kernels, which look
at the CPU itself, use oneDNN's parts for activations and crash on those for AVX2. AVX512_CORE, which
is AVX-512 without VNNI, adds products of u8 and s8 in 16 bits as AVX2 does.

Source: oneDNN developer guide, "CPU Dispatcher Control".
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    import numpy as np

ISAS = ("AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16")


class Session:
    """As openvino.Session, in a process limited to `isa`; it ends with this object."""

    def __init__(self, isa: str, xml: Path, config: Mapping[str, Any]):
        self._worker = _Worker(isa)
        self.inputs, self.outputs = self._worker.ask("open", str(xml), dict(config))

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._worker.ask("run", dict(feeds))


def precisions(isa: str, xml: Path, config: Mapping[str, Any], tensors: Mapping[str, str]) -> dict[str, str]:
    """As layers.precisions, in a process limited to `isa`."""
    return _Worker(isa).ask("precisions", str(xml), dict(config), dict(tensors))


class _Worker:
    def __init__(self, isa: str):
        ours, theirs = Pipe()
        root = str(Path(__file__).parents[3])  # so that the child finds the same edgekit
        env = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
        script = f"from edgekit.backends.openvino.isolated import serve; serve({theirs.fileno()})"
        self._process = subprocess.Popen([sys.executable, "-c", script], env=env, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()  # so that the child's end of the pipe closes with the child
        self._pipe = ours

    def ask(self, *request: Any) -> Any:
        try:
            self._pipe.send(request)
            answer, error = self._pipe.recv()
        except (EOFError, OSError) as broken:
            raise EdgekitError(f"OpenVINO ended with exit code {self._process.wait()} in its own process") from broken
        if error is not None:
            raise error
        return answer

    def __del__(self):
        if hasattr(self, "_pipe"):
            self._pipe.close()
            self._process.wait()


def serve(descriptor: int) -> None:
    """Answer requests until the other side hangs up. Runs in the child."""
    from edgekit.backends import openvino
    from edgekit.backends.openvino import layers

    session = None
    with Connection(descriptor) as pipe:
        while True:
            try:
                what, *arguments = pipe.recv()
            except EOFError:
                return
            try:
                if what == "open":
                    session = openvino.Session(Path(arguments[0]), arguments[1])
                    answer = session.inputs, session.outputs
                elif what == "run":
                    answer = session(*arguments)
                else:
                    answer = layers.precisions(Path(arguments[0]), *arguments[1:])
            except EdgekitError as error:
                pipe.send((None, error))
            else:
                pipe.send((answer, None))
