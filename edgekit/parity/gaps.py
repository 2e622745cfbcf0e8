"""What a comparison does not show: what was simulated, not run or not covered. Every report ends with it."""

from __future__ import annotations

from collections.abc import Iterator

from edgekit.parity.conditions import CONDITIONS
from edgekit.parity.result import DIFFERS, Comparison, SideInfo

FEW_SAMPLES = 30
"""Below, a 95 % interval from resampling is a rough one."""


def gaps(found: Comparison) -> list[str]:
    """One sentence each, the weightiest first."""
    return [*_sides(found), *_data(found), *_outputs(found), *_streams(found)]


def _sides(found: Comparison) -> Iterator[str]:
    for name, side in (("A", found.a), ("B", found.b)):
        facts = side.facts
        if str(facts.get("computed", "")).startswith("simulated"):
            yield f"{name} was {facts['computed']}: the device's numbers computed on this machine; nothing of it was measured on the device ({facts.get('target', 'unknown')})"
        if facts.get("verdict") == "pending-device":
            yield f"{name}'s bundle is pending: its engines are still to be built and checked on the device"
        if side.kind == "recorded":
            yield f"{name} is a recording: what computed it, and with which versions, is not known here"
        yield from _coverage(name, side)


def _coverage(name: str, side: SideInfo) -> Iterator[str]:
    coverage = side.facts.get("coverage") or {}
    share, grade = coverage.get("int8_macs"), coverage.get("grade")
    if isinstance(share, int | float) and share < 0.9995:
        yield f"{100 * (1 - share):.1f} % of {name}'s MACs are not INT8 ({grade})"
    if grade == "declared":
        yield f"{name}'s INT8 coverage is declared by its graph, and was not read from a built engine"


def _data(found: Comparison) -> Iterator[str]:
    data = found.data
    if data is None:
        yield "no model was run: the two releases were compared by what their files and reports say"
        return
    if data.seed is not None:
        yield f"the inputs are random numbers (seed {data.seed}): they find a wrong layer, and say little about accuracy"
    if not found.metrics:
        yield "there are no labels: what the difference costs in accuracy is not known"
    elif data.samples < FEW_SAMPLES:
        yield f"{data.samples} labelled samples: the intervals are rough"
    if data.labels and not any(cell.condition in CONDITIONS for cell in found.conditions):
        yield "no harder condition was run (a silent microphone, a covered camera, blur, noise): `--conditions all`"


def _outputs(found: Comparison) -> Iterator[str]:
    for name, left_out in (("A", found.only_a), ("B", found.only_b)):
        if left_out:
            yield f"outputs of {name} that were not compared: {', '.join(left_out)}"
    defaults = [o.name for o in found.outputs if o.tolerance.why.startswith("default")]
    if defaults:
        yield f"the limits of {', '.join(defaults)} are defaults, and not the project's own"
    if found.verdict == DIFFERS and found.outputs and found.bisect is None:
        yield "the layers were not searched for the one where A and B part"


def _streams(found: Comparison) -> Iterator[str]:
    if found.stream is None:
        for name, side in (("A", found.a), ("B", found.b)):
            if side.states and found.outputs:
                yield f"{name}'s states started anew with every sample and were not carried: `--stream`"
        return
    yield from found.stream.notes
