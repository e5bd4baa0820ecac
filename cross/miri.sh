#!/usr/bin/env bash
# Runs what has unsafe code under Miri: the AVX2, NEON, SDOT and SMMLA kernels against the scalar reference, and the thread pool.
# Finds accesses out of bounds, bad alignment and data races. Needs a nightly toolchain with miri.
set -euo pipefail
cd "$(dirname "$0")/.."
export MIRIFLAGS="-Zmiri-disable-isolation" RUST_BACKTRACE=0
RUSTFLAGS="-C target-feature=+avx2,+fma,+f16c" cargo +nightly miri test -p rwkv-edge-kernels --test kernels -- compare::
RUSTFLAGS="-C target-feature=+dotprod,+i8mm" cargo +nightly miri test --target aarch64-unknown-linux-gnu -p rwkv-edge-kernels \
    --test kernels -- compare::
cargo +nightly miri test -p rwkv-edge --no-default-features --lib threads
