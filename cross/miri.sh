#!/usr/bin/env bash
# Runs the kernels' tests, scalar and AVX2, and the thread pool's under Miri: reads and writes out of bounds, alignment, races.
set -euo pipefail
cd "$(dirname "$0")/.."
export MIRIFLAGS="-Zmiri-disable-isolation"
RUSTFLAGS="-C target-feature=+avx2,+fma,+f16c" cargo +nightly miri test -p rwkv-edge-kernels
cargo +nightly miri test -p rwkv-edge --no-default-features --lib threads
