#!/usr/bin/env bash
# Runs what has unsafe code under Miri: the AVX2, NEON, SDOT and SMMLA kernels against the scalar reference, and the thread pool.
# Finds accesses out of bounds, bad alignment and data races. Needs a nightly toolchain with miri.
set -euo pipefail
cd "$(dirname "$0")/.."
export MIRIFLAGS="-Zmiri-disable-isolation" RUST_BACKTRACE=0
arm_log=$(mktemp)
trap 'rm -f "$arm_log"' EXIT

# kernels TARGET FEATURES
kernels() {
    RUSTFLAGS="-C target-feature=$2" cargo +nightly miri test --target "$1" -p rwkv-edge-kernels --test kernels -- compare::
}

# Miri runs on one core: what takes longest goes beside the rest.
for target in x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu; do
    cargo +nightly miri setup --target "$target"
done
failed=
kernels aarch64-unknown-linux-gnu +dotprod,+i8mm >"$arm_log" 2>&1 &
kernels x86_64-unknown-linux-gnu +avx2,+fma,+f16c || failed=1
cargo +nightly miri test -p rwkv-edge --no-default-features --lib threads || failed=1
wait $! || failed=1
cat "$arm_log"
[ -z "$failed" ]
