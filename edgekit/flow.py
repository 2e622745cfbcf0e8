"""Running a flow: which engine gets what, how often, and what its states were last time.

`flow.json` is the definition that the device follows too. Flow tensors have no batch axis;
engine tensors always have batch 1 in front.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .errors import EdgekitError

Session = Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]]
Tap = Callable[[str, dict[str, np.ndarray], Mapping[str, np.ndarray]], None]


def run_flow(
    flow: dict[str, Any],
    sessions: Mapping[str, Session],
    inputs: Mapping[str, np.ndarray],
    tap: Tap | None = None,
) -> dict[str, np.ndarray]:
    """Run every step of `flow` on one window.

    Args:
        flow: the content of flow.json.
        sessions: {engine: callable(feeds) -> outputs}, tensors with batch 1.
        inputs: {flow input: array without batch axis}, shapes as in flow["inputs"].
        tap: called as tap(engine, feeds, outputs) after every single run of an engine.

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

    for step in flow["steps"]:
        engine = step["engine"]
        run = _stateful(flow, engine, sessions[engine], tap)
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
    return {name: _tensor(tensors, name, "flow outputs") for name in flow["outputs"]}


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


def _stateful(flow: dict[str, Any], engine: str, session: Session, tap: Tap | None) -> Session:
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
