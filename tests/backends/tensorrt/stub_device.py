"""A device that is none: a system root with JetPack's files, and `make` and `ek_trt` in sh that do as asked at once.

finish.sh is the shipped one. Every outside command that matters goes through a shim, which can stop at its nth call
(`pause`) and wait there while a test kills, changes or starts something, or fail as on a full disk (`full`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

HOOK = r"""
# hook NAME: counts the call; at the one that $STUB/fault names, stops there or fails.
hook() {
  echo "$1" >>"$STUB/trace"
  [ -f "$STUB/fault" ] || return 0
  read -r name nth kind <"$STUB/fault"
  [ "$1" = "$name" ] || return 0
  [ "$(grep -c -x -e "$name" "$STUB/trace")" = "$nth" ] || return 0
  if [ "$kind" = full ]; then
    FULL=yes
    return 0
  fi
  : >"$STUB/reached"
  while [ ! -f "$STUB/go" ] && [ -f "$STUB/fault" ]; do sleep 0.02; done
}
FULL=no
no_space() { echo "$1: No space left on device" >&2; exit 1; }
"""

SHIM = r"""#!/bin/sh
. "$STUB/hook.sh"
hook @NAME@
[ $FULL = no ] || no_space @NAME@
exec @REAL@ "$@"
"""

MAKE = r"""#!/bin/sh
. "$STUB/hook.sh"
hook make
for word; do
  case $word in BUILD=*) build=${word#BUILD=} ;; esac
done
if [ $FULL = yes ]; then
  printf '#!/bin/sh' >"$build/ek_trt"
  no_space make
fi
[ ! -f "$STUB/no_compiler" ] || { echo "make: g++: No such file or directory" >&2; exit 2; }
cp "$STUB/ek_trt" "$build/ek_trt"
chmod +x "$build/ek_trt"
"""

# As ek_trt, as far as finish.sh and `edgekit adopt` can see it. Answers are the reference's, so that they are right.
EK_TRT = r"""#!/bin/sh
set -e
. "$STUB/hook.sh"
command=$1
shift
all=$*
while [ "$#" -gt 0 ]; do
  case $1 in
    --onnx) onnx=$2 ;;
    --engine) engine=$2 ;;
    --layers) layers=$2 ;;
    --report) report=$2 ;;
    --inputs) inputs=$2 ;;
    --outputs) outputs=$2 ;;
    --reference) reference=$2 ;;
  esac
  shift
done
case $command in
  build) hook "build_$(basename "$(dirname "$engine")")" ;;
  run) hook "run_$(basename "$(dirname "$outputs")")" ;;
  compare) hook "compare_$(basename "$(dirname "$outputs")")" ;;
  *) hook "$command" ;;
esac
case $command in
  version)
    [ $FULL = no ] || no_space ek_trt
    cat "$STUB/version.json"
    ;;
  build)
    echo "build $all" >>"$STUB/calls"
    if [ $FULL = yes ]; then
      echo half >"$engine.part"
      echo "ek_trt: $engine: No space left on device" >&2
      exit 5
    fi
    [ ! -f "$STUB/refuses" ] || { echo "ek_trt: no implementation obeys the precision" >&2; exit 4; }
    echo '{"build_seconds": 1.5}' >"$report"
    cp "$STUB/layers/$(basename "$(dirname "$engine")").json" "$layers"
    { echo engine; sha256sum <"$onnx"; } >"$engine"
    [ ! -f "$STUB/empty" ] || : >"$engine"
    ;;
  run)
    echo "run $all" >>"$STUB/calls"
    answers=$(dirname "$inputs")/reference
    [ ! -f "$STUB/answers" ] || answers=$(cat "$STUB/answers")/$(basename "$(dirname "$outputs")")
    if [ $FULL = yes ]; then
      cp -r "$answers/$(ls "$answers" | sed -n 1p)" "$outputs/"
      echo "ek_trt: No space left on device" >&2
      exit 5
    fi
    cp -r "$answers/." "$outputs/"
    cat "$STUB/run.json" >"$report"
    ;;
  compare)
    [ $FULL = no ] || { echo "ek_trt: No space left on device" >&2; exit 5; }
    [ ! -f "$STUB/off" ] || { echo '{"failed": ["o"]}' >"$report"; echo "ek_trt: o is off" >&2; exit 3; }
    echo '{"outputs": {}, "failed": []}' >"$report"
    ;;
esac
"""

RUN = '{"latency_ms": {"p50": 4.0, "p99": 5.5, "mean": 4.1, "n": 100}, "device_memory_bytes": 52428800, "load_ms": 30.0, "power_mode": "MAXN", "clocks_khz": {"gpu": 1377000}, "engines": {}}'
SHIMS = ("sha256sum", "flock", "tar", "find", "sync", "mv", "uname")


@dataclass
class StubDevice:
    """A stub device in `root`. `kit` is where finish.sh stands."""

    root: Path
    kit: Path

    @classmethod
    def make(cls, root: Path, kit: Path, engines: list[str]) -> StubDevice:
        device = cls(root, kit)
        for folder in ("stub/layers", "bin", "system/proc/device-tree", f"system/usr/include/{os.uname().machine}-linux-gnu", "system/usr/local/cuda/include", "system/etc"):
            (root / folder).mkdir(parents=True)
        (device.stub / "hook.sh").write_text(HOOK)
        (device.stub / "run.json").write_text(RUN + "\n")
        for engine in engines:
            (device.stub / "layers" / f"{engine}.json").write_text('{"Layers": [{"Name": "x", "Inputs": []}]}\n')
        (device.stub / "ek_trt").write_text(EK_TRT)
        programs = {"make": MAKE, **{name: SHIM.replace("@NAME@", name).replace("@REAL@", str(shutil.which(name))) for name in SHIMS}}
        for name, text in programs.items():
            (root / "bin" / name).write_text(text)
            (root / "bin" / name).chmod(0o755)
        device.become()
        return device

    @property
    def stub(self) -> Path:
        return self.root / "stub"

    @property
    def system(self) -> Path:
        return self.root / "system"

    @property
    def result(self) -> Path:
        return self.kit / "result"

    def become(self, tensorrt: str = "8.5.2", cuda: int = 11040, chip: str = "tegra194", l4t: str = "3.1", board: str = "Jetson-AGX", library: str | None = None) -> None:
        """These versions from now on; `library`: what ek_trt finds at run time, if other than the headers."""
        major, minor, patch = tensorrt.split(".")
        header = self.system / f"usr/include/{os.uname().machine}-linux-gnu/NvInferVersion.h"
        header.write_text(f"#define NV_TENSORRT_MAJOR {major} //!< major\n#define NV_TENSORRT_MINOR {minor} //!< minor\n#define NV_TENSORRT_PATCH {patch} //!< patch\n#define NV_TENSORRT_BUILD 1\n")
        (self.system / "usr/local/cuda/include/cuda_runtime_api.h").write_text(f"#define CUDART_VERSION  {cuda}\n")
        (self.system / "proc/device-tree/compatible").write_bytes(b"nvidia,p2972-0000\0nvidia,%s\0" % chip.encode())
        (self.system / "proc/device-tree/model").write_bytes(board.encode() + b"\0")
        (self.system / "etc/nv_tegra_release").write_text(f"# R35 (release), REVISION: {l4t}, GCID: 1, BOARD: t186ref\n")
        sm = {"tegra194": "72", "tegra234": "87"}[chip]
        (self.stub / "version.json").write_text(
            f'{{"tensorrt": "{library or tensorrt}", "cuda_runtime": "{cuda // 1000}.{cuda % 1000 // 10}", "cuda_driver": "11.4", "device": "Xavier", "sm": "{sm}", "memory_bytes": 33517371392}}\n'
        )

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": f"{self.root / 'bin'}:{os.environ['PATH']}", "STUB": str(self.stub), "EK_ROOT": str(self.system), "HOME": str(self.root)}

    def start(self, *arguments: str) -> subprocess.Popen:
        """finish.sh in a group of its own, by dash where there is one: the strictest sh."""
        shell = shutil.which("dash") or "sh"
        return subprocess.Popen([shell, "finish.sh", *arguments], cwd=self.kit, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def finish(self, *arguments: str) -> subprocess.CompletedProcess:
        with self.start(*arguments) as process:
            out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def fault(self, point: str, nth: int, kind: str) -> None:
        """At the nth call of a command from now on: `pause` or `full`."""
        self.clear()
        (self.stub / "fault.new").write_text(f"{point.replace(' ', '_')} {nth} {kind}\n")
        (self.stub / "fault.new").rename(self.stub / "fault")

    def clear(self) -> None:
        for name in ("fault", "reached", "go", "trace"):
            (self.stub / name).unlink(missing_ok=True)

    def trace(self) -> list[str]:
        return (self.stub / "trace").read_text().splitlines() if (self.stub / "trace").is_file() else []

    def wait(self, process: subprocess.Popen) -> bool:
        """Until the fault's point is reached; False if the process ended before."""
        for _ in range(2000):
            if (self.stub / "reached").exists():
                return True
            if process.poll() is not None:
                return False
            time.sleep(0.01)
        raise AssertionError("neither reached nor ended")

    def go(self) -> None:
        (self.stub / "go").touch()


def kill_all(process: subprocess.Popen) -> None:
    """kill -9 of the script and all that it started, as a power cut does."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
