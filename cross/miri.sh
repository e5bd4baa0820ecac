#!/usr/bin/env bash
# Runs what has unsafe code under Miri: the kernels of every level of x86-64 and 64-bit ARM against the scalar reference, the
# thread pool, and the bytes of a model file. Finds accesses out of bounds, bad alignment and data races. Needs a nightly
# toolchain with miri.
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

# kernels TARGET FEATURES
kernels() {
    RUSTFLAGS="-C target-feature=$2" cargo +nightly miri test --locked --target "$1" -p rwkv-edge-kernels --test kernels -- \
        compare:: wkv::wkv
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
# Miri runs on one core: all go side by side.
timed kernels aarch64-unknown-linux-gnu +dotprod,+i8mm >"$logs/1" 2>&1 &
jobs+=($!)
timed library >"$logs/2" 2>&1 &
jobs+=($!)
failed=
avx512=+avx512f,+avx512bw,+avx512vl,+avx512vnni
timed kernels x86_64-unknown-linux-gnu +avx2,+fma,+f16c,+avxvnni,$avx512 || failed=1
for job in "${jobs[@]}"; do wait "$job" || failed=1; done
jobs=()
cat "$logs"/*
[ -z "$failed" ]
