"""Runs one model with tflite-runtime for edgekit.backends.tflite.side, in an environment of its own.

Started as a program: `python -I side_worker.py MODEL THREADS`. Nothing of edgekit can be imported
here: the standard library, numpy < 2 and tflite_runtime only, Python 3.9 and later.

Messages, both ways, on stdin and stdout: a little-endian uint32 with the length of a JSON header,
the header {..., "arrays": [{"name", "dtype", "shape"}]}, then the bytes of those arrays, C order.
The first message is ours and describes the model; then each call is answered by outputs or `error`.
"""

from __future__ import annotations

import json
import os
import select
import struct
import sys
import threading


def main() -> None:
    model, threads = sys.argv[1], int(sys.argv[2]) or None
    # Messages get a descriptor of their own: a library that prints must not get between them.
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    threading.Thread(target=die_with_the_parent, daemon=True).start()
    try:
        runner, described = load(model, threads)
    except Exception as error:
        send(channel, {"error": said(error)})
        return
    send(channel, described)
    source = os.fdopen(0, "rb", buffering=0)
    while True:
        feeds = receive(source)
        try:
            outputs = runner(**feeds)
        except Exception as error:
            send(channel, {"error": said(error)})
        else:
            send(channel, {}, outputs)


def load(model, threads):
    """(callable, its description): inputs and outputs of the only signature, by name."""
    import numpy as np
    import tflite_runtime.interpreter as tflite

    interpreter = tflite.Interpreter(model_path=model, num_threads=threads)
    interpreter.allocate_tensors()
    signatures = list(interpreter.get_signature_list())
    if len(signatures) != 1:
        raise ValueError(f"the model has {len(signatures)} signatures, one is expected")
    runner = interpreter.get_signature_runner(signatures[0])

    def described(details):
        return [{"name": name, "dtype": np.dtype(d["dtype"]).name, "shape": [int(n) for n in d["shape"]]} for name, d in details.items()]

    return runner, {"inputs": described(runner.get_input_details()), "outputs": described(runner.get_output_details())}


def said(error):
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"


def die_with_the_parent():
    """End at once when the other end of stdin is closed, even in the middle of a long call."""
    poll = select.poll()
    poll.register(0, 0)  # no event is asked for: a hang-up is always reported
    poll.poll()
    os._exit(0)


def receive(source):
    import numpy as np

    header = json.loads(read(source, *struct.unpack("<I", read(source, 4))))
    arrays = {}
    for entry in header["arrays"]:
        dtype = np.dtype(entry["dtype"])
        count = int(np.prod(entry["shape"], dtype=np.int64))
        arrays[entry["name"]] = np.frombuffer(read(source, count * dtype.itemsize), dtype).reshape(entry["shape"])
    return arrays


def read(source, size):
    data = bytearray()
    while len(data) < size:
        chunk = source.read(min(size - len(data), 1 << 20))
        if not chunk:
            os._exit(0)
        data += chunk
    return bytes(data)


def send(channel, header, arrays=None):
    import numpy as np

    arrays = {name: np.asarray(value, order="C") for name, value in (arrays or {}).items()}
    entries = [{"name": name, "dtype": value.dtype.name, "shape": list(value.shape)} for name, value in arrays.items()]
    encoded = json.dumps({**header, "arrays": entries}).encode()
    channel.write(struct.pack("<I", len(encoded)) + encoded)
    for value in arrays.values():
        channel.write(value.tobytes())
    channel.flush()


if __name__ == "__main__":
    main()
