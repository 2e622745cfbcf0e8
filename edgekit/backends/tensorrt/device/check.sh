#!/bin/sh
# Says whether this bundle's engines belong on this board:  sh check.sh [--golden]
#
# The engines were built and measured on a reference board; they run on boards of the same model with the same TensorRT
# and CUDA only. --golden also compiles ek_trt and runs the golden clips. Nothing in this folder is changed.
# Exit codes: 0 they belong here, 2 usage, 3 the answers are off, 5 another board or version, or a tool is missing, 6 a file is missing or changed.
set -eu
LC_ALL=C
export LC_ALL
program=check.sh # of device.sh's messages
case $#:${1:-} in
  0: | 1:--golden) ;;
  *)
    echo "usage: sh check.sh [--golden]" >&2
    exit 2
    ;;
esac
cd "$(dirname "$0")"
# shellcheck source=device.sh
. ./device.sh

[ -f passport.txt ] || fail 6 "passport.txt is missing: this is no whole bundle"
require passport.txt "$(passport)" sm tensorrt cuda board
every_file_is_whole
echo "passport and files are right: $(value board passport.txt), TensorRT $(value tensorrt passport.txt)"
[ "$#" = 1 ] || exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT HUP TERM
make -C "$PWD/ek_trt" "BUILD=$work" ${TENSORRT_DIR:+"TENSORRT_DIR=$TENSORRT_DIR"} ${CUDA_DIR:+"CUDA_DIR=$CUDA_DIR"} >"$work/make.log" 2>&1 || {
  tail -n 20 "$work/make.log" >&2
  fail 5 "ek_trt cannot be compiled"
}
"$work/ek_trt" run --flow flow.txt --engines engines --inputs golden/inputs --outputs "$work/outputs" --report "$work/run.json" --warm-up 5 --repeat 1
"$work/ek_trt" compare --reference golden/reference --outputs "$work/outputs" --tolerance golden/tolerance.txt --report "$work/compare.json"
echo "the golden clips get the answers that they got on the reference board, within golden/tolerance.txt"
