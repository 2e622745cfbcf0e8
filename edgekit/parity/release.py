"""Two bundles: what changed in recipe, target, data, model, accuracy, gates, parity, coverage, size and versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgekit.bundle import Bundle
from edgekit.parity.result import Change, ReleaseDiff

# Where things stand in manifest.json and report.json; a part is left out where neither bundle has it.
_MANIFEST = {"recipe": "recipe", "target": "target", "model": "model", "data": "data", "versions": "versions", "provenance": "provenance"}
_LONG = 200
_LEFT_OUT = ("log",)  # a training's log is no change of the release


def release_diff(a: Bundle, b: Bundle) -> ReleaseDiff:
    """Every difference, part by part; both bundles must have been verified.

    Raises:
        IntegrityError: a manifest or a report cannot be read.
    """
    first, second = _without_tables(a.manifest, b.manifest)
    changes = [Change(part, key, x, y) for part, name in _MANIFEST.items() for key, x, y in _changes(first.get(name), second.get(name))]
    changes += [Change("verdict", "verdict", first.get("verdict"), second.get("verdict"))] if first.get("verdict") != second.get("verdict") else []
    reports = a.report, b.report
    for part, read in (("accuracy", _accuracy), ("gates", _gates), ("parity", _parity), ("coverage", _coverage), ("size", _sizes)):
        changes += [Change(part, key, x, y) for key, x, y in _changes(read(reports[0]), read(reports[1]))]
    changes += [Change("size", "bundle bytes", x, y) for x, y in [(_bytes(first), _bytes(second))] if x != y]
    changes += [Change("files", name, x, y) for name, x, y in _files(first["files"], second["files"])]
    return ReleaseDiff(str(first.get("name")), str(second.get("name")), tuple(changes))


def _without_tables(*manifests: dict[str, Any]) -> list[dict[str, Any]]:
    """Two targets' op tables differ in a hundred places, which is no news; a table that changed under one name is."""
    targets = [manifest.get("target") or {} for manifest in manifests]
    if targets[0].get("name") == targets[1].get("name"):
        return list(manifests)
    return [{**manifest, "target": {key: value for key, value in target.items() if key != "spec"}} for manifest, target in zip(manifests, targets, strict=True)]


def _changes(a: Any, b: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, value in a, value in b) of every leaf that differs; None where it is not there."""
    if isinstance(a, Mapping) or isinstance(b, Mapping):
        x, y = (value if isinstance(value, Mapping) else {} for value in (a, b))
        for key in dict.fromkeys((*x, *y)):
            if key not in _LEFT_OUT:
                yield from _changes(x.get(key), y.get(key), f"{prefix}.{key}" if prefix else str(key))
    elif a != b:
        yield prefix, _short(a), _short(b)


def _short(value: Any) -> Any:
    text = value if isinstance(value, str) else None
    if text is not None and len(text) > _LONG:
        return f"{text[:_LONG]}…"
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)[:_LONG]


def _accuracy(report: Mapping[str, Any]) -> dict[str, Any]:
    """{metric.row: value}, and n."""
    rows = report.get("metrics", {})
    return {"clips": report.get("n"), **{f"{metric} ({row})": value for row, metrics in rows.items() for metric, value in metrics.items()}}


def _gates(report: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{gate['name']} {gate['kind']}": gate.get("verdict") for gate in report.get("gates", [])}


def _parity(report: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name} {key}": row.get(key) for name, row in report.get("parity", {}).items() for key in ("max_abs", "sqnr_db")}


def _coverage(report: Mapping[str, Any]) -> dict[str, Any]:
    coverage = report.get("coverage", {})
    skipped = {f"{engine}/{layer}": why for engine, layers in (coverage.get("skipped") or {}).items() if isinstance(layers, Mapping) for layer, why in layers.items()}
    return {"int8_macs": coverage.get("int8_macs"), "grade": coverage.get("grade"), **{f"float: {layer}": why for layer, why in skipped.items()}}


def _sizes(report: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{row} {key}": value for row, sizes in report.get("sizes", {}).items() if isinstance(sizes, Mapping) for key, value in sizes.items()}


def _bytes(manifest: Mapping[str, Any]) -> int:
    return sum(entry["size"] for entry in manifest["files"].values())


def _files(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Files that were added, removed or changed, by the start of their sha256."""
    for name in sorted({*a, *b}):
        x, y = (files[name]["sha256"][:12] if name in files else None for files in (a, b))
        if x != y:
            yield name, x, y
