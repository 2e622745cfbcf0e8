# What finish.sh and check.sh share: reading a passport, asking the device for its own, refusing. POSIX sh, sourced.
#
# EK_ROOT is put before every system path, for containers and tests. TENSORRT_DIR and CUDA_DIR say where those are if not in JetPack's places.

fail() { # CODE TEXT...
  code=$1
  shift
  echo "${program:-sh}: $*" >&2
  exit "$code"
}

# value KEY FILE: of a key=value file; empty if it is not there.
value() {
  sed -n "s/^$1=//p" "$2" | sed -n 1p
}

# TensorRT's headers: `#define NV_TENSORRT_MAJOR 8`; from 10 on that is another macro, which holds the number.
tensorrt_part() { # FILE MAJOR|MINOR|PATCH
  sed -n "s/^#define *\(NV_TENSORRT_$2\|TRT_$2_ENTERPRISE\) *\([0-9][0-9]*\).*/\2/p" "$1" | sed -n 1p
}

found_tensorrt() {
  for folder in ${TENSORRT_DIR:+"$TENSORRT_DIR/include"} "${EK_ROOT:-}/usr/include/$(uname -m)-linux-gnu" "${EK_ROOT:-}/usr/include"; do
    header=$folder/NvInferVersion.h
    [ -f "$header" ] || continue
    echo "$(tensorrt_part "$header" MAJOR).$(tensorrt_part "$header" MINOR).$(tensorrt_part "$header" PATCH)"
    return
  done
}

found_cuda() {
  header=${CUDA_DIR:-${EK_ROOT:-}/usr/local/cuda}/include/cuda_runtime_api.h
  [ -f "$header" ] || return 0
  number=$(sed -n 's/^#define *CUDART_VERSION *\([0-9][0-9]*\).*/\1/p' "$header" | sed -n 1p)
  [ -z "$number" ] || echo "$((number / 1000)).$((number % 1000 / 10))"
}

# Tegra chips by their name in the device tree; any other NVIDIA GPU says it itself.
found_sm() {
  tree=${EK_ROOT:-}/proc/device-tree/compatible
  if [ -f "$tree" ]; then
    for chip in $(tr '\0' '\n' <"$tree"); do
      case $chip in
        nvidia,tegra194) echo 72 && return ;;
        nvidia,tegra234) echo 87 && return ;;
      esac
    done
  fi
  if command -v nvidia-smi >/dev/null 2>&1; then
    nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sed -n '1s/\.//p'
  fi
}

found_board() {
  model=${EK_ROOT:-}/proc/device-tree/model
  if [ -f "$model" ]; then
    tr -d '\0' <"$model"
  elif command -v nvidia-smi >/dev/null 2>&1; then
    nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | sed -n 1p
  fi
}

found_l4t() {
  release=${EK_ROOT:-}/etc/nv_tegra_release
  [ -f "$release" ] || return 0
  sed -n '1s/.*R\([0-9][0-9]*\).*REVISION: *\([0-9.][0-9.]*\).*/\1.\2/p' "$release"
}

# The device's own passport, as key=value lines.
passport() {
  echo "sm=$(found_sm)"
  echo "tensorrt=$(found_tensorrt)"
  echo "cuda=$(found_cuda)"
  echo "board=$(found_board)"
  echo "l4t=$(found_l4t)"
}

# require FILE FOUND KEY...: every key that FILE has must be the same in the passport text FOUND.
require() {
  wanted=$1
  text=$2
  shift 2
  wrong=
  for key in "$@"; do
    expected=$(value "$key" "$wanted")
    [ -n "$expected" ] || continue
    found=$(printf '%s\n' "$text" | sed -n "s/^$key=//p" | sed -n 1p)
    [ "$found" = "$expected" ] || wrong="$wrong
  $key: expected $expected, found ${found:-none}"
  done
  [ -z "$wrong" ] || fail 5 "this is not the device that the bundle is for, so nothing of it was built or run$wrong"
}

# every_file_is_whole: SHA256SUMS of the current folder holds.
every_file_is_whole() {
  [ -f SHA256SUMS ] || fail 6 "SHA256SUMS is missing: this is no whole bundle"
  command -v sha256sum >/dev/null 2>&1 || fail 5 "sha256sum is missing"
  wrong=$(sha256sum -c SHA256SUMS 2>&1 | grep -v ': OK$') || return 0
  fail 6 "files are missing or have changed: get the bundle again
$wrong"
}
