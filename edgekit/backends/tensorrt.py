"""TensorRT 8.5: the build kit for a device that builds its own engines.

TensorRT 8.5 reads scales from a calibration cache, a text file:

    TRT-8502-EntropyCalibration2
    <tensor name>: <8 hex digits of the big-endian float32 scale>

with scale = max|x| / 127 for activations. Weights get their scales inside TensorRT. trtexec takes
the cache by `--calib`, but when the file is missing it calibrates on noise without a word, and a
tensor without a scale quietly sends its layers back to float. So `build.sh` checks files before and
the log after, and an engine gets its name only when both are in order.

Sources: NVIDIA/TensorRT tag 8.5.2, samples/common/{sampleOptions,sampleEngines}.cpp, logging.h.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.backends import EngineKit, Kit
from edgekit.errors import DataError, EdgekitError
from edgekit.formats import write_json

CACHE_NAME = "calibration.cache"
ALGORITHM = "EntropyCalibration2"
# What trtexec and the cache can hold: they split on `,` `:` and `=`, and sh on everything else.
SAFE_NAME = re.compile(r"[A-Za-z0-9_./-]+")
_HEADER = re.compile(r"TRT-(\d{4,6})-(\w+)")
_LINE = re.compile(r"(.+): ([0-9a-f]{8})")


EXECUTES = False


def versions(target: Mapping[str, Any]) -> dict[str, str | None]:
    """None on the host: the engine is built on the device."""
    return {}


def problems(target: Mapping[str, Any]) -> list[str]:
    found = []
    if not str(target["runtime"]["version"]).startswith("8.5."):
        found.append(f"TensorRT {target['runtime']['version']}: only the 8.5 build kit exists")
    if target["build_on"] != "device":
        found.append(f"build_on: {target['build_on']}: the 8.5 kit is built on the device")
    return found


def version_number(version: str) -> str:
    """`8.5.2` -> `8502`: major * 1000 + minor * 100 + patch, as TensorRT prints it."""
    major, minor, patch = (int(part) for part in version.split(".")[:3])
    return str(major * 1000 + minor * 100 + patch)


# --------------------------------------------------------------------------- calibration cache


def write_cache(scales: Mapping[str, float], version: str) -> str:
    """The text of a calibration cache, in the order given.

    Raises:
        DataError: a name that the format cannot hold, or a scale that is not a positive number.
    """
    lines = [f"TRT-{version}-{ALGORITHM}"]
    for name, scale in scales.items():
        if not SAFE_NAME.fullmatch(name):
            raise DataError(f"{CACHE_NAME}: tensor name `{name}` cannot be written", "names are made of A-Z a-z 0-9 _ . / -")
        # struct rounds to float32; a scale must survive that as a positive, finite number
        try:
            packed = struct.pack("!f", scale)
        except OverflowError:
            packed = struct.pack("!f", float("inf"))
        if not 0 < struct.unpack("!f", packed)[0] < float("inf"):
            raise DataError(f"{CACHE_NAME}: scale {scale} of `{name}` is not a positive float32")
        lines.append(f"{name}: {packed.hex()}")
    return "\n".join(lines) + "\n"


def read_cache(text: str, where: str = CACHE_NAME) -> tuple[str, dict[str, float]]:
    """(TensorRT version such as `8502`, {tensor: scale}) of a cache's text.

    Raises:
        DataError: it is not a cache; the message has the line number.
    """
    lines = text.split("\n")
    header = _HEADER.fullmatch(lines[0])
    if header is None or header[2] != ALGORITHM:
        raise DataError(f"{where}:1: `{lines[0][:60]}` is not the header of a cache", f"expected TRT-<version>-{ALGORITHM}")
    if lines[-1] != "":
        raise DataError(f"{where}:{len(lines)}: the last line has no end", "the file is cut off")
    scales: dict[str, float] = {}
    for number, line in enumerate(lines[1:-1], start=2):
        match = _LINE.fullmatch(line)
        if match is None:
            raise DataError(f"{where}:{number}: `{line[:60]}` is not `name: 8 hex digits`")
        scale = struct.unpack("!f", bytes.fromhex(match[2]))[0]
        if not 0 < scale < float("inf"):
            raise DataError(f"{where}:{number}: scale {scale} of `{match[1]}` is not a positive number")
        if match[1] in scales:
            raise DataError(f"{where}:{number}: `{match[1]}` stands here twice")
        scales[match[1]] = scale
    return header[1], scales


def check_cache(text: str, version: str, tensors: Mapping[str, Any] | list[str], where: str = CACHE_NAME) -> None:
    """Refuse a cache of another version, or without a scale for one of `tensors`.

    Raises:
        DataError: says which.
    """
    found, scales = read_cache(text, where)
    if found != version:
        raise DataError(f"{where}:1: made for TensorRT {found}, expected {version}")
    missing = [name for name in tensors if name not in scales]
    if missing:
        raise DataError(f"{where}: no scale for {len(missing)} tensors, the first is `{missing[0]}`")


# --------------------------------------------------------------------------- the kit


def coverage(folder: Path, engine: EngineKit, target: Mapping[str, Any]) -> None:
    """Nothing is built here, so nothing can be read."""
    return None


def compile(kit: Kit, out: Path) -> None:
    """Write engines/<name>/{model.onnx, calibration.cache, precisions.json, int8_tensors.txt}, build.sh and build.json.

    Raises:
        EdgekitError: a name that trtexec's command line cannot carry.
    """
    # Here and not at the top: it needs numpy, and a plan asks this module for `problems`.
    from edgekit.quant import Numbers, scale_of

    numbers = Numbers.from_target(kit.target["numbers"])
    version = version_number(kit.target["runtime"]["version"])
    workspace_mib = kit.target["device"].get("workspace_mib", 1024)
    checks, commands, builds = [], [], {}
    for engine in kit.engines:
        folder = out / "engines" / engine.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(engine.float_onnx, folder / "model.onnx")
        precisions = _precisions(engine)
        scales = {name: scale_of(r, numbers).scale for name, r in engine.ranges.items()}
        text = write_cache(scales, version)
        check_cache(text, version, list(engine.ranges))
        (folder / CACHE_NAME).write_text(text, encoding="ascii", newline="\n")
        write_json(folder / "precisions.json", precisions)
        # For the log check in build.sh: a layer of ours loses INT8 if one of these has no scale.
        (folder / "int8_tensors.txt").write_text("".join(f"{name}\n" for name in scales), encoding="ascii", newline="\n")
        flags = _flags(engine, precisions, workspace_mib)
        files = [f"engines/{engine.name}/{name}" for name in ("model.onnx", CACHE_NAME, "int8_tensors.txt")]
        digests = {name: _sha256(out / name) for name in files}
        checks += [f"check {digest} '{name}'" for name, digest in digests.items()]
        commands.append(_command(engine.name, flags))
        builds[engine.name] = {"flags": flags, "sha256": digests, "int8_layers": len(engine.int8) + len(engine.fused), "fp32_layers": len(engine.fp32)}
    script = _SCRIPT.replace("@VERSION@", version).replace("@RUNTIME@", kit.target["runtime"]["version"]).replace("@CHECKS@", "\n".join(checks)).replace("@BUILDS@", "\n\n".join(commands))
    (out / "build.sh").write_text(script, encoding="ascii", newline="\n")
    (out / "build.sh").chmod(0o755)
    write_json(
        out / "build.json",
        {
            "backend": "tensorrt",
            "runtime": dict(kit.target["runtime"]),
            "build_on": kit.target["build_on"],
            "command": "sh build.sh [RESULT_FOLDER]",
            "engines": builds,
            "note": "a layer in INT8 may write INT8 or FP16, as the builder finds faster; the host simulates the latter",
        },
    )


def _precisions(engine: EngineKit) -> dict[str, str]:
    """{layer: precision}.

    Every layer that computes is named, rather than `*`: a default would also bind the parser's own
    layers, such as the inside of an LSTM's loop, and `obey` fails where one has no such kernel.
    Without a precision of its own, a layer between two tensors with scales might run in INT8.
    """
    precisions = {**dict.fromkeys(engine.fp16, "fp16"), **dict.fromkeys(engine.fp32, "fp32"), **dict.fromkeys((*engine.int8, *engine.fused), "int8")}
    for name in precisions:
        if not SAFE_NAME.fullmatch(name):
            raise EdgekitError(f"engine `{engine.name}`: layer name `{name}` cannot stand in a trtexec command")
    return precisions


def _flags(engine: EngineKit, precisions: Mapping[str, str], workspace_mib: int) -> list[str]:
    """trtexec's flags. Paths start at the kit's folder, except what is written: that goes to $work."""
    folder = f"engines/{engine.name}"
    flags = [f"--onnx={folder}/model.onnx", "--fp16"]
    if engine.int8:
        flags += ["--int8", f"--calib={folder}/{CACHE_NAME}"]
    if precisions:
        listed = ",".join(f"{name}:{precision}" for name, precision in precisions.items())
        flags += ["--precisionConstraints=obey", f"--layerPrecisions={listed}"]
    return [
        *flags,
        f"--memPoolSize=workspace:{workspace_mib}",
        "--profilingVerbosity=detailed",
        "--buildOnly",
    ]


def _command(name: str, flags: list[str]) -> str:
    """The line of build.sh that builds one engine."""
    if not SAFE_NAME.fullmatch(name):
        raise EdgekitError(f"engine name `{name}` cannot stand in a shell script")
    return " \\\n  ".join([f"build '{name}'", *(f"'{flag}'" for flag in flags)])


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


_SCRIPT = r"""#!/bin/sh
# Builds this bundle's TensorRT engines on the device:  sh build.sh [RESULT_FOLDER]
#
# Needs trtexec of TensorRT @RUNTIME@ (it calls itself @VERSION@), in $TRTEXEC, on the PATH or in /usr/src/tensorrt/bin.
# Leaves RESULT_FOLDER/<engine>/{model.engine,layers.json,build.log}; an engine is there only if
# every check passed. Exit codes: 2 usage, 4 the builder did not do what was asked,
# 5 a tool is missing or of another version, 6 a file is missing or changed.
set -eu
LC_ALL=C
export LC_ALL

if [ "$#" -gt 1 ]; then
  echo "usage: sh build.sh [RESULT_FOLDER]" >&2
  exit 2
fi
result=${1:-result}
case $result in
  /*) ;;
  *) result=$PWD/$result ;;
esac
cd "$(dirname "$0")"

work=
cleanup() { [ -z "$work" ] || rm -f "$work/model.engine.part" "$work/layers.json.part"; }
trap cleanup EXIT
trap 'exit 130' INT HUP TERM

fail() {
  code=$1
  shift
  echo "build.sh: $*" >&2
  exit "$code"
}

check() {
  [ -f "$2" ] || fail 6 "$2 is missing"
  have=$(sha256sum "$2") || fail 5 "sha256sum does not run"
  [ "${have%% *}" = "$1" ] || fail 6 "$2 has changed: sha256 ${have%% *}, expected $1"
}

find_trtexec() {
  if [ -n "${TRTEXEC:-}" ]; then
    [ -x "$TRTEXEC" ] || fail 5 "TRTEXEC=$TRTEXEC is not a program"
  elif command -v trtexec >/dev/null 2>&1; then
    TRTEXEC=$(command -v trtexec)
  elif [ -x /usr/src/tensorrt/bin/trtexec ]; then
    TRTEXEC=/usr/src/tensorrt/bin/trtexec
  else
    fail 5 "trtexec is missing; install libnvinfer-bin, or set TRTEXEC"
  fi
  version=$("$TRTEXEC" --help 2>&1 | sed -n 's/.*\[TensorRT v\([0-9]*\)\].*/\1/p' | sed -n 1p)
  [ -n "$version" ] || fail 5 "$TRTEXEC does not say its TensorRT version"
  [ "$version" = @VERSION@ ] || fail 5 "$TRTEXEC is of TensorRT $version, expected @VERSION@ (@RUNTIME@)"
}

# build ENGINE FLAG...
build() {
  name=$1
  shift
  work=$result/$name
  log=$work/build.log
  mkdir -p "$work" || fail 5 "cannot write to $work"
  rm -f "$work/model.engine" "$work/layers.json"
  echo "building $name (minutes)"
  if ! "$TRTEXEC" "$@" "--saveEngine=$work/model.engine.part" "--exportLayerInfo=$work/layers.json.part" >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    fail 4 "$name: trtexec failed; see $log"
  fi
  # Our cache was not read: scales would come from noise.
  if grep -q 'Starting Calibration' "$log"; then
    fail 4 "$name: TensorRT calibrated by itself instead of reading the cache; see $log"
  fi
  # A tensor without a scale sends the layers around it back to float. That is fine elsewhere.
  grep 'Missing scale' "$log" >"$work/missing.part" || :
  while IFS= read -r line; do
    tensor=${line##*for tensor }
    tensor=${tensor%%, expect*}
    if [ "$tensor" = "$line" ]; then
      rm -f "$work/missing.part"
      fail 4 "$name: cannot read which tensor has no scale: $line"
    fi
    if grep -Fqx -e "$tensor" "engines/$name/int8_tensors.txt"; then
      rm -f "$work/missing.part"
      fail 4 "$name: TensorRT has no scale for $tensor, which an INT8 layer uses; see $log"
    fi
  done <"$work/missing.part"
  rm -f "$work/missing.part"
  [ -s "$work/model.engine.part" ] || fail 4 "$name: trtexec wrote no engine; see $log"
  [ -s "$work/layers.json.part" ] || fail 4 "$name: trtexec wrote no layer information; see $log"
  mv "$work/layers.json.part" "$work/layers.json"
  mv "$work/model.engine.part" "$work/model.engine"
  echo "built $work/model.engine"
}

@CHECKS@
find_trtexec

@BUILDS@
"""
