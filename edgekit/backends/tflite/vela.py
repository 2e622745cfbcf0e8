"""Vela, Arm's compiler for Ethos-U: an INT8 .tflite becomes one whose integer parts are NPU commands.

What Vela cannot place stays in the file as ordinary ops for the CPU, without an error. So where each
op went is read out of the file that it wrote: an op of ours that is still there runs on the CPU, one
that is gone is part of an NPU command stream. Its cycle and memory figures are estimates of its own
model of the NPU, the same on every host.
"""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit import tools
from edgekit.errors import EdgekitError, TargetError

TOOL = "vela"
TIMEOUT_S = 900.0
NPU, CPU = "npu", "cpu"
_CHECK_MODEL = Path(__file__).with_name("check.tflite")
_DEFAULTS = {"accelerator": "ethos-u65-256", "system_config": "Ethos_U65_High_End", "memory_mode": "Dedicated_Sram_384KB", "optimise": "Performance"}
# Columns of the summary file that say something about the model: sizes in KiB, cycles per inference.
_SUMMARY = {"sram_memory_used": "sram_kib", "dram_memory_used": "dram_kib", "nn_macs": "npu_macs", "cycles_npu": "npu_cycles", "cycles_total": "total_cycles", "core_clock": "clock_hz"}


def versions() -> dict[str, str | None]:
    """{"ethos-u-vela": installed version, or None}, from its files."""
    return {"ethos-u-vela": tools.version(TOOL)}


def install_hint() -> str:
    return tools.install_hint(TOOL)


def options(target: Mapping[str, Any]) -> dict[str, str]:
    """Vela's options for a target: those of `device.vela_*`, or the defaults for the i.MX 93."""
    device = target.get("device", {})
    return {name: str(device.get(f"vela_{name}", default)) for name, default in _DEFAULTS.items()}


def check_version(target: Mapping[str, Any]) -> None:
    """Refuse another Vela than the target's table was made for: what it places on the NPU differs between versions.

    Raises:
        ToolMissing: Vela is not installed.
        TargetError: names both versions.
    """
    wanted, installed = str(target["runtime"]["version"]), tools.version(TOOL)
    if installed is None:
        raise tools.missing(TOOL)
    if installed != wanted:
        raise TargetError(f"{target['name']}: Vela {wanted} is required, {installed} is installed", f"`{install_hint()}`, or correct `runtime` and `ops` in the target")


@dataclass(frozen=True)
class Compiled:
    """What Vela made of a model.

    Attributes:
        model: the .tflite for the device.
        placement: {output tensor of an op in the given model: "npu" or "cpu"}.
        cycles: {the same tensor: estimated NPU cycles}, for ops that Vela lists under their own name.
        summary: version, options, counts of ops, why some were left to the CPU, and Vela's estimates; for build.json.
    """

    model: Path
    placement: dict[str, str]
    cycles: dict[str, int]
    summary: dict[str, Any]


def compile(model: Path, out: Path, *, accelerator: str = _DEFAULTS["accelerator"], system_config: str = _DEFAULTS["system_config"],
            memory_mode: str = _DEFAULTS["memory_mode"], optimise: str = _DEFAULTS["optimise"], timeout_s: float = TIMEOUT_S) -> Compiled:  # fmt: skip
    """Compile the INT8 model at `model` into `out`/<stem>_vela.tflite.

    Args:
        accelerator, system_config, memory_mode, optimise: as `vela --help` names them.

    Raises:
        ToolMissing: Vela is not installed.
        EdgekitError: it refused the model, crashed, took too long, or left nothing on the NPU.
    """
    chosen = {"accelerator-config": accelerator, "system-config": system_config, "memory-mode": memory_mode, "optimise": optimise}
    with tempfile.TemporaryDirectory(prefix="vela-") as work:
        log = _run(model, Path(work), chosen, tools.command(TOOL), timeout_s)
        compiled = Path(work) / f"{model.stem}_vela.tflite"
        layers, sums = Path(work) / f"{model.stem}_per-layer.csv", list(Path(work).glob(f"{model.stem}_summary_*.csv"))
        if not (compiled.is_file() and layers.is_file() and len(sums) == 1):
            raise EdgekitError(f"{model}: Vela left {', '.join(sorted(path.name for path in Path(work).iterdir())) or 'nothing'}, expected a model and its two tables")
        placed = placement(model, compiled)
        counts = {where: sum(place == where for place in placed.values()) for where in (NPU, CPU)}
        if not counts[NPU]:
            raise EdgekitError(f"{model}: Vela placed none of its {counts[CPU]} ops on the NPU", "quantize it: the NPU takes integers only")
        summary = {"vela": tools.version(TOOL), **chosen, "npu_ops": counts[NPU], "cpu_ops": counts[CPU], "refused": _refused(log), "estimated": _summary(sums[0])}
        out.mkdir(parents=True, exist_ok=True)
        final = out / compiled.name
        shutil.copyfile(compiled, final)
        return Compiled(final, placed, _cycles(layers, placed), summary)


def check(where: Path) -> None:
    """Compile a small INT8 model with the Vela staged in `where`.

    Raises:
        EdgekitError: it fails, or does not place the one INT8 layer on the NPU.
    """
    chosen = {"accelerator-config": _DEFAULTS["accelerator"]}
    with tempfile.TemporaryDirectory(prefix="vela-") as work:
        _run(_CHECK_MODEL, Path(work), chosen, tools.command(TOOL, where), TIMEOUT_S)
        if b"ethos-u" not in (Path(work) / f"{_CHECK_MODEL.stem}_vela.tflite").read_bytes():
            raise EdgekitError(f"Vela {tools.version(TOOL, where)} places no op of {_CHECK_MODEL.name} on the NPU")


def _run(model: Path, work: Path, chosen: Mapping[str, str], python: list[str], timeout_s: float) -> str:
    """What Vela printed."""
    flags = [f"--{name}={value}" for name, value in chosen.items()]
    # Vela's own program is a two-line script with the environment's path in it, and we have moved that.
    program = "import sys; from ethosu.vela.vela import main; sys.argv[0] = 'vela'; sys.exit(main())"
    arguments = [*python, "-c", program, *flags, f"--output-dir={work}", "--verbose-performance", str(model.absolute())]
    try:
        ran = subprocess.run(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout_s, cwd=work)
        log, code = ran.stdout.decode(errors="replace"), ran.returncode
    except subprocess.TimeoutExpired:
        raise EdgekitError(f"{model}: Vela was still running after {timeout_s:g} s and was ended") from None
    if code != 0:
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        raise EdgekitError(f"{model}: Vela failed ({how}):\n{tools.tail(log)}")
    return log


def _refused(log: str) -> dict[str, int]:
    """{"kind of op: Vela's reason to leave it to the CPU": how many}, most frequent first."""
    found = re.findall(r"operator: (\w+), ofm: .*\nReason: (.+)", log)
    # A reason that names a tensor would count once for each.
    reasons = Counter(f"{kind}: {re.sub(r' *[(].*', '', reason)}" for kind, reason in found)
    return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))


def placement(original: Path, compiled: Path) -> dict[str, str]:
    """{output tensor of an op of `original`: where it went}.

    Raises:
        EdgekitError: tensors cannot be told apart by name.
    """
    ours = [names[0] for names in _outputs(original)]
    kept = {names[0] for names in _outputs(compiled)}
    strange = sorted(kept - set(ours)) or sorted({name for name in ours if ours.count(name) > 1})
    if strange:
        raise EdgekitError(f"{original}: cannot tell where Vela placed the op that writes `{strange[0]}`", "give every tensor of the model a name of its own")
    return {name: CPU if name in kept else NPU for name in ours}


def _outputs(model: Path) -> list[list[str]]:
    """Output tensors of every op that a CPU kernel runs, in all subgraphs."""
    from ai_edge_litert import schema_py_generated as schema

    read = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model.read_bytes(), 0))
    custom = {index for index, code in enumerate(read.operatorCodes) if code.customCode == b"ethos-u"}
    return [
        [graph.tensors[index].name.decode() for index in op.outputs]
        for graph in read.subgraphs for op in graph.operators if op.opcodeIndex not in custom
    ]  # fmt: skip


def _cycles(layers: Path, placement: Mapping[str, str]) -> dict[str, int]:
    """NPU cycles per op of ours. One op becomes several; they come before the one that writes the op's own output."""
    cycles: dict[str, int] = {}
    pending: dict[str, int] = {}
    with layers.open(newline="") as file:
        for row in csv.DictReader(file):
            kind, name = row["Original Operator"], row["Name"]
            pending[kind] = pending.get(kind, 0) + int(float(row["Op Cycles"]))
            if placement.get(name) == NPU:
                cycles[name] = cycles.get(name, 0) + pending.pop(kind)
    return cycles


def _summary(path: Path) -> dict[str, float]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {ours: round(float(rows[-1][theirs]), 6) for theirs, ours in _SUMMARY.items()}
