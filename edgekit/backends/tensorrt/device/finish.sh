#!/bin/sh
# Builds this bundle's engines on the device, checks them there and records it:
#
#     sh finish.sh [--heldout FILE] [RESULT_FOLDER]
#
# Needs what JetPack brings (TensorRT, CUDA, g++, make), no Python and no network. Nothing in this folder is changed;
# all that is written goes to RESULT_FOLDER.part (default result.part) and becomes RESULT_FOLDER by one rename at the
# very end. Interrupt it whenever you like and run it again: what is done and still whole is kept.
# FILE holds the held-out clips (default heldout.tar, here or one folder up): without it the engines are checked on the
# golden clips only, and `edgekit adopt` has nothing to measure.
#
# Exit codes: 0 done, 2 usage, 3 the engines' answers are off, 4 the builder did not do what was asked, 5 a tool, space
# or the right device is missing, or another finish.sh is at work, 6 a file is missing or changed, 130 interrupted.
set -eu
LC_ALL=C
export LC_ALL
program=finish.sh

here=$(dirname "$0")
# shellcheck source=device.sh
. "$here/device.sh"

heldout=''
result=''
while [ "$#" -gt 0 ]; do
  case $1 in
    --heldout)
      [ "$#" -gt 1 ] || fail 2 "--heldout needs a file"
      heldout=$2
      shift 2
      ;;
    -*) fail 2 "unknown option $1; usage: sh finish.sh [--heldout FILE] [RESULT_FOLDER]" ;;
    *)
      [ -z "$result" ] || fail 2 "usage: sh finish.sh [--heldout FILE] [RESULT_FOLDER]"
      result=$1
      shift
      ;;
  esac
done
absolute() { case $1 in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }
[ -z "$heldout" ] || heldout=$(absolute "$heldout")
[ -z "$result" ] || result=$(absolute "$result")
cd "$here"
result=${result:-$PWD/result}
work=$result.part
case $PWD$result in
  *[[:space:]]*) fail 2 "make cannot work in a folder with a blank in its path: $PWD, $result" ;;
esac
if [ -z "$heldout" ]; then
  for file in "$PWD/heldout.tar" "$PWD/../heldout.tar" "$PWD/../$(value name passport.txt).heldout.tar"; do
    if [ -f "$file" ]; then heldout=$file && break; fi
  done
fi

# ---------------------------------------------------------------- the device, before anything is touched
[ -f passport.txt ] || fail 6 "passport.txt is missing: this is no whole bundle"
device=$(passport)
require passport.txt "$device" sm tensorrt cuda
every_file_is_whole
if [ -n "$heldout" ]; then
  [ -f "$heldout" ] || fail 2 "$heldout: no such file"
  sum=$(sha256sum <"$heldout")
  [ "${sum%% *}" = "$(value sha256 heldout.txt)" ] || fail 6 "$heldout is not the one that belongs to this bundle, or is damaged: sha256 ${sum%% *}, expected $(value sha256 heldout.txt)"
fi
for tool in make tar flock mv sync; do
  command -v "$tool" >/dev/null 2>&1 || fail 5 "$tool is missing"
done
kit=$(sha256sum <SHA256SUMS)
kit=${kit%% *}
engines=$(cut -f1 engines.txt)

# ---------------------------------------------------------------- helpers
cannot_write() { fail 5 "cannot write below $1: is there space left, and permission? Run it again then, it goes on where it stopped"; }

# A tool that failed on a full disk may not even have been able to say so.
require_space() {
  (printf '%65536s' ' ' >"$work/space.part") 2>/dev/null || cannot_write "$work"
  rm -f "$work/space.part"
}

# A child in the background, so that a signal reaches us at once and not after minutes of building.
child=
stop() {
  trap '' INT HUP TERM
  if [ -n "$child" ]; then
    kill -TERM "$child" 2>/dev/null || :
    wait "$child" 2>/dev/null || :
  fi
  echo "$program: interrupted; run it again to go on" >&2
  exit 130
}
trap stop INT HUP TERM

# logged LOG COMMAND...: its exit code; both its streams go to the log.
logged() {
  log=$1
  shift
  # The lock stays open in the child on purpose: if we are killed, a builder that still runs keeps a second run out.
  "$@" >"$log" 2>&1 &
  child=$!
  code=0
  wait "$child" || code=$?
  child=
  return "$code"
}

# try WHAT LOG COMMAND...: stop with the tool's own exit code and the end of its log.
try() {
  what=$1
  log=$2
  shift 2
  if logged "$log" "$@"; then return; fi
  require_space
  tail -n 20 "$log" >&2 || :
  case $code in
    2 | 3 | 4 | 5 | 6 | 130) ;;
    *) code=4 ;;
  esac
  fail "$code" "$what failed; its log is $log"
}

# is_done STEP: it was finished before and every file that it made is as it was.
is_done() {
  [ -f "$work/done/$1" ] && (cd "$work" && sha256sum -c --status "done/$1" 2>/dev/null)
}

# did STEP PATH...: note the sha256 of all files below these paths of the work folder.
did() {
  noted=$work/done/$1
  shift
  (cd "$work" && find "$@" -type f -exec sha256sum {} +) >"$noted.part" || cannot_write "$work"
  [ -s "$noted.part" ] || cannot_write "$work"
  mv "$noted.part" "$noted" || cannot_write "$work"
}

forget() { for step in "$@"; do rm -f "$work/done/$step" || cannot_write "$work"; done; }

number=0
total=$(($(echo "$engines" | wc -w) + 4))
[ -z "$heldout" ] || total=$((total + 2))
say() {
  number=$((number + 1))
  echo "[$number/$total] $*"
}

put() { # FILE TEXT
  printf '%s\n' "$2" >"$1.part" || cannot_write "$(dirname "$1")"
  mv "$1.part" "$1" || cannot_write "$(dirname "$1")"
}

# ---------------------------------------------------------------- one run at a time
parent=$(dirname "$result")
mkdir -p "$parent" || cannot_write "$parent"
# The file stays: a lock on a deleted file would keep nobody out. The kernel lets go of it when its holders are gone, however they went.
(: >>"$result.lock") 2>/dev/null || cannot_write "$parent"
exec 9<>"$result.lock"
flock -n 9 || fail 5 "another finish.sh is at work on $result; wait for it, or for the builder that it left behind"

is_whole() { (cd "$1" && sha256sum -c --status SHA256SUMS 2>/dev/null); }
if [ -e "$result" ]; then
  [ -f "$result/result.txt" ] || fail 2 "$result exists and is no result of finish.sh; move it away"
  [ "$(value kit "$result/result.txt")" = "$kit" ] || fail 2 "$result is the result of another bundle; move it away"
  had_heldout=$(value heldout "$result/result.txt")
  if is_whole "$result" && { [ "$had_heldout" != no ] || [ -z "$heldout" ]; } && [ "$(cat "$result/device.txt")" = "$device" ]; then
    echo "done before: $result"
    exit 0
  fi
  # Damaged, made on another device, or without the held-out clips: go on from what is still right.
  rm -rf "$work" || cannot_write "$parent"
  mv "$result" "$work" || cannot_write "$parent"
  rm -f "$work/SHA256SUMS" "$work/result.txt"
fi
if [ -d "$work" ] && { [ ! -f "$work/kit.txt" ] || [ "$(cat "$work/kit.txt")" != "$kit" ] || [ ! -f "$work/device.txt" ] || [ "$(cat "$work/device.txt")" != "$device" ]; }; then
  echo "starting over: $work is of another bundle or another state of this device"
  rm -rf "$work" || cannot_write "$parent"
fi
mkdir -p "$work/done" "$work/logs" || cannot_write "$parent"
put "$work/device.txt" "$device"
put "$work/kit.txt" "$kit"

# ---------------------------------------------------------------- our tool, compiled here
say "compile ek_trt"
tool=$work/bin/ek_trt
if ! is_done compile; then
  rm -rf "${work:?}/bin" || cannot_write "$work"
  mkdir "$work/bin" || cannot_write "$work"
  if ! logged "$work/logs/make.log" make -C "$PWD/ek_trt" "BUILD=$work/bin" ${TENSORRT_DIR:+"TENSORRT_DIR=$TENSORRT_DIR"} ${CUDA_DIR:+"CUDA_DIR=$CUDA_DIR"}; then
    require_space
    tail -n 20 "$work/logs/make.log" >&2 || :
    fail 5 "ek_trt cannot be compiled; see $work/logs/make.log"
  fi
  [ -x "$tool" ] || fail 5 "make left no $tool; see $work/logs/make.log"
  did compile bin
fi

# The libraries may be others than the headers: ask again the one that will do the work.
say "ask TensorRT and CUDA who they are"
if ! "$tool" version >"$work/version.json.part" 2>"$work/logs/version.log"; then
  require_space
  tail -n 20 "$work/logs/version.log" >&2 || :
  fail 5 "ek_trt version failed: TensorRT, CUDA or the GPU cannot be used; see $work/logs/version.log"
fi
mv "$work/version.json.part" "$work/version.json" || cannot_write "$work"
field() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" "$work/version.json" | sed -n 1p; }
require passport.txt "sm=$(field sm)
tensorrt=$(field tensorrt)
cuda=$(field cuda_runtime)" sm tensorrt cuda

# ---------------------------------------------------------------- the engines
made_one=no
for engine in $engines; do
  say "build $engine (minutes)"
  if ! is_done "build-$engine"; then
    made_one=yes
    # What was measured with the engine of before does not hold any more.
    forget golden-run golden-compare heldout-run heldout-compare "build-$engine"
    rm -rf "$work/engines/$engine" || cannot_write "$work"
    mkdir -p "$work/engines/$engine" || cannot_write "$work"
    set -- build --onnx "engines/$engine/model.onnx" --engine "$work/engines/$engine/model.engine" \
      --layers "$work/engines/$engine/layers.json" --report "$work/engines/$engine/build.json" --timing-cache "$work/timing.cache"
    # One argument a field: the kit's own, whose paths start here.
    arguments=$(sed -n "s/^$engine	//p" engines.txt)
    tab=$(printf '\t')
    old=$IFS
    IFS=$tab
    # shellcheck disable=SC2086
    set -- "$@" $arguments
    IFS=$old
    try "building $engine" "$work/logs/build-$engine.log" "$tool" "$@"
    for file in model.engine layers.json build.json; do
      [ -s "$work/engines/$engine/$file" ] || fail 4 "$engine: ek_trt left no $file; see $work/logs/build-$engine.log"
    done
    did "build-$engine" "engines/$engine"
  fi
done
[ "$made_one" = yes ] || echo "the engines are there already"

# check NAME INPUTS REFERENCE TOLERANCE WARM_UP REPEAT: run the flow on every clip, then compare.
check() {
  if ! is_done "$1-run"; then
    forget "$1-compare"
    rm -rf "${work:?}/$1" || cannot_write "$work"
    mkdir "$work/$1" "$work/$1/outputs" || cannot_write "$work"
    try "running the $1 clips" "$work/logs/$1-run.log" "$tool" run --flow flow.txt --engines "$work/engines" --inputs "$2" --outputs "$work/$1/outputs" --report "$work/$1/run.json" --warm-up "$5" --repeat "$6"
    [ -s "$work/$1/run.json" ] || fail 4 "ek_trt left no report on the $1 clips; see $work/logs/$1-run.log"
    did "$1-run" "$1/outputs" "$1/run.json"
  fi
  if ! is_done "$1-compare"; then
    try "comparing the $1 clips" "$work/logs/$1-compare.log" "$tool" compare --reference "$3" --outputs "$work/$1/outputs" --tolerance "$4" --report "$work/$1/compare.json"
    [ -s "$work/$1/compare.json" ] || fail 4 "ek_trt left no comparison of the $1 clips; see $work/logs/$1-compare.log"
    did "$1-compare" "$1/compare.json"
  fi
}

say "golden clips: run and compare"
check golden golden/inputs golden/reference golden/tolerance.txt 20 50

if [ -n "$heldout" ]; then
  say "held-out clips: unpack"
  if ! is_done heldout-run || ! is_done heldout-compare; then
    rm -rf "$work/clips" || cannot_write "$work"
    mkdir "$work/clips" || cannot_write "$work"
    if ! logged "$work/logs/unpack.log" tar -xf "$heldout" -C "$work/clips"; then
      tail -n 5 "$work/logs/unpack.log" >&2 || :
      cannot_write "$work"
    fi
    say "held-out clips: run and compare"
    check heldout "$work/clips/inputs" "$work/clips/reference" "$work/clips/tolerance.txt" 5 1
  else
    say "held-out clips: compared before"
  fi
fi

# ---------------------------------------------------------------- seal and publish
say "seal the result"
rm -rf "$work/clips" "${work:?}/bin" "$work/done/compile" || cannot_write "$work"
find "$work" -name '*.part' -type f -exec rm -f {} + || cannot_write "$work"
ran=no
[ -z "$heldout" ] || ran=$(value sha256 heldout.txt)
put "$work/result.txt" "kit=$kit
name=$(value name passport.txt)
heldout=$ran
finished=$(date -u +%Y-%m-%dT%H:%M:%SZ)"
(cd "$work" && find . -type f ! -path ./SHA256SUMS ! -path ./SHA256SUMS.part -exec sha256sum {} + | sed 's|  \./|  |' | sort -k 2) >"$work/SHA256SUMS.part" || cannot_write "$work"
mv "$work/SHA256SUMS.part" "$work/SHA256SUMS" || cannot_write "$work"
is_whole "$work" || cannot_write "$work"
sync
mv "$work" "$result" || cannot_write "$parent"
echo "done: $result. Take it to the build machine: edgekit adopt $(basename "$result")"
