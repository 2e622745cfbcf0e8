"""The build kit for TensorRT 8.5, for a device that builds its own engines.

trtexec takes the calibration cache by `--calib`, but when the file is missing it calibrates on noise
without a word, and a tensor without a scale quietly sends its layers back to float. So `build.sh`
checks files before and the log after, and an engine gets its name only when both are in order.

Sources: NVIDIA/TensorRT tag 8.5.2, samples/common/{sampleOptions,sampleEngines}.cpp, logging.h.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from edgekit.backends import EngineKit, Kit
from edgekit.backends.tensorrt.cache import CACHE_NAME, SAFE_NAME, check_cache, version_number, write_cache
from edgekit.errors import EdgekitError
from edgekit.formats import write_json


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
