"""Running a flow: which engine gets what, how often, and what its states were last time.

`flow.json` is the definition that the device follows too. Flow tensors have no batch axis;
engine tensors always have batch 1 in front.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import numpy as np

from . import snr, spectrum
from .errors import EdgekitError

Session = Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]]
Tap = Callable[[str, dict[str, np.ndarray], Mapping[str, np.ndarray]], None]

# What the host computes: {step: (keys that name the tensors it reads, how)}. A step runs as soon as what it reads is there.
HOST = {
    "constant": ((), lambda step, tensors, memory: np.float32(step["value"])),
    "stft": (("from",), lambda step, tensors, memory: spectrum.before(step, tensors[step["from"]])),
    "masked_istft": (("spectrum", "masks"), lambda step, tensors, memory: spectrum.after(step, tensors[step["spectrum"]], tensors[step["masks"]])),
    "match": (("speech", "noisy"), snr.match_step),
    "snr": (("speech", "noisy"), snr.snr_step),
    "alpha": (("snr_db",), snr.alpha_step),
    "blend": (("share", "of", "rest"), snr.blend_step),
    "normalize": (("from",), snr.normalize_step),
}


def run_flow(
    flow: dict[str, Any],
    sessions: Mapping[str, Session],
    inputs: Mapping[str, np.ndarray],
    tap: Tap | None = None,
    memory: MutableMapping[str, Any] | None = None,
    also: MutableMapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Run every step of `flow` on one window, with what the host does around the engines (HOST; see edgekit.spectrum and edgekit.snr).

    Args:
        flow: the content of flow.json.
        sessions: {engine: callable(feeds) -> outputs}, tensors with batch 1.
        inputs: {flow input: array without batch axis}, shapes as in flow["inputs"].
        tap: called as tap(engine, feeds, outputs) after every single run of an engine.
        memory: what the host keeps from window to window of one stream, such as a moving average; {} before its first.
        also: is given every tensor of the flow, whatever its outputs are.

    Returns:
        {flow output: array without batch axis}.

    Raises:
        EdgekitError: an input is missing or has another shape, or a step names an unknown tensor.
    """
    tensors: dict[str, np.ndarray] = {}
    for name, want in flow["inputs"].items():
        if name not in inputs:
            raise EdgekitError(f"flow input `{name}` is missing", f"given: {', '.join(sorted(inputs)) or 'nothing'}")
        if list(np.shape(inputs[name])) != list(want["shape"]):
            raise EdgekitError(f"flow input `{name}` has shape {list(np.shape(inputs[name]))}, expected {list(want['shape'])}")
        tensors[name] = np.asarray(inputs[name], want["dtype"])

    waiting = [step for step in flow.get("host_steps", []) if step["step"] in HOST]
    kept = {} if memory is None else memory

    def host() -> None:
        for step in list(waiting):
            reads, compute = HOST[step["step"]]
            if all(step[key] in tensors for key in reads):
                tensors[step["give"]] = compute(step, tensors, kept)
                waiting.remove(step)

    for step in flow["steps"]:
        engine = step["engine"]
        host()
        run = stateful(flow, engine, sessions[engine], tap)
        fed = {port: _tensor(tensors, source, engine)[None] for port, source in step.get("feed", {}).items()}
        each = {port: _tensor(tensors, source, engine) for port, source in step.get("each", {}).items()}
        if not each:
            outputs = run(fed)
            for port, name in step["give"].items():
                tensors[name] = _without_batch(outputs[port], engine, port)
            continue
        lengths = {len(values) for values in each.values()}
        if len(lengths) != 1:
            raise EdgekitError(f"engine `{engine}`: `each` runs over axes of different lengths {sorted(lengths)}")
        if step.get("runs", *lengths) not in lengths:
            raise EdgekitError(f"engine `{engine}`: `runs` is {step['runs']}, `each` has length {lengths.pop()}")
        collected: dict[str, list[np.ndarray]] = {port: [] for port in step.get("stack", {})}
        outputs = {}
        for i in range(lengths.pop()):
            outputs = run({**fed, **{port: values[i][None] for port, values in each.items()}})
            for port, items in collected.items():
                items.append(_without_batch(outputs[port], engine, port))
        for port, name in step.get("stack", {}).items():
            tensors[name] = np.stack(collected[port])
        for port, name in step.get("give", {}).items():  # of the last run
            tensors[name] = _without_batch(outputs[port], engine, port)
    host()
    for step in waiting:
        for key in HOST[step["step"]][0]:
            _tensor(tensors, step[key], step["step"])
    if also is not None:
        also.update(tensors)
    return {name: _tensor(tensors, name, "flow outputs") for name in flow["outputs"]}


def task_of(flow: Mapping[str, Any]) -> str:
    """What the primary output is: "value" (one number a window), "classes" (a score for each class), "timeline" (numbers over time) or "speech" (a wave)."""
    return flow.get("task", "value")


def primaries(flow: Mapping[str, Any]) -> list[str]:
    """The outputs that a model is scored by: one, or several of a timeline."""
    names = flow["primary"]
    return [names] if isinstance(names, str) else list(names)


def title_of(flow: Mapping[str, Any]) -> str:
    """The scored outputs in one text, such as `o` or `valence, arousal`."""
    return ", ".join(primaries(flow))


def scored(flow: Mapping[str, Any], tensors: Mapping[str, np.ndarray], row: str = "") -> np.ndarray:
    """What the metrics of the flow's task take, clips first: [n], [n, C], [n, samples] or [n, T, D] with the D outputs in their order.

    Args:
        tensors: {row + output: [n, ...]}, or labels by the same names.
    """
    values = [np.asarray(tensors[f"{row}{name}"]) for name in primaries(flow)]
    return np.stack(values, axis=-1) if task_of(flow) == "timeline" else values[0]


class Live:
    """A flow as a live system runs it: engines run on what is new, and `keep` in its host steps holds the rest of the window.

    Example: with `{"step": "keep", "tensor": "clip_feature", "count": 7}` a window of 8 clips is answered with one run of the
    clip encoder, since the features of the other 7 are known. Answers equal `run_flow` on the same window.
    """

    def __init__(self, flow: dict[str, Any], sessions: Mapping[str, Session]):
        """
        Raises:
            EdgekitError: no step's output is kept, or what is kept comes from an engine with states.
        """
        self._flow, self._sessions = flow, sessions
        kept = {step["tensor"]: step["count"] for step in flow.get("host_steps", []) if step["step"] == "keep"}
        self._steps = [step for step in flow["steps"] if set(step.get("stack", {})) & set(kept)]
        if not self._steps:
            raise EdgekitError("flow.json: nothing is kept from window to window", "add `{step: keep, tensor, count}` to its host steps")
        for step in self._steps:
            if flow.get("states", {}).get(step["engine"]):
                raise EdgekitError(f"flow.json: `{step['engine']}` has states, so its outputs cannot be kept in place of running it")
        self._rings: dict[str, list[np.ndarray]] = {}
        self.runs: dict[str, int] = {}

    def reset(self) -> None:
        """Forget the window."""
        self._rings.clear()

    @property
    def inputs(self) -> list[str]:
        """The flow inputs that come piece by piece."""
        return [source for step in self._steps for source in step["each"].values()]

    def push(
        self, piece: Mapping[str, np.ndarray], whole: Mapping[str, np.ndarray] | None = None, memory: MutableMapping[str, Any] | None = None
    ) -> dict[str, np.ndarray] | None:
        """Take the newest element of every input that comes in pieces, and the other inputs whole.

        Args:
            piece: {flow input: its next element, without the axis that `each` runs over}.
            whole: the flow inputs that no kept step reads, of the window that ends now; may be left out until the window is full.
            memory: as `run_flow` takes it.

        Returns:
            the answer for the window that ends here; None until it is full.
        """
        for step in self._steps:
            missing = [name for name in step["each"].values() if name not in piece]
            if missing:
                raise EdgekitError(f"flow input `{missing[0]}` is missing", f"given: {', '.join(sorted(piece)) or 'nothing'}")
            outputs = self._sessions[step["engine"]]({port: np.asarray(piece[source], np.float32)[None] for port, source in step["each"].items()})
            self.runs[step["engine"]] = self.runs.get(step["engine"], 0) + 1
            for port, name in step["stack"].items():
                ring = self._rings.setdefault(name, [])
                ring.append(_without_batch(outputs[port], step["engine"], port))
                del ring[: max(0, len(ring) - self._length(step))]
        if any(len(self._rings[name]) < self._length(step) for step in self._steps for name in step["stack"].values()):
            return None
        rest = {**self._flow, "steps": [step for step in self._flow["steps"] if step not in self._steps]}
        ready = {name: np.stack(ring) for name, ring in self._rings.items()}
        others = {name: want for name, want in self._flow["inputs"].items() if name not in self.inputs}
        rest["inputs"] = {**others, **{name: {"shape": list(value.shape), "dtype": "float32"} for name, value in ready.items()}}
        return run_flow(rest, self._sessions, {**(whole or {}), **ready}, memory=memory)

    def _length(self, step: dict[str, Any]) -> int:
        """Elements in a window: what the input's first axis holds."""
        return int(self._flow["inputs"][next(iter(step["each"].values()))]["shape"][0])


def runs_per_window(flow: dict[str, Any]) -> dict[str, int]:
    """How often each engine runs for one window: {engine: runs}.

    A step whose `each` reads what an engine gave, whose length flow.json does not hold, says it in `runs`.

    Raises:
        EdgekitError: it does not.
    """
    runs: dict[str, int] = {}
    lengths = {name: want["shape"][0] for name, want in flow["inputs"].items() if want["shape"]}
    for step in flow["steps"]:
        each = list(step.get("each", {}).values())
        count = step.get("runs", lengths.get(each[0]) if each else 1)
        if count is None:
            raise EdgekitError(f"flow.json: engine `{step['engine']}` runs over `{each[0]}`, whose length is not known", "add `runs` to the step")
        for name in step.get("stack", {}).values():
            lengths[name] = count
        runs[step["engine"]] = runs.get(step["engine"], 0) + count
    return runs


def stateful(flow: dict[str, Any], engine: str, session: Session, tap: Tap | None) -> Session:
    """`session` with its states fed back from run to run, starting at their `init`."""
    pairs = flow.get("states", {}).get(engine, [])
    states = {pair["in"]: np.full(pair["shape"], pair["init"], np.float32) for pair in pairs}

    def run(feeds: dict[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        feeds = {**feeds, **states}
        outputs = session(feeds)
        if tap is not None:
            tap(engine, feeds, outputs)
        for pair in pairs:
            states[pair["in"]] = outputs[pair["out"]]
        return outputs

    return run


def _tensor(tensors: Mapping[str, np.ndarray], name: str, who: str) -> np.ndarray:
    if name not in tensors:
        raise EdgekitError(f"flow.json: `{who}` asks for `{name}`, which no earlier step gives")
    return tensors[name]


def _without_batch(value: np.ndarray, engine: str, port: str) -> np.ndarray:
    if np.shape(value)[:1] != (1,):
        raise EdgekitError(f"engine `{engine}`: output `{port}` has shape {list(np.shape(value))}, expected batch 1 in front")
    return value[0]
