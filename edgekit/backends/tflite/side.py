"""tflite-runtime 2.14, the last of its line, run in an environment of its own.

It needs numpy below 2, which the rest of edgekit does not take, so it lives in a separate process
(`side_worker.py`) that is spoken to through pipes: a JSON header and raw arrays, never pickle. The
same process runs under qemu with arm64 files, for the kernels that a Cortex-A really has.
"""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from edgekit import tools
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    import numpy as np

NATIVE, ARM64 = "tflite214", "tflite214-arm64"
CHECK_MODEL = Path(__file__).with_name("check.tflite")
TIMEOUT_S = 120.0
_WORKER = Path(__file__).with_name("side_worker.py")
_EXPECTED = {"x": [[-1.0, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1.0]], "y": [[-0.75, -2.25, 0.375, 0.0]]}


def versions() -> dict[str, str | None]:
    """{"tflite-runtime": version in the side environment, or None}, from its files."""
    return {"tflite-runtime": tools.version(NATIVE)}


def install_hint() -> str:
    return tools.install_hint(NATIVE)


def open(model: Path, threads: int | None = None, *, tool: str = NATIVE, timeout_s: float = TIMEOUT_S) -> Session:
    """A session of the .tflite at `model`, which has one signature.

    Args:
        threads: of the interpreter; its own choice (one) if None.
        tool: `tflite214`, or `tflite214-arm64` for the arm64 build under qemu.
        timeout_s: for loading, and for each call.

    Raises:
        ToolMissing: the side environment is not installed.
        EdgekitError: the runtime cannot load the model.
    """
    return Session(model, threads, tools.command(tool), timeout_s)


def check(where: Path, tool: str = NATIVE) -> None:
    """Load and run a small INT8 model with the tool staged in `where`: importing the package alone passes with a numpy that it cannot work with.

    Raises:
        EdgekitError: it fails, or gives other values.
    """
    import numpy as np

    with Session(CHECK_MODEL, 1, tools.command(tool, where), TIMEOUT_S) as session:
        got = session({"x": np.array(_EXPECTED["x"], np.float32)})["y"]
    if not np.array_equal(got, np.array(_EXPECTED["y"], np.float32)):
        raise EdgekitError(f"{tool}: {CHECK_MODEL.name} gives {got.tolist()}, expected {_EXPECTED['y']}", "this build of the runtime computes wrongly")


@dataclass(frozen=True)
class Port:
    """An input or output, as the signature has it."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Session:
    """A model in a process of its own, callable: {input: array} -> {output: array}.

    Dtypes and shapes are the signature's, exactly: float32, or int8 and int32 where the model's own
    inputs and outputs are. The process ends with `close`, with the last reference and with its parent.

    Attributes:
        inputs, outputs: names, in the signature's order.
        ports: {name: Port} of both.
    """

    def __init__(self, model: Path, threads: int | None, command: list[str], timeout_s: float):
        self._model, self._timeout_s = Path(model), timeout_s
        self._lock = threading.Lock()
        self._fault: EdgekitError | None = None
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  `_end` closes it
        # A session of its own: ctrl-c is for the parent, which ends the worker by closing its stdin.
        self._process = subprocess.Popen(
            [*command, str(_WORKER), str(self._model.absolute()), str(threads or 0)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, start_new_session=True, bufsize=0,
        )  # fmt: skip
        os.set_blocking(self._stdin.fileno(), False)
        self._finalizer = weakref.finalize(self, _end, self._process, self._stderr)
        try:
            described, _ = self._receive(time.monotonic() + timeout_s, "loading")
        except EdgekitError:
            self.close()
            raise
        self._inputs = {entry["name"]: _port(entry) for entry in described["inputs"]}
        self._outputs = {entry["name"]: _port(entry) for entry in described["outputs"]}
        self.inputs, self.outputs = list(self._inputs), list(self._outputs)
        self.ports = {**self._inputs, **self._outputs}

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the model.

        Raises:
            EdgekitError: an input is missing or of another dtype or shape, or the runtime failed, crashed or took too long.
        """
        with self._lock:
            if self._fault is not None:
                raise self._fault
            arrays = {name: self._checked(port, feeds) for name, port in self._inputs.items()}
            strange = sorted(set(feeds) - set(arrays))
            if strange:
                raise EdgekitError(f"{self._model}: there is no input `{strange[0]}`", f"inputs: {', '.join(self.inputs)}")
            deadline = time.monotonic() + self._timeout_s
            self._send(arrays, deadline)
            return self._receive(deadline, "running")[1]

    def close(self) -> None:
        """End the process; calling a closed session is an error."""
        self._fault = self._fault or EdgekitError(f"{self._model}: the session is closed")
        self._finalizer()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    def _checked(self, port: Port, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        import numpy as np

        if port.name not in feeds:
            raise EdgekitError(f"{self._model}: input `{port.name}` is missing", f"inputs: {', '.join(self.inputs)}")
        value = np.asarray(feeds[port.name], order="C")
        if (value.dtype.name, value.shape) != (port.dtype, port.shape):
            raise EdgekitError(f"{self._model}: input `{port.name}` is {value.dtype} {list(value.shape)}, the model takes {port.dtype} {list(port.shape)}")
        return value

    # ----------------------------------------------------------------------- messages

    def _send(self, arrays: Mapping[str, np.ndarray], deadline: float) -> None:
        entries = [{"name": name, "dtype": value.dtype.name, "shape": list(value.shape)} for name, value in arrays.items()]
        header = json.dumps({"arrays": entries}).encode()
        for part in (struct.pack("<I", len(header)) + header, *(value.tobytes() for value in arrays.values())):
            left = memoryview(part)
            while left:
                self._wait(self._stdin, select.POLLOUT, deadline, "running")
                try:
                    left = left[os.write(self._stdin.fileno(), left) :]
                except BrokenPipeError:
                    raise self._ended("running") from None

    def _receive(self, deadline: float, doing: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        import numpy as np

        (length,) = struct.unpack("<I", self._read(4, deadline, doing))
        header = json.loads(self._read(length, deadline, doing))
        if "error" in header:
            raise EdgekitError(f"{self._model}: tflite-runtime failed while {doing}: {header['error']}")
        arrays = {}
        for entry in header["arrays"]:
            dtype, shape = np.dtype(entry["dtype"]), entry["shape"]
            data = self._read(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize, deadline, doing)
            arrays[entry["name"]] = np.frombuffer(data, dtype).reshape(shape)
        return header, arrays

    def _read(self, size: int, deadline: float, doing: str) -> bytearray:
        stdout = self._process.stdout
        assert stdout is not None
        data = bytearray()
        while len(data) < size:
            self._wait(stdout, select.POLLIN, deadline, doing)
            chunk = os.read(stdout.fileno(), min(size - len(data), 1 << 20))
            if not chunk:
                raise self._ended(doing)
            data += chunk
        return data

    def _wait(self, pipe: IO[bytes], event: int, deadline: float, doing: str) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
            self._process.kill()
            raise self._failed(f"was still {doing} after {self._timeout_s:g} s and was ended")

    def _ended(self, doing: str) -> EdgekitError:
        """The process closed its pipe in the middle of something: say how it ended."""
        try:
            code = self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        how = f"exit code {code}" if code >= 0 else f"signal {_signal(-code)}"
        return self._failed(f"crashed while {doing} ({how})")

    def _failed(self, what: str) -> EdgekitError:
        """The error that this and every later call raises."""
        self._stderr.seek(0)
        said = tools.tail(self._stderr.read().decode(errors="replace"))
        self._fault = EdgekitError(f"{self._model}: tflite-runtime {what}" + (f":\n{said}" if said else ""))
        return self._fault


def _port(entry: Mapping[str, Any]) -> Port:
    return Port(entry["name"], entry["dtype"], tuple(entry["shape"]))


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _end(process: subprocess.Popen[bytes], stderr: IO[bytes]) -> None:
    """Close the pipes, which ends the worker; kill it if it does not."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    try:
        process.wait(2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    stderr.close()
