#!/usr/bin/env bash
# miri.sh [--avx512]: runs what has unsafe code under Miri: the AVX2, NEON, SDOT and SMMLA kernels against the scalar reference,
# the thread pool, and the bytes of a model file. Finds accesses out of bounds, bad alignment and data races. Needs a nightly
# toolchain with miri. `--avx512` runs the tiles and sparse products of AVX-512 and AVX-VNNI alone, which take minutes more; Miri
# lacks what their other products need.
#
# The tests take small shapes under Miri, each unsafe body once, and leave out those whose code is safe on every level.
set -euo pipefail
cd "$(dirname "$0")/.."
export MIRIFLAGS="-Zmiri-disable-isolation" RUST_BACKTRACE=0
logs=$(mktemp -d)

# A background job of a script ignores Ctrl-C. In a process group of its own it can be ended with all that it started.
set -m
jobs=()
finish() {
    local job
    for job in ${jobs[@]+"${jobs[@]}"}; do kill -- "-$job" 2>/dev/null || true; done
    rm -rf "$logs"
}
trap finish EXIT
trap 'exit 130' INT TERM

# kernels TARGET FEATURES TESTS...
kernels() {
    RUSTFLAGS="-C target-feature=$2" cargo +nightly miri test --locked --target "$1" -p rwkv-edge-kernels --test kernels -- \
        "${@:3}"
}

# The flag tells cargo too, so that it leaves out what Cargo.toml does not want here.
library() {
    RUSTFLAGS="--cfg miri" cargo +nightly miri test --locked -p rwkv-edge --lib -- \
        threads:: format::mapping format::round_trip::bytes
}

timed() {
    local started=$SECONDS
    "$@" || return
    echo "$*: $((SECONDS - started)) s"
}

for target in x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu; do
    cargo +nightly miri setup --target "$target"
done
tests=(compare:: wkv::wkv)
x86=+avx2,+fma,+f16c
if [ "${1:-}" = --avx512 ]; then
    timed kernels x86_64-unknown-linux-gnu $x86,+avxvnni,+avx512f,+avx512bw,+avx512vl,+avx512vnni \
        compare::matmul compare::sparse
    exit
fi
# Miri runs on one core: all go side by side.
timed kernels aarch64-unknown-linux-gnu +dotprod,+i8mm "${tests[@]}" >"$logs/1" 2>&1 &
jobs+=($!)
timed library >"$logs/2" 2>&1 &
jobs+=($!)
failed=
timed kernels x86_64-unknown-linux-gnu $x86 "${tests[@]}" || failed=1
for job in "${jobs[@]}"; do wait "$job" || failed=1; done
jobs=()
cat "$logs"/*
[ -z "$failed" ]
